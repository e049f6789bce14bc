r"""The kernels of :mod:`ar1_dist.numba_operations`, compiled by numba: an operation's value and its gradient.

Each goes once over memory, row by row, with its arithmetic in float64, on one thread and without Python's lock. They
are compiled when first called, and numba keeps them on disk. They are in one file because numba, to see whether what it
keeps is out of date, looks at the file of the kernel and not at those of the functions that it calls.

A kernel takes an empty array of the tensors' type, the addresses of all tensors, the number of the batch's rows, the
number of rows of each argument and d, the size of a row; then the widths of the scale and of the correlations, and
options. An argument may have fewer rows than the batch, which repeat, and rows of width 1 where it is shared; a result
has all rows, and a gradient the width of its argument. The gradient from above has all rows too or, with
``is_constant``, is one number for all of them. The correlation of a pair is given as :math:`\rho` or, with ``atanh``,
as :math:`\alpha = \operatorname{artanh} \rho`. Their formulas are those of the operations.
"""

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import types
from numba.core.caching import NullCache
from numba.core.dispatcher import Dispatcher
from numba.extending import intrinsic
from numpy import float64

if numba.config.DISABLE_JIT:  # type: ignore[attr-defined]
    raise ImportError("numba's compiler is switched off")


def _compile(**options: Any) -> Callable[[Callable], Callable]:
    def decorate(function: Callable) -> Callable:
        try:
            return numba.njit(cache=True, nogil=True, error_model="numpy", **options)(function)
        except RuntimeError:  # there is no folder to keep it in
            return numba.njit(nogil=True, error_model="numpy", **options)(function)

    return decorate


def leave_cache() -> str:
    """Compile from now on without what numba keeps on disk, whose folder is returned."""
    kernels: list[Any] = [x for x in globals().values() if isinstance(x, Dispatcher)]
    folders = [getattr(kernel._cache, "cache_path", "") for kernel in kernels]
    for kernel in kernels:
        kernel._cache = NullCache()
    return folders[0]


_compiled = _compile(forceinline=True)
# What vector instructions need: sums in another order, and products and sums that are rounded once.
_vectorised = _compile(forceinline=True, fastmath={"reassoc", "contract"})


_CHUNK = 256  # pairs whose coefficients are computed together
# Of atanh(rho): beyond it 1 - rho^2 is no number of full precision. Its logarithm is right for any, all else as there.
_MOST = 354.0
_SHORT = 8  # the d up to which one loop takes less time than several that are vectorised


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


@_compiled
def _at(address, rows, width, like):
    """The rows at an address, as an array of the type of ``like``."""
    return numba.carray(_pointer(address), (rows, width), like.dtype)


@_vectorised
def _exp(x):
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


@_vectorised
def _pair(correlation, atanh):
    r""":math:`\rho`, :math:`1 - \rho^2`, its root and :math:`1 - |\rho|`, none of which cancels: with :math:`h =
    e^{-|\alpha|}` and :math:`c = 1/(1 + h^2)` they are :math:`\pm(1 - h^2) c`, :math:`(2hc)^2`, :math:`2hc` and
    :math:`2h^2 c`. What isn't used of them costs nothing."""
    c = float64(correlation)
    if atanh:
        h, less_one = _exp(-min(abs(c), _MOST))
        share = 1 / (1 + h * h)
        root = 2 * h * share
        return math.copysign(-less_one * (h + 1) * share, c), root * root, root, 2 * (h * h) * share
    gap = 1 - abs(c)
    square = gap * (1 + abs(c))
    return c, square, math.sqrt(square), gap


@_vectorised
def _load_colouring(c, atanh, with_inverse, pairs):
    r"""Rows of :math:`\rho`, of :math:`\sqrt{1 - \rho^2}` and, where it is needed, of its inverse."""
    for p in range(c.size):
        pairs[0, p], _, pairs[1, p], _ = _pair(c[p], atanh)
    if with_inverse:
        for p in range(c.size):
            pairs[2, p] = 1 / pairs[1, p]


@_vectorised
def _load_whitening(c, atanh, pairs):
    r"""Rows of :math:`\rho`, :math:`1 - |\rho|`, :math:`1 - \rho^2` and its inverse."""
    for p in range(c.size):
        pairs[0, p], square, _, pairs[1, p] = _pair(c[p], atanh)
        pairs[2, p] = square if square >= 0 else np.nan
        pairs[3, p] = 1 / square


@_compiled
def _upstream(address, rows, width, is_constant, like):
    """The gradient from above; or the one number of which it is made."""
    return _at(address, 1 if is_constant else rows, 1 if is_constant else width, like)


@_compiled
def _part(x, i, start, stop):
    """Row i of x from start to stop, or the only element that it has."""
    return x[i, start:stop] if x.shape[1] != 1 else x[i]


@_vectorised
def _add_product(x, a, b):
    """x + a b, rounded once."""
    return x + a * b


