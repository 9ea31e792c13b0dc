// The loss of rank-one chains and its gradient on a GPU: one read of the logits and one write of
// the gradient. A row of few classes is one thread's, in shared memory; a longer one lies in the
// registers of a part of a warp, a warp or a block; the longest are read three times.

#include "../loss_token.h"
#include "rows.h"

namespace d3pm::device {

#include "../loss_row.h"

// A class that LossRow treats on its own has e = -1: it is in no sum.
constexpr int kApart = -1;

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

// The line of a token's rest. `pi` is null where all are the same.
template <class Real>
struct LossCurve {
  using M = Math<Real>;
  const Real* pi;
  Real weight;  // K where all are the same, and what sum_phi is divided by; else 1
  LossLine<M> line;

  __device__ LossCurve(const Loss& call, const TokenRow<Real>& token)
      : pi(static_cast<const Real*>(call.chain.pi)),
        weight(pi ? Real(1) : static_cast<Real>(call.chain.num_classes)),
        line(token.line(weight)) {}

  // Adds pi phi(g) and e h of a class, with 1 for pi where all are the same.
  __device__ void add(Real e, int64_t j, Real& sum_phi, Real& sum_h) const {
    const Real of = pi ? pi[j] : Real(1);
    const LossPoint<M> at = point(e, j);
    sum_phi += of > 0 ? of * M::phi(at.g, at.y) : line.slope * e;
    sum_h += e * (at.g / at.y);
  }

  __device__ Real h(Real e, int64_t j) const {
    const LossPoint<M> at = point(e, j);
    return at.g / at.y;
  }

 private:
  __device__ LossPoint<M> point(Real e, int64_t j) const {
    return pi ? LossPoint<M>(line, e, pi[j]) : LossPoint<M>(line, e);
  }
};

// A block's rows in registers. Rows longer than what the registers hold are read three times.
template <class Element>
struct LossOfRows {
  static constexpr int kNumbers = kMostNumbers<Element>;
  using BlockRows = Rows<Element, kNumbers>;
  using Real = typename BlockRows::Real;
  using M = Math<Real>;

  const Loss& call;
  const BlockRows& rows;
  TokenRow<Real> token;
  const Element* const row;
  const int64_t num_logits;
  Real e[kNumbers];

  __device__ LossOfRows(const Loss& call, const BlockRows& rows)
      : call(call),
        rows(rows),
        token(call, rows.row()),
        row(static_cast<const Element*>(call.logits) + token.token * call.num_logits),
        num_logits(call.num_logits) {}

  __device__ void run() {
    const bool is_whole = rows.is_whole();
    Real top = -INFINITY;
    rows.each_part([&](int64_t start) {
      read(start);
      for (int i = 0; i < kNumbers; ++i) top = Max()(top, e[i]);
    });
    top = rows.reduce(top, Max());
    if (token.settled) top = 0;

    Real e_rest = 0;
    rows.each_part([&](int64_t start) {
      exponentiate(start, top, is_whole);
      for (int i = 0; i < kNumbers; ++i) e_rest += e[i] < 0 ? Real(0) : e[i];
    });
    e_rest = rows.reduce(e_rest, Sum());
    if (!token.settled)
      token.predict(top, e_rest, logit(token.x0), logit(token.x_t),
                    logit(token.has_mask_apart ? call.chain.mask_id : token.x0));

    const LossCurve<Real> curve(call, token);
    Real sum_phi = 0, sum_h = 0;
    if (!token.settled && token.is_curved()) {
      rows.each_part([&](int64_t start) {
        if (!is_whole) read(start), exponentiate(start, top, true);
        rows.each_number(start, [&](int i, int64_t j) {
          if (e[i] >= 0) curve.add(e[i], j, sum_phi, sum_h);
        });
      });
    }
    token.sum_phi = rows.reduce(sum_phi, Sum()) / curve.weight;
    token.sum_h = rows.reduce(sum_h, Sum());
    if (!token.settled) token.finish();
    if (!token.inside) return;
    if (rows.is_first_thread()) token.write_loss(call);
    if (call.grad) write_gradient(curve, top, is_whole);
  }

 private:
  __device__ Real logit(int64_t j) const {
    return BlockRows::logit(row, j, num_logits, call.chain.forbidden);
  }

  __device__ void read(int64_t start) {
    rows.read_logits(row, start, token.settled ? 0 : num_logits, call.chain.forbidden, e);
  }

  // Turns logits, read anew where they are not there any more, into exp(logit - top).
  __device__ void exponentiate(int64_t start, Real top, bool are_there) {
    if (!are_there) read(start);
    const int64_t mask = call.chain.mask_id;
    rows.each_number(start, [&](int i, int64_t j) {
      const bool apart = j == token.x0 || j == token.x_t || j == mask || j >= num_logits;
      e[i] = apart ? Real(kApart) : M::exp(e[i] - top);
    });
  }

