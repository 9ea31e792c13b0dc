// Draws x_s ~ p(x_s | x_t) of rank-one chains. csrc/p_sample_token.h tells how.

#include "../p_sample_token.h"
#include "rows.h"

namespace d3pm::device {

template <class Element>
struct PSampleOfRows {
  static constexpr int kNumbers = kMostNumbers<Element>;
  using BlockRows = Rows<Element, kNumbers>;
  using Real = typename BlockRows::Real;

  const PSample& call;
  const BlockRows& rows;
  const int64_t token, num_classes;
  const Element* const row;
  bool reads = false;
  int64_t x_t = 0, drawn = kNone;
  PSampleToken of;
  Real tilt = 1, top = -INFINITY;
  Uniforms random;
  Real e[kNumbers];

  __device__ PSampleOfRows(const PSample& call, const BlockRows& rows)
      : call(call),
        rows(rows),
        token(rows.row()),
        num_classes(call.chain.num_classes),
        row(static_cast<const Element*>(call.logits) + token * num_classes) {}

  __device__ void run() {
    const bool inside = token < call.chain.num_tokens;
    if (inside) x_t = call.x_t[token];
    if (inside && call.chain.is_class(x_t)) look_up();

    rows.each_part([&](int start) {
      read(start);
      for (Real logit : e) top = Max()(top, logit);
    });
    top = rows.reduce(top, Max());
    double total = 0;
    rows.each_part([&](int start) {
      exponentiate(start);
      for (Real mass : e) total += mass;
    });
    total = rows.reduce(total, Sum());
    const int64_t of_model = draw_class(random.draw * total);
    if (reads) choose(total, of_model);
    if (inside && rows.is_first_thread()) call.out[token] = drawn;
  }

 private:
  __device__ void look_up() {
    const Chain& chain = call.chain;
    const StepCoefficients* step = chain.step(token / chain.run_length);
    if (!step) return;
    drawn = x_t;
    of = PSampleToken(*step, chain.vector<double>(), call.model.predicts_x0(*step), x_t);
    random = token_uniforms(call.random, chain.num_tokens, token);
    reads = !of.stays(random.choice);
    tilt = static_cast<Real>(of.tilt(call.model.posterior_mean));
  }

  // The total is NaN where a logit is, or inf, or all are -inf.
  __device__ void choose(double total, int64_t of_model) {
    if (!(total > 0)) {
      drawn = kNone;
      return;
    }
    const Real logit_xt = BlockRows::logit(row, x_t, num_classes, call.chain.forbidden);
    const Real e_xt = Math<Real>::exp(logit_xt - top) * tilt;
    drawn = of.draw(call, random, e_xt, total, [=] { return of_model; });
  }

  // The first class whose running sum passes the target; the last with any mass where rounding
  // leaves none. In double: 1e-9 keeps its share beside 1.
  __device__ int64_t draw_class(double target) {
    int64_t found = num_classes, last = 0;
    double before = 0;
    rows.each_part([&](int start) {
      exponentiate(start);
#pragma unroll
      for (int v = 0; v < BlockRows::kVectors; ++v) {
        const Real* const masses = e + v * BlockRows::kWidth;
        double sum = 0, of_vector;
        for (int i = 0; i < BlockRows::kWidth; ++i) sum += masses[i];
        double running = before + sum_before(rows.threads(), sum, of_vector);
        before += of_vector;
        for (int i = 0; i < BlockRows::kWidth; ++i) {
          const int j = rows.first(start, v) + i;
          running += masses[i];
          if (masses[i] > 0) last = j;
          if (masses[i] > 0 && running > target && j < found) found = j;
        }
      }
    });
    found = -rows.reduce(-found, Max());
    last = rows.reduce(last, Max());
    return found < num_classes ? found : last;
  }

  __device__ void read(int start) {
    rows.read_logits(row, start, reads ? num_classes : 0, call.chain.forbidden, e);
  }

  // Turns logits, which the first part still holds where there is no other, into masses.
  __device__ void exponentiate(int start) {
    read(start);
    rows.each_number(start, [&](int i, int j) {
      e[i] = reads && j < num_classes ? Math<Real>::exp(e[i] - top) : Real(0);
      if (j == x_t) e[i] *= tilt;
    });
  }
};

template <class Element>
__global__ void __launch_bounds__(kMostThreads, 1)
    p_sample_of_rows(const PSample call, const typename PSampleOfRows<Element>::BlockRows rows) {
  PSampleOfRows<Element>(call, rows).run();
}

template <class Element>
const char* launch(const PSample& call, void* on) {
  const auto stream = static_cast<cudaStream_t>(on);
  const typename PSampleOfRows<Element>::BlockRows rows(call.chain.num_classes, {call.logits});
  D3PM_LAUNCH((p_sample_of_rows<Element>), rows.blocks(call.chain.num_tokens), rows.block(), 0,
              stream, call, rows);
  return last_error();
}

template const char* launch<D3PM_ELEMENT>(const PSample&, void*);

}  // namespace d3pm::device