@_compiled
def _log_product(x, i, n):
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


@_compiled
def recur(like, at, rows, counts, d, a_width, reverse):
    a = _at(at[0], counts[0], a_width, like)
    x = _at(at[1], counts[1], d, like)
    y = _at(at[2], rows, d, like)
    first, step = (d - 1, -1) if reverse else (0, 1)
    a_step = step if a.shape[1] > 1 else 0
    a_first = a.shape[1] - 1 if reverse else 0
    for r in range(rows):
        i, j = r % a.shape[0], r % x.shape[0]
        state = float64(x[j, first])
        y[r, first] = state
        for t in range(1, d):
            state = _add_product(float64(x[j, first + t * step]), a[i, a_first + (t - 1) * a_step], state)
            y[r, first + t * step] = state


@_vectorised
def recur_backward(like, at, rows, counts, d, a_width, reverse):
    y = _at(at[0], counts[0], d, like)
    grad_x = _at(at[1], counts[1], d, like)
    grad_a = _at(at[2], rows, a_width, like)
    ahead, behind = (1, 0) if reverse else (0, 1)
    for r in range(rows):
        total = 0.0
        for t in range(d - 1):
            product = float64(y[r, t + ahead]) * float64(grad_x[r, t + behind])
            total += product
            if grad_a.shape[1] != 1:
                grad_a[r, t] = product
        if grad_a.shape[1] == 1:
            grad_a[r, 0] = total


@_compiled
def moebius(like, at, rows, counts, d, a_width, c_width):
    a = _at(at[0], counts[0], a_width, like)
    c = _at(at[1], counts[1], c_width, like)
    x = _at(at[2], counts[2], d, like)
    y = _at(at[3], rows, d, like)
    a_step, c_step = min(a.shape[1] - 1, 1), min(c.shape[1] - 1, 1)
    for r in range(rows):
        i, j, k = r % a.shape[0], r % c.shape[0], r % x.shape[0]
        state = float64(x[k, 0])
        y[r, 0] = state
        for t in range(1, d):
            p = t - 1
            state = x[k, t] + a[i, p * a_step] * state / (1 + c[j, p * c_step] * state)
            y[r, t] = state


@_compiled
def moebius_backward(like, at, rows, counts, d, a_width, c_width):
    """The adjoint has the coefficient a/(1 + c y)^2."""
    grad = _at(at[0], counts[0], d, like)
    a = _at(at[1], counts[1], a_width, like)
    c = _at(at[2], counts[2], c_width, like)
    y = _at(at[3], counts[3], d, like)
    grad_a = _at(at[4], rows, a_width, like)
    grad_c = _at(at[5], rows, c_width, like)
    grad_x = _at(at[6], rows, d, like)
    a_step, c_step = min(a.shape[1] - 1, 1), min(c.shape[1] - 1, 1)
    for r in range(rows):
        i, j, k, m = r % a.shape[0], r % c.shape[0], r % y.shape[0], r % grad.shape[0]
        h = total_a = total_c = 0.0
        for q in range(d - 1):
            p = d - 2 - q
            h += grad[m, p + 1]
            grad_x[r, p + 1] = h
            shrink = 1 / (1 + float64(c[j, p * c_step]) * y[k, p])
            passed = a[i, p * a_step] * shrink
            by_a = h * shrink * y[k, p]
            by_c = -by_a * passed * y[k, p]
            total_a += by_a
            total_c += by_c
            if a_step:
                grad_a[r, p] = by_a
            if c_step:
                grad_c[r, p] = by_c
            h *= passed * shrink
        grad_x[r, 0] = h + grad[m, 0]
        if a.shape[1] == 1:
            grad_a[r, 0] = total_a
        if c.shape[1] == 1:
            grad_c[r, 0] = total_c


@_compiled
def colour(like, at, rows, counts, d, width, c_width, atanh):
    loc = _at(at[0], counts[0], d, like)
    scale = _at(at[1], counts[1], width, like)
    c = _at(at[2], counts[2], c_width, like)
    noise = _at(at[3], counts[3], d, like)
    z = _at(at[4], rows, d, like)
    u = _at(at[5], rows, d, like)
    step, pair_step = min(scale.shape[1] - 1, 1), min(c.shape[1] - 1, 1)
    pairs = np.empty((4, _CHUNK))
    for r in range(rows):
        i, j, m, k = r % loc.shape[0], r % scale.shape[0], r % c.shape[0], r % noise.shape[0]
        state = float64(noise[k, 0])
        u[r, 0] = state
        z[r, 0] = loc[i, 0] + scale[j, 0] * u[r, 0]
        for start in range(1, d, _CHUNK):
            stop = min(start + _CHUNK, d)
            _load_colouring(_part(c, m, start - 1, stop - 1), atanh, False, pairs)
            state = _chain_part(noise[k, start:stop], pairs, pair_step, state, u[r, start:stop])
            spread = _part(scale, j, start, stop)
            _scale_and_shift(loc[i, start:stop], spread, step, u[r, start:stop], z[r, start:stop])


