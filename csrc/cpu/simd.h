// All of the vectors. Included once for each target, inside its namespace; all is inlined into that
// target's code.

#define D3PM_INLINE static inline D3PM_MEMBER

#include "../bits.h"
#include "../phi.h"
#include "../powers.h"
#include "vectors.h"

#include "vector_elements.h"
#include "vector_math.h"
