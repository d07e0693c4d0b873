"""Exponential and logarithm of the numba kernels, which LLVM vectorises: PyPI's numba has no SVML.

As with `rows_cpu`, numba's cache does not notice changes of this file: whoever changes it deletes the cached kernels.
"""

import numpy as np
from numba import njit

from .rows_cpu import FAST, as_float, pattern_of

EXP_MAX_REL_ERROR = 4e-7  # of `exp` on [-87.3, 0]; below -88.03 it is exactly 0


@njit(**FAST)
def exp(x):  # type: ignore[no-untyped-def]
    """e^x for float32 x <= 0, relative error <= EXP_MAX_REL_ERROR, 0 below -88.03, NaN for NaN.

    x = n log 2 + r with integer n and |r| <= log(2)/2; e^r is a polynomial (minimax fit, 1.1e-7). Adding 1.5 * 2^23 +
    127 rounds to an integer and leaves n + 127 in the low bits of the sum: shifted by 23, they are the float 2^n.
    """
    x = np.float32(-88.02969) if x < np.float32(-88.02969) else x  # n = -127, whose 2^n comes out as 0
    t = x * np.float32(1.44269504) + np.float32(12583039.0)
    n = t - np.float32(12583039.0)
    r = x - n * np.float32(0.69314718)
    p = np.float32(0.0083125066) * r + np.float32(0.041890342)
    p = p * r + np.float32(0.16667116)
    p = p * r + np.float32(0.49999231)
    p = p * r + np.float32(1.0)
    p = p * r + np.float32(1.0)
    return p * as_float(pattern_of(t) << 23)


@njit(**FAST)
def log1p(s):  # type: ignore[no-untyped-def]
    """log(1 + s) for float32 s >= 0, relative error <= 3e-7, also for tiny s; NaN for NaN.

    1 + s = 2^k (1 + f) with |f| < 0.42, then 2 atanh(f / (2 + f)) as a series. For k = 0, f is s itself, unrounded.
    """
    S = np.float32(1.0) + s
    k = (np.int32(pattern_of(S)) - np.int32(0x3F3504F3)) >> 23  # 0x3F3504F3 is sqrt(1/2)
    scale = as_float((127 - k) << 23)
    f = s if k == 0 else S * scale - np.float32(1.0)
    z = f / (np.float32(2.0) + f)
    q = z * z
    p = np.float32(0.2222222) * q + np.float32(0.2857143)
    p = p * q + np.float32(0.4)
    p = p * q + np.float32(0.6666667)
    p = p * q + np.float32(2.0)
    return p * z + np.float32(np.int32(k)) * np.float32(0.69314718)