@_compiled
def _chain_part(noise, pairs, pair_step, state, u):
    """The standardised chain, from the state before. Four places at a time, each from what comes before the four: the
    processor needn't end one before it begins the next."""
    a1 = a2 = a3 = a4 = pairs[0, 0]
    b1 = b2 = b3 = b4 = pairs[1, 0]
    whole = noise.size // 4 * 4
    for p in range(0, whole, 4):
        if pair_step:
            a1, a2, a3, a4 = pairs[0, p], pairs[0, p + 1], pairs[0, p + 2], pairs[0, p + 3]
            b1, b2, b3, b4 = pairs[1, p], pairs[1, p + 1], pairs[1, p + 2], pairs[1, p + 3]
        y1 = b1 * noise[p]
        y2 = _add_product(b2 * noise[p + 1], a2, y1)
        y3 = _add_product(b3 * noise[p + 2], a3, y2)
        y4 = _add_product(b4 * noise[p + 3], a4, y3)
        u[p] = _add_product(y1, a1, state)
        u[p + 1] = _add_product(y2, a2 * a1, state)
        u[p + 2] = _add_product(y3, a3 * (a2 * a1), state)
        state = _add_product(y4, (a4 * a3) * (a2 * a1), state)
        u[p + 3] = state
    for p in range(whole, noise.size):
        state = _add_product(pairs[1, p * pair_step] * noise[p], pairs[0, p * pair_step], state)
        u[p] = state
    return state


@_compiled  # and so rounded twice, as torch's product and sum are
def _scale_and_shift(loc, scale, step, u, z):
    if step:
        for p in range(loc.size):
            z[p] = loc[p] + scale[p] * u[p]
    else:
        for p in range(loc.size):
            z[p] = loc[p] + scale[0] * u[p]


@_vectorised
def _load_product(grad, scale, step, h):
    if step:
        for p in range(grad.size):
            h[p] = float64(grad[p]) * scale[p]
    else:
        factor = float64(scale[0])
        for p in range(grad.size):
            h[p] = factor * grad[p]


@_compiled
def _adjoint_part(h, rho, pair_step, after, state):
    r""":math:`h_t = x_t + \rho_{t+1} h_{t+1}` in the place of x, from the state after and its coefficient. Four places
    at a time, each from what comes after the four, as in :func:`_chain_part`."""
    a1 = a2 = a3 = rho[0]
    a4 = after
    whole = h.size // 4 * 4
    for q in range(0, whole, 4):
        p = h.size - 4 - q
        if pair_step:
            a1, a2, a3 = rho[p + 1], rho[p + 2], rho[p + 3]
        y4 = h[p + 3]
        y3 = _add_product(h[p + 2], a3, y4)
        y2 = _add_product(h[p + 1], a2, y3)
        y1 = _add_product(h[p], a1, y2)
        h[p + 3] = _add_product(y4, a4, state)
        h[p + 2] = _add_product(y3, a3 * a4, state)
        h[p + 1] = _add_product(y2, a2 * (a3 * a4), state)
        state = _add_product(y1, (a1 * a2) * (a3 * a4), state)
        h[p] = state
        a4 = rho[p * pair_step]
    for q in range(whole, h.size):
        p = h.size - 1 - q
        state = _add_product(h[p], a4, state)
        h[p] = state
        a4 = rho[p * pair_step]
    return a4, state


