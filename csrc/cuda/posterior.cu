// Log-probabilities of a step of rank-one chains, and their gradient, see
// csrc/cpu/posterior_target.h. Rows are read again from the cache for every pass.

#include "rows.h"

namespace d3pm::device {

// Either posterior: that of q has no logits, that of p no x_0.
struct Posterior {
  Chain chain;
  Model model;
  const void *logits, *upstream;
  const int64_t *x0, *x_t;
  void* out;
};

template <class Element>
struct PosteriorOfRows {
  static constexpr int kNumbers = kMostNumbers<Element> / 2;  // for the gradient needs two rows
  using BlockRows = Rows<Element, kNumbers>;
  using Real = typename BlockRows::Real;
  using M = Math<Real>;

  const Posterior& call;
  const BlockRows& rows;
  const int64_t token, num_classes;
  const bool inside;
  const Vector<Real> vector;
  bool good = false, stays = false;  // whether nothing but x_t leads to x_t
  int64_t x0 = 0, x_t = 0;
  bool never = false;  // and it cannot have been x_t either
  Real keep = 0, u = 0, bar_keep = 0, log_bar_keep = 0, bar_base = 0, bar_mask = 0, tilt = 1;
  Real values[kNumbers];

  __device__ PosteriorOfRows(const Posterior& call, const BlockRows& rows)
      : call(call),
        rows(rows),
        token(rows.row()),
        num_classes(call.chain.num_classes),
        inside(token < call.chain.num_tokens),
        vector(call.chain.template vector<Real>()) {
    if (inside) look_up();
  }

  __device__ void run() {
    if (!call.logits) {
      write_q();
    } else {
      predict();
      call.upstream ? write_gradient() : write_p();
    }
  }

 private:
  Real top = -INFINITY, sum = 0, s_xt = 0, z = 1;

  __device__ void look_up() {
    const Chain& chain = call.chain;
    const int64_t to = call.x_t[token], from = call.x0 ? call.x0[token] : to;
    const StepCoefficients* step = chain.step(token / chain.run_length);
    if (!step || !chain.is_class(from) || !chain.is_class(to)) return;
    good = true;
    x0 = from;
    x_t = to;
    const bool direct = call.model.predicts_x0(*step);
    keep = direct ? Real(0) : static_cast<Real>(step->keep);
    u = direct ? Real(1) : static_cast<Real>(vector(step->base, step->mask, x_t));
    bar_keep = direct ? Real(1) : static_cast<Real>(step->bar_keep);
    log_bar_keep = direct ? Real(0) : log_of(step->bar_keep);
    bar_base = direct ? Real(0) : static_cast<Real>(step->bar_base);
    bar_mask = direct ? Real(0) : static_cast<Real>(step->bar_mask);
    stays = u == 0 && step->keep > 0;
    never = never_stays(*step, x0 == x_t, bar(x_t));
    if (call.model.posterior_mean && !direct)
      tilt = static_cast<Real>(posterior_mean_tilt(keep, u, bar_keep, bar(x_t)));
  }

  // Also below the range of Real.
  static __device__ Real log_of(double x) {
    return x > M::tiny ? M::log(static_cast<Real>(x)) : static_cast<Real>(::log(x));
  }

  __device__ Real bar(int64_t j) const { return static_cast<Real>(vector(bar_base, bar_mask, j)); }

  __device__ void write_q() {
    const Real zq = u + keep * (bar(x_t) + (x0 == x_t ? bar_keep : Real(0)));
    const Real leave = M::log(u / zq), stay = M::log((u + keep) / zq);
    write([&](int, int64_t j) {
      if (u == 0) return never ? Real(NAN) : j == x_t ? Real(0) : Real(-INFINITY);
      const Real spread = bar(j);
      const bool kept = j == x0;
      const Real log_truth =
          kept && spread == 0 ? log_bar_keep : M::log(spread + (kept ? bar_keep : Real(0)));
      return (j == x_t ? stay : leave) + log_truth;
    });
  }

  // The row's largest logit, and the sum and what is at x_t of exp(logit - top), tilted at x_t.
  __device__ void predict() {
    rows.each_part([&](int64_t start) {
      read(call.logits, start, -INFINITY);
      for (Real logit : values) top = Max()(top, logit);
    });
    top = rows.reduce(top, Max());
    if (!good) top = 0;
    rows.each_part([&](int64_t start) {
      read(call.logits, start, -INFINITY);
      rows.each_number(start, [&](int i, int64_t j) { sum += weight(values[i], j); });
    });
    sum = rows.reduce(sum, Sum());
    if (good) s_xt = weight(logit(x_t), x_t) / sum;
    z = u + keep * (bar_keep * s_xt + bar(x_t));
  }

  __device__ Real weight(Real logit, int64_t j) const {
    return M::exp(logit - top) * (j == x_t ? tilt : Real(1));
  }

