// The module d3pm_fast._cpu: addresses and sizes as integers, no PyTorch header.
#include <algorithm>

#include "../bind.h"
#include "../gap.h"
#include "instruction_sets.h"
#include "kernels.h"

namespace py = pybind11;

namespace d3pm {
namespace {

// A kernel's function for Python, with the type of its elements by name.
template <class Call>
auto typed(bool (*kernel)(Type, const Call&, int)) {
  return [kernel](const std::string& dtype, const Call& call, int num_threads) {
    return kernel(parse(dtype), call, num_threads);
  };
}

// `reduction` is none, sum or mean; the mean's gradient is left undivided where `late`.
bool loss(const std::string& dtype, Loss call, const std::string& reduction, bool late,
          int num_threads) {
  const Type type = parse(dtype);
  if (reduction == "none") return run(type, call, num_threads);
  double factor = 1;
  if (reduction == "mean") {
    const int64_t tokens = call.chain.num_tokens;
    const int64_t count = call.mask ? std::count(call.mask, call.mask + tokens, 1) : tokens;
    factor /= static_cast<double>(count);
  }
  if (!late) call.grad_scale = factor;
  return run_sum(type, call, factor, num_threads);
}

bool p_sample(const std::string& dtype, const PSample& call, const Shaping& shaping,
              int num_threads) {
  return run(parse(dtype), call, shaping, num_threads);
}

template <class Call>
bool draw(const Call& call, int num_threads) {
  return run(call, num_threads);
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
  using namespace d3pm;
  best_target();  // reads the environment before there is a thread that may change it
  m.doc() = "Fused kernels of d3pm_fast for CPUs; d3pm_fast/ops is their only caller.";
  m.def("loss", &loss, Unlocked());
  m.def("loss_statistics", typed(&run_statistics), Unlocked());
  m.def("loss_solve", typed(&run_solve), Unlocked());
  m.def("loss_sums", typed(&run_sums), Unlocked());
  m.def("loss_gradient", typed(&run_gradient), Unlocked());
  m.def("score_loss", typed<ScoreLoss>(&run), Unlocked());
  m.def("q_posterior", typed<QPosterior>(&run), Unlocked());
  m.def("p_posterior", typed<PPosterior>(&run), Unlocked());
  m.def("q_sample", &draw<QSample>, Unlocked());
  m.def("p_sample", &p_sample, Unlocked());
  m.def("logistic_logits", typed<LogisticLogits>(&run), Unlocked());
  m.def("logistic_gradient", typed<LogisticGradient>(&run), Unlocked());
  m.def("shaped_logits", typed<ShapedLogits>(&run), Unlocked());
  m.def("predict", typed<Predict>(&run), Unlocked());
  m.def("dense_predict", typed<DensePredict>(&run), Unlocked());
  m.def("dense_loss", typed<DenseLoss>(&run), Unlocked());
  m.def("dense_posterior", typed<DensePosterior>(&run), Unlocked());
  m.def("dense_gradient", typed<DenseGradient>(&run), Unlocked());
  m.def("dense_p_sample", typed<DenseSample>(&run), Unlocked());
  m.def("dense_q_posterior", typed<DenseQPosterior>(&run), Unlocked());
  m.def("dense_q_sample", &draw<DenseQSample>, Unlocked());
  m.def("sparse_polynomial", typed<SparsePolynomial>(&run), Unlocked());
  m.def("sparse_q_sample", &draw<SparseQSample>, Unlocked());
  m.def("gap", typed<Gap>(&run), Unlocked());
  m.def("instruction_set", &instruction_set);
}
