r"""The first-order linear recurrence along the last dimension, and its adjoint.

Given coefficients :math:`a_2, \dots, a_d` and inputs :math:`x_1, \dots, x_d`,

.. math:: y_1 = x_1, \qquad y_t = a_t\, y_{t-1} + x_t .

In matrix form :math:`y = T(a)\, x` with a unit lower triangular :math:`T`. The transposed map
:math:`T(a)^\top x` is the same recurrence run backwards, :math:`y_d = x_d`, :math:`y_t = a_{t+1}\, y_{t+1} + x_t`.

A long one is computed by odd-even reduction. For d = 5, with 0-based t, the pairs (0, 1) and (2, 3) are merged,

    x'_0 = x_1 + a_1 x_0        x'_1 = x_3 + a_3 x_2        a'_1 = a_3 a_2

the half-sized recurrence y' = (y_1, y_3) is solved in the same way, and the even places follow from their
predecessors: y_0 = x_0, y_2 = a_2 y_1 + x_2, y_4 = a_4 y_3 + x_4. That is O(d) work in O(log d) depth, by products
and sums alone, so it is as stable as the sequential loop (G. E. Blelloch, *Prefix sums and their applications*, 1990).
A short one, also where the reduction has made it so, is computed by recursive doubling.
"""

import torch
from pyro.distributions.util import broadcast_shape
from torch import Tensor
from torch.nn.functional import pad

from ar1_dist.kernels import check_size, with_kernels

__all__ = ["autoregression", "linear_recurrence", "moebius_recurrence"]


@with_kernels
def linear_recurrence(coefficient: Tensor, x: Tensor, *, reverse: bool = False) -> Tensor:
    r"""Solve :math:`y_t = a_t\, y_{t-1} + x_t` along the last dimension; with ``reverse``, its transpose
    :math:`y_t = a_{t+1}\, y_{t+1} + x_t`.

    Differentiable to any order in both modes, under :func:`torch.vmap` and :func:`torch.compile`. The eager backward
    pass of plain torch keeps the coefficient and :math:`y` only.

    Example:

        >>> linear_recurrence(torch.tensor([0.5]), torch.ones(4))
        tensor([1.0000, 1.5000, 1.7500, 1.8750])

    Args:
        coefficient (Tensor): :math:`a_2, \dots, a_d`, of shape ``(..., d - 1)``, or ``(..., 1)`` if they are equal.
        x (Tensor): the inputs, of shape ``(..., d)``. Leading dimensions broadcast.
        reverse (bool): run from the last place to the first.

    Returns:
        Tensor: :math:`y`, of shape ``(..., d)``.

    Raises:
        ValueError: if x is empty along the last dimension, or if the last dimensions don't fit, from a kernel; from
            plain torch that is a RuntimeError.
    """
    check_size(x.shape[-1])
    x = x.expand(broadcast_shape(coefficient.shape[:-1], x.shape[:-1]) + x.shape[-1:])
    if x.shape[-1] == 1:
        return x
    if _needs_plain_operations():
        return _scan(coefficient, x, reverse)
    return _LinearRecurrence.apply(coefficient, x, reverse)


def autoregression(atanh_rho: Tensor, noise: Tensor) -> Tensor:
    r"""The standardised chain :math:`u_1 = \epsilon_1`, :math:`u_t = \rho_t u_{t-1} + \sqrt{1 - \rho_t^2}\, \epsilon_t`
    along the last dimension, with :math:`\rho = \tanh \alpha` and :math:`\sqrt{1 - \rho^2} = \operatorname{sech}
    \alpha`.

    Differentiable as :func:`linear_recurrence` is. The eager backward pass keeps the arguments and :math:`u` only.

    Example:

        >>> autoregression(torch.tensor([0.6]).atanh(), torch.tensor([1.0, 0.0, 1.0]))
        tensor([1.0000, 0.6000, 1.1600])

    Args:
        atanh_rho (Tensor): :math:`\alpha_2, \dots, \alpha_d`, of shape ``(..., d - 1)``, or ``(..., 1)`` if they are
            equal.
        noise (Tensor): :math:`\epsilon`, of shape ``(..., d)``. Leading dimensions broadcast.

    Returns:
        Tensor: :math:`u`, of shape ``(..., d)``.

    Raises:
        ValueError: if the last argument is empty along the last dimension.
        RuntimeError: if the last dimensions don't fit.
    """
    check_size(noise.shape[-1])
    noise = noise.expand(broadcast_shape(atanh_rho.shape[:-1], noise.shape[:-1]) + noise.shape[-1:])
    if noise.shape[-1] == 1:
        return noise
    if _needs_plain_operations():
        return _autoregression(atanh_rho, noise)
    return _Autoregression.apply(atanh_rho, noise)


