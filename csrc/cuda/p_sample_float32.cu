#include "p_sample.cuh"

namespace d3pm::device {

template const char* launch<float>(const PSample& call, void* stream);

}  // namespace d3pm::device
