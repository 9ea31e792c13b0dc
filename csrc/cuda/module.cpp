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

template <class Call>
void start(const std::string& dtype, const Call& call, uintptr_t stream) {
  if (call.chain.num_tokens == 0) return;
  void* const on = pointer<void>(stream);
  const char* error = dtype == "torch.float32"    ? launch<float>(call, on)
                      : dtype == "torch.float64"  ? launch<double>(call, on)
                      : dtype == "torch.bfloat16" ? launch<BFloat16>(call, on)
                      : dtype == "torch.float16"  ? launch<Float16>(call, on)
                                                  : "no kernel for this dtype";
  if (error) throw std::runtime_error("CUDA: " + std::string(error));
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

}  // namespace
}  // namespace d3pm::device

PYBIND11_MODULE(D3PM_MODULE, m) {
  m.attr("device") = D3PM_DEVICE;  // the kind of tensors that the kernels serve
  m.def("loss", &d3pm::device::loss);
}
