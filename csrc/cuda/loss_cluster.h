// Rows that no block can hold: the blocks of a cluster hold one together, in their shared memory,
// so that it is read once and its gradient written once. On sm_90 and later.
#pragma once

#include "loss_curve.h"

namespace d3pm::device {

// How a row is laid down: each block of its cluster has a part, and each thread vectors of that.
template <class Element>
struct Cluster {
  using Real = typename Memory<Element>::Real;
  static constexpr int kThreads = 256, kWarps = kThreads / kWarp;
  static constexpr int kWidth = Pack<Element>::kSize;
  static constexpr int kMostBlocks = 8;  // that every GPU with clusters has
  static constexpr int kSums = 2;        // that are folded at a time
  // Two of them, for a block may be one fold ahead of another.
  static constexpr size_t kFoldBytes = 2 * kMostBlocks * kWarps * kSums * sizeof(Real);

  int classes, blocks, part;
  bool aligned;

  Cluster(int64_t num_classes, std::initializer_list<const void*> starts)
      : classes(static_cast<int>(num_classes)),
        blocks(num_classes * sizeof(Element) <= 4 * (48 << 10) ? 4 : 8),
        part(static_cast<int>((num_classes + blocks * kWidth - 1) / (blocks * kWidth) * kWidth)) {
    uintptr_t bits = static_cast<uintptr_t>(num_classes) * sizeof(Element);
    for (const void* start : starts) bits |= reinterpret_cast<uintptr_t>(start);
    aligned = bits % 16 == 0;
  }

  size_t shared_bytes() const { return kFoldBytes + part * sizeof(Element); }
};

template <class Element, bool kHasPi>
struct LossOfClusterRow {
  using Layout = Cluster<Element>;
  using Real = typename Layout::Real;
  using M = Math<Real>;
  using Curve = LossCurve<Element, kHasPi>;
  static constexpr int kWidth = Layout::kWidth;

  const Loss& call;
  const LossVector<Real> vector;
  const Layout& layout;
  TokenRow<Real> token;
  const int mask, forbidden, rank;
  const int begin, end;  // classes of this block's part
  Real* const folds;
  Element* const staged;
  int fold_parity = 0;
  Real top = 0;

  __device__ LossOfClusterRow(const Loss& call, const LossVector<Real>& any_vector,
                              const Layout& layout, Real* shared)
      : call(call),
        vector(any_vector.template known<kHasPi>()),
        layout(layout),
        token(KnownToken<Real>(call, vector, blockIdx.x / layout.blocks),
              blockIdx.x / layout.blocks, true),
        mask(static_cast<int>(call.chain.mask_id)),
        forbidden(static_cast<int>(call.chain.forbidden)),
        rank(blockIdx.x % layout.blocks),
        begin(rank * layout.part < layout.classes ? rank * layout.part : layout.classes),
        end(begin + layout.part < layout.classes ? begin + layout.part : layout.classes),
        folds(shared),
        staged(reinterpret_cast<Element*>(reinterpret_cast<char*>(shared) + Layout::kFoldBytes)) {}

  __device__ void run() {
    if (token.settled) {
      if (call.grad) each_vector([&](int j) { write(j, [&](int) { return token.value; }); });
    } else {
      stage();
      cluster_sync();  // from here on all blocks are there
      sum_up();
      if (call.grad) write_gradient();
    }
    if (rank == 0 && threadIdx.x == 0) token.write_loss(call);
  }

 private:
  // Calls body(j) for the first classes of this thread's vectors.
  template <class Body>
  __device__ void each_vector(const Body& body) const {
#pragma unroll 1
    for (int j = begin + static_cast<int>(threadIdx.x) * kWidth; j < end;
         j += Layout::kThreads * kWidth)
      body(j);
  }

  // Calls body(e, pi) for exp(logit - top) of four classes at a time.
  template <class Body>
  __device__ void each_four(const Body& body) const {
    const Exponential<Real> exp(top);
    each_vector([&](int j) {
      Real x[kWidth];
      take(j, x);
#pragma unroll
      for (int i = 0; i < kWidth; i += 4) {
        Real e[4], pi[4];
#pragma unroll
        for (int k = 0; k < 4; ++k) e[k] = exp(x[i + k]), pi[k] = this->pi(j + i + k);
        body(e, pi);
      }
    });
  }

