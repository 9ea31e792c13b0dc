"""Elementary functions to the last digits, where the hardware's own are approximate.

float32 goes by polynomials (Cephes), float64 by the device's library.
"""

import triton
import triton.language as tl
from triton.runtime import driver

from ..._environment import INTERPRET

constexpr_function = getattr(triton, "constexpr_function", None) or tl.core.constexpr_function
INTERPRETED = tl.constexpr(INTERPRET)
LN2_HIGH = tl.constexpr(0.693359375)
LN2_LOW = tl.constexpr(-2.12194440e-4)
LN2 = tl.constexpr(0.693147180559945309)
LN2_OF_BITS = tl.constexpr(0.693147180559945309 / (1 << 23))
LOG2E = tl.constexpr(1.44269504088896341)


def _backend():
    return driver.active.get_current_target().backend


_backend.__triton_builtin__ = True  # its source is none of a kernel's


@constexpr_function
def has_ptx():
    """Whether a kernel is compiled for a GPU of NVIDIA."""
    return _backend() == "cuda"


@triton.jit
def tiny(REAL: tl.constexpr):
    """Below it a probability counts as zero."""
    return 1e-290 if REAL == tl.float64 else 1e-30


@triton.jit
def least(REAL: tl.constexpr):
    """Its reciprocal is a normal number, too."""
    return 4.450147717014403e-308 if REAL == tl.float64 else 2.350988701644575e-38


@triton.jit
def exp(x):
    """For x <= 0 or NaN; below the least normal number, 0."""
    if x.dtype == tl.float64:
        return tl.exp(x)
    else:
        rest, curve, scale = _split_exp(x)
        return tl.where(x < -87.3, 0.0, scale * (curve + rest) + scale)


@triton.jit
def fast_exp(x):
    """For x <= 0 or NaN; float32 by the hardware, within (2e-7 + 1e-7 |x|) of itself."""
    if x.dtype == tl.float64:
        return tl.exp(x)
    else:
        return fast_exp2(x * LOG2E)


@triton.jit
def fast_exp2(x):
    """Return 2^x of float32, within 3e-7 of itself: by the hardware."""
    return tl.exp2(x)


@triton.jit
def short_exp(x):
    """For x <= 0 or NaN, within 1e-7 (1 + |x|) of itself; below the least normal number, 0."""
    if x.dtype == tl.float64:
        return tl.exp(x)
    else:
        x = tl.maximum(x, -88.03, propagate_nan=tl.PropagateNan.ALL)
        shifted = x * LOG2E + 12582912.0  # its low bits are round(x / ln 2), -127 at least
        r = x * LOG2E - (shifted - 12582912.0)
        p = r * 1.535336188e-4 + 1.339887440e-3
        p = p * r + 9.618437357e-3
        p = p * r + 5.550332471e-2
        p = p * r + 2.402264791e-1
        p = p * r + 6.931472028e-1
        power = (shifted.to(tl.int32, bitcast=True) << 23) + 0x3F800000  # of 2; of -127 zero
        return (p * r + 1.0) * power.to(tl.float32, bitcast=True)


@triton.jit
def expm1(x):
    """Return exp(x) - 1 for x <= 0 or NaN; in float64 for x <= 1."""
    if x.dtype == tl.float64:
        e = tl.exp(x)
        near = (e - 1.0) * (x / tl.log(e))  # what rounds e off rounds its logarithm off as much
        return tl.where(e == 1.0, x, tl.where(e > 0.5, near, e - 1.0))
    else:
        rest, curve, scale = _split_exp(x)
        return tl.where(x < -87.3, -1.0, scale * (curve + rest) + (scale - 1.0))


@triton.jit
def powers(x):
    """Return exp(x), exp(x) - 1 and exp(x) - 1 - x; in float64 the last two for x <= 1."""
    if x.dtype == tl.float64:
        less = expm1(x)
        near = (x > -0.5) & (x < 0.5)
        return tl.exp(x), less, tl.where(near, _near_psi(x), less - x)
    else:
        # By that of x / 2, whose square has the range, and for |x| < 0.69 no difference.
        half = 0.5 * x
        low = tl.where(half < -60.0, -60.0, half)
        rest, curve, scale = _split_exp(tl.where(low > 45.0, 45.0, low))
        root = scale * (curve + rest) + scale
        less = scale * (curve + rest) + (scale - 1.0)
        less_of_x = less * less + 2.0 * less
        near = less * less + 2.0 * curve
        return root * root, less_of_x, tl.where(scale == 1.0, near, less_of_x - x)


@triton.jit
def _near_psi(x):
    """Return exp(x) - 1 - x for |x| < 0.5, by its series."""
    p = x / 17.0 + 1.0
    for n in tl.static_range(14):
        p = p * x / (16.0 - n) + 1.0
    return 0.5 * x * x * p


