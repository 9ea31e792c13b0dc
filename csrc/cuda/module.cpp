// The module d3pm_fast._cuda: addresses, sizes and the stream as integers, no PyTorch header and no
// need of a GPU to be imported.
#include "../bind.h"
#include "../gap.h"
#include "kernels.h"

namespace py = pybind11;

namespace d3pm::device {
namespace {

void check(const char* error) {
  if (error) throw std::runtime_error("CUDA: " + std::string(error));
}

template <class Call>
void start(const std::string& dtype, const Call& call, uintptr_t stream) {
  check(with_element(parse(dtype), [&](auto element) {
    return launch<decltype(element)>(call, reinterpret_cast<void*>(stream));
  }));
}

void q_sample(const QSample& call, uintptr_t stream) {
  check(launch(call, reinterpret_cast<void*>(stream)));
}

void scan(const std::string& dtype, const Scan& call, uintptr_t stream) {
  void* const on = reinterpret_cast<void*>(stream);
  check(dtype == "torch.float64" ? launch<double>(call, on) : launch<float>(call, on));
}

}  // namespace
}  // namespace d3pm::device

// No call changes anything but the memory it is given, so that no lock is needed. Others run while
// one waits for its place in the stream's queue.
PYBIND11_MODULE(D3PM_MODULE, m, py::mod_gil_not_used()) {
  using namespace d3pm;
  m.attr("device") = D3PM_DEVICE;  // the kind of tensors that the kernels serve
  m.def("loss", &device::start<Loss>, Unlocked());
  m.def("score_loss", &device::start<ScoreLoss>, Unlocked());
  m.def("q_posterior", &device::start<QPosterior>, Unlocked());
  m.def("p_posterior", &device::start<PPosterior>, Unlocked());
  m.def("q_sample", &device::q_sample, Unlocked());
  m.def("p_sample", &device::start<PSample>, Unlocked());
  m.def("gap", &device::start<Gap>, Unlocked());
  m.def("scan", &device::scan, Unlocked());
}