  __device__ Real pi(int j) const { return kHasPi && j < end ? vector.pi[j] : Real(0); }

  // Of this thread's own copies, -inf for classes apart, and behind the last.
  __device__ void stage() const {
    const Element* const row =
        static_cast<const Element*>(call.logits) + token.token * layout.classes;
    each_vector([&](int j) {
      if (layout.aligned)
        copy_async(staged + (j - begin), row + j);
      else
#pragma unroll
        for (int i = 0; i < kWidth; ++i)
          staged[j - begin + i] = j + i < end ? row[j + i] : Memory<Element>::narrow(-INFINITY);
    });
    wait_for_copies();
    for (const int j : {token.x0, token.x_t, mask, forbidden})
      if (is_own(j)) staged[j - begin] = Memory<Element>::narrow(-INFINITY);
  }

  // Whether a class is in this thread's part.
  __device__ bool is_own(int j) const {
    return j >= begin && j < end &&
           static_cast<unsigned>(j - begin) / kWidth % Layout::kThreads == threadIdx.x;
  }

  __device__ void take(int j, Real* to) const {
    const auto pack = *reinterpret_cast<const Pack<Element>*>(staged + (j - begin));
#pragma unroll
    for (int i = 0; i < kWidth; ++i) to[i] = pack.widened(i);
  }

  // What `fold` makes of numbers of all threads of the cluster: every warp tells its own to every
  // block.
  template <class Fold>
  __device__ void reduce(Real (&values)[Layout::kSums], Fold fold) {
    device::reduce(kWarp, values, fold);
    Real* const all = folds + fold_parity * Layout::kMostBlocks * Layout::kWarps * Layout::kSums;
    fold_parity ^= 1;
    const int warp = rank * Layout::kWarps + threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    if (lane < layout.blocks)
#pragma unroll
      for (int i = 0; i < Layout::kSums; ++i)
        put_in_block(all + warp * Layout::kSums + i, lane, values[i]);
    cluster_sync();
#pragma unroll
    for (int i = 0; i < Layout::kSums; ++i) {
      values[i] = all[lane * Layout::kSums + i];
      if (layout.blocks * Layout::kWarps > kWarp)
        values[i] = fold(values[i], all[(lane + kWarp) * Layout::kSums + i]);
    }
    device::reduce(kWarp, values, fold);
  }

  // Finds out all that the row says of the token.
  __device__ void sum_up() {
    const Real logit_x0 = logit(token.x0), logit_xt = logit(token.x_t);
    const Real logit_mask = token.has_mask_apart ? logit(mask) : Real(-INFINITY);
    Real tops[] = {Max()(Max()(logit_x0, logit_xt), logit_mask), Real(-INFINITY)};
    each_vector([&](int j) {
      Real x[kWidth];
      take(j, x);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) tops[i % 2] = Max()(tops[i % 2], x[i]);
    });
    reduce(tops, Max());
    top = Max()(tops[0], tops[1]);

    Real sums[] = {0, 0};
    each_four([&](const Real* e, const Real*) { sums[0] += e[0] + e[2], sums[1] += e[1] + e[3]; });
    reduce(sums, Sum());
    token.e_rest = sums[0] + sums[1];
    token.read(Exponential<Real>(top), logit_x0, logit_xt, logit_mask);
    token.solve();
    token.sum_h = token.sum_phi = 0;
    if (token.is_curved()) sum_over_rest();
    token.finish(mask >= 0);
  }

  __device__ Real logit(int j) const {
    const Element* const row =
        static_cast<const Element*>(call.logits) + token.token * layout.classes;
    return static_cast<unsigned>(j) < static_cast<unsigned>(layout.classes) && j != forbidden
               ? Memory<Element>::widen(row[j])
               : Real(-INFINITY);
  }

