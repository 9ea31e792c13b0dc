// The module d3pm_fast._cuda: addresses, sizes and the stream as integers, no PyTorch header and no
// need of a GPU to be imported.
#include "../bind.h"
#include "kernels.h"

namespace py = pybind11;

namespace d3pm::device {
namespace {

void check(const char* error) {
  if (error) throw std::runtime_error("CUDA: " + std::string(error));
}

template <class Call>
void start(const std::string& dtype, const Call& call, Address stream) {
  check(with_element(parse(dtype),
                     [&](auto element) { return launch<decltype(element)>(call, stream); }));
}

void loss(const std::string& dtype, const Chain& chain, bool posterior_mean, bool direct,
          Address logits, Address x0, Address x_t, Address mask, double vb_weight, double ce_weight,
          bool is_density, double grad_scale, Address count, Address loss, Address grad,
          Address stream) {
  const Loss call{chain,
                  {posterior_mean, direct},
                  logits,
                  x0,
                  x_t,
                  mask,
                  {vb_weight, ce_weight},
                  is_density,
                  grad_scale,
                  count,
                  loss,
                  grad};
  start(dtype, call, stream);
}

// Of q where there are no logits.
void posterior(const std::string& dtype, const Chain& chain, bool posterior_mean, bool direct,
               Address logits, Address upstream, Address x0, Address x_t, Address out,
               Address stream) {
  if (logits.value)
    start(dtype, PPosterior{chain, {posterior_mean, direct}, logits, upstream, x_t, out}, stream);
  else
    start(dtype, QPosterior{chain, x0, x_t, out}, stream);
}

void q_sample(const Chain& chain, Address cdf, Address seeds, int64_t num_seeds, int64_t step,
              Address x, Address out, Address stream) {
  check(launch(QSample{chain, cdf, {seeds, num_seeds, step}, x, out}, stream));
}

void p_sample(const std::string& dtype, const Chain& chain, Address cdf, bool posterior_mean,
              bool direct, Address seeds, int64_t num_seeds, int64_t step, Address logits,
              Address x_t, Address out, Address stream) {
  const PSample call{chain, cdf, {posterior_mean, direct}, {seeds, num_seeds, step}, logits,
                     x_t,   out};
  start(dtype, call, stream);
}

void scan(const std::string& dtype, int64_t num_steps, int64_t num_classes, Address matrices,
          Address upstream, Address out, Address stream) {
  const Scan call{num_steps, num_classes, matrices, upstream, out};
  check(dtype == "torch.float64" ? launch<double>(call, stream) : launch<float>(call, stream));
}

}  // namespace
}  // namespace d3pm::device

// No call changes anything but the memory it is given, so that no lock is needed. Others run while
// one waits for its place in the stream's queue.
PYBIND11_MODULE(D3PM_MODULE, m, py::mod_gil_not_used()) {
  using d3pm::Unlocked;
  m.attr("device") = D3PM_DEVICE;  // the kind of tensors that the kernels serve
  m.def("loss", &d3pm::device::loss, Unlocked());
  m.def("posterior", &d3pm::device::posterior, Unlocked());
  m.def("q_sample", &d3pm::device::q_sample, Unlocked());
  m.def("p_sample", &d3pm::device::p_sample, Unlocked());
  m.def("scan", &d3pm::device::scan, Unlocked());
}
