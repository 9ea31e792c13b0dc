// The loss of rank-one chains and its gradient on a GPU: one read of the logits and one write of
// the gradient. A row of few classes is one thread's, in shared memory; a longer one lies in the
// registers of a part of a warp, a warp or a block; the longest are read three times.

#include "../loss_token.h"
#include "rows.h"

namespace d3pm::device {

#include "../loss_row.h"

// A token, and its mathematics where it is not settled before its row is read.
template <class Real>
struct TokenRow : LossRow<Math<Real>> {
  using M = Math<Real>;

  int64_t token;
  int x0 = 0, x_t = 0;
  bool inside, settled = true, has_mask_apart = false;
  Real value = 0;  // of a settled token's loss and of all its gradient
  Real factor = 1;

  __device__ TokenRow(const Loss& call, int64_t token)
      : token(token), inside(token < call.chain.num_tokens) {
    if (inside && call.counts<Real>(token)) look_up(call);
  }

  // Takes in the row's largest logit and the sum of exp(logit - top) over the rest.
  __device__ void predict(Real top, Real e_rest, Real logit_x0, Real logit_xt, Real logit_mask) {
    this->read(top, logit_x0, logit_xt, has_mask_apart ? logit_mask : Real(-INFINITY));
    this->e_rest = e_rest;
    this->solve();
  }

  __device__ void write_loss(const Loss& call) const {
    Real* const to = static_cast<Real*>(call.loss) + token * call.num_results();
    *to = settled ? value : this->loss;
    if (!call.with_terms) return;
    const Real weight = call.weights.of<Real>(token);
    to[1] = settled ? value : weight * this->bound();
    to[2] = settled ? value : weight * this->cross_entropy;
  }

 private:
  __device__ void look_up(const Loss& call) {
    const Chain& chain = call.chain;
    value = NAN;
    const int64_t from = call.x0[token], to = call.x_t[token];
    const StepCoefficients* const found = chain.step(token / chain.run_length);
    if (!found || !chain.may_be_data(from) || !chain.is_class(to)) return;
    x0 = static_cast<int>(from);
    x_t = static_cast<int>(to);
    const int mask = static_cast<int>(chain.mask_id);
    has_mask_apart = mask >= 0 && mask != x0 && mask != x_t;

    const LossStep<Real> step(call, *found);
    const Vector<Real> vector = chain.template vector<Real>();
    const Real weight = call.weights.of<Real>(token);
    const LossToken<Real> of(step, vector, call.model.posterior_mean, x0, x_t, weight);
    settled = of.settled;
    value = of.value;
    this->keep = step.keep;
    this->bar_keep = step.bar_keep;
    this->bar_base = step.bar_base;
    this->tilt = static_cast<Real>(of.tilt);
    this->vb = of.vb;
    this->ce = of.ce;
    this->diverges = of.diverges;
    this->is_direct = step.predicts_x0;
    const auto pi = [&](int j) { return static_cast<Real>(vector(1, 0, j)); };
    LossRow<M>::look_up(x0, x_t, mask, pi(x0), pi(x_t), mask < 0 ? Real(0) : pi(mask), step.base,
                        step.to_mask, step.bar_to_mask, step.is_density);
    factor = call.factor<Real>();
  }
};

// The sum of phi(g) of four, given y = 1 + g: with G = y y y y - 1 it is phi(G) less G - sum g.
__device__ inline float phi_of_four(const float (&g)[4], const float (&y)[4]) {
  const float sum_01 = g[0] + g[1], sum_23 = g[2] + g[3];
  const float cross_01 = g[0] * g[1], cross_23 = g[2] * g[3];
  const float g_01 = sum_01 + cross_01, g_23 = sum_23 + cross_23, cross = g_01 * g_23;
  const float all = (g_01 + g_23) + cross, product = (y[0] * y[1]) * (y[2] * y[3]);
  const auto s = split_log<Math<float>>(all, all > -0.5f ? 1 + all : product);
  const float beyond = (cross_01 + cross_23) + cross;
  const float less = s.exponent == 0 ? -beyond : (sum_01 + sum_23) - s.x;
  return (less - s.exponent * kLn2Low) - s.exponent * kLn2High + s.curve;
}

__device__ inline double phi_of_four(const double (&g)[4], const double (&y)[4]) {
  double sum = 0;
  for (int k = 0; k < 4; ++k) sum += Math<double>::phi(g[k], y[k]);
  return sum;
}

// The line of a token's rest. `pi` is null where all are the same.
//
// In y = ratio (1 + u) only u = lift e depends on the class, and h = (tilt + u) / (1 + u). So where
// all pi are the same, the sum of phi over n classes is n phi(shift) + slope sum e - sum log(1 +
// u), with a logarithm for four classes. That is used where it does not cancel.
template <class Element>
struct LossCurve {
  using Real = typename Memory<Element>::Real;
  using M = RowMath<Element>;
  const Real* pi;
  Real weight;  // K where all are the same, and what sum_phi is divided by; else 1
  LossLine<Math<Real>> line;
  Real lift, tilt;