  __device__ void sum_over_rest() {
    const Curve curve(call, token);
    Real of_h[4] = {}, of_log = 0, m[4];
    each_four([&](const Real* e, const Real* pi) { curve.bend_four(e, pi, m, of_h, of_log); });
    Real sums[] = {(of_h[0] + of_h[1]) + (of_h[2] + of_h[3]), of_log};
    reduce(sums, Sum());
    token.sum_h = sums[0];

    const auto pi_of = [&](int j) {
      return kHasPi ? vector.pi[j] : static_cast<Real>(j >= 0 && j < layout.classes);
    };
    Real rest = (kHasPi ? Real(1) : static_cast<Real>(layout.classes)) - pi_of(token.x0);
    if (token.same == 0) rest -= pi_of(token.x_t);
    if (token.has_mask_apart) rest -= pi_of(mask);
    const Real of_shift = M::phi(curve.line.shift, curve.line.ratio);
    const bool keeps = curve.sum_phi(of_shift, rest, token.e_rest, sums[1], token.sum_phi);
    const bool has_four = !kHasPi && curve.has_products();
    if (!keeps && has_four) token.sum_phi = sum_phi_by_four(curve, rest, of_shift);
    if (!keeps && !has_four) token.sum_phi = sum_phi_by_one(curve);
    if (!kHasPi) token.sum_phi *= static_cast<Real>(vector.uniform);
  }

  __device__ Real sum_phi_by_four(const Curve& curve, Real count, Real of_shift) {
    Real sum = 0;
    int there = 0;
    each_four([&](const Real* e, const Real*) { sum += curve.phi_of_four(e, there); });
    Real sums[] = {sum, static_cast<Real>(there)};
    reduce(sums, Sum());
    return curve.with_zeros(sums[0], count - sums[1], of_shift);
  }

  __device__ Real sum_phi_by_one(const Curve& curve) {
    const Exponential<Real> exp(top);
    Real sums[] = {0, 0};
    each_vector([&](int j) {
#pragma unroll 1
      for (int i = 0; i < kWidth; ++i, ++j) {
        if (j >= end || j == token.x0 || j == token.x_t || j == mask) continue;
        const Real e = exp(Memory<Element>::widen(staged[j - begin]));
        sums[0] += curve.phi(e, kHasPi ? vector.pi[j] : Real(1));
      }
    });
    reduce(sums, Sum());
    return sums[0];
  }

  __device__ void write_gradient() {
    const Real factor = call.factor<Real>();
    const Exponential<Real> exp(top);
    const Curve curve(call, token);
    const LossSlope<Element, kHasPi> slope(token, curve, factor);
    each_vector([&](int j) {
      Real x[kWidth];
      take(j, x);
      write(j, [&](int i) {
        const Real e = exp(x[i]), pi = this->pi(j + i);
        return slope(e, curve.m(e, pi), pi);
      });
    });
    // One may be another, the first of these.
    put(mask, token.grad_mask * factor);
    put(token.x_t, token.grad_xt * factor);
    put(token.x0, token.grad_x0 * factor);
  }

  __device__ Element* grad() const {
    return static_cast<Element*>(call.grad) + token.token * layout.classes;
  }

  // Writes a vector of of(0), of(1) and so on.
  template <class Of>
  __device__ void write(int j, const Of& of) const {
    Pack<Element> pack;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) pack.values[i] = Memory<Element>::narrow(of(i));
    if (layout.aligned) {
      *reinterpret_cast<Pack<Element>*>(grad() + j) = pack;
    } else {
#pragma unroll
      for (int i = 0; i < kWidth; ++i)
        if (j + i < end) grad()[j + i] = pack.values[i];
    }
  }

  // By the thread that has written the class as one of the rest.
  __device__ void put(int j, Real value) const {
    if (is_own(j)) grad()[j] = Memory<Element>::narrow(value);
  }
};

template <class Element, bool kHasPi>
__global__ void __launch_bounds__(Cluster<Element>::kThreads, 1)
    loss_of_cluster_rows(const Loss call, const LossVector<typename Memory<Element>::Real> vector,
                         const Cluster<Element> layout) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  D3PM_DYNAMIC_SHARED(typename Memory<Element>::Real, shared);
  LossOfClusterRow<Element, kHasPi>(call, vector, layout, shared).run();
#endif
}

}  // namespace d3pm::device
