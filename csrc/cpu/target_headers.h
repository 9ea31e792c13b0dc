// What the files compiled for each set of vector instructions use: all of it has to be included
// outside of their namespaces.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "step_cursor.h"
#include "threads.h"