  __device__ LossCurve(const Loss& call, const TokenRow<Real>& token)
      : pi(static_cast<const Real*>(call.chain.pi)),
        weight(pi ? Real(1) : static_cast<Real>(call.chain.num_classes)),
        line(token.line(weight)),
        lift(line.slope / line.ratio),
        tilt(line.shift / line.ratio) {}

  // pi phi(g) of a class, with 1 for pi where all are the same.
  __device__ Real phi(Real e, int j) const {
    const Real of = pi ? pi[j] : Real(1);
    const auto at = point(e, j);
    return of > 0 ? of * M::phi(at.g, at.y) : line.slope * e;
  }

  __device__ Real h(Real e, int j) const {
    if (!pi) return h_of(lift * e);
    const auto at = point(e, j);
    return at.g * M::reciprocal(at.y);
  }

  __device__ Real h_of(Real u) const { return (tilt + u) * M::reciprocal(1 + u); }

  // The sum of phi over so many classes, in `sum`, from those of e and of log(1 + u). False where
  // too many digits cancel, or a product of four 1 + u may be out of range.
  __device__ bool sum_phi(int count, Real sum_e, Real sum_log, Real& sum) const {
    const Real of_shift = static_cast<Real>(count) * M::phi(line.shift, line.ratio);
    const Real whole = of_shift + line.slope * sum_e;
    sum = whole - sum_log;
    return has_products() && sum > whole / 16 && sum > static_cast<Real>(count) / 128;
  }

  // Whether all pi are the same, and a product of four y or of four 1 + u is in range.
  __device__ bool has_products() const {
    const Real high = Real(1e9);
    return !pi && lift < high && line.ratio * high > 1 && line.ratio + line.slope < high;
  }

  // The sum of phi over those of four classes that count; for has_products().
  template <class Counts>
  __device__ Real phi_of_four(const Real* e, const Counts& counts) const {
    Real g[4], y[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const LossPoint<Math<Real>> at(line, counts(k) ? e[k] : Real(0));
      g[k] = counts(k) ? at.g : Real(0);
      y[k] = counts(k) ? at.y : Real(1);
    }
    return device::phi_of_four(g, y);
  }

 private:
  __device__ LossPoint<Math<Real>> point(Real e, int j) const {
    return pi ? LossPoint<Math<Real>>(line, e, pi[j]) : LossPoint<Math<Real>>(line, e);
  }
};

// A block's rows; e of a class apart, or beyond the end, is 0. Where `kWhole`, all pi are the same
// and the row stays in registers: the more of it a thread holds, the fewer do the mathematics of
// its token. Other rows are read three times.
template <class Element, bool kWhole>
struct LossOfRows {
  static constexpr int kTimes = kWhole && sizeof(Element) < 8 ? 2 : 1;
  static constexpr int kNumbers = kTimes * kMostNumbers<Element>;
  using BlockRows = Rows<Element, kNumbers>;
  using Real = typename BlockRows::Real;
  using M = RowMath<Element>;