@_compiled
def colour_backward(like, at, rows, counts, d, width, c_width, atanh, is_constant, needs_noise):
    r"""With h the adjoint of the recurrence, the gradient of :math:`\alpha_t` is :math:`h_t \sqrt{1 - \rho_t^2}
    (\sqrt{1 - \rho_t^2}\, u_{t-1} - \rho_t \epsilon_t)`."""
    u = _at(at[0], counts[0], d, like)
    scale = _at(at[1], counts[1], width, like)
    c = _at(at[2], counts[2], c_width, like)
    noise = _at(at[3], counts[3], d, like)
    grad = _upstream(at[4], rows, d, is_constant, like)
    grad_scale = _at(at[5], rows, width, like)
    grad_c = _at(at[6], rows, c_width, like)
    grad_noise = _at(at[7], rows, d, like)
    step, pair_step = min(scale.shape[1] - 1, 1), min(c.shape[1] - 1, 1)
    pairs, h = np.empty((3, _CHUNK)), np.empty(_CHUNK)
    constant = np.full(_CHUNK if is_constant else 0, grad[0, 0] if is_constant else 0, like.dtype)
    for r in range(rows):
        i, j, m, k = r % grad.shape[0], r % scale.shape[0], r % c.shape[0], r % noise.shape[0]
        next_rho = state = total_scale = total_c = 0.0
        for start in range(1 + (d - 2) // _CHUNK * _CHUNK, 0, -_CHUNK):
            stop = min(start + _CHUNK, d)
            _load_colouring(_part(c, m, start - 1, stop - 1), atanh, not atanh, pairs)
            g = constant[: stop - start] if is_constant else grad[i, start:stop]
            e, spread = noise[k, start:stop], _part(scale, j, start, stop)
            _load_product(g, spread, step, h)
            next_rho, state = _adjoint_part(h[: stop - start], pairs[0], pair_step, next_rho, state)
            total_scale += _scale_gradient(g, u[r, start:stop], step, grad_scale[r, start * step :])
            total_c += _pair_gradient(h, u[r, start - 1 : stop - 1], e, pairs, pair_step, atanh, grad_c[r, start - 1 :])
            if needs_noise:
                for p in range(stop - start):
                    grad_noise[r, start + p] = pairs[1, p * pair_step] * h[p]
        first = float64(grad[i, 0])
        grad_scale[r, 0] = first * u[r, 0] + (0.0 if step else total_scale)
        if c.shape[1] == 1:
            grad_c[r, 0] = total_c
        if needs_noise:
            grad_noise[r, 0] = first * scale[j, 0] + next_rho * state


@_vectorised
def _scale_gradient(grad, u, step, grad_scale):
    total = 0.0
    if step:
        for p in range(grad.size):
            grad_scale[p] = float64(grad[p]) * u[p]
    else:
        for p in range(grad.size):
            total += float64(grad[p]) * u[p]
    return total


@_vectorised
def _pair_gradient(h, previous, noise, pairs, pair_step, atanh, grad_c):
    total = 0.0
    factors = pairs[1 if atanh else 2]
    if pair_step:
        for p in range(noise.size):
            grad_c[p] = factors[p] * h[p] * (pairs[1, p] * previous[p] - pairs[0, p] * noise[p])
    else:
        rho, root = pairs[0, 0], pairs[1, 0]
        for p in range(noise.size):
            total += h[p] * (root * previous[p] - rho * noise[p])
    return total * factors[0]


@_compiled
def log_prob(like, at, rows, counts, d, width, c_width, atanh, is_noise):
    """With ``is_noise`` the value is given as the noise that it was made of."""
    value = _at(at[0], counts[0], d, like)
    loc = _at(at[1], counts[1], d, like)
    scale = _at(at[2], counts[2], width, like)
    c = _at(at[3], counts[3], c_width, like)
    result = _at(at[4], rows, 1, like)
    step, pair_step = min(scale.shape[1] - 1, 1), min(c.shape[1] - 1, 1)
    pairs, u = np.empty((4, _CHUNK)), np.empty(_CHUNK + 1)
    for r in range(rows):
        n, i, j, m = r % value.shape[0], r % loc.shape[0], r % scale.shape[0], r % c.shape[0]
        log = _log_scales(scale, j, d)
        if is_noise:
            squares, log = _squares(value[n]), log + _log_roots(c, m, d, atanh, pairs)
            result[r, 0] = -0.5 * (squares + d * math.log(2 * math.pi)) - log
            continue
        u[0] = (float64(value[n, 0]) - loc[i, 0]) / scale[j, 0]
        squares = u[0] * u[0]
        if not pair_step:
            log += _log_roots(c, m, d, atanh, pairs)
        for start in range(1, d, _CHUNK):
            stop = min(start + _CHUNK, d)
            _load_whitening(_part(c, m, start - 1, stop - 1), atanh, pairs)
            if pair_step:
                log += 0.5 * _log_product(pairs, 2, stop - start) - _beyond(c[m, start - 1 : stop - 1], atanh)
            _standardise(value[n, start:stop], loc[i, start:stop], _part(scale, j, start, stop), step, u[1:])
            squares += _sum_of_squares(u, pairs, pair_step, stop - start)
            u[0] = u[stop - start]
        result[r, 0] = -0.5 * (squares + d * math.log(2 * math.pi)) - log


@_vectorised
def _squares(x):
    total = 0.0
    for p in range(x.size):
        total += float64(x[p]) * x[p]
    return total


@_vectorised
def _standardise(value, loc, scale, step, u):
    for p in range(value.size):
        u[p] = (float64(value[p]) - loc[p]) / scale[p * step]


@_vectorised
def _sum_of_squares(u, pairs, pair_step, n):
    """Of the innovations."""
    total, rho, gap = 0.0, pairs[0, 0], pairs[1, 0]
    if pair_step:
        for p in range(n):
            w = _innovation(u[p + 1], u[p], pairs[0, p], pairs[1, p])
            total += w * w * pairs[3, p]
        return total
    for p in range(n):
        w = _innovation(u[p + 1], u[p], rho, gap)
        total += w * w
    return total * pairs[3, 0]


@_compiled
def _innovation(u, previous, rho, gap):
    r""":math:`u_t - \rho_t u_{t-1}`, without cancellation."""
    toward = math.copysign(1.0, rho) * previous
    return (u - toward) + gap * toward


@_compiled
def log_prob_backward(like, at, rows, counts, d, width, c_width, atanh, is_noise, is_constant):
    r"""With w the whitened value and :math:`\omega_t = w_t/\sqrt{1 - \rho_t^2}`, the slope of half the sum of squares
    by :math:`u_t` is :math:`\omega_t - \rho_{t+1} \omega_{t+1}`, and the gradient of :math:`\alpha_t` is
    :math:`\rho_t - \omega_t (\rho_t u_t - u_{t-1})`."""
    value = _at(at[0], counts[0], d, like)
    loc = _at(at[1], counts[1], d, like)
    scale = _at(at[2], counts[2], width, like)
    c = _at(at[3], counts[3], c_width, like)
    grad = _upstream(at[4], rows, 1, is_constant, like)
    grad_loc = _at(at[5], rows, d, like)
    grad_scale = _at(at[6], rows, width, like)
    grad_c = _at(at[7], rows, c_width, like)
    step, pair_step = min(scale.shape[1] - 1, 1), min(c.shape[1] - 1, 1)
    pairs, slopes = np.empty((4, _CHUNK)), np.empty(_CHUNK)
    # Of the coordinates of a part, and first of the one before it.
    u, inverse, omega = np.empty(_CHUNK + 1), np.empty(_CHUNK + 1), np.empty(_CHUNK + 1)
    for r in range(rows):
        n, i, j, m = r % value.shape[0], r % loc.shape[0], r % scale.shape[0], r % c.shape[0]
        g, total_scale, total_c = float64(grad[r % grad.shape[0], 0]), 0.0, 0.0
        if d <= _SHORT:
            _log_prob_backward_of_short(
                g,
                value[n],
                loc[i],
                scale[j],
                step,
                c[m],
                pair_step,
                atanh,
                is_noise,
                grad_loc[r],
                grad_scale[r],
                grad_c[r],
            )
            continue
        inverse[0] = 1 / float64(scale[j, 0])
        u[0] = omega[0] = float64(value[n, 0]) if is_noise else (float64(value[n, 0]) - loc[i, 0]) * inverse[0]
        for start in range(1, d, _CHUNK):
            stop = min(start + _CHUNK, d)
            size = stop - start
            _load_whitening(_part(c, m, start - 1, stop - 1), atanh, pairs)
            if step:
                _invert(scale[j, start:stop], inverse[1:])
            if is_noise:
                _colour_part(value[n, start:stop], pairs, pair_step, u)
            else:
                _multiply_deviations(value[n, start:stop], loc[i, start:stop], inverse[step:], step, u[1:])
            if is_noise:
                total_c += _log_prob_of_draw_by_pair(
                    g, value[n, start:stop], u, omega, pairs, pair_step, atanh, grad_c[r, start - 1 :]
                )
            else:
                _load_omega(u, pairs, pair_step, omega, size)
                total_c += _log_prob_by_pair(g, u, omega, pairs, pair_step, atanh, grad_c[r, start - 1 :], size)
            _load_slopes(omega, pairs, pair_step, slopes, size)
            total_scale += _log_prob_by_coordinate(
                g, slopes, u, inverse, step, grad_loc[r, start - 1 :], grad_scale[r, (start - 1) * step :], size
            )
            u[0], inverse[0], omega[0] = u[size], inverse[size * step], omega[size]
        grad_loc[r, d - 1] = g * omega[0] * inverse[0]
        by_scale = g * (omega[0] * u[0] - 1) * inverse[0]
        grad_scale[r, (d - 1) * step] = by_scale if step else total_scale + by_scale
        if c.shape[1] == 1:
            grad_c[r, 0] = total_c


@_compiled
def _log_prob_backward_of_short(
    g, value, loc, scale, step, c, pair_step, atanh, is_noise, grad_loc, grad_scale, grad_c
):
    """The same for a row of few coordinates, in one loop."""
    d, total_scale, total_c = loc.size, 0.0, 0.0
    inverse = 1 / float64(scale[0])
    u = omega = float64(value[0]) if is_noise else (float64(value[0]) - loc[0]) * inverse
    for t in range(1, d):
        if pair_step or t == 1:
            rho, square, root, gap = _pair(c[t - 1], atanh)
            inverse_square = 1 / square
        last_u, last_omega, last_inverse = u, omega, inverse
        if step:
            inverse = 1 / float64(scale[t])
        u = rho * last_u + root * value[t] if is_noise else (float64(value[t]) - loc[t]) * inverse
        if is_noise:
            w = float64(value[t])
            omega = w / root
            by_c = rho * (1 - w * w) + root * w * last_u
        else:
            omega = _innovation(u, last_u, rho, gap) * inverse_square
            by_c = rho + omega * _innovation(last_u, u, rho, gap)
        by_c *= g * (1.0 if atanh else inverse_square)
        total_c += by_c
        grad_c[(t - 1) * pair_step] = by_c if pair_step else total_c
        slope = last_omega - rho * omega
        grad_loc[t - 1] = g * slope * last_inverse
        by_scale = g * (slope * last_u - 1) * last_inverse
        total_scale += by_scale
        grad_scale[(t - 1) * step] = by_scale
    grad_loc[d - 1] = g * omega * inverse
    by_scale = g * (omega * u - 1) * inverse
    grad_scale[(d - 1) * step] = by_scale if step else total_scale + by_scale
    if d == 1 and grad_c.size == 1:
        grad_c[0] = 0.0


@_vectorised
def _invert(x, inverse):
    for p in range(x.size):
        inverse[p] = 1 / float64(x[p])


@_vectorised
def _multiply_deviations(value, loc, inverse, step, u):
    if step:
        for p in range(value.size):
            u[p] = (float64(value[p]) - loc[p]) * inverse[p]
    else:
        factor = inverse[0]
        for p in range(value.size):
            u[p] = (float64(value[p]) - loc[p]) * factor


@_compiled
def _colour_part(noise, pairs, pair_step, u):
    """The standardised chain after u[0], from pairs loaded for whitening."""
    root = math.sqrt(pairs[2, 0])
    for p in range(noise.size):
        if pair_step:
            root = math.sqrt(pairs[2, p])
        u[p + 1] = _add_product(root * noise[p], pairs[0, p * pair_step], u[p])


@_vectorised
def _load_omega(u, pairs, pair_step, omega, n):
    r""":math:`\omega_t` of :func:`log_prob_backward`."""
    rho, gap, inverse = pairs[0, 0], pairs[1, 0], pairs[3, 0]
    if pair_step:
        for p in range(n):
            omega[p + 1] = _innovation(u[p + 1], u[p], pairs[0, p], pairs[1, p]) * pairs[3, p]
    else:
        for p in range(n):
            omega[p + 1] = _innovation(u[p + 1], u[p], rho, gap) * inverse


@_vectorised
def _log_prob_by_pair(g, u, omega, pairs, pair_step, atanh, grad_c, n):
    """The gradients of the pairs; returns that of a correlation that is shared."""
    total, rho, gap = 0.0, pairs[0, 0], pairs[1, 0]
    if pair_step:
        for p in range(n):
            by_c = pairs[0, p] + omega[p + 1] * _innovation(u[p], u[p + 1], pairs[0, p], pairs[1, p])
            grad_c[p] = g * by_c * (1.0 if atanh else pairs[3, p])
    else:
        for p in range(n):
            total += rho + omega[p + 1] * _innovation(u[p], u[p + 1], rho, gap)
    return g * total * (1.0 if atanh else pairs[3, 0])


@_vectorised
def _log_prob_of_draw_by_pair(g, noise, u, omega, pairs, pair_step, atanh, grad_c):
    r"""The same of a draw: :math:`\omega_t = \epsilon_t/\sqrt{1 - \rho_t^2}`, which is loaded too, and the gradient of
    :math:`\alpha_t` is :math:`\rho_t (1 - \epsilon_t^2) + \sqrt{1 - \rho_t^2}\, \epsilon_t u_{t-1}`."""
    total = 0.0
    for p in range(noise.size):
        q = p * pair_step
        w, rho, root, inverse_square = float64(noise[p]), pairs[0, q], math.sqrt(pairs[2, q]), pairs[3, q]
        omega[p + 1] = w / root
        by_c = rho * (1 - w * w) + root * w * u[p]
        total += by_c
        if pair_step:
            grad_c[p] = g * by_c * (1.0 if atanh else inverse_square)
    return g * total * (1.0 if atanh else pairs[3, 0])


@_vectorised
def _load_slopes(omega, pairs, pair_step, slopes, n):
    r""":math:`\omega_{t-1} - \rho_t \omega_t`, by which half the sum of squares grows with :math:`u_{t-1}`."""
    rho = pairs[0, 0]
    if pair_step:
        for p in range(n):
            slopes[p] = omega[p] - pairs[0, p] * omega[p + 1]
    else:
        for p in range(n):
            slopes[p] = omega[p] - rho * omega[p + 1]


@_vectorised
def _log_prob_by_coordinate(g, slopes, u, inverse, step, grad_loc, grad_scale, n):
    """The gradients of loc and of the scales; returns that of a scale that is shared."""
    total, factor = 0.0, inverse[0]
    if step:
        for p in range(n):
            grad_loc[p] = g * slopes[p] * inverse[p]
        for p in range(n):
            grad_scale[p] = g * (slopes[p] * u[p] - 1) * inverse[p]
    else:
        for p in range(n):
            grad_loc[p] = g * slopes[p] * factor
            total += slopes[p] * u[p] - 1
    return g * total * factor


@_compiled
def _log_scales(scale, j, d):
    if scale.shape[1] != d:
        return d * np.log(float64(scale[j, 0]))
    negative = 0  # two of them would have a positive product
    for t in range(d):
        negative += scale[j, t] < 0
    return _log_product(scale, j, d) if negative == 0 else np.nan


@_compiled
def _log_roots(c, m, d, atanh, pairs):
    if c.shape[1] == 1:
        return (d - 1) * (np.log(_pair(c[m, 0], atanh)[2]) - _beyond(c[m], atanh))
    log = 0.0
    for start in range(0, d - 1, _CHUNK):
        stop = min(start + _CHUNK, d - 1)
        beyond = _load_squares(c[m, start:stop], atanh, pairs[0])
        log += 0.5 * _log_product(pairs, 0, stop - start) - beyond
    return log


@_vectorised
def _beyond(c, atanh):
    r"""By how much the logarithms of :math:`\sqrt{1 - \rho^2}` are below those at :data:`_MOST`."""
    total = 0.0
    if atanh:
        for p in range(c.size):
            total += max(abs(float64(c[p])) - _MOST, 0.0)
    return total


@_vectorised
def _load_squares(c, atanh, squares):
    r""":math:`1 - \rho^2`, none below that at :data:`_MOST`; returns what :func:`_beyond` does."""
    beyond = 0.0
    if atanh:
        for p in range(c.size):
            x = abs(float64(c[p]))
            square, _ = _exp(-2 * min(x, _MOST))
            squares[p] = 4 * square / ((1 + square) * (1 + square))
            beyond += max(x - _MOST, 0.0)
    else:
        for p in range(c.size):
            square = (1 - float64(c[p])) * (1 + float64(c[p]))
            squares[p] = square if square >= 0 else np.nan
    return beyond


@_compiled
def log_det(like, at, rows, counts, d, width, c_width, atanh, constant):
    scale = _at(at[0], counts[0], width, like)
    c = _at(at[1], counts[1], c_width, like)
    result = _at(at[2], rows, 1, like)
    pairs = np.empty((4, _CHUNK))
    for r in range(rows):
        result[r, 0] = (
            constant + _log_scales(scale, r % scale.shape[0], d) + _log_roots(c, r % c.shape[0], d, atanh, pairs)
        )


@_compiled
def log_det_backward(like, at, rows, counts, d, width, c_width, atanh, is_constant):
    scale = _at(at[0], counts[0], width, like)
    c = _at(at[1], counts[1], c_width, like)
    grad = _upstream(at[2], rows, 1, is_constant, like)
    grad_scale = _at(at[3], rows, width, like)
    grad_c = _at(at[4], rows, c_width, like)
    for r in range(rows):
        j, g = r % scale.shape[0], float64(grad[r % grad.shape[0], 0])
        by_scale = g if scale.shape[1] > 1 else g * d
        for t in range(scale.shape[1]):
            grad_scale[r, t] = by_scale / scale[j, t]
        _log_roots_backward(-g, c, r % c.shape[0], d, atanh, grad_c, r)


@_vectorised
def _log_roots_backward(grad, c, m, d, atanh, grad_c, r):
    r"""Of :math:`-\tfrac12 \sum_t \log(1 - \rho_t^2)`."""
    if c.shape[1] == 1:
        grad *= d - 1
    for t in range(c.shape[1]):
        rho, square, _, _ = _pair(c[m, t], atanh)
        grad_c[r, t] = grad * rho if atanh else grad * rho / square


@_vectorised
def kl_to_normal(like, at, rows, counts, d, width, c_width, atanh):
    loc = _at(at[0], counts[0], d, like)
    scale = _at(at[1], counts[1], width, like)
    c = _at(at[2], counts[2], c_width, like)
    p_loc = _at(at[3], counts[3], d, like)
    p_scale = _at(at[4], counts[4], d, like)
    result = _at(at[5], rows, 1, like)
    step, pairs = min(scale.shape[1] - 1, 1), np.empty((4, _CHUNK))
    for r in range(rows):
        i, j, k, q = r % loc.shape[0], r % scale.shape[0], r % p_loc.shape[0], r % p_scale.shape[0]
        spread, tau = _part(scale, j, 0, d), p_scale[q]
        log = _log_scales(scale, j, d) + _log_roots(c, r % c.shape[0], d, atanh, pairs)
        if 1e-100 < tau[0] < 1e100 and _is_constant(tau):  # as that of a standard normal is
            excess = _excess_over_constant(loc[i], p_loc[k], spread, step, float64(tau[0]))
            log -= d * np.log(float64(tau[0]))
        else:
            excess = _excess(loc[i], p_loc[k], spread, step, tau)
            log -= _log_scales(p_scale, q, d)
        result[r, 0] = 0.5 * excess - log


@_vectorised
def _is_constant(x):
    different = 0
    for t in range(x.size):
        different += x[t] != x[0]
    return different == 0


@_vectorised
def _excess(loc, p_loc, scale, step, p_scale):
    r""":math:`\sum_t \big((\mathrm{loc}_t - \mu_t)^2 + \mathrm{scale}_t^2\big)/\tau_t^2 - 1`."""
    total = 0.0
    for t in range(loc.size):
        tau, sigma = min(float64(p_scale[t]), 1e308), float64(scale[t * step])  # inf - inf would be NaN
        inverse, delta = 1 / tau, float64(loc[t]) - p_loc[t]
        total += (delta * inverse) * (delta * inverse) + ((sigma - tau) * inverse) * ((sigma + tau) * inverse)
    return total


@_vectorised
def _excess_over_constant(loc, p_loc, scale, step, tau):
    squares = excess = 0.0
    for t in range(loc.size):
        delta = float64(loc[t]) - p_loc[t]
        squares += delta * delta
    if step:
        for t in range(scale.size):
            excess += (scale[t] - tau) * (scale[t] + tau)
    else:
        excess = loc.size * ((scale[0] - tau) * (scale[0] + tau))
    return (squares + excess) / (tau * tau)


@_vectorised
def kl_to_normal_backward(like, at, rows, counts, d, width, c_width, atanh, is_constant, needs_p_scale):
    loc = _at(at[0], counts[0], d, like)
    scale = _at(at[1], counts[1], width, like)
    c = _at(at[2], counts[2], c_width, like)
    p_loc = _at(at[3], counts[3], d, like)
    p_scale = _at(at[4], counts[4], d, like)
    grad = _upstream(at[5], rows, 1, is_constant, like)
    grad_loc = _at(at[6], rows, d, like)
    grad_scale = _at(at[7], rows, width, like)
    grad_c = _at(at[8], rows, c_width, like)
    grad_p_scale = _at(at[9], rows, d, like)
    step = min(scale.shape[1] - 1, 1)
    for r in range(rows):
        i, j, k, q = r % loc.shape[0], r % scale.shape[0], r % p_loc.shape[0], r % p_scale.shape[0]
        g, spread, tau = float64(grad[r % grad.shape[0], 0]), _part(scale, j, 0, d), p_scale[q]
        if 1e-100 < tau[0] < 1e100 and _is_constant(tau):
            total = _excess_over_constant_backward(
                g, loc[i], p_loc[k], spread, step, float64(tau[0]), grad_loc[r], grad_scale[r]
            )
        else:
            total = _excess_backward(g, loc[i], p_loc[k], spread, step, tau, grad_loc[r], grad_scale[r])
        if not step:
            grad_scale[r, 0] = total
        if needs_p_scale:
            for t in range(d):
                inverse, sigma = 1 / float64(tau[t]), float64(spread[t * step])
                delta = (float64(loc[i, t]) - p_loc[k, t]) * inverse
                excess = ((sigma - tau[t]) * inverse) * ((sigma + tau[t]) * inverse)
                grad_p_scale[r, t] = -g * (excess + delta * delta) * inverse
        _log_roots_backward(g, c, r % c.shape[0], d, atanh, grad_c, r)


@_vectorised
def _excess_backward(g, loc, p_loc, scale, step, p_scale, grad_loc, grad_scale):
    """The gradients of half the excess less the scales' logarithms; returns that of a scale that is shared. Each has a
    loop of its own, since the compiler vectorises no loop over too many arrays."""
    total = 0.0
    for t in range(loc.size):
        inverse = 1 / float64(p_scale[t])
        grad_loc[t] = g * (float64(loc[t]) - p_loc[t]) * inverse * inverse
    if step:
        for t in range(loc.size):
            sigma, tau = float64(scale[t]), float64(p_scale[t])
            grad_scale[t] = g * ((sigma - tau) / tau) * ((sigma + tau) / tau) / sigma
    else:
        sigma = float64(scale[0])
        for t in range(loc.size):
            inverse = 1 / float64(p_scale[t])
            total += ((sigma - p_scale[t]) * inverse) * ((sigma + p_scale[t]) * inverse)
    return g * total / scale[0]


@_vectorised
def _excess_over_constant_backward(g, loc, p_loc, scale, step, tau, grad_loc, grad_scale):
    inverse = 1 / tau
    factor = g * inverse * inverse
    for t in range(loc.size):
        grad_loc[t] = factor * (float64(loc[t]) - p_loc[t])
    if step:
        for t in range(loc.size):
            sigma = float64(scale[t])
            grad_scale[t] = factor * (sigma - tau) * (sigma + tau) / sigma
    sigma = float64(scale[0])
    return loc.size * factor * (sigma - tau) * (sigma + tau) / sigma
