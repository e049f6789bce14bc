r"""What the kernels have in common: rows in memory, :math:`\rho` and :math:`1 - \rho^2`, innovations, logarithms."""

import math

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic
from numpy import float64

from ar1_dist.kernels.numba.compilation import compiled, vectorised

__all__ = [
    "CHUNK",
    "MOST",
    "add_product",
    "exp",
    "innovation",
    "load_colouring",
    "load_whitening",
    "log_product",
    "pair_of",
    "part",
    "rows_at",
    "upstream",
]


@intrinsic
def _bitcast(_context, _integer):
    """The float64 that has the bits of an int64."""

    def generate(context, builder, _signature, arguments):
        return builder.bitcast(arguments[0], context.get_value_type(types.float64))

    return types.float64(types.int64), generate


@intrinsic
def _pointer(_context, _integer):
    def generate(context, builder, _signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), generate


CHUNK = 256  # pairs whose coefficients are computed together
# Of atanh(rho): beyond it 1 - rho^2 is no number of full precision. Its logarithm is right for any, all else as there.
MOST = 354.0


@compiled
def rows_at(address, rows, width, like):
    """The rows at an address, as an array of the type of ``like``."""
    return numba.carray(_pointer(address), (rows, width), like.dtype)


@compiled
def upstream(address, rows, width, is_constant, like):
    """The gradient from above; or the one number of which it is made."""
    return rows_at(address, 1 if is_constant else rows, 1 if is_constant else width, like)


@compiled
def part(x, i, start, stop):
    """Row i of x from start to stop, or the only element that it has."""
    return x[i, start:stop] if x.shape[1] != 1 else x[i]


@vectorised
def add_product(x, a, b):
    """x + a b, rounded once."""
    return x + a * b


@vectorised
def exp(x):
    r""":math:`e^x` and :math:`e^x - 1` for :math:`-708 \le x \le 0`, each to the last bit or two, for loops that the
    compiler vectorises: numba calls the C library for one number at a time. With :math:`x = k \log 2 + r`, Taylor's
    series of :math:`(e^r - 1)/r` for :math:`|r| \le \tfrac12 \log 2`."""
    k = np.rint(x * 1.4426950408889634)
    r = (x - k * 6.93147180369123816490e-01) - k * 1.90821492927058770002e-10
    q = 1 / 6227020800
    q = q * r + 1 / 479001600
    q = q * r + 1 / 39916800
    q = q * r + 1 / 3628800
    q = q * r + 1 / 362880
    q = q * r + 1 / 40320
    q = q * r + 1 / 5040
    q = q * r + 1 / 720
    q = q * r + 1 / 120
    q = q * r + 1 / 24
    q = q * r + 1 / 6
    q = q * r + 1 / 2
    q = q * r + 1
    power = _bitcast((np.int64(k) + 1023) << 52)
    change = power * (r * q)
    return power + change, change + (power - 1)


@vectorised
def pair_of(correlation, atanh):
    r""":math:`\rho`, :math:`1 - \rho^2`, its root and :math:`1 - |\rho|`, none of which cancels: with :math:`h =
    e^{-|\alpha|}` and :math:`c = 1/(1 + h^2)` they are :math:`\pm(1 - h^2) c`, :math:`(2hc)^2`, :math:`2hc` and
    :math:`2h^2 c`. What isn't used of them costs nothing."""
    c = float64(correlation)
    if atanh:
        h, less_one = exp(-min(abs(c), MOST))
        share = 1 / (1 + h * h)
        root = 2 * h * share
        return math.copysign(-less_one * (h + 1) * share, c), root * root, root, 2 * (h * h) * share
    gap = 1 - abs(c)
    square = gap * (1 + abs(c))
    return c, square, math.sqrt(square), gap


@vectorised
def load_colouring(c, atanh, with_inverse, pairs):
    r"""Rows of :math:`\rho`, of :math:`\sqrt{1 - \rho^2}` and, where it is needed, of its inverse."""
    for p in range(c.size):
        pairs[0, p], _, pairs[1, p], _ = pair_of(c[p], atanh)
    if with_inverse:
        for p in range(c.size):
            pairs[2, p] = 1 / pairs[1, p]


@vectorised
def load_whitening(c, atanh, pairs):
    r"""Rows of :math:`\rho`, :math:`1 - |\rho|`, :math:`1 - \rho^2` and its inverse."""
    for p in range(c.size):
        pairs[0, p], square, _, pairs[1, p] = pair_of(c[p], atanh)
        pairs[2, p] = square if square >= 0 else np.nan
        pairs[3, p] = 1 / square


@compiled
def innovation(u, previous, rho, gap):
    r""":math:`u_t - \rho_t u_{t-1}`, without cancellation."""
    toward = math.copysign(1.0, rho) * previous
    return (u - toward) + gap * toward


@compiled
def log_product(x, i, n):
    """The sum of the logarithms of x[i, 0], ..., x[i, n - 1], none of which is negative, most taken of products."""
    log, product = 0.0, 1.0
    for start in range(0, n, 8):
        stop = min(start + 8, n)
        factor = 1.0
        if stop == start + 8:
            a, b = float64(x[i, start]) * x[i, start + 1], float64(x[i, start + 2]) * x[i, start + 3]
            c, d = float64(x[i, start + 4]) * x[i, start + 5], float64(x[i, start + 6]) * x[i, start + 7]
            factor = (a * b) * (c * d)
        else:
            for t in range(start, stop):
                factor *= x[i, t]
        if 1e-100 < product * factor < 1e100:
            product *= factor
        elif 1e-100 < factor < 1e100:
            log += np.log(product)
            product = factor
        else:
            for t in range(start, stop):
                log += np.log(float64(x[i, t]))
    return log + np.log(product)
