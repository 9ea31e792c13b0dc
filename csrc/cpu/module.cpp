// The module d3pm_fast._cpu: pointers and sizes as integers, no PyTorch header.
#include <pybind11/pybind11.h>

#include <cstdlib>
#include <stdexcept>
#include <string>
#include <tuple>

#include "kernels.h"

namespace py = pybind11;

namespace d3pm {

Target best_target() {
  static const Target target = [] {
    const char* asked = std::getenv("D3PM_FAST_ISA");
    const std::string most = asked ? asked : "avx512";
#ifdef __x86_64__
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512vl");
    if (avx512 && most == "avx512") return Target::avx512;
    if (avx2 && most != "baseline") return Target::avx2;
#endif
    return Target::baseline;
  }();
  return target;
}

namespace {

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

Type parse(const std::string& dtype) {
  if (dtype == "torch.float32") return Type::float32;
  if (dtype == "torch.float64") return Type::float64;
  if (dtype == "torch.bfloat16") return Type::bfloat16;
  if (dtype == "torch.float16") return Type::float16;
  throw std::invalid_argument("no kernel for " + dtype);
}

// num_tokens, num_classes, rows, num_rows, table, table_size, pi, mask_id
using ChainTuple =
    std::tuple<int64_t, int64_t, uintptr_t, int64_t, uintptr_t, int64_t, uintptr_t, int64_t>;

Chain make_chain(const ChainTuple& of) {
  return {std::get<0>(of),
          std::get<1>(of),
          pointer<int64_t>(std::get<2>(of)),
          std::get<3>(of),
          pointer<double>(std::get<4>(of)),
          std::get<5>(of),
          pointer<void>(std::get<6>(of)),
          std::get<7>(of)};
}

// As the members of Shaping.
using ShapingTuple = std::tuple<uintptr_t, double, double, int64_t, double>;

Shaping make_shaping(const ShapingTuple& of) {
  return {pointer<void>(std::get<0>(of)), std::get<1>(of), std::get<2>(of), std::get<3>(of),
          std::get<4>(of)};
}

template <class Call, class... Types>
bool run_unlocked(const Call& call, Types... type) {
  py::gil_scoped_release release;
  return run(type..., call);
}

// `reduction` is none, sum or mean; the mean's gradient is left undivided where `late`.
bool loss(const std::string& dtype, const ChainTuple& chain, bool posterior_mean, bool direct,
          uintptr_t logits, uintptr_t x0, uintptr_t x_t, uintptr_t mask, double vb_weight,
          double ce_weight, const std::string& reduction, bool late, uintptr_t loss, uintptr_t grad,
          int num_threads) {
  Loss call{make_chain(chain),
            {posterior_mean, direct},
            pointer<void>(logits),
            pointer<int64_t>(x0),
            pointer<int64_t>(x_t),
            pointer<uint8_t>(mask),
            vb_weight,
            ce_weight,
            1.0,
            pointer<void>(loss),
            pointer<void>(grad),
            num_threads};
  const Type type = parse(dtype);
  py::gil_scoped_release release;
  if (reduction == "none") return run(type, call);
  const double factor = reduction == "mean" ? 1.0 / static_cast<double>(call.count()) : 1.0;
  if (!late) call.grad_scale = factor;
  return run_sum(type, call, factor);
}

bool q_posterior(const std::string& dtype, const ChainTuple& chain, uintptr_t x0, uintptr_t x_t,
                 uintptr_t out, int num_threads) {
  const QPosterior call{make_chain(chain), pointer<int64_t>(x0), pointer<int64_t>(x_t),
                        pointer<void>(out), num_threads};
  return run_unlocked(call, parse(dtype));
}

bool p_posterior(const std::string& dtype, const ChainTuple& chain, bool posterior_mean,
                 bool direct, uintptr_t logits, uintptr_t upstream, uintptr_t x_t, uintptr_t out,
                 int num_threads) {
  const PPosterior call{make_chain(chain),
                        {posterior_mean, direct},
                        pointer<void>(logits),
                        pointer<void>(upstream),
                        pointer<int64_t>(x_t),
                        pointer<void>(out),
                        num_threads};
  return run_unlocked(call, parse(dtype));
}

bool q_sample(const ChainTuple& chain, uintptr_t cdf, uintptr_t seeds, int64_t num_seeds,
              int64_t step, uintptr_t x, uintptr_t out, int num_threads) {
  const QSample call{
      make_chain(chain),   pointer<double>(cdf),  {pointer<int64_t>(seeds), num_seeds, step},
      pointer<int64_t>(x), pointer<int64_t>(out), num_threads};
  return run_unlocked(call);
}

bool p_sample(const std::string& dtype, const ChainTuple& chain, uintptr_t cdf, bool posterior_mean,
              bool direct, uintptr_t seeds, int64_t num_seeds, int64_t step, uintptr_t logits,
              const ShapingTuple& shaping, uintptr_t x_t, uintptr_t out, int num_threads) {
  const PSample call{make_chain(chain),
                     pointer<double>(cdf),
                     {posterior_mean, direct},
                     {pointer<int64_t>(seeds), num_seeds, step},
                     pointer<void>(logits),
                     make_shaping(shaping),
                     pointer<int64_t>(x_t),
                     pointer<int64_t>(out),
                     num_threads};
  return run_unlocked(call, parse(dtype));
}

void logistic_logits(const std::string& dtype, int64_t num_tokens, int64_t num_classes,
                     bool edge_corrected, uintptr_t loc, uintptr_t log_scale, uintptr_t out,
                     int num_threads) {
  const LogisticLogits call{{num_tokens, num_classes, edge_corrected, pointer<void>(loc),
                             pointer<void>(log_scale), num_threads},
                            pointer<void>(out)};
  run_unlocked(call, parse(dtype));
}

void logistic_gradient(const std::string& dtype, int64_t num_tokens, int64_t num_classes,
                       bool edge_corrected, uintptr_t loc, uintptr_t log_scale, uintptr_t upstream,
                       uintptr_t out_loc, uintptr_t out_log_scale, int num_threads) {
  const LogisticGradient call{{num_tokens, num_classes, edge_corrected, pointer<void>(loc),
                               pointer<void>(log_scale), num_threads},
                              pointer<void>(upstream),
                              pointer<void>(out_loc),
                              pointer<void>(out_log_scale)};
  run_unlocked(call, parse(dtype));
}

void shaped_logits(const std::string& dtype, int64_t num_tokens, int64_t num_classes,
                   uintptr_t logits, const ShapingTuple& shaping, uintptr_t out, int num_threads) {
  const ShapedLogits call{
      num_tokens,         num_classes, pointer<void>(logits), make_shaping(shaping),
      pointer<void>(out), num_threads};
  run_unlocked(call, parse(dtype));
}

// As the members of DenseRows.
using DenseTuple = std::tuple<int64_t, int64_t, int64_t, uintptr_t, uintptr_t, uintptr_t, bool,
                              bool, bool, bool, uintptr_t, int>;

DenseRows make_rows(const DenseTuple& of) {
  return {std::get<0>(of),
          std::get<1>(of),
          std::get<2>(of),
          pointer<int64_t>(std::get<3>(of)),
          pointer<int64_t>(std::get<4>(of)),
          pointer<int64_t>(std::get<5>(of)),
          std::get<6>(of),
          std::get<7>(of),
          std::get<8>(of),
          std::get<9>(of),
          pointer<void>(std::get<10>(of)),
          std::get<11>(of)};
}

bool dense_predict(const std::string& dtype, const DenseTuple& rows, uintptr_t logits,
                   uintptr_t log_tilt, uintptr_t v, double ce_weight, uintptr_t loss) {
  const DensePredict call{
      make_rows(rows), pointer<void>(logits), pointer<double>(log_tilt), pointer<void>(v),
      ce_weight,       pointer<void>(loss)};
  return run_unlocked(call, parse(dtype));
}

bool dense_loss(const std::string& dtype, const DenseTuple& rows, uintptr_t columns,
                uintptr_t q_bar, uintptr_t spans, uintptr_t f, double vb_weight, double error,
                uintptr_t loss, uintptr_t doubtful) {
  const DenseLoss call{make_rows(rows),
                       pointer<void>(columns),
                       pointer<void>(q_bar),
                       pointer<Span>(spans),
                       pointer<void>(f),
                       vb_weight,
                       error,
                       pointer<void>(loss),
                       pointer<uint8_t>(doubtful)};
  return run_unlocked(call, parse(dtype));
}

bool dense_posterior(const std::string& dtype, const DenseTuple& rows, uintptr_t columns,
                     uintptr_t q_bar, uintptr_t log_columns, uintptr_t f, double error,
                     uintptr_t upstream, uintptr_t out, uintptr_t doubtful) {
  const DensePosterior call{make_rows(rows),           pointer<void>(columns),
                            pointer<void>(q_bar),      pointer<double>(log_columns),
                            pointer<void>(f),          error,
                            pointer<void>(upstream),   pointer<void>(out),
                            pointer<uint8_t>(doubtful)};
  return run_unlocked(call, parse(dtype));
}

bool dense_gradient(const std::string& dtype, const DenseTuple& rows, uintptr_t logits, uintptr_t v,
                    uintptr_t g, double ce_weight, double scale, uintptr_t grad) {
  const DenseGradient call{
      make_rows(rows), pointer<void>(logits), pointer<void>(v), pointer<void>(g), ce_weight,
      scale,           pointer<void>(grad)};
  return run_unlocked(call, parse(dtype));
}

bool dense_p_sample(const std::string& dtype, const DenseTuple& rows, uintptr_t columns,
                    uintptr_t q_bar, uintptr_t f, double error, uintptr_t seeds, int64_t num_seeds,
                    int64_t step, uintptr_t out, uintptr_t doubtful) {
  const DenseSample call{make_rows(rows),
                         pointer<void>(columns),
                         pointer<void>(q_bar),
                         pointer<void>(f),
                         error,
                         {pointer<int64_t>(seeds), num_seeds, step},
                         pointer<int64_t>(out),
                         pointer<uint8_t>(doubtful)};
  return run_unlocked(call, parse(dtype));
}

bool dense_q_posterior(const std::string& dtype, const DenseTuple& rows, uintptr_t log_columns,
                       uintptr_t log_rows, uintptr_t log_reach, uintptr_t out) {
  const DenseQPosterior call{make_rows(rows), pointer<double>(log_columns),
                             pointer<double>(log_rows), pointer<double>(log_reach),
                             pointer<void>(out)};
  return run_unlocked(call, parse(dtype));
}

bool dense_q_sample(int64_t num_rows, int64_t num_classes, int64_t num_tokens, uintptr_t tokens,
                    uintptr_t x, uintptr_t cdf, uintptr_t seeds, int64_t num_seeds, int64_t step,
                    uintptr_t out, int num_threads) {
  const DenseQSample call{num_rows,
                          num_classes,
                          num_tokens,
                          pointer<int64_t>(tokens),
                          pointer<int64_t>(x),
                          pointer<double>(cdf),
                          {pointer<int64_t>(seeds), num_seeds, step},
                          pointer<int64_t>(out),
                          num_threads};
  return run_unlocked(call);
}

bool sparse_polynomial(const std::string& dtype, int64_t num_rows, int64_t num_classes,
                       uintptr_t starts, uintptr_t sources, uintptr_t weights, uintptr_t terms,
                       int64_t num_terms, uintptr_t v, uintptr_t out, int num_threads) {
  const SparsePolynomial call{num_rows,
                              num_classes,
                              pointer<int64_t>(starts),
                              pointer<int32_t>(sources),
                              pointer<void>(weights),
                              pointer<double>(terms),
                              num_terms,
                              pointer<void>(v),
                              pointer<void>(out),
                              num_threads};
  return run_unlocked(call, parse(dtype));
}

bool sparse_q_sample(int64_t num_rows, int64_t num_tokens, uintptr_t tokens, uintptr_t x,
                     uintptr_t jumps_cdf, int64_t num_counts, uintptr_t starts, uintptr_t targets,
                     uintptr_t cdf, uintptr_t seeds, int64_t num_seeds, int64_t step, uintptr_t out,
                     int num_threads) {
  const SparseQSample call{num_rows,
                           num_tokens,
                           pointer<int64_t>(tokens),
                           pointer<int64_t>(x),
                           pointer<double>(jumps_cdf),
                           num_counts,
                           pointer<int64_t>(starts),
                           pointer<int32_t>(targets),
                           pointer<double>(cdf),
                           {pointer<int64_t>(seeds), num_seeds, step},
                           pointer<int64_t>(out),
                           num_threads};
  return run_unlocked(call);
}

const char* instruction_set() {
  switch (best_target()) {
    case Target::avx512: return "avx512";
    case Target::avx2: return "avx2";
    default: return "baseline";
  }
}

}  // namespace
}  // namespace d3pm