  const Loss& call;
  const BlockRows& rows;
  TokenRow<Real> token;
  const Element* const row;
  Element* const grad;
  const int num_logits, mask, forbidden;
  Real top = 0;
  Real e[kNumbers];

  __device__ LossOfRows(const Loss& call, const BlockRows& rows)
      : call(call),
        rows(rows),
        token(call, rows.row()),
        row(static_cast<const Element*>(call.logits) + token.token * call.num_logits),
        grad(static_cast<Element*>(call.grad) + token.token * call.num_logits),
        num_logits(static_cast<int>(call.num_logits)),
        mask(static_cast<int>(call.chain.mask_id)),
        forbidden(static_cast<int>(call.chain.forbidden)) {}

  __device__ void run() {
    if (!rows.all(token.settled)) read_row();
    if (!token.inside) return;
    if (rows.is_first_thread()) token.write_loss(call);
    if (call.grad) token.settled ? write_value() : write_gradient();
  }

 private:
  // Finds out all that the row says of the token.
  __device__ void read_row() {
    const Real logit_x0 = logit(token.x0), logit_xt = logit(token.x_t);
    const Real logit_mask = token.has_mask_apart ? logit(mask) : Real(-INFINITY);
    Real largest = Max()(Max()(logit_x0, logit_xt), logit_mask);
    rows.each_part([&](int start) {
      read(start);
#pragma unroll
      for (int i = 0; i < kNumbers; ++i) largest = Max()(largest, e[i]);
    });
    largest = rows.reduce(largest, Max());
    if (!token.settled) top = largest;

    Real e_rest = 0;
    rows.each_part([&](int start) {
      exponentiate(start);
#pragma unroll
      for (int i = 0; i < kNumbers; ++i) e_rest += e[i];
    });
    e_rest = rows.reduce(e_rest, Sum());
    if (!token.settled) token.predict(top, e_rest, logit_x0, logit_xt, logit_mask);
    sum_over_rest();
    if (!token.settled) token.finish();
  }

  __device__ Real logit(int j) const {
    return token.settled ? Real(0) : BlockRows::logit(row, j, num_logits, forbidden);
  }

  __device__ uint64_t apart(int start) const {
    return rows.place(token.x0 - start) | rows.place(token.x_t - start) | rows.place(mask - start);
  }

  __device__ void read(int start) {
    rows.read(row, start, token.settled ? 0 : num_logits, e);
    BlockRows::hide(apart(start) | rows.place(forbidden - start), e);
  }

  // Turns logits, which are still there where the row is whole, into exp(logit - top).
  __device__ void exponentiate(int start) {
    if (!kWhole) read(start);
#pragma unroll
    for (int i = 0; i < kNumbers; ++i) e[i] = M::exp(e[i] - top);
  }

  __device__ void sum_over_rest() {
    const LossCurve<Element> curve(call, token);
    const bool is_curved = !token.settled && token.is_curved();
    Real sum_phi = 0, sum_h = 0, sum_log = 0;
    if (is_curved && kWhole) add_by_products(curve, sum_h, sum_log);
    if (is_curved && !kWhole) {
      rows.each_part([&](int start) {
        exponentiate(start);
        const uint64_t apart = this->apart(start);
        rows.each_number(start, [&](int i, int j) {
          if (j >= num_logits) return;
          sum_h += e[i] * curve.h(e[i], j);
          if (!(apart >> i & 1)) sum_phi += curve.phi(e[i], j);
        });
      });
    }
    token.sum_h = rows.reduce(sum_h, Sum());
    if (kWhole) {
      sum_log = rows.reduce(sum_log, Sum());
      const bool keeps = !is_curved || curve.sum_phi(num_rest(), token.e_rest, sum_log, sum_phi);
      if (!rows.all(keeps)) {
        Real exact = 0;
        if (!keeps) exact = curve.has_products() ? sum_by_fours(curve) : sum_of_phi(curve);
        exact = rows.reduce(exact, Sum());
        if (!keeps) sum_phi = exact;
      }
    } else {
      sum_phi = rows.reduce(sum_phi, Sum());
    }
    token.sum_phi = sum_phi / curve.weight;
  }

