#include "cpu/simd.h"
#include "cpu/uniforms_cursor.h"

static void uniforms(const Random& random, int64_t num_tokens, int64_t count, const int64_t* tokens,
                     Uniforms* out) {
  UniformsCursor uniforms_of(random, num_tokens);
  for (int64_t i = 0; i < count; ++i) out[i] = uniforms_of(tokens[i]);
}
