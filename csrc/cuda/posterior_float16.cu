#include "posterior.cuh"

namespace d3pm::device {

template const char* launch<Float16>(const Posterior& call, void* stream);

}  // namespace d3pm::device
