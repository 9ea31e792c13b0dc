// The CUDA kernels: what module.cpp binds and the other files of this folder define. All pointers
// are to the device's memory; every call returns at once.
#pragma once

#include "../calls.h"
#include "../elements.h"

namespace d3pm::device {

// The products Q_1 ... Q_t of all t, or with `upstream`, their gradient, the adjoints
// A_t = upstream_t + A_{t+1} Q_{t+1}^T in double.
struct Scan {
  int64_t num_steps, num_classes;   // T, K
  const void *matrices, *upstream;  // (T, K, K)
  void* out;                        // (T, K, K)
};

// Starts a call on a stream (cudaStream_t) for logits of a type and returns what went wrong, null
// for nothing. A file that defines one for D3PM_ELEMENT is compiled once for each type.
template <class Element>
const char* launch(const Loss& call, void* stream);
template <class Element>
const char* launch(const ScoreLoss& call, void* stream);
template <class Element>
const char* launch(const QPosterior& call, void* stream);
template <class Element>
const char* launch(const PPosterior& call, void* stream);
template <class Element>
const char* launch(const PSample& call, void* stream);
const char* launch(const QSample& call, void* stream);
template <class Element>
const char* launch(const Scan& call, void* stream);

}  // namespace d3pm::device