  // Adds e h and log(1 + u) of the row.
  __device__ void add_by_products(const LossCurve<Element>& curve, Real& sum_h,
                                  Real& sum_log) const {
#pragma unroll
    for (int i = 0; i < kNumbers; i += 4) {
      Real product = 1;
#pragma unroll
      for (int k = i; k < i + 4; ++k) {
        const Real u = curve.lift * e[k];
        sum_h += e[k] * curve.h_of(u);
        product *= 1 + u;
      }
      sum_log += M::log(product);
    }
  }

  // Class by class, of which a thread has every so many.
  __device__ Real sum_of_phi(const LossCurve<Element>& curve) const {
    Real sum = 0;
    for (int j = threadIdx.x & (rows.threads - 1); j < num_logits; j += rows.threads)
      if (j != token.x0 && j != token.x_t && j != mask) sum += curve.phi(M::exp(logit(j) - top), j);
    return sum;
  }

  __device__ Real sum_by_fours(const LossCurve<Element>& curve) const {
    const uint64_t apart = this->apart(0);
    Real sum = 0;
#pragma unroll
    for (int i = 0; i < kNumbers; i += 4) {
      const int j = rows.first(0, i / BlockRows::kWidth) + i % BlockRows::kWidth;
      sum += curve.phi_of_four(
          e + i, [&](int k) { return !(apart >> (i + k) & 1) && j + k < num_logits; });
    }
    return sum;
  }

  __device__ int num_rest() const {
    return num_logits - 1 - (token.x_t != token.x0 && token.x_t < num_logits) -
           (token.has_mask_apart && mask < num_logits);
  }

  __device__ void write_value() {
#pragma unroll
    for (int i = 0; i < kNumbers; ++i) e[i] = token.value;
    rows.each_part([&](int start) { rows.write(grad, start, num_logits, e); });
  }

  __device__ void write_gradient() {
    const Real steep = token.steep * token.factor, flat = token.flat * token.factor;
    const LossCurve<Element> curve(call, token);
    rows.each_part([&](int start) {
      if (!kWhole) exponentiate(start);
      if (token.is_curved()) {
        rows.each_number(start, [&](int i, int j) {
          const bool is_there = kWhole || j < num_logits;
          const Real h = kWhole     ? curve.h_of(curve.lift * e[i])
                         : is_there ? curve.h(e[i], j)
                                    : Real(0);
          e[i] *= steep * h + flat;
        });
      } else {
#pragma unroll
        for (int i = 0; i < kNumbers; ++i) e[i] *= steep + flat;
      }
      rows.write(grad, start, num_logits, e);
      // One may be another, the first of these.
      put(mask, start, token.grad_mask);
      put(token.x_t, start, token.grad_xt);
      put(token.x0, start, token.grad_x0);
    });
  }

