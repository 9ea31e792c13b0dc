// The module d3pm_fast._cpu: addresses and sizes as integers, no PyTorch header.
#include <algorithm>

#include "../bind.h"
#include "instruction_sets.h"
#include "kernels.h"

namespace py = pybind11;

namespace pybind11::detail {

template <>
struct type_caster<d3pm::DenseRows>
    : RecordCaster<d3pm::DenseRows, int64_t, int64_t, int64_t, d3pm::Address, d3pm::Address,
                   d3pm::Address, bool, bool, bool, bool, d3pm::Address, int> {};

template <>
struct type_caster<d3pm::LossStrokes>
    : RecordCaster<d3pm::LossStrokes, d3pm::Loss, int64_t, int64_t, d3pm::Address, d3pm::Address,
                   d3pm::Address> {};

}  // namespace pybind11::detail

namespace d3pm {
namespace {

// `reduction` is none, sum or mean; the mean's gradient is left undivided where `late`.
bool loss(const std::string& dtype, const Chain& chain, bool posterior_mean, bool direct,
          Address logits, Address x0, Address x_t, Address mask, double vb_weight, double ce_weight,
          bool is_density, const std::string& reduction, bool late, Address loss, Address grad,
          int num_threads) {
  Loss call{chain,
            {posterior_mean, direct},
            logits,
            x0,
            x_t,
            mask,
            {vb_weight, ce_weight},
            is_density,
            1.0,
            nullptr,
            loss,
            grad};
  const Type type = parse(dtype);
  if (reduction == "none") return run(type, call, num_threads);
  double factor = 1;
  if (reduction == "mean") {
    const int64_t tokens = chain.num_tokens;
    const int64_t count = call.mask ? std::count(call.mask, call.mask + tokens, 1) : tokens;
    factor /= static_cast<double>(count);
  }
  if (!late) call.grad_scale = factor;
  return run_sum(type, call, factor, num_threads);
}

bool loss_statistics(const std::string& dtype, const LossStrokes& call, int num_threads) {
  return run_statistics(parse(dtype), call, num_threads);
}

bool loss_solve(const std::string& dtype, const LossStrokes& call, int num_threads) {
  return run_solve(parse(dtype), call, num_threads);
}

bool loss_sums(const std::string& dtype, const LossStrokes& call, int num_threads) {
  return run_sums(parse(dtype), call, num_threads);
}

bool loss_gradient(const std::string& dtype, const LossStrokes& call, int num_threads) {
  return run_gradient(parse(dtype), call, num_threads);
}

bool q_posterior(const std::string& dtype, const Chain& chain, Address x0, Address x_t, Address out,
                 int num_threads) {
  return run(parse(dtype), QPosterior{chain, x0, x_t, out}, num_threads);
}

bool p_posterior(const std::string& dtype, const Chain& chain, bool posterior_mean, bool direct,
                 Address logits, Address upstream, Address x_t, Address out, int num_threads) {
  const PPosterior call{chain, {posterior_mean, direct}, logits, upstream, x_t, out};
  return run(parse(dtype), call, num_threads);
}

bool q_sample(const Chain& chain, Address cdf, Address seeds, int64_t num_seeds, int64_t step,
              Address x, Address out, int num_threads) {
  return run(QSample{chain, cdf, {seeds, num_seeds, step}, x, out}, num_threads);
}

bool p_sample(const std::string& dtype, const Chain& chain, Address cdf, bool posterior_mean,
              bool direct, Address seeds, int64_t num_seeds, int64_t step, Address logits,
              const Shaping& shaping, Address x_t, Address out, int num_threads) {
  const PSample call{chain, cdf, {posterior_mean, direct}, {seeds, num_seeds, step}, logits,
                     x_t,   out};
  return run(parse(dtype), call, shaping, num_threads);
}

void logistic_logits(const std::string& dtype, int64_t num_tokens, int64_t num_classes,
                     bool edge_corrected, Address loc, Address log_scale, Address out,
                     int num_threads) {
  const Logistic of{num_tokens, num_classes, edge_corrected, loc, log_scale, num_threads};
  run(parse(dtype), LogisticLogits{of, out});
}

void logistic_gradient(const std::string& dtype, int64_t num_tokens, int64_t num_classes,
                       bool edge_corrected, Address loc, Address log_scale, Address upstream,
                       Address out_loc, Address out_log_scale, int num_threads) {
  const Logistic of{num_tokens, num_classes, edge_corrected, loc, log_scale, num_threads};
  run(parse(dtype), LogisticGradient{of, upstream, out_loc, out_log_scale});
}

void shaped_logits(const std::string& dtype, int64_t num_tokens, int64_t num_classes,
                   Address logits, const Shaping& shaping, Address out, int num_threads) {
  run(parse(dtype), ShapedLogits{num_tokens, num_classes, logits, shaping, out, num_threads});
}

bool dense_predict(const std::string& dtype, const DenseRows& rows, Address logits,
                   Address log_tilt, Address v, double ce_weight, Address loss) {
  return run(parse(dtype), DensePredict{rows, logits, log_tilt, v, ce_weight, loss});
}

bool dense_loss(const std::string& dtype, const DenseRows& rows, Address columns, Address q_bar,
                Address spans, Address f, double vb_weight, double error, Address loss,
                Address doubtful) {
  return run(parse(dtype),
             DenseLoss{rows, columns, q_bar, spans, f, vb_weight, error, loss, doubtful});
}

bool dense_posterior(const std::string& dtype, const DenseRows& rows, Address columns,
                     Address q_bar, Address log_columns, Address f, double error, Address upstream,
                     Address out, Address doubtful) {
  return run(parse(dtype),
             DensePosterior{rows, columns, q_bar, log_columns, f, error, upstream, out, doubtful});
}

bool dense_gradient(const std::string& dtype, const DenseRows& rows, Address logits, Address v,
                    Address g, double ce_weight, double scale, Address grad) {
  return run(parse(dtype), DenseGradient{rows, logits, v, g, ce_weight, scale, grad});
}

bool dense_p_sample(const std::string& dtype, const DenseRows& rows, Address columns, Address q_bar,
                    Address f, double error, Address seeds, int64_t num_seeds, int64_t step,
                    Address out, Address doubtful) {
  return run(parse(dtype),
             DenseSample{rows, columns, q_bar, f, error, {seeds, num_seeds, step}, out, doubtful});
}

bool dense_q_posterior(const std::string& dtype, const DenseRows& rows, Address log_columns,
                       Address log_rows, Address log_reach, Address out) {
  return run(parse(dtype), DenseQPosterior{rows, log_columns, log_rows, log_reach, out});
}

bool dense_q_sample(int64_t num_rows, int64_t num_classes, int64_t num_tokens, Address tokens,
                    Address x, Address cdf, Address seeds, int64_t num_seeds, int64_t step,
                    Address out, int num_threads) {
  return run(DenseQSample{num_rows,
                          num_classes,
                          num_tokens,
                          tokens,
                          x,
                          cdf,
                          {seeds, num_seeds, step},
                          out,
                          num_threads});
}

bool sparse_polynomial(const std::string& dtype, int64_t num_rows, int64_t num_classes,
                       Address starts, Address sources, Address weights, Address terms,
                       int64_t num_terms, Address v, Address out, int num_threads) {
  return run(parse(dtype), SparsePolynomial{num_rows, num_classes, starts, sources, weights, terms,
                                            num_terms, v, out, num_threads});
}

bool sparse_q_sample(int64_t num_rows, int64_t num_tokens, Address tokens, Address x,
                     Address jumps_cdf, int64_t num_counts, Address starts, Address targets,
                     Address cdf, Address seeds, int64_t num_seeds, int64_t step, Address out,
                     int num_threads) {
  return run(SparseQSample{num_rows,
                           num_tokens,
                           tokens,
                           x,
                           jumps_cdf,
                           num_counts,
                           starts,
                           targets,
                           cdf,
                           {seeds, num_seeds, step},
                           out,
                           num_threads});
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
  using d3pm::Unlocked;
  d3pm::best_target();  // reads the environment before there is a thread that may change it
  m.doc() = "Fused kernels of d3pm_fast for CPUs; d3pm_fast/ops is their only caller.";
  m.def("loss", &d3pm::loss, Unlocked());
  m.def("loss_statistics", &d3pm::loss_statistics, Unlocked());
  m.def("loss_solve", &d3pm::loss_solve, Unlocked());
  m.def("loss_sums", &d3pm::loss_sums, Unlocked());
  m.def("loss_gradient", &d3pm::loss_gradient, Unlocked());
  m.def("q_posterior", &d3pm::q_posterior, Unlocked());
  m.def("p_posterior", &d3pm::p_posterior, Unlocked());
  m.def("q_sample", &d3pm::q_sample, Unlocked());
  m.def("p_sample", &d3pm::p_sample, Unlocked());
  m.def("logistic_logits", &d3pm::logistic_logits, Unlocked());
  m.def("logistic_gradient", &d3pm::logistic_gradient, Unlocked());
  m.def("shaped_logits", &d3pm::shaped_logits, Unlocked());
  m.def("dense_predict", &d3pm::dense_predict, Unlocked());
  m.def("dense_loss", &d3pm::dense_loss, Unlocked());
  m.def("dense_posterior", &d3pm::dense_posterior, Unlocked());
  m.def("dense_gradient", &d3pm::dense_gradient, Unlocked());
  m.def("dense_p_sample", &d3pm::dense_p_sample, Unlocked());
  m.def("dense_q_posterior", &d3pm::dense_q_posterior, Unlocked());
  m.def("dense_q_sample", &d3pm::dense_q_sample, Unlocked());
  m.def("sparse_polynomial", &d3pm::sparse_polynomial, Unlocked());
  m.def("sparse_q_sample", &d3pm::sparse_q_sample, Unlocked());
  m.def("instruction_set", &d3pm::instruction_set);
}