  __device__ void write_gradient(const LossCurve<Real>& curve, Real top, bool is_whole) {
    Element* const grad = static_cast<Element*>(call.grad) + token.token * num_logits;
    const Real steep = token.steep * token.factor, flat = token.flat * token.factor;
    rows.each_part([&](int64_t start) {
      if (!is_whole) read(start), exponentiate(start, top, true);
      rows.each_number(start, [&](int i, int64_t j) {
        e[i] = token.settled || j >= num_logits
                   ? token.value
                   : special(j, e[i] * (steep * curve.h(e[i], j) + flat));
      });
      rows.write(grad, start, num_logits, e);
    });
  }

  __device__ Real special(int64_t j, Real of_rest) const {
    if (j == token.x0) return token.grad_x0 * token.factor;
    if (j == token.x_t) return token.grad_xt * token.factor;
    if (j == call.chain.mask_id) return token.grad_mask * token.factor;
    return of_rest;
  }
};

template <class Element>
__global__ void __launch_bounds__(kMostThreads, 1)
    loss_of_rows(const Loss call, const typename LossOfRows<Element>::BlockRows rows) {
  LossOfRows<Element>(call, rows).run();
}

// As many as fit 48 KiB of shared memory, what a block has without asking.
template <class Real>
constexpr int kFewClasses = sizeof(Real) == 8 ? 32 : 64;
constexpr int kRowsOfFew = 128;

// A thread a row, in shared memory in steps of an odd number of words, free of bank conflicts.
template <class Element>
__global__ void __launch_bounds__(kRowsOfFew, 1) loss_of_few_classes(const Loss call) {
  using Real = typename Memory<Element>::Real;
  using M = Math<Real>;
  D3PM_DYNAMIC_SHARED(Real, shared);
  const int classes = static_cast<int>(call.num_logits), stride = classes | 1;
  const int64_t begin = int64_t{blockIdx.x} * kRowsOfFew;
  const int64_t left = call.chain.num_tokens - begin;
  const int count = static_cast<int>(left < kRowsOfFew ? left : kRowsOfFew) * classes;
  const Element* const logits = static_cast<const Element*>(call.logits) + begin * classes;

  const auto each_number = [&](const auto& body) {
    int row = threadIdx.x / classes, j = threadIdx.x % classes;
    for (int i = threadIdx.x; i < count; i += kRowsOfFew) {
      body(i, row * stride + j);
      row += kRowsOfFew / classes;
      j += kRowsOfFew % classes;
      if (j >= classes) j -= classes, ++row;
    }
  };
  each_number([&](int i, int at) { shared[at] = Memory<Element>::widen(logits[i]); });
  __syncthreads();

  TokenRow<Real> token(call, begin + threadIdx.x);
  Real* const e = shared + threadIdx.x * stride;
  if (token.inside && token.settled) {
    for (int j = 0; j < classes; ++j) e[j] = token.value;
    token.write_loss(call);
  } else if (token.inside) {
    const int64_t mask = call.chain.mask_id, forbidden = call.chain.forbidden;
    const auto is_there = [=](int64_t j) { return j >= 0 && j < classes; };
    const auto logit = [=](int64_t j) { return is_there(j) ? e[j] : Real(-INFINITY); };
    if (is_there(forbidden)) e[forbidden] = -INFINITY;
    Real top = -INFINITY;
    for (int j = 0; j < classes; ++j) top = Max()(top, e[j]);
    const Real logit_x0 = logit(token.x0), logit_xt = logit(token.x_t), logit_mask = logit(mask);
    if (is_there(mask)) e[mask] = kApart;
    Real e_rest = 0;
    for (int j = 0; j < classes; ++j) {
      const bool apart = j == token.x0 || j == token.x_t || j == mask;
      e[j] = apart ? Real(kApart) : M::exp(e[j] - top);
      e_rest += apart ? Real(0) : e[j];
    }
    token.predict(top, e_rest, logit_x0, logit_xt, logit_mask);
    const LossCurve<Real> curve(call, token);
    Real sum_phi = 0, sum_h = 0;
    if (token.is_curved())
      for (int j = 0; j < classes; ++j)
        if (e[j] >= 0) curve.add(e[j], j, sum_phi, sum_h);
    token.sum_phi = sum_phi / curve.weight;
    token.sum_h = sum_h;
    token.finish();
    token.write_loss(call);
    for (int j = 0; j < classes; ++j)
      e[j] *= token.factor * (token.steep * curve.h(e[j], j) + token.flat);
    if (is_there(mask)) e[mask] = token.grad_mask * token.factor;
    if (is_there(token.x_t)) e[token.x_t] = token.grad_xt * token.factor;
    if (is_there(token.x0)) e[token.x0] = token.grad_x0 * token.factor;
  }
  if (!call.grad) return;
  __syncthreads();
  Element* const grad = static_cast<Element*>(call.grad) + begin * classes;
  each_number([&](int i, int at) { grad[i] = Memory<Element>::narrow(shared[at]); });
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
    D3PM_LAUNCH((loss_of_few_classes<Element>), blocks, kRowsOfFew, bytes, stream, call);
    return last_error();
  }
  const typename LossOfRows<Element>::BlockRows rows(classes, {call.logits, call.grad});
  D3PM_LAUNCH((loss_of_rows<Element>), rows.blocks(tokens), rows.block(), 0, stream, call, rows);
  return last_error();
}

template const char* launch<D3PM_ELEMENT>(const Loss&, void*);

}  // namespace d3pm::device
