// The module d3pm_fast._cuda: pointers, sizes and the stream as integers, no PyTorch header and no
// need of a GPU to be imported.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>
#include <tuple>

#include "kernels.h"

namespace py = pybind11;

namespace d3pm::device {
namespace {

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

using ChainArguments =
    std::tuple<int64_t, int64_t, uintptr_t, int64_t, uintptr_t, int64_t, uintptr_t, int64_t>;

Chain parse(const ChainArguments& arguments) {
  const auto [tokens, classes, rows, num_rows, table, table_size, pi, mask_id] = arguments;
  return {tokens,
          classes,
          pointer<const int64_t>(rows),
          tokens / num_rows,
          pointer<const double>(table),
          table_size,
          pointer<const void>(pi),
          mask_id};
}

void check(const char* error) {
  if (error) throw std::runtime_error("CUDA: " + std::string(error));
}

template <class Call>
void start(const std::string& dtype, const Call& call, uintptr_t stream) {
  void* const on = pointer<void>(stream);
  check(dtype == "torch.float32"    ? launch<float>(call, on)
        : dtype == "torch.float64"  ? launch<double>(call, on)
        : dtype == "torch.bfloat16" ? launch<BFloat16>(call, on)
        : dtype == "torch.float16"  ? launch<Float16>(call, on)
                                    : "no kernel for this dtype");
}

void loss(const std::string& dtype, const ChainArguments& chain, bool posterior_mean, bool direct,
          uintptr_t logits, uintptr_t x0, uintptr_t x_t, uintptr_t mask, double vb_weight,
          double ce_weight, double grad_scale, uintptr_t count, uintptr_t loss, uintptr_t grad,
          uintptr_t stream) {
  const Loss call{parse(chain),
                  posterior_mean,
                  direct,
                  pointer<const void>(logits),
                  pointer<const int64_t>(x0),
                  pointer<const int64_t>(x_t),
                  pointer<const uint8_t>(mask),
                  vb_weight,
                  ce_weight,
                  grad_scale,
                  pointer<const void>(count),
                  pointer<void>(loss),
                  pointer<void>(grad)};
  start(dtype, call, stream);
}

void posterior(const std::string& dtype, const ChainArguments& chain, bool posterior_mean,
               bool direct, uintptr_t logits, uintptr_t upstream, uintptr_t x0, uintptr_t x_t,
               uintptr_t out, uintptr_t stream) {
  const Posterior call{parse(chain),
                       posterior_mean,
                       direct,
                       pointer<const void>(logits),
                       pointer<const void>(upstream),
                       pointer<const int64_t>(x0),
                       pointer<const int64_t>(x_t),
                       pointer<void>(out)};
  start(dtype, call, stream);
}

void q_sample(const ChainArguments& chain, uintptr_t cdf, uintptr_t seeds, int64_t num_seeds,
              int64_t step, uintptr_t x, uintptr_t out, uintptr_t stream) {
  const QSample call{parse(chain), pointer<const double>(cdf),
                     Random{pointer<const int64_t>(seeds), num_seeds, step},
                     pointer<const int64_t>(x), pointer<int64_t>(out)};
  check(launch(call, pointer<void>(stream)));
}

void p_sample(const std::string& dtype, const ChainArguments& chain, uintptr_t cdf,
              bool posterior_mean, bool direct, uintptr_t seeds, int64_t num_seeds, int64_t step,
              uintptr_t logits, uintptr_t x_t, uintptr_t out, uintptr_t stream) {
  const PSample call{parse(chain),
                     pointer<const double>(cdf),
                     posterior_mean,
                     direct,
                     Random{pointer<const int64_t>(seeds), num_seeds, step},
                     pointer<const void>(logits),
                     pointer<const int64_t>(x_t),
                     pointer<int64_t>(out)};
  start(dtype, call, stream);
}

void scan(const std::string& dtype, int64_t num_steps, int64_t num_classes, uintptr_t matrices,
          uintptr_t upstream, uintptr_t out, uintptr_t stream) {
  const Scan call{num_steps, num_classes, pointer<const void>(matrices),
                  pointer<const void>(upstream), pointer<void>(out)};
  void* const on = pointer<void>(stream);
  check(dtype == "torch.float64" ? launch<double>(call, on) : launch<float>(call, on));
}

}  // namespace
}  // namespace d3pm::device

// No call changes anything but the memory it is given, so that no lock is needed. Others run while
// one waits for its place in the stream's queue.
PYBIND11_MODULE(D3PM_MODULE, m, py::mod_gil_not_used()) {
  using Unlocked = py::call_guard<py::gil_scoped_release>;
  m.attr("device") = D3PM_DEVICE;  // the kind of tensors that the kernels serve
  m.def("loss", &d3pm::device::loss, Unlocked());
  m.def("posterior", &d3pm::device::posterior, Unlocked());
  m.def("q_sample", &d3pm::device::q_sample, Unlocked());
  m.def("p_sample", &d3pm::device::p_sample, Unlocked());
  m.def("scan", &d3pm::device::scan, Unlocked());
}
