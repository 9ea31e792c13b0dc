// Log-probabilities of a step of rank-one chains, and their gradient. Rows are read again from the
// cache for every pass.

#include "rows.h"

namespace d3pm::device {

#include "../posterior_row.h"

// A token's row of results, in registers part by part.
template <class Element>
struct PosteriorOfRows {
  static constexpr int kNumbers = kMostNumbers<Element> / 2;  // for the gradient needs two rows
  using BlockRows = Rows<Element, kNumbers>;
  using Real = typename BlockRows::Real;
  using M = Math<Real>;

  const BlockRows& rows;
  const int64_t token, num_classes;
  const bool inside;
  void* const out;
  bool good = false;
  Real values[kNumbers];

  __device__ PosteriorOfRows(const Chain& chain, const BlockRows& rows, void* out)
      : rows(rows),
        token(rows.row()),
        num_classes(chain.num_classes),
        inside(token < chain.num_tokens),
        out(out) {}

  // The token's step, where x_t and x_0 are good too.
  __device__ const StepCoefficients* step(const Chain& chain, int64_t x0, int64_t x_t) {
    const StepCoefficients* found = chain.step(token / chain.run_length);
    good = found && chain.is_class(x0) && chain.is_class(x_t);
    return good ? found : nullptr;
  }

  // Calls body(i, j) for the classes of a part.
  template <class Body>
  __device__ void each_class(int start, const Body& body) const {
    rows.each_number(start, [&](int i, int j) {
      if (good && j < num_classes) body(i, j);
    });
  }

  __device__ void store(int start) {
    if (!good)
      for (Real& value : values) value = NAN;
    rows.write(static_cast<Element*>(out) + token * num_classes, start, inside ? num_classes : 0,
               values);
  }
};

template <class Element>
struct QPosteriorOfRows : PosteriorOfRows<Element> {
  using Base = PosteriorOfRows<Element>;
  using typename Base::BlockRows;
  using typename Base::M;
  using typename Base::Real;

  QPosteriorToken<M, Real> of;

  __device__ QPosteriorOfRows(const QPosterior& call, const BlockRows& rows)
      : Base(call.chain, rows, call.out) {
    if (!this->inside) return;
    const int64_t x0 = call.x0[this->token], x_t = call.x_t[this->token];
    if (const StepCoefficients* step = this->step(call.chain, x0, x_t))
      of = {*step, call.chain.template vector<Real>(), x0, x_t};
    this->good &= of.is_possible;
  }

  __device__ void run() {
    this->rows.each_part([&](int start) {
      this->each_class(
          start, [&](int i, int j) { this->values[i] = of.stays() ? of.fixed(j) : of.log_q(j); });
      this->store(start);
    });
  }
};

template <class Element>
struct PPosteriorOfRows : PosteriorOfRows<Element> {
  using Base = PosteriorOfRows<Element>;
  using Base::kNumbers;
  using Base::values;
  using typename Base::BlockRows;
  using typename Base::M;
  using typename Base::Real;

  const PPosterior& call;
  PPosteriorToken<M, Real> of;
  Real top = -INFINITY;

  __device__ PPosteriorOfRows(const PPosterior& call, const BlockRows& rows)
      : Base(call.chain, rows, call.out), call(call) {
    if (!this->inside) return;
    const int64_t x_t = call.x_t[this->token];
    if (const StepCoefficients* step = this->step(call.chain, x_t, x_t))
      of = {*step, call.chain.template vector<Real>(), call, x_t};
    this->good &= of.is_possible();
  }

  __device__ void run() {
    predict();
    call.upstream ? write_gradient() : write_log_p();
  }

 private:
  __device__ void predict() {
    this->rows.each_part([&](int start) {
      read_logits(start);
      for (Real logit : values) top = Max()(top, logit);
    });
    top = this->rows.reduce(top, Max());
    Real sum = 0;
    this->rows.each_part([&](int start) {
      read_logits(start);
      this->each_class(start, [&](int i, int j) { sum += weight(values[i], j); });
    });
    sum = this->rows.reduce(sum, Sum());
    if (this->good) of.predict(sum, weight(logit(of.x_t), of.x_t));
  }

  __device__ const Element* row_of(const void* tensor) const {
    return static_cast<const Element*>(tensor) + this->token * this->num_classes;
  }

  __device__ int64_t end() const { return this->good ? this->num_classes : 0; }

  __device__ void read_logits(int start) {
    this->rows.read_logits(row_of(call.logits), start, end(), call.chain.forbidden, values);
  }

  // exp(logit - top), with the tilt.
  __device__ Real weight(Real logit, int64_t j) const {
    return M::exp(logit - top) * (j == of.x_t ? of.tilt : Real(1));
  }

  __device__ Real logit(int64_t j) const {
    return BlockRows::logit(row_of(call.logits), j, this->num_classes, call.chain.forbidden);
  }

  __device__ void write_log_p() {
    const LogP<M, Real> log_p(of);
    this->rows.each_part([&](int start) {
      read_logits(start);
      this->each_class(start, [&](int i, int j) {
        values[i] = of.stays() ? of.fixed(j) : log_p(values[i] - top, weight(values[i], j), j);
      });
      this->store(start);
    });
  }

  __device__ void write_gradient() {
    Real total = 0, weighted = 0;
    each_upstream([&](int, int j, Real e, Real upstream) {
      total += upstream;
      weighted += of.share(e, j) * upstream;
    });
    total = this->rows.reduce(total, Sum());
    weighted = this->rows.reduce(weighted, Sum());
    const PosteriorGradient<M, Real> gradient(of, total, weighted);
    each_upstream(
        [&](int i, int j, Real e, Real upstream) {
          values[i] = of.stays() ? Real(0) : gradient(upstream, e, j);
        },
        [&](int start) { this->store(start); });
  }

  // Calls body(i, j, e_j, G_j) for all classes, and then(start) after every part.
  template <class Body, class Then>
  __device__ void each_upstream(const Body& body, const Then& then) {
    this->rows.each_part([&](int start) {
      Real upstream[kNumbers];
      this->rows.read(row_of(call.upstream), start, end(), upstream, 0);
      read_logits(start);
      this->each_class(start, [&](int i, int j) { body(i, j, weight(values[i], j), upstream[i]); });
      then(start);
    });
  }

  template <class Body>
  __device__ void each_upstream(const Body& body) {
    each_upstream(body, [](int) {});
  }
};

template <class Rows, class Call>
__global__ void __launch_bounds__(kMostThreads, 1)
    posterior_of_rows(const Call call, const typename Rows::BlockRows rows) {
  Rows(call, rows).run();
}

template <class Rows, class Call>
const char* start(const Call& call, std::initializer_list<const void*> starts, void* on) {
  const auto stream = static_cast<cudaStream_t>(on);
  const typename Rows::BlockRows rows(call.chain.num_classes, starts);
  D3PM_LAUNCH((posterior_of_rows<Rows, Call>), rows.blocks(call.chain.num_tokens), rows.block(), 0,
              stream, call, rows);
  return last_error();
}

template <class Element>
const char* launch(const QPosterior& call, void* stream) {
  return start<QPosteriorOfRows<Element>>(call, {call.out}, stream);
}

template <class Element>
const char* launch(const PPosterior& call, void* stream) {
  return start<PPosteriorOfRows<Element>>(call, {call.logits, call.upstream, call.out}, stream);
}

template const char* launch<D3PM_ELEMENT>(const QPosterior&, void*);
template const char* launch<D3PM_ELEMENT>(const PPosterior&, void*);

}  // namespace d3pm::device