def _autoregression(atanh_rho: Tensor, noise: Tensor) -> Tensor:
    innovations = noise[..., 1:] / atanh_rho.cosh()
    return _scan(atanh_rho.tanh(), torch.cat([noise[..., :1], innovations], -1), False)


def _needs_plain_operations() -> bool:
    """Whether autograd functions won't do. Tracers can't record one that has a jvp rule, and torch.func's nested jvp
    loses the outer tangent in one (pytorch issue 197867)."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active()


_SHORT = 64  # the length up to which doubling is faster than reduction on a CPU


def _scan(a: Tensor, x: Tensor, reverse: bool) -> Tensor:
    """Odd-even reduction. Places are paired in running order, from the end in reverse; each pair's leader is merged
    into its follower. Slices of the last dimension, too, are named by the running order."""
    d = x.shape[-1]
    if d <= _SHORT:
        return _scan_by_doubling(a, x, reverse)
    pairs = d // 2
    start = (d - 1) % 2 if reverse else 0
    leaders, followers = x[..., start::2], x[..., 1 - start :: 2]
    if a.shape[-1] == 1:
        within = between = a
        merged = a * a
    else:
        start = d % 2 if reverse else 0
        within, between = a[..., start::2], a[..., 1 - start :: 2]  # to a follower, to a leader
        merged = _last(within, pairs - 1, reverse) * _first(between, pairs - 1, reverse)
    followers = _scan(merged, followers + within * _first(leaders, pairs, reverse), reverse)
    rest = leaders.shape[-1] - 1
    successors = _last(leaders, rest, reverse) + between * _first(followers, rest, reverse)
    leaders = _join(_first(leaders, 1, reverse), successors, reverse)
    paired = (_first(leaders, pairs, reverse), followers)
    # reshape and narrow, where flatten and a slice would do: torch.autograd's own vmap has rules for these alone.
    y = torch.stack(paired[::-1] if reverse else paired, -1).reshape(x.shape[:-1] + (2 * pairs,))
    return _join(y, _last(leaders, 1, reverse), reverse) if d % 2 else y


def _scan_by_doubling(a: Tensor, x: Tensor, reverse: bool) -> Tensor:
    """Recursive doubling: each place takes over what lies 1, 2, 4, ... places before it. That is O(d log d) work, but
    half the operations, whose number is what counts where d is small."""
    y, d, reach = x, x.shape[-1], 1
    while reach < d:
        carried = torch.addcmul(_last(y, d - reach, reverse), a, _first(y, d - reach, reverse))
        y = _join(_first(y, reach, reverse), carried, reverse)
        if a.shape[-1] == 1:
            a = a * a
        elif 2 * reach < d:
            a = _last(a, d - 2 * reach, reverse) * _first(a, d - 2 * reach, reverse)
        reach *= 2
    return y


def _first(x: Tensor, n: int, reverse: bool) -> Tensor:
    return x.narrow(-1, x.shape[-1] - n if reverse else 0, n)


def _last(x: Tensor, n: int, reverse: bool) -> Tensor:
    return _first(x, n, not reverse)


def _join(first: Tensor, last: Tensor, reverse: bool) -> Tensor:
    return torch.cat([last, first] if reverse else [first, last], -1)


class _LinearRecurrence(torch.autograd.Function):
    """The scan with its adjoint and its tangent, each of which is the recurrence again."""

    @staticmethod
    def forward(coefficient, x, reverse):
        return _scan(coefficient, x, reverse)

    @staticmethod
    def setup_context(ctx, inputs, output):
        coefficient, _, ctx.reverse = inputs
        ctx.save_for_backward(coefficient, output)
        ctx.save_for_forward(coefficient, output)

    @staticmethod
    def backward(ctx, grad):
        coefficient, y = ctx.saved_tensors
        grad_x = linear_recurrence(coefficient, grad, reverse=not ctx.reverse)
        grad_coefficient = None
        if ctx.needs_input_grad[0]:
            pairs = y.shape[-1] - 1
            product = _first(y, pairs, ctx.reverse) * _last(grad_x, pairs, ctx.reverse)
            grad_coefficient = product.sum_to_size(coefficient.shape)
        return grad_coefficient, grad_x, None

    @staticmethod
    def jvp(ctx, coefficient_tangent, x_tangent, _):
        coefficient, y = ctx.saved_tensors
        forcing = torch.zeros_like(y) if x_tangent is None else x_tangent
        if coefficient_tangent is not None:
            carried = coefficient_tangent * _first(y, y.shape[-1] - 1, ctx.reverse)
            forcing = forcing + pad(carried, (0, 1) if ctx.reverse else (1, 0))
        return linear_recurrence(coefficient, forcing, reverse=ctx.reverse)


class _Autoregression(torch.autograd.Function):
    r"""With g the gradient of u and :math:`h = T(\rho)^\top g` its adjoint recurrence, for t > 1 the gradient of
    :math:`\epsilon_t` is :math:`h_t \operatorname{sech}\alpha_t`, and that of :math:`\alpha_t` is :math:`h_t
    \operatorname{sech}\alpha_t\, (u_{t-1} \operatorname{sech}\alpha_t - \rho_t \epsilon_t)`."""

    @staticmethod
    def forward(atanh_rho, noise):
        return _autoregression(atanh_rho, noise)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs, output)
        ctx.save_for_forward(*inputs, output)

    @staticmethod
    def backward(ctx, grad):
        atanh_rho, noise, u = ctx.saved_tensors
        rho, sech = atanh_rho.tanh(), atanh_rho.cosh().reciprocal()
        adjoint = linear_recurrence(rho, grad, reverse=True)
        grad_atanh_rho = grad_noise = None
        weighted = sech * adjoint[..., 1:]
        if ctx.needs_input_grad[0]:
            slope = sech * u[..., :-1] - rho * noise[..., 1:]
            grad_atanh_rho = (weighted * slope).sum_to_size(atanh_rho.shape)
        if ctx.needs_input_grad[1]:
            grad_noise = torch.cat([adjoint[..., :1], weighted], -1)
        return grad_atanh_rho, grad_noise

    @staticmethod
    def jvp(ctx, atanh_rho_tangent, noise_tangent):
        atanh_rho, noise, u = ctx.saved_tensors
        rho, sech = atanh_rho.tanh(), atanh_rho.cosh().reciprocal()
        forcing = torch.zeros_like(u)
        if noise_tangent is not None:
            forcing = torch.cat([noise_tangent[..., :1], sech * noise_tangent[..., 1:]], -1)
        if atanh_rho_tangent is not None:
            slope = sech * u[..., :-1] - rho * noise[..., 1:]
            forcing = forcing + pad(atanh_rho_tangent * sech * slope, (1, 0))
        return linear_recurrence(rho, forcing)


@with_kernels
def moebius_recurrence(transmission: Tensor, saturation: Tensor, x: Tensor) -> Tensor:
    r"""Solve the positive Möbius (scalar Riccati) recurrence

    .. math:: y_1 = x_1, \qquad y_t = x_t + \frac{a_t\, y_{t-1}}{1 + c_t\, y_{t-1}}, \qquad a_t, c_t, x_t \ge 0,

    along the last dimension. It carries information: where :math:`y_{t-1}` is the precision that observations add to
    :math:`z_{t-1}`, and :math:`z_{t-1} \mid z_t` has slope k and variance c, then with :math:`a = k^2` the fraction is
    the precision that they add to :math:`z_t`. Added to the prior's precision it is the filter's
    :math:`f_t = \lambda_t + 1/(n_t^2 + \phi_t^2/f_{t-1})`, of transitions with coefficient :math:`\phi_t` and noise of
    scale :math:`n_t`; kept apart from it, nothing is lost where it is small.

    Two steps in a row make one step of the same form, without a subtraction and without growth: from (a, c, x) and
    then (a', c', x'), with :math:`D = 1 + c' x`,

    .. math:: \Big( \frac{a}{D} \frac{a'}{D},\quad c + \frac{a\, c'}{D},\quad x' + \frac{a'\, x}{D} \Big)

    (R. Redheffer's star product, *On the relation of transmission-line theory to scattering and transfer*, 1962). So
    odd-even reduction solves it as it solves :func:`linear_recurrence`, with every rounding error a relative one.

    Differentiable as :func:`linear_recurrence` is, which computes the adjoint and the tangent: the eager backward pass
    keeps the arguments and y only.

    Example:

        >>> moebius_recurrence(torch.tensor([1.0]), torch.tensor([1.0]), torch.tensor([1.0, 0.0, 0.0, 2.0]))
        tensor([1.0000, 0.5000, 0.3333, 2.2500])

    Args:
        transmission (Tensor): :math:`a_2, \dots, a_d`, not negative, of shape ``(..., d - 1)``, or ``(..., 1)`` if
            they are equal.
        saturation (Tensor): :math:`c_2, \dots, c_d`, not negative, of shape ``(..., d - 1)`` or ``(..., 1)``.
        x (Tensor): the inputs, not negative, of shape ``(..., d)``. Leading dimensions broadcast.

    Returns:
        Tensor: :math:`y`, of shape ``(..., d)``.

    Raises:
        ValueError: if the last argument is empty along the last dimension.
        RuntimeError: if the last dimensions don't fit.
    """
    check_size(x.shape[-1])
    batch_shape = broadcast_shape(transmission.shape[:-1], saturation.shape[:-1], x.shape[:-1])
    x = x.expand(batch_shape + x.shape[-1:])
    if x.shape[-1] == 1:
        return x
    if _needs_plain_operations():
        return _moebius_scan(transmission, saturation, x)
    return _MoebiusRecurrence.apply(transmission, saturation, x)


def _moebius_scan(a: Tensor, c: Tensor, x: Tensor) -> Tensor:
    """Odd-even reduction: each even place is merged into its odd follower, and follows from its odd predecessor."""
    d = x.shape[-1]
    if d == 1:
        return x
    a, c = a.expand(a.shape[:-1] + (d - 1,)), c.expand(c.shape[:-1] + (d - 1,))
    pairs, leaders, followers = d // 2, x[..., ::2], x[..., 1::2]
    a_within, c_within = a[..., ::2], c[..., ::2]  # to a follower
    a_between, c_between = a[..., 1::2], c[..., 1::2]  # to a leader
    shrink = 1 / (1 + c_within * leaders[..., :pairs])
    share = a_within * shrink
    followers = followers + share * leaders[..., :pairs]
    if pairs > 1:
        passed = a_between[..., : pairs - 1] * shrink[..., 1:]
        saturation = c_between[..., : pairs - 1] + passed * c_within[..., 1:]
        followers = _moebius_scan(passed * share[..., 1:], saturation, followers)
    previous = followers[..., : leaders.shape[-1] - 1]
    successors = leaders[..., 1:] + a_between * previous / (1 + c_between * previous)
    leaders = torch.cat([leaders[..., :1], successors], -1)
    y = torch.stack([leaders[..., :pairs], followers], -1).reshape(x.shape[:-1] + (2 * pairs,))
    return torch.cat([y, leaders[..., -1:]], -1) if d % 2 else y


class _MoebiusRecurrence(torch.autograd.Function):
    r"""With the slopes :math:`k_t = \partial y_t/\partial y_{t-1} = a_t/(1 + c_t y_{t-1})^2`, the adjoint and the
    tangent are the linear recurrence with coefficient k, backwards and forwards."""

    @staticmethod
    def forward(transmission, saturation, x):
        return _moebius_scan(transmission, saturation, x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        transmission, saturation, _ = inputs
        ctx.save_for_backward(transmission, saturation, output)
        ctx.save_for_forward(transmission, saturation, output)

    @staticmethod
    def backward(ctx, grad):
        a, c, y = ctx.saved_tensors
        previous, shrink = _moebius_shrinkage(c, y)
        grad_x = linear_recurrence(a * shrink.square(), grad, reverse=True)
        grad_a = grad_c = None
        passed = grad_x[..., 1:] * previous * shrink
        if ctx.needs_input_grad[0]:
            grad_a = passed.sum_to_size(a.shape)
        if ctx.needs_input_grad[1]:
            grad_c = (-passed * a * previous * shrink).sum_to_size(c.shape)
        return grad_a, grad_c, grad_x

    @staticmethod
    def jvp(ctx, a_tangent, c_tangent, x_tangent):
        a, c, y = ctx.saved_tensors
        previous, shrink = _moebius_shrinkage(c, y)
        forcing = torch.zeros_like(y) if x_tangent is None else x_tangent
        if a_tangent is not None:
            forcing = forcing + pad(a_tangent * previous * shrink, (1, 0))
        if c_tangent is not None:
            forcing = forcing - pad(c_tangent * a * (previous * shrink).square(), (1, 0))
        return linear_recurrence(a * shrink.square(), forcing)


def _moebius_shrinkage(c: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    previous = y[..., :-1]
    return previous, 1 / (1 + c * previous)
