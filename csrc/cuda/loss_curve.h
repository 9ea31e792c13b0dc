// The rest of a row, all classes but those apart, along the line of its token.
//
// With w = lift e a class has
//   1 + g = ratio (1 + w / pi),   m = e / (pi + w),   e h = m (tilt pi + w),
// and the gradient m ((steep + flat) w + (steep tilt + flat) pi). As phi(g) = g - log(1 + g),
//   sum pi phi(g) = phi(shift) sum pi + ratio sum w - sum pi log(1 + w / pi),
// which is used where not too many digits cancel. Where all pi are the same, 1 stands for pi, its
// inverse is in lift, and there is a logarithm for four classes.
#pragma once

#include <type_traits>

#include "loss_tokens.h"

namespace d3pm::device {

// The sum of phi(g) of four classes. With G = (1 + g) (1 + g) (1 + g) (1 + g) - 1 it is phi(G) less
// G - sum g; phi(G) is G^2 times a polynomial where G is small. `product` gives 1 + G where more of
// its digits are in the factors.
template <class Product>
__device__ float phi_of_four(const float (&g)[4], const Product& product) {
  const float sum_01 = g[0] + g[1], sum_23 = g[2] + g[3];
  const float cross_01 = g[0] * g[1], cross_23 = g[2] * g[3];
  const float g_01 = sum_01 + cross_01, g_23 = sum_23 + cross_23, cross = g_01 * g_23;
  const float all = (g_01 + g_23) + cross;
  if (!(all > -0.3f && all < 0.5f))
    return (sum_01 + sum_23) - rough_log(all > -0.5f ? 1 + all : product());
  float p = all * 6.0452029e-2f - 1.2065022e-1f;  // to 2e-7
  p = p * all + 1.3452609e-1f;
  p = p * all - 1.4323927e-1f;
  p = p * all + 1.6604954e-1f;
  p = p * all - 1.9995180e-1f;
  p = p * all + 2.5001299e-1f;
  p = p * all - 3.3333403e-1f;
  p = p * all + 4.9999994e-1f;
  return all * all * p - ((cross_01 + cross_23) + cross);
}

// What a sum of phi must be, of its parts and of the sum of pi. A logarithm of one class, in place
// of one of four, adds four times the error.
template <class Element, bool kHasPi>
constexpr float kLeastOfParts =
    std::is_same_v<Element, float> ? (kHasPi ? 1.0f / 4 : 1.0f / 8) : 1.0f / 16;
template <class Element, bool kHasPi>
constexpr float kLeastOfPi =
    (std::is_same_v<Element, float> ? 1.0f / 32 : 1.0f / 128) * (kHasPi ? 4 : 1);

template <class Element, bool kHasPi>
struct LossCurve {
  using Real = typename Memory<Element>::Real;
  using M = Math<Real>;
  static constexpr Real kLeastPi = sizeof(Real) == 8 ? 1e-150 : 1e-18f;  // but for 0
  // A class with a pi adds the square of the lift, which is nothing below; one without it adds e
  // whatever the lift is, as long as w is in range.
  static constexpr Real kLeastLift = sizeof(Real) == 8 ? 1e-160 : 1e-24f;

  LossLine<Math<Real>> line;  // with 1 / pi in its slope where all pi are the same
  Real lift, tilt;

  __device__ LossCurve(const Loss& call, const TokenRow<Real>& token)
      : line(token.line(kHasPi ? Real(1) : static_cast<Real>(call.chain.num_classes))) {
    const Real per_ratio = M::reciprocal(line.ratio);
    // Where h = 1 its tilt is 1, and any lift will do.
    lift = line.slope * per_ratio;
    if (kHasPi) lift = line.slope == 0 ? Real(1) : Max()(lift, kLeastLift);
    tilt = line.shift * per_ratio;
  }

  // pi + w; above 0 where e and pi are not.
  __device__ Real v(Real e, Real pi) const {
    return kHasPi ? Max()(pi + lift * e, Real(M::least)) : 1 + lift * e;
  }

  __device__ Real m(Real e, Real pi) const { return e * M::reciprocal(v(e, pi)); }

  // e h.
  __device__ Real pull(Real e, Real m, Real pi) const {
    return m * (kHasPi ? tilt * pi + lift * e : tilt + lift * e);
  }