@triton.jit
def _split_exp(x):
    """Return r, exp(r) - 1 - r and 2^n of x = n ln 2 + r with |r| < 0.35; NaN is an r of NaN.

    For |x| < 87.3.
    """
    shifted = x * LOG2E + 12582912.0  # its low bits are round(x / ln 2)
    n = shifted - 12582912.0
    r = (x - n * LN2_HIGH) - n * LN2_LOW
    p = r * 1.9875691500e-4 + 1.3981999507e-3
    p = p * r + 8.3334519073e-3
    p = p * r + 4.1665795894e-2
    p = p * r + 1.6666665459e-1
    p = p * r + 5.0000001201e-1
    power = (shifted.to(tl.int32, bitcast=True) << 23) + 0x3F800000
    return r, p * (r * r), power.to(tl.float32, bitcast=True)


@triton.jit
def log(y):
    """For y >= 0, zero, infinity, NaN and subnormal numbers included."""
    if y.dtype == tl.float64:
        return tl.log(y)
    else:
        small = y < 1.1754944e-38
        scaled = tl.where(small, y * 16777216.0, y)
        n, r, curve = _split(scaled - 1.0, scaled)
        n = tl.where(small, n - 24.0, n)
        finite = ((r - curve) + n * LN2_LOW) + n * LN2_HIGH
        limit = tl.where(y == 0.0, float("-inf"), y)  # inf and NaN are their own logarithm
        return tl.where((y > 0.0) & (y < float("inf")), finite, limit)


@triton.jit
def log_of_double(y, REAL: tl.constexpr):
    """Return the logarithm, in the type of the calculation, of any float64 y >= 0."""
    if REAL == tl.float64:
        return tl.log(y)
    else:
        small = y < 2.2250738585072014e-308
        bits = tl.where(small, y * 18014398509481984.0, y).to(tl.int64, bitcast=True)
        power = (bits - 0x3FE6A09E667F3BCD) >> 52  # of 2, and what is left is near 1
        mantissa = (bits - (power << 52)).to(tl.float64, bitcast=True).to(tl.float32)
        n = tl.where(small, power - 54, power).to(tl.float32)
        return tl.where(y > 0.0, (log(mantissa) + n * LN2_LOW) + n * LN2_HIGH, float("-inf"))


@triton.jit
def log1p(x):
    """For x >= 0 or NaN."""
    y = 1.0 + x
    if y.dtype == tl.float64:
        return tl.where(x < 0.1, x - _near_phi(x), tl.log(y))
    else:
        n, r, curve = _split(x, y)
        finite = ((r - curve) + n * LN2_LOW) + n * LN2_HIGH
        return tl.where(y < float("inf"), finite, y)


@triton.jit
def phi(x, y):
    """Return x - log(1 + x), given y = 1 + x to its own last digit, a positive normal number."""
    if y.dtype == tl.float64:
        return tl.where((x > -0.1) & (x < 0.1), _near_phi(x), x - tl.log(y))
    else:
        n, r, curve = _split(x, y)
        return ((x - r) - n * LN2_LOW) - n * LN2_HIGH + curve


@triton.jit
def phi_plus(x, y, more):
    """Return x - log(y) + more: with 0 for it :func:`phi`, else for any y > 0."""
    if y.dtype == tl.float64:
        return tl.where(more == 0.0, phi(x, y), (x + more) - tl.log(y))
    else:
        small = y < 1.1754944e-38
        y = tl.where(small, y * 16777216.0, y)
        n, r, curve = _split(tl.where(more == 0.0, x, y - 1.0), y)
        n = tl.where(small, n - 24.0, n)
        return ((x + more - r) - n * LN2_LOW) - n * LN2_HIGH + curve


@triton.jit
def sum_of_phi(sum, rest, product=None):
    """Return that of x - log(1 + x) over a few x of float32, given their sum.

    The product of all 1 + x is 1 + sum + rest; below 1/2 this has fewer digits than a product.
    """
    x = sum + rest
    y = 1.0 + x
    if product is not None:
        y = tl.where(x > -0.5, y, product)
    n, r, curve = _split(x, y)
    return (tl.where(n == 0.0, -rest, sum - r) - n * LN2_LOW) - n * LN2_HIGH + curve


@triton.jit
def _split(x, y):
    """Return n, r and r - log(1 + r) of y = 2^n (1 + r) with 1 + r in [sqrt(1/2), sqrt(2)).

    x is the exact y - 1, used where n = 0; y is positive and normal.
    """
    power, mantissa = power_and_mantissa(y)
    r = tl.where(power == 0, x, mantissa - 1.0)
    return power.to(tl.float32), r, r * r * (0.5 - r * _near_curve(r))