  // By the thread that has written the class as one of the rest.
  __device__ void put(int j, int start, Real value) const {
    if (rows.place(j - start) && j < num_logits)
      grad[j] = Memory<Element>::narrow(value * token.factor);
  }
};

template <class Element, bool kWhole>
__global__ void __launch_bounds__(kMostThreads, 1)
    loss_of_rows(const Loss call, const typename LossOfRows<Element, kWhole>::BlockRows rows) {
  LossOfRows<Element, kWhole>(call, rows).run();
}

// As many as fit 48 KiB of shared memory, what a block has without asking.
template <class Real>
constexpr int kFewClasses = sizeof(Real) == 8 ? 32 : 64;
constexpr int kRowsOfFew = 128;

// A thread a row, in shared memory in steps of an odd number of words, free of bank conflicts.
// `inverse` is 2^20 / K rounded up for an even K, else 0.
template <class Element>
__global__ void __launch_bounds__(kRowsOfFew, 1)
    loss_of_few_classes(const Loss call, const int inverse) {
  using Real = typename Memory<Element>::Real;
  using M = RowMath<Element>;
  constexpr int kWidth = Pack<Element>::kSize;
  D3PM_DYNAMIC_SHARED(Real, shared);
  const int classes = static_cast<int>(call.num_logits), stride = classes | 1;
  const int64_t begin = int64_t{blockIdx.x} * kRowsOfFew;
  const int64_t left = call.chain.num_tokens - begin;
  const int count = static_cast<int>(left < kRowsOfFew ? left : kRowsOfFew) * classes;
  const Element* const logits = static_cast<const Element*>(call.logits) + begin * classes;

  const auto at = [=](int i) -> Real& { return shared[i + (i * inverse >> 20)]; };
  const bool in_row = inverse == 0 || classes % kWidth == 0;
  // Calls body(k, place) for the numbers of the vector that begins with number i.
  const auto each_of_vector = [&](int i, const auto& body) {
    if (in_row) {
      Real* const first = &at(i);
#pragma unroll
      for (int k = 0; k < kWidth; ++k) body(k, first[k]);
    } else {
#pragma unroll
      for (int k = 0; k < kWidth; ++k) body(k, at(i + k));
    }
  };
  // Calls vector(i) for the vectors of aligned rows, and one(i) for what is left.
  const auto each_vector = [&](const Element* rows, const auto& vector, const auto& one) {
    const bool aligned = reinterpret_cast<uintptr_t>(rows) % 16 == 0;
    const int end = aligned ? count / kWidth * kWidth : 0;
    for (int i = threadIdx.x * kWidth; i < end; i += kRowsOfFew * kWidth) vector(i);
    for (int i = end + threadIdx.x; i < count; i += kRowsOfFew) one(i);
  };
  each_vector(
      logits,
      [&](int i) {
        const auto pack = *reinterpret_cast<const Pack<Element>*>(logits + i);
        each_of_vector(i,
                       [&](int k, Real& place) { place = Memory<Element>::widen(pack.values[k]); });
      },
      [&](int i) { at(i) = Memory<Element>::widen(logits[i]); });
  __syncthreads();

  TokenRow<Real> token(call, begin + threadIdx.x);
  Real* const e = shared + threadIdx.x * stride;
  if (token.inside && token.settled) {
    for (int j = 0; j < classes; ++j) e[j] = token.value;
    token.write_loss(call);
  } else if (token.inside) {
    const int x0 = token.x0, x_t = token.x_t, mask = static_cast<int>(call.chain.mask_id);
    const auto is_there = [=](int64_t j) { return j >= 0 && j < classes; };
    const auto take = [=](int64_t j) { return is_there(j) ? e[j] : Real(-INFINITY); };
    const auto put = [=](int64_t j, Real value) {
      if (is_there(j)) e[j] = value;
    };
    put(call.chain.forbidden, -INFINITY);
    const Real logit_x0 = take(x0), logit_xt = take(x_t), logit_mask = take(mask);
    Real top = -INFINITY;
    for (int j = 0; j < classes; ++j) top = Max()(top, e[j]);
    for (const int j : {x0, x_t, mask}) put(j, -INFINITY);
    Real e_rest = 0;
    for (int j = 0; j < classes; ++j) e_rest += e[j] = M::exp(e[j] - top);
    token.predict(top, e_rest, logit_x0, logit_xt, logit_mask);

    const LossCurve<Element> curve(call, token);
    Real sum_phi = 0, sum_h = 0, sum_log = 0;
    if (token.is_curved()) {
      for (int j = 0; j < classes && curve.pi; ++j) sum_h += e[j] * curve.h(e[j], j);
      for (int j = 0; j < classes && !curve.pi; j += 4) {
        Real product = 1;
#pragma unroll
        for (int k = j; k < j + 4; ++k) {
          if (k >= classes) continue;
          const Real u = curve.lift * e[k];
          sum_h += e[k] * curve.h_of(u);
          product *= 1 + u;
        }
        sum_log += M::log(product);
      }
      const int rest = classes - is_there(x0) - (x_t != x0 && is_there(x_t)) -
                       (token.has_mask_apart && is_there(mask));
      const auto counts = [=](int j) { return j != x0 && j != x_t && j != mask && j < classes; };
      if (!curve.sum_phi(rest, e_rest, sum_log, sum_phi)) {
        sum_phi = 0;
        const bool by_fours = curve.has_products();
        for (int j = 0; j < classes && by_fours; j += 4)
          sum_phi += curve.phi_of_four(e + j, [=](int k) { return counts(j + k); });
        for (int j = 0; j < classes && !by_fours; ++j)
          if (counts(j)) sum_phi += curve.phi(e[j], j);
      }
    }
    token.sum_phi = sum_phi / curve.weight;
    token.sum_h = sum_h;
    token.finish();
    token.write_loss(call);
    const Real steep = token.steep * token.factor, flat = token.flat * token.factor;
    const auto scale = [=](const auto& slope) {
      for (int j = 0; j < classes; ++j) e[j] *= slope(j);
    };
    if (!token.is_curved())
      scale([=](int) { return steep + flat; });
    else if (curve.pi)
      scale([&](int j) { return steep * curve.h(e[j], j) + flat; });
    else
      scale([&](int j) { return steep * curve.h_of(curve.lift * e[j]) + flat; });
    put(mask, token.grad_mask * token.factor);
    put(x_t, token.grad_xt * token.factor);
    put(x0, token.grad_x0 * token.factor);
  }
  if (!call.grad) return;
  __syncthreads();
  Element* const grad = static_cast<Element*>(call.grad) + begin * classes;
  each_vector(
      grad,
      [&](int i) {
        Pack<Element> pack;
        each_of_vector(
            i, [&](int k, Real& place) { pack.values[k] = Memory<Element>::narrow(place); });
        *reinterpret_cast<Pack<Element>*>(grad + i) = pack;
      },
      [&](int i) { grad[i] = Memory<Element>::narrow(at(i)); });
}

// Starts the kernel for the number of classes.
template <class Element>
const char* launch(const Loss& call, void* on) {
  using Real = typename Memory<Element>::Real;
  const auto stream = static_cast<cudaStream_t>(on);
  const int64_t tokens = call.chain.num_tokens, classes = call.num_logits;
  if (classes <= kFewClasses<Real>) {
    const int64_t blocks = (tokens + kRowsOfFew - 1) / kRowsOfFew;
    const size_t bytes = kRowsOfFew * (static_cast<size_t>(classes) | 1) * sizeof(Real);
    const int inverse = classes % 2 ? 0 : (1 << 20) / static_cast<int>(classes) + 1;
    D3PM_LAUNCH((loss_of_few_classes<Element>), blocks, kRowsOfFew, bytes, stream, call, inverse);
    return last_error();
  }
  const auto start = [&](auto kernel, const auto& rows) {
    D3PM_LAUNCH(kernel, rows.blocks(tokens), rows.block(), 0, stream, call, rows);
    return last_error();
  };
  const typename LossOfRows<Element, true>::BlockRows whole(classes, {call.logits, call.grad});
  if (!call.chain.pi && whole.is_whole()) return start(loss_of_rows<Element, true>, whole);
  const typename LossOfRows<Element, false>::BlockRows rows(classes, {call.logits, call.grad});
  return start(loss_of_rows<Element, false>, rows);
}

template const char* launch<D3PM_ELEMENT>(const Loss&, void*);

}  // namespace d3pm::device