  // Fills in m of four classes, and adds e h to `sums`, and pi log2(1 + w / pi) to one.
  __device__ void bend_four(const Real* e, const Real* pi, Real* m, Real* sums,
                            Real& sum_log) const {
    Real product = 1;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      m[k] = this->m(e[k], pi[k]);
      sums[k] += pull(e[k], m[k], pi[k]);
      if (kHasPi)
        sum_log += pi[k] * rough_log2(1 + lift * e[k] * M::reciprocal(Max()(pi[k], kLeastPi)));
      else
        product *= v(e[k], 1);
    }
    if (!kHasPi) sum_log += rough_log2(product);
  }

  // pi phi(g), class by class.
  __device__ Real phi(Real e, Real pi) const {
    if (kHasPi && pi == 0) return line.slope * e;
    const auto at = kHasPi ? LossPoint<Math<Real>>(line, e, pi) : LossPoint<Math<Real>>(line, e);
    return (kHasPi ? pi : Real(1)) * M::phi(at.g, at.y);
  }

  // The sum of pi phi(g) from sums of pi, e and pi log2(1 + u), and phi(shift). False where it is
  // not to be used.
  __device__ bool sum_phi(Real phi_of_shift, Real sum_pi, Real sum_e, Real sum_log,
                          Real& sum) const {
    const Real parts = phi_of_shift * sum_pi + line.slope * sum_e;
    sum = parts - sum_log * Real(0.69314718055994531);
    const bool has_sum_pi = !kHasPi || sum_pi > Real(1) / 16;  // it is a difference
    return (kHasPi || has_products()) && has_sum_pi &&
           sum > parts * kLeastOfParts<Element, kHasPi> &&
           sum > sum_pi * kLeastOfPi<Element, kHasPi>;
  }

  // The sum of phi(g) of a row where terms cancel, by the form that is the row's own: where
  // products of four are in range by_four(), else by_one(true), class by class.
  template <class ByFour, class ByOne>
  __device__ Real exact_sum_phi(const ByFour& by_four, const ByOne& by_one) const {
    if (kHasPi) return by_one(true);
    const bool has_four = has_products();
    const Real sum = by_four(), other = by_one(!__all_sync(0xffffffff, has_four));
    return has_four ? sum : other;
  }

  // What phi_of_four() has summed, with so many classes more whose e is 0.
  __device__ Real with_zeros(Real sum, Real count, Real phi_of_shift) const {
    return count > 0 ? sum + count * phi_of_shift : sum;
  }

  // Whether a product of four y, and of four 1 + u, is in range.
  __device__ bool has_products() const {
    const Real high = Real(1e9);
    return lift < high && line.ratio * high > 1 && line.ratio + line.slope < high;
  }

  // The sum of phi(g) over those of four classes whose e is not 0, with their number added to
  // `count`; for has_products().
  __device__ Real phi_of_four(const Real* e, int& count) const {
    if constexpr (sizeof(Real) == 8) {
      Real sum = 0;
      for (int k = 0; k < 4; ++k)
        if (e[k] > 0) sum += phi(e[k], 1), ++count;
      return sum;
    } else {
      return phi_of_four_floats(e, count);
    }
  }

 private:
  __device__ float phi_of_four_floats(const float* e, int& count) const {
    float g[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      g[k] = e[k] > 0 ? line.shift + line.slope * e[k] : 0.0f;
      if (e[k] > 0) ++count;
    }
    return device::phi_of_four(g, [&] {
      float product = 1;
#pragma unroll
      for (int k = 0; k < 4; ++k) product *= e[k] > 0 ? line.ratio + line.slope * e[k] : 1.0f;
      return product;
    });
  }
};

// The gradient of the rest.
template <class Element, bool kHasPi>
struct LossSlope {
  using Real = typename Memory<Element>::Real;
  Real of_e, of_pi;
  Real flat;  // of e where h = 1 on all rows of a warp

  // Of a settled row all of it is the value.
  __device__ LossSlope(const TokenRow<Real>& token, const LossCurve<Element, kHasPi>& curve,
                       Real factor)
      : of_e(token.settled ? Real(0) : (token.steep + token.flat) * curve.lift * factor),
        of_pi(token.settled ? token.value : (token.steep * curve.tilt + token.flat) * factor),
        flat(token.settled ? token.value : (token.steep + token.flat) * factor) {}

  __device__ Real operator()(Real e, Real m, Real pi) const {
    return m * (of_e * e + (kHasPi ? of_pi * pi : of_pi));
  }
};

}  // namespace d3pm::device
