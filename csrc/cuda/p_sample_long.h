// Rows of p_sample that no block can hold, and those of double: read for each pass.
#pragma once

#include "p_sample_tokens.h"

namespace d3pm::device {

template <class Element>
struct PSampleOfLongRow {
  static constexpr int kNumbers = Pack<Element>::kSize;
  using BlockRows = Rows<Element, kNumbers>;
  using Real = typename BlockRows::Real;

  const PSample& call;
  const BlockRows& rows;
  const DrawnToken<Real> token;
  RowOfDraw<Real> drawn;
  const int num_classes, forbidden;
  const Element* const row;
  Real top = -INFINITY;
  Real e[kNumbers];

  __device__ PSampleOfLongRow(const PSample& call, const DrawVector& vector, const BlockRows& rows)
      : call(call),
        rows(rows),
        token(call, vector, rows.row()),
        drawn(token.row()),
        num_classes(static_cast<int>(call.chain.num_classes)),
        forbidden(static_cast<int>(call.chain.forbidden)),
        row(static_cast<const Element*>(call.logits) + token.token * num_classes) {}

  __device__ void run() {
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
    drawn.total = rows.reduce(total, Sum());
    drawn.of_model = draw_class(drawn.draw * drawn.total);
    if (!rows.is_first_thread()) return;
    if (drawn.reads) {
      const Real logit_xt = BlockRows::logit(row, drawn.x_t, num_classes, forbidden);
      drawn.mass_xt = Exponential<Real>(top)(logit_xt) * drawn.tilt;
    }
    token.write(drawn);
  }

 private:
  // The first class whose running sum passes the target; the last with any mass where rounding
  // leaves none. In double: 1e-9 keeps its share beside 1.
  __device__ int draw_class(double target) {
    int found = num_classes, last = 0;
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
    rows.read_logits(row, start, drawn.reads ? num_classes : 0, forbidden, e);
  }

  // Fills in masses.
  __device__ void exponentiate(int start) {
    read(start);
    const Exponential<Real> exp(top);
    rows.each_number(start, [&](int i, int j) {
      e[i] = drawn.reads && j < num_classes ? exp(e[i]) : Real(0);
      if (j == drawn.x_t) e[i] *= drawn.tilt;
    });
  }
};

template <class Element>
__global__ void __launch_bounds__(kMostThreads, 1)
    p_sample_of_long_rows(const PSample call, const DrawVector vector,
                          const typename PSampleOfLongRow<Element>::BlockRows rows) {
  PSampleOfLongRow<Element>(call, vector, rows).run();
}

}  // namespace d3pm::device
