#include "loss.cuh"

namespace d3pm::device {

template const char* launch<double>(const Loss& call, void* stream);

}  // namespace d3pm::device
