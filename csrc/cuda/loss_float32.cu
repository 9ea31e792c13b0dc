#include "loss.cuh"

namespace d3pm::device {

template const char* launch<float>(const Loss& call, void* stream);

}  // namespace d3pm::device
