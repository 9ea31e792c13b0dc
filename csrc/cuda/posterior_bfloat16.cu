#include "posterior.cuh"

namespace d3pm::device {

template const char* launch<BFloat16>(const Posterior& call, void* stream);

}  // namespace d3pm::device