@triton.jit
def _mean_slope(r):
    """Return log(1 + r) / r for 1 + r in [sqrt(1/2), sqrt(2))."""
    return (_near_curve(r) * r - 0.5) * r + 1.0


@triton.jit
def _near_curve(r):
    """Return (log(1 + r) - r + r^2 / 2) / r^3 for 1 + r in [sqrt(1/2), sqrt(2))."""
    p = r * 7.0376836292e-2 - 1.1514610310e-1
    p = p * r + 1.1676998740e-1
    p = p * r - 1.2420140846e-1
    p = p * r + 1.4249322787e-1
    p = p * r - 1.6668057665e-1
    p = p * r + 2.0000714765e-1
    p = p * r - 2.4999993993e-1
    return p * r + 3.3333331174e-1


@triton.jit
def power_and_mantissa(y):
    """Return n and z of y = 2^n z with z in [sqrt(1/2), sqrt(2)), for a normal float32 y > 0."""
    bits = y.to(tl.int32, bitcast=True)
    power = (bits - 0x3F3504F3) >> 23
    return power, (bits - (power << 23)).to(tl.float32, bitcast=True)


@triton.jit
def _near_phi(x):
    """Return x - log(1 + x) for |x| < 0.1, by log(1 + x) = 2 atanh(x / (2 + x))."""
    z = x / (2.0 + x)
    z2 = z * z
    p = z2 / 15.0 + 1.0 / 13.0
    p = p * z2 + 1.0 / 11.0
    p = p * z2 + 1.0 / 9.0
    p = p * z2 + 1.0 / 7.0
    p = p * z2 + 1.0 / 5.0
    p = p * z2 + 1.0 / 3.0
    return z * (x - 2.0 * z2 * p)


@triton.jit
def reciprocal(y):
    """Return 1 / y for y > 0 or NaN, within 4e-7 of itself: 0 where it is not a normal number."""
    if INTERPRETED or y.dtype == tl.float64:
        return 1.0 / y
    elif has_ptx():
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [y], tl.float32, is_pure=True, pack=1
        )
    else:
        root = tl.rsqrt(y)
        return root * root


@triton.jit
def quotient(x, y):
    """Return x / y rounded to the nearest number; ``/`` is approximate for float32 on a GPU."""
    if x.dtype == tl.float64:
        return x / y
    else:
        return tl.div_rn(x, y)


@triton.jit
def rounded_to(x, KIND: tl.constexpr):
    """Return a float64 number in another type; one of 16 bits by way of float32."""
    if KIND == tl.float64:
        return x
    else:
        return x.to(tl.float32).to(KIND)


@triton.jit
def plus_log(x, y):
    """Return x + log(y) for a normal y > 0."""
    if y.dtype == tl.float64:
        return x + tl.log(y)
    else:
        bits = y.to(tl.int32, bitcast=True)
        power = (bits - 0x3F3504F3) & -0x800000  # of 2, times 2^23
        r = (bits - power).to(tl.float32, bitcast=True) - 1.0
        return (x + power.to(tl.float32) * LN2_OF_BITS) + r * _mean_slope(r)


@triton.jit
def fast_reciprocal(y):
    """For a normal float32 y > 0 below 8e37, within 1.2e-7 of itself, as the hardware has it."""
    if INTERPRETED or not has_ptx():
        return 1.0 / y
    else:
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [y], tl.float32, is_pure=True, pack=1
        )


@triton.jit
def fast_log(y):
    """For normal y > 0, float32 within 2e-7 + 1e-7 |log y| of the truth: by the hardware's own."""
    if y.dtype == tl.float64:
        return tl.log(y)
    else:
        return fast_log2(y) * LN2


@triton.jit
def fast_log2(y):
    """Return the logarithm to base 2 of a normal y > 0, as :func:`fast_log`."""
    if INTERPRETED or y.dtype == tl.float64 or not has_ptx():
        return tl.log2(y)
    else:
        return tl.inline_asm_elementwise(
            "lg2.approx.ftz.f32 $0, $1;", "=f,f", [y], tl.float32, is_pure=True, pack=1
        )


@triton.jit
def widened(x, REAL: tl.constexpr):
    """Return a tile's numbers in the type of the calculation, bfloat16 by one instruction each."""
    if INTERPRETED or (x.dtype != tl.bfloat16 or not has_ptx()):
        return x.to(REAL)
    else:
        shifts: tl.constexpr = "shl.b32 $0, $2, 16; and.b32 $1, $2, 0xffff0000;"
        return tl.inline_asm_elementwise(shifts, "=f,=f,r", [x], tl.float32, is_pure=True, pack=2)
