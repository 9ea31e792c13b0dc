#include "simt.h"

// The order in which the threads run; 0 for their own.
extern "C" __attribute__((visibility("default"))) void simt_seed(uint64_t seed) {
  simt::seed() = seed;
}