  // Where ub_j = 0, f_j = A s_j: the level of the logits goes before anything is rounded.
  __device__ void write_p() {
    const Real leave = M::log(u / z), stay = M::log((u + keep) / z);
    const Real scale = log_bar_keep - M::log(sum), log_tilt = M::log(tilt);
    rows.each_part([&](int64_t start) {
      read(call.logits, start, -INFINITY);
      rows.each_number(start, [&](int i, int64_t j) {
        const Real spread = j < num_classes ? bar(j) : Real(0);
        const Real alone = values[i] - top + (j == x_t ? log_tilt : Real(0)) + scale;
        const Real log_f = spread > M::splat(M::tiny)
                               ? M::log(bar_keep * (weight(values[i], j) / sum) + spread)
                               : alone;
        const Real fixed = j == x_t ? Real(0) : -INFINITY;  // whatever the logits
        values[i] = stays ? fixed : (j == x_t ? stay : leave) + log_f;
      });
      store(start);
    });
  }

  __device__ void write_gradient() {
    Real total = 0, weighted = 0;
    each_weight([&](int, int64_t, Real w, Real, Real g) {
      total += g;
      weighted += w * g;
    });
    total = rows.reduce(total, Sum());
    weighted = rows.reduce(weighted, Sum());
    const Real pull = bar_keep / z * total, level = weighted - pull * (u + keep * s_xt);
    each_weight(
        [&](int i, int64_t j, Real w, Real s, Real g) {
          const Real reach = u + (j == x_t ? keep : Real(0));
          values[i] = stays ? Real(0) : w * g - s * (reach * pull + level);
        },
        [&](int64_t start) { store(start); });
  }

  // Calls body(i, j, w_j, s_j, G_j) for all classes, and then(start) after every part.
  template <class Body, class Then>
  __device__ void each_weight(const Body& body, const Then& then) {
    rows.each_part([&](int64_t start) {
      Real upstream[kNumbers];
      read(call.upstream, start, 0);
      for (int i = 0; i < kNumbers; ++i) upstream[i] = values[i];
      read(call.logits, start, -INFINITY);
      rows.each_number(start, [&](int i, int64_t j) {
        const Real spread = j < num_classes ? bar(j) : Real(0), s = weight(values[i], j) / sum;
        const Real model = bar_keep * s;
        const Real w = spread > M::splat(M::tiny) ? model / (model + spread) : Real(1);
        body(i, j, w, s, upstream[i]);
      });
      then(start);
    });
  }

  template <class Body>
  __device__ void each_weight(const Body& body) {
    each_weight(body, [](int64_t) {});
  }

  template <class Value>
  __device__ void write(const Value& value) {
    rows.each_part([&](int64_t start) {
      rows.each_number(start, [&](int i, int64_t j) {
        if (j < num_classes) values[i] = value(i, j);
      });
      store(start);
    });
  }

  __device__ void store(int64_t start) {
    if (!good)
      for (Real& value : values) value = NAN;
    rows.write(static_cast<Element*>(call.out) + token * num_classes, start,
               inside ? num_classes : 0, values);
  }

  __device__ void read(const void* tensor, int64_t start, Real fill) {
    const Element* const row = static_cast<const Element*>(tensor) + token * num_classes;
    rows.read(row, start, good ? num_classes : 0, values, fill);
  }

  __device__ Real logit(int64_t j) const {
    const Element* const row = static_cast<const Element*>(call.logits) + token * num_classes;
    return Memory<Element>::widen(row[j]);
  }
};

template <class Element>
__global__ void __launch_bounds__(kMostThreads, 1)
    posterior_of_rows(const Posterior call,
                      const typename PosteriorOfRows<Element>::BlockRows rows) {
  PosteriorOfRows<Element>(call, rows).run();
}

template <class Element>
const char* start(const Posterior& call, void* on) {
  const auto stream = static_cast<cudaStream_t>(on);
  const typename PosteriorOfRows<Element>::BlockRows rows(call.chain.num_classes,
                                                          {call.logits, call.upstream, call.out});
  D3PM_LAUNCH((posterior_of_rows<Element>), rows.blocks(call.chain.num_tokens), rows.block(), 0,
              stream, call, rows);
  return last_error();
}

template <class Element>
const char* launch(const QPosterior& call, void* stream) {
  return start<Element>({call.chain, {}, nullptr, nullptr, call.x0, call.x_t, call.out}, stream);
}

template <class Element>
const char* launch(const PPosterior& call, void* stream) {
  return start<Element>(
      {call.chain, call.model, call.logits, call.upstream, nullptr, call.x_t, call.out}, stream);
}

template const char* launch<D3PM_ELEMENT>(const QPosterior&, void*);
template const char* launch<D3PM_ELEMENT>(const PPosterior&, void*);

}  // namespace d3pm::device
