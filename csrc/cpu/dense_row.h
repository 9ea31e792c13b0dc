// A row of a dense chain between the products with Qbar_s; dense_calls.h has the notation.
//
// With c = Q_{s->t}[:, x_t], d = Qbar_s[x_0, :], f = s Qbar_s and D = f - d:
//   q_j = c_j d_j / Zq,  p_j = c_j f_j / Z,  W = Z / Zq - 1 = sum_j q_j D_j / d_j
//   g_j = p_j / q_j - 1 = (D_j - W d_j) Zq / (Z d_j),  h_j = g_j / (1 + g_j) = (D_j - W d_j) / f_j
//   KL(q || p) = sum_j q_j (g_j - log(1 + g_j)), p_j where q_j = 0;  r_j = c_j / Z h_j.
// D keeps its digits where p is close to q: s enters it without s_{x_0}.
//
// The density at t is the same sum, with the rates of the other classes for c, and with Qbar_t for
// Qbar_s: Zq = d_{x_t}, Z = f_{x_t}. It depends on Z, so that r_{x_t} = -sum_j r_j f_j / Z.

#include "row.h"

template <class Element, class Work>
class DenseRow {
 protected:
  using Real = typename Memory<Element>::Real;
  using V = typename VectorOf<Real>::Type;
  using M = Math<Real>;
  static constexpr int kWidth = kLanes<Real>;
  static constexpr double kLeast = sizeof(Real) == 4 ? 0x1p-63 : 0x1p-511;
  static constexpr bool kWide = sizeof(Work) > sizeof(Real);
  using W = std::conditional_t<kWide, typename VectorOf<Real>::Wide, V>;

  explicit DenseRow(const DenseRows& rows) : rows_(rows), row_(rows.num_tokens, rows.num_classes) {}

  // Calls body(j, count) for the vectors that hold the classes of `span`; `count` of their lanes
  // are classes.
  template <class Body>
  D3PM_MEMBER void each_vector(const Span& span, const Body& body) const {
    int64_t j = span.first / kWidth * kWidth;
    for (; j < std::min(row_.whole, span.last); j += kWidth) body(j, static_cast<int64_t>(kWidth));
    if (j < span.last) body(j, row_.classes - j);
  }
  template <class Body>
  D3PM_MEMBER void each_vector(const Body& body) const {
    each_vector(Span{0, row_.classes}, body);
  }

  // The sum of value(j, count), a vector, over the classes.
  template <class Value>
  D3PM_MEMBER double sum_of(const Span& span, const Value& value) const {
    double total = 0;
    V part = {};
    each_vector(span, [&](int64_t j, int64_t count) D3PM_MEMBER {
      part += value(j, count);
      if (!ends_stretch(j)) return;
      total += sum_lanes<Real>(part);
      part = V{};
    });
    return total + sum_lanes<Real>(part);
  }
  template <class Value>
  D3PM_MEMBER double sum_of(const Value& value) const {
    return sum_of(Span{0, row_.classes}, value);
  }

  // Whether so many vectors end at this one that their sum should go on in double.
  static bool ends_stretch(int64_t j) {
    return (j / kWidth) % (kStretch / kWidth) == kStretch / kWidth - 1;
  }

  template <class T>
  const T* at(const void* base, int64_t row) const {
    return static_cast<const T*>(base) + row * row_.classes;
  }
  template <class T>
  T* at(void* base, int64_t row) const {
    return static_cast<T*>(base) + row * row_.classes;
  }