// No call changes anything but the memory it is given, so that no lock is needed.
PYBIND11_MODULE(_cpu, m, py::mod_gil_not_used()) {
  d3pm::best_target();  // reads the environment before there is a thread that may change it
  m.doc() = "Fused kernels of d3pm_fast for CPUs; d3pm_fast/ops.py is their only caller.";
  m.def("loss", &d3pm::loss);
  m.def("q_posterior", &d3pm::q_posterior);
  m.def("p_posterior", &d3pm::p_posterior);
  m.def("q_sample", &d3pm::q_sample);
  m.def("p_sample", &d3pm::p_sample);
  m.def("logistic_logits", &d3pm::logistic_logits);
  m.def("logistic_gradient", &d3pm::logistic_gradient);
  m.def("shaped_logits", &d3pm::shaped_logits);
  m.def("dense_predict", &d3pm::dense_predict);
  m.def("dense_loss", &d3pm::dense_loss);
  m.def("dense_posterior", &d3pm::dense_posterior);
  m.def("dense_gradient", &d3pm::dense_gradient);
  m.def("dense_p_sample", &d3pm::dense_p_sample);
  m.def("dense_q_posterior", &d3pm::dense_q_posterior);
  m.def("dense_q_sample", &d3pm::dense_q_sample);
  m.def("sparse_polynomial", &d3pm::sparse_polynomial);
  m.def("sparse_q_sample", &d3pm::sparse_q_sample);
  m.def("instruction_set", &d3pm::instruction_set);
}
