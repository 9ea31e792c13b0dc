// For tests only: the random numbers of tokens, by each set of vector instructions and one by one.

#include "cpu/target_headers.h"

#define D3PM_TARGET_FILE "tests/cpu/uniforms_target.h"
#include "cpu/for_each_target.h"

namespace d3pm {

Target asked;

Target best_target() { return asked; }

}  // namespace d3pm

extern "C" void uniforms_by_cursor(int64_t target, const int64_t* seeds, int64_t num_seeds,
                                   int64_t step, int64_t position_offset, int64_t num_tokens,
                                   int64_t count, const int64_t* tokens, d3pm::Uniforms* out) {
  d3pm::asked = static_cast<d3pm::Target>(target);
  const d3pm::Random random{seeds, num_seeds, step, position_offset};
  D3PM_CALL_BEST(uniforms, random, num_tokens, count, tokens, out);
}

extern "C" void uniforms_by_token(int64_t pair, const int64_t* seeds, int64_t num_seeds,
                                  int64_t step, int64_t position_offset, int64_t num_tokens,
                                  int64_t count, const int64_t* tokens, d3pm::Uniforms* out) {
  const d3pm::Random random{seeds, num_seeds, step, position_offset};
  for (int64_t i = 0; i < count; ++i)
    out[i] = d3pm::token_uniforms(random, num_tokens, tokens[i], pair);
}