  // Not by value: GCC warns of a return in registers that the baseline lacks.
  D3PM_MEMBER void get_work(W& to, const Work* from, int64_t count) const {
    Work lanes[kWidth] = {};
    for (int64_t i = 0; i < count && count < kWidth; ++i) lanes[i] = from[i];
    __builtin_memcpy(&to, count < kWidth ? lanes : from, sizeof(W));
  }
  // Without what would make products of subnormal numbers, which take a hundred times as long.
  D3PM_MEMBER void put_work(Work* to, const V& v, int64_t count) const {
    const V least = splat<Real>(kLeast);
    const W work = __builtin_convertvector((v < least) & (v > -least) ? V{} : v, W);
    if (count == kWidth) return store(to, work);
    Work lanes[kWidth];
    store(lanes, work);
    for (int64_t i = 0; i < count; ++i) to[i] = lanes[i];
  }
  D3PM_MEMBER V get(const Real* from, int64_t count) const {
    return count == kWidth ? load<V>(from) : read_some(from, count, Real(0));
  }
  D3PM_MEMBER V get_narrow(const Work* from, int64_t count) const {
    W work;
    get_work(work, from, count);
    return __builtin_convertvector(work, V);
  }
  D3PM_MEMBER void put(Element* to, const V& v, int64_t count) const {
    count == kWidth ? write_all(to, v) : write_some(to, v, count);
  }

  // The sum of v, times g where that is not null, to the digits that it is multiplied with: what
  // a sum is off by, times the part of Qbar_s that a centred form drops, would be in every result.
  D3PM_MEMBER double work_sum(const Work* v, const Work* g) const {
    W parts = {};
    double sum = 0;
    each_vector([&](int64_t j, int64_t count) D3PM_MEMBER {
      W part, factor;
      get_work(part, v + j, count);
      if (g) {
        get_work(factor, g + j, count);
        part *= factor;
      }
      parts += part;
      if (!ends_stretch(j) && j + kWidth < row_.classes) return;
      for (int i = 0; i < kWidth; ++i) sum += static_cast<double>(parts[i]);
      parts = W{};
    });
    return sum;
  }

  Real* sums(int64_t n) const { return static_cast<Real*>(rows_.sums) + 3 * n; }
  int64_t anchor(int64_t n) const { return rows_.anchor[rows_.tokens[n]]; }
  int64_t x_t(int64_t n) const { return rows_.x_t[rows_.tokens[n]]; }
  double factor(int64_t n) const {
    const auto* factors = static_cast<const Real*>(rows_.factors);
    return factors ? static_cast<double>(factors[rows_.tokens[n]]) : 1;
  }
  // A term of a loss with its weight, whatever the term where that is 0.
  static Real weighted(double weight, double term) {
    return weight == 0 ? 0 : static_cast<Real>(weight * term);
  }
  // Where the tables have x_t's column, and the anchor's row; null where that is joined.
  int64_t column(int64_t n) const { return rows_.by_row ? n : x_t(n); }
  const Work* q_bar_row(const void* q_bar, int64_t n) const {
    return rows_.joined ? nullptr : at<Work>(q_bar, rows_.by_row ? n : anchor(n));
  }

  // f and f - d of one row.
  struct Predicted {
    V d, f, change;
  };
  D3PM_MEMBER Predicted predicted(const Work* d, int64_t j, const Work* f, const Real* sums,
                                  int64_t count) const {
    W dw, fw;
    get_work(fw, f, count);
    fw *= static_cast<Work>(sums[2]);
    if (rows_.joined) return {V{}, __builtin_convertvector(fw, V), V{}};
    get_work(dw, d + j, count);
    const V dv = __builtin_convertvector(dw, V), fv = __builtin_convertvector(fw, V);
    if (rows_.centred) return {dv, __builtin_convertvector(dw + fw, V), fv};
    return {dv, splat<Real>(sums[0]) * dv + fv, fv - splat<Real>(sums[1]) * dv};
  }

  const DenseRows& rows_;
  const RowReader<Element> row_;
};

// Whether any row asks to be looked at again, see kernels.h.
template <template <class, class> class Row, class Element, class Call>
static bool dense_rows(const Call& call, int64_t begin, int64_t end) {
  const auto run = [&](auto work) {
    Row<Element, decltype(work)> row(call);
    bool any = false;
    for (int64_t n = begin; n < end; ++n) any |= row(n);
    return any;
  };
  return call.rows.wide ? run(double{}) : run(typename Memory<Element>::Real{});
}
