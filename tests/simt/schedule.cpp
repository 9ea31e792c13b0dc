#include "simt.h"

// The order in which the threads run, 0 for their own, and the barrier that is left out: its
// file's name and its line, 0 for none.
extern "C" __attribute__((visibility("default"))) void simt_schedule(uint64_t seed,
                                                                     const char* file, int line) {
  simt::schedule().seed = seed;
  simt::schedule().file = file;
  simt::schedule().line = line;
}

// Whether the hardware's functions err as much as they may.
extern "C" __attribute__((visibility("default"))) void simt_errs(bool errs) {
  simt::schedule().errs = errs;
}

// Whether there are clusters of blocks.
extern "C" __attribute__((visibility("default"))) void simt_has_clusters(bool has_clusters) {
  simt::schedule().has_clusters = has_clusters;
}
