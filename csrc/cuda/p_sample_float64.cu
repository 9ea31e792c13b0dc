#include "p_sample.cuh"

namespace d3pm::device {

template const char* launch<double>(const PSample& call, void* stream);

}  // namespace d3pm::device
