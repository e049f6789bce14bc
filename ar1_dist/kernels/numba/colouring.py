r"""Colouring: :func:`ar1_dist.functional.colour`."""

from collections.abc import Sequence

import numpy as np
from numpy import float64
from torch import Tensor

from ar1_dist.kernels import Tensors, check_widths
from ar1_dist.kernels.numba.arithmetic import CHUNK, add_product, load_colouring, part, rows_at, upstream
from ar1_dist.kernels.numba.compilation import compiled, vectorised
from ar1_dist.kernels.numba.rows import Rows, as_rows

__all__ = ["colour", "colour_backward"]


def colour(loc: Tensor, scale: Tensor, correlation: Tensor, noise: Tensor, *, atanh: bool) -> Tensors:
    check_widths(loc.size(-1), (noise,), (scale,), (correlation,))
    rows = Rows(loc, scale, correlation, noise)
    z, u = rows.empty_like(loc), rows.empty_like(loc)
    rows.run(_colour_kernel, (z, u), atanh)
    return z, u


def colour_backward(needed: Sequence[bool], grad: Tensor, tensors: Tensors, kept: Tensors, *, atanh: bool) -> Tensors:
    (_, scale, correlation, noise), (u,) = tensors, kept
    rows = Rows(u, scale, correlation, noise)
    given, is_constant = as_rows(grad)
    grad_noise = rows.empty_like(u) if needed[3] else given  # which is not written to then
    grads = rows.empty_like(scale), rows.empty_like(correlation), grad_noise
    rows.run(_colour_backward_kernel, (given, *grads), atanh, is_constant, needed[3])
    return grad, *grads


@compiled
def _colour_kernel(like, at, rows, counts, widths, atanh):
    loc = rows_at(at[0], counts[0], widths[0], like)
    scale = rows_at(at[1], counts[1], widths[1], like)
    c = rows_at(at[2], counts[2], widths[2], like)
    noise = rows_at(at[3], counts[3], widths[3], like)
    d = widths[0]
    z = rows_at(at[4], rows, d, like)
    u = rows_at(at[5], rows, d, like)
    step, pair_step = min(scale.shape[1] - 1, 1), min(c.shape[1] - 1, 1)
    pairs = np.empty((4, CHUNK))
    for r in range(rows):
        i, j, m, k = r % loc.shape[0], r % scale.shape[0], r % c.shape[0], r % noise.shape[0]
        state = float64(noise[k, 0])
        u[r, 0] = state
        z[r, 0] = loc[i, 0] + scale[j, 0] * u[r, 0]
        for start in range(1, d, CHUNK):
            stop = min(start + CHUNK, d)
            load_colouring(part(c, m, start - 1, stop - 1), atanh, False, pairs)
            state = _chain_part(noise[k, start:stop], pairs, pair_step, state, u[r, start:stop])
            spread = part(scale, j, start, stop)
            _scale_and_shift(loc[i, start:stop], spread, step, u[r, start:stop], z[r, start:stop])


@compiled
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
        y2 = add_product(b2 * noise[p + 1], a2, y1)
        y3 = add_product(b3 * noise[p + 2], a3, y2)
        y4 = add_product(b4 * noise[p + 3], a4, y3)
        u[p] = add_product(y1, a1, state)
        u[p + 1] = add_product(y2, a2 * a1, state)
        u[p + 2] = add_product(y3, a3 * (a2 * a1), state)
        state = add_product(y4, (a4 * a3) * (a2 * a1), state)
        u[p + 3] = state
    for p in range(whole, noise.size):
        state = add_product(pairs[1, p * pair_step] * noise[p], pairs[0, p * pair_step], state)
        u[p] = state
    return state


@compiled  # and so rounded twice, as torch's product and sum are
def _scale_and_shift(loc, scale, step, u, z):
    if step:
        for p in range(loc.size):
            z[p] = loc[p] + scale[p] * u[p]
    else:
        for p in range(loc.size):
            z[p] = loc[p] + scale[0] * u[p]


@compiled
def _colour_backward_kernel(like, at, rows, counts, widths, atanh, is_constant, needs_noise):
    r"""With h the adjoint of the recurrence, the gradient of :math:`\alpha_t` is :math:`h_t \sqrt{1 - \rho_t^2}
    (\sqrt{1 - \rho_t^2}\, u_{t-1} - \rho_t \epsilon_t)`."""
    u = rows_at(at[0], counts[0], widths[0], like)
    scale = rows_at(at[1], counts[1], widths[1], like)
    c = rows_at(at[2], counts[2], widths[2], like)
    noise = rows_at(at[3], counts[3], widths[3], like)
    d = widths[0]
    grad = upstream(at[4], rows, d, is_constant, like)
    grad_scale = rows_at(at[5], rows, widths[1], like)
    grad_c = rows_at(at[6], rows, widths[2], like)
    grad_noise = rows_at(at[7], rows, d, like)
    step, pair_step = min(scale.shape[1] - 1, 1), min(c.shape[1] - 1, 1)
    pairs, h = np.empty((3, CHUNK)), np.empty(CHUNK)
    constant = np.full(CHUNK if is_constant else 0, grad[0, 0] if is_constant else 0, like.dtype)
    for r in range(rows):
        i, j, m, k = r % grad.shape[0], r % scale.shape[0], r % c.shape[0], r % noise.shape[0]
        next_rho = state = total_scale = total_c = 0.0
        for start in range(1 + (d - 2) // CHUNK * CHUNK, 0, -CHUNK):
            stop = min(start + CHUNK, d)
            load_colouring(part(c, m, start - 1, stop - 1), atanh, not atanh, pairs)
            g = constant[: stop - start] if is_constant else grad[i, start:stop]
            e, spread = noise[k, start:stop], part(scale, j, start, stop)
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


@vectorised
def _load_product(grad, scale, step, h):
    if step:
        for p in range(grad.size):
            h[p] = float64(grad[p]) * scale[p]
    else:
        factor = float64(scale[0])
        for p in range(grad.size):
            h[p] = factor * grad[p]


@compiled
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
        y3 = add_product(h[p + 2], a3, y4)
        y2 = add_product(h[p + 1], a2, y3)
        y1 = add_product(h[p], a1, y2)
        h[p + 3] = add_product(y4, a4, state)
        h[p + 2] = add_product(y3, a3 * a4, state)
        h[p + 1] = add_product(y2, a2 * (a3 * a4), state)
        state = add_product(y1, (a1 * a2) * (a3 * a4), state)
        h[p] = state
        a4 = rho[p * pair_step]
    for q in range(whole, h.size):
        p = h.size - 1 - q
        state = add_product(h[p], a4, state)
        h[p] = state
        a4 = rho[p * pair_step]
    return a4, state


@vectorised
def _scale_gradient(grad, u, step, grad_scale):
    total = 0.0
    if step:
        for p in range(grad.size):
            grad_scale[p] = float64(grad[p]) * u[p]
    else:
        for p in range(grad.size):
            total += float64(grad[p]) * u[p]
    return total


@vectorised
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
