r"""The chain's operations as functions of tensors: colouring and whitening, density, divergence, and what these are
made of.

Throughout ``loc`` has shape ``(..., d)``; ``scale``, the marginal standard deviation, ``(..., d)`` or ``(..., 1)``; and
``correlation``, which is :math:`\alpha = \operatorname{artanh} \rho` if ``atanh`` is true and else :math:`\rho`,
``(..., d - 1)`` or ``(..., 1)``. Leading dimensions broadcast. d = 0 is a ValueError; last dimensions that don't fit
are one from a kernel and a RuntimeError from plain torch. Everything is a function of :math:`\alpha` where
precision is at stake: :math:`1 - \rho^2 = \operatorname{sech}^2 \alpha` is right when :math:`\rho` itself rounds to 1.

For d = 4, ``loc`` 0 and ``scale`` 1, with :math:`s_t = \sqrt{1 - \rho_t^2}`, colouring multiplies by the matrix on the
left, and whitening by the one on the right:

.. math::

    L = \begin{pmatrix} 1 & & & \\ \rho_2 & s_2 & & \\ \rho_3 \rho_2 & \rho_3 s_2 & s_3 & \\
        \rho_4 \rho_3 \rho_2 & \rho_4 \rho_3 s_2 & \rho_4 s_3 & s_4 \end{pmatrix}, \qquad
    L^{-1} = \begin{pmatrix} 1 & & & \\ -\rho_2/s_2 & 1/s_2 & & \\ & -\rho_3/s_3 & 1/s_3 & \\
        & & -\rho_4/s_4 & 1/s_4 \end{pmatrix} .

>>> rho = torch.tensor([0.6, 0.8, -0.6])
>>> loc, scale, identity = torch.zeros(4), torch.ones(1), torch.eye(4)
>>> colour(loc, scale, rho, identity, atanh=False).mT
tensor([[ 1.0000,  0.0000,  0.0000,  0.0000],
        [ 0.6000,  0.8000,  0.0000,  0.0000],
        [ 0.4800,  0.6400,  0.6000,  0.0000],
        [-0.2880, -0.3840, -0.3600,  0.8000]])
>>> whiten(identity, rho.atanh(), torch.float32).mT + 0.0
tensor([[ 1.0000,  0.0000,  0.0000,  0.0000],
        [-0.7500,  1.2500,  0.0000,  0.0000],
        [ 0.0000, -1.3333,  1.6667,  0.0000],
        [ 0.0000,  0.0000,  0.7500,  1.2500]])
"""

import math

import torch
from pyro.distributions.util import broadcast_shape
from torch import Tensor
from torch.nn.functional import softplus

from ar1_dist.kernels import check_size, with_kernels
from ar1_dist.recurrence import autoregression

__all__ = [
    "atanh_of",
    "colour",
    "is_floating",
    "join",
    "kl_to_chain",
    "kl_to_normal",
    "log_cosh",
    "log_det",
    "log_prob",
    "log_prob_of_draw",
    "sign_of",
    "sum_shared",
    "whiten",
    "whiten_draw",
    "widen",
]


@with_kernels
def colour(loc: Tensor, scale: Tensor, correlation: Tensor, noise: Tensor, *, atanh: bool) -> Tensor:
    r""":math:`z_t = \mathrm{loc}_t + \mathrm{scale}_t u_t` with u the standardised chain that
    :func:`~ar1_dist.recurrence.autoregression` makes of the noise, of shape ``(..., d)``.

    Example:

        >>> rho = torch.tensor([0.5])
        >>> colour(torch.ones(3), torch.tensor([2.0]), rho, torch.tensor([1.0, 0.0, 0.0]), atanh=False)
        tensor([3.0000, 2.0000, 1.5000])
    """
    return loc + scale * autoregression(atanh_of(correlation, atanh), noise)


@with_kernels
def log_prob(value: Tensor, loc: Tensor, scale: Tensor, correlation: Tensor, *, atanh: bool) -> Tensor:
    r"""The log density in nats, :math:`-\tfrac12 \sum_t w_t^2 - \tfrac{d}{2} \log 2\pi` minus :func:`log_det`, with w
    the whitened value, which has shape ``(..., d)``. The result has the leading dimensions alone.

    Example:

        >>> log_prob(torch.zeros(3), torch.zeros(3), torch.tensor([2.0]), torch.tensor([0.5]), atanh=False)
        tensor(-4.5486)
    """
    d = int(loc.shape[-1])  # a tensor under torch.jit.trace, where its product with a number is float32
    check_size(d)
    dtype = torch.promote_types(value.dtype, loc.dtype)
    w = whiten((widen(value) - loc) / scale, atanh_of(correlation, atanh), dtype)
    return -0.5 * (w.square().sum(-1) + d * math.log(2 * math.pi)) - log_det(scale, correlation, d=d, atanh=atanh)


@with_kernels
def log_prob_of_draw(
    value: Tensor, loc: Tensor, scale: Tensor, correlation: Tensor, noise: Tensor, *, atanh: bool
) -> Tensor:
    r"""The log density of a value that :func:`colour` has made of the noise, with :func:`whiten_draw` in the place of
    :func:`whiten`.

    Example:

        >>> loc, noise = torch.full((3,), 1e6), torch.tensor([1.0, 0.0, 0.0])
        >>> log_prob_of_draw(loc, loc, torch.tensor([0.01]), torch.tensor([0.5]), noise, atanh=False)
        tensor(10.8464)
    """
    w = whiten_draw(value, loc, scale, correlation, noise, atanh=atanh)
    d = int(loc.shape[-1])
    return -0.5 * (w.square().sum(-1) + d * math.log(2 * math.pi)) - log_det(scale, correlation, d=d, atanh=atanh)


@with_kernels
def log_det(scale: Tensor, correlation: Tensor, *, d: int, atanh: bool, constant: float = 0.0) -> Tensor:
    r"""The logarithm of the determinant of the Cholesky factor, :math:`\sum_t \log \mathrm{scale}_t + \tfrac12 \sum_{t
    \ge 2} \log(1 - \rho_t^2)`, and a constant, for chains of ``d`` coordinates. The result has the leading dimensions
    alone.

    Example:

        >>> log_det(torch.tensor([2.0]), torch.tensor([0.5]), d=3, atanh=False)
        tensor(1.7918)
    """
    check_size(d)
    return constant + sum_shared(scale.log(), d) - sum_shared(log_cosh(atanh_of(correlation, atanh)), d - 1)


@with_kernels
def kl_to_normal(
    loc: Tensor, scale: Tensor, correlation: Tensor, p_loc: Tensor, p_scale: Tensor, *, atanh: bool
) -> Tensor:
    r"""To independent normals :math:`\mathcal{N}(\mu_t, \tau_t^2)`, the case that guides meet in every step:
    :math:`\sum_t \big[\tfrac12 \big(\mathrm{scale}_t^2 + (\mathrm{loc}_t - \mu_t)^2\big)/\tau_t^2 - \tfrac12 -
    \log(\mathrm{scale}_t/\tau_t)\big] - \tfrac12 \sum_{t \ge 2} \log(1 - \rho_t^2)`."""
    check_size(loc.shape[-1])
    dtype = torch.promote_types(loc.dtype, p_loc.dtype)
    if dtype in (torch.float16, torch.bfloat16):  # squares of ratios leave their range, or are 0
        loc, scale, correlation, p_loc, p_scale = (x.float() for x in (loc, scale, correlation, p_loc, p_scale))
    ratio, shift = scale / p_scale, (loc - p_loc) / p_scale
    marginals = (0.5 * (shift.square() + ratio.square() - 1) - ratio.log()).sum(-1)
    return (marginals + sum_shared(log_cosh(atanh_of(correlation, atanh)), loc.shape[-1] - 1)).to(dtype)


def kl_to_chain(
    loc: Tensor, scale: Tensor, atanh_rho: Tensor, p_loc: Tensor, p_scale: Tensor, p_atanh_rho: Tensor
) -> Tensor:
    r"""The divergence in nats to another chain, which has loc :math:`\mu`, scale :math:`\tau` and artanh of its
    correlations :math:`\beta`, of the same shapes. The result has the leading dimensions alone. With :math:`\gamma_t =
    \mathrm{scale}_t/\tau_t` the ratio of the scales, :math:`\alpha` this chain's artanh of the correlations,
    :math:`\varsigma` the sign of :math:`\beta` and w the whitening of the other,

    .. math::

        \mathbb{E}_q e_t^2 = w_t(\mathrm{loc})^2
            + \big(\cosh\beta_t\,(\gamma_t - \gamma_{t-1}) + e^{-|\beta_t|} \gamma_{t-1}\big)^2
            + 2 \varsigma_t \sinh(2\beta_t)\, \operatorname{sigmoid}(-2 \varsigma_t \alpha_t)\,
            \gamma_t \gamma_{t-1}

        \operatorname{KL} = \tfrac12 \sum_t \big(\mathbb{E}_q e_t^2 - 1\big) - \sum_t \log \gamma_t
            + \sum_{t \ge 2} \log\frac{\cosh\alpha_t}{\cosh\beta_t} ,

    every term of which is as precise as its parameters, also where the correlations are close to 1 or to -1. It is
    computed in the next wider type: gradients are differences of neighbours that :math:`\cosh^2 \beta_t` multiplies.
    For p = N(0, I) it is eq. (6) of arXiv:1909.06236.

    Example:

        >>> one, two = torch.ones(1), torch.tensor([2.0])
        >>> kl_to_chain(torch.zeros(3), two, torch.zeros(1), torch.zeros(3), one, torch.zeros(1))
        tensor(2.4206)
    """
    d, dtype = loc.shape[-1], torch.promote_types(loc.dtype, p_loc.dtype)
    alpha, beta, p_scale = widen(atanh_rho), widen(p_atanh_rho), widen(p_scale)
    ratio, shift = widen(scale) / p_scale, (widen(loc) - widen(p_loc)) / p_scale
    previous, current = (ratio, ratio) if ratio.shape[-1] == 1 else (ratio[..., :-1], ratio[..., 1:])
    sign = sign_of(beta)
    deviation = beta.cosh() * (current - previous) + (-sign * beta).exp() * previous
    # sigmoid(-2x) as exp(-softplus(2x)), whose derivative is right to full relative precision also for x << 0; half of
    # it to each factor of sinh(2 beta) = 2 sinh(beta) cosh(beta), which overflow only where the divergence does.
    half = (-0.5 * softplus(2 * sign * alpha, threshold=40)).exp()
    overlap = 4 * sign * (beta.sinh() * half) * (beta.cosh() * half) * current * previous
    second_moment = (
        whiten(shift, beta, beta.dtype).square().sum(-1)
        + ratio[..., 0].square()
        + sum_shared(deviation.square() + overlap, d - 1)
    )
    kl = 0.5 * (second_moment - d) - sum_shared(ratio.log(), d) + sum_shared(_log_cosh_ratio(alpha, beta), d - 1)
    return kl.to(dtype)


def _log_cosh_ratio(x: Tensor, y: Tensor) -> Tensor:
    r""":math:`\log(\cosh x / \cosh y)`, precise also where x and y are large and close to each other, from
    :math:`\cosh x - \cosh y = 2 \sinh\frac{x + y}{2} \sinh\frac{x - y}{2}`."""
    difference = 2 * ((x + y) / 2).sinh() * ((x - y) / 2).sinh()
    sign = sign_of(difference)
    lesser = torch.where(difference >= 0, y, x)
    return sign * (sign * difference / lesser.cosh()).log1p()


def whiten(u: Tensor, atanh_rho: Tensor, dtype: torch.dtype) -> Tensor:
    r"""The standardised innovations :math:`(u_t - \rho_t u_{t-1})/\sqrt{1 - \rho_t^2}`, and :math:`u_1` first.

    Example:

        >>> whiten(torch.tensor([1.0, 0.5, 0.25]), torch.tensor([0.5]).atanh(), torch.float32)
        tensor([1., 0., 0.])

    Args:
        u (Tensor): of shape ``(..., d)``; its differences are taken in its own precision (see :func:`widen`).
        atanh_rho (Tensor): of shape ``(..., d - 1)`` or ``(..., 1)``.
        dtype (torch.dtype): the result's.
    """
    sign = sign_of(atanh_rho)
    difference = (u[..., 1:] - sign * u[..., :-1]).to(dtype)
    u = u.to(dtype)
    return join(u[..., :1], atanh_rho.cosh() * difference + sign * ((-sign * atanh_rho).exp() * u[..., :-1]))


def whiten_draw(
    value: Tensor, loc: Tensor, scale: Tensor, correlation: Tensor, noise: Tensor, *, atanh: bool
) -> Tensor:
    r"""The whitened value, where it is known to be :func:`colour` of ``noise``: the noise itself, with the derivatives
    that whitening has there, of any order, by all but the noise.

    Where loc is large beside the innovations, :math:`z_t = \mathrm{loc}_t + \mathrm{scale}_t u_t` is rounded to
    numbers that are far apart, and whitening multiplies the error by up to :math:`\cosh \alpha_t`. Here u
    is made from the noise again, and z and loc take part by their changes alone.

    Example:

        >>> loc, noise = torch.full((3,), 1e6), torch.tensor([1.0, 0.0, 0.0])
        >>> z = colour(loc, torch.tensor([0.01]), torch.tensor([0.5]), noise, atanh=False)
        >>> z
        tensor([1000000., 1000000., 1000000.])
        >>> whiten_draw(z, loc, torch.tensor([0.01]), torch.tensor([0.5]), noise, atanh=False)
        tensor([1., 0., 0.])
    """
    atanh_rho = atanh_of(widen(correlation), atanh)
    u = autoregression(atanh_rho.detach(), widen(noise.detach()))
    wide = widen(scale)
    u = (wide.detach() * u + widen(_change(value)) - widen(_change(loc))) / wide
    noise = noise.detach().to(torch.promote_types(noise.dtype, loc.dtype))
    return noise + _change(whiten(u, atanh_rho, wide.dtype)).to(noise.dtype)


def _change(x: Tensor) -> Tensor:
    """0, with the derivatives of x."""
    return x - x.detach()


def widen(x: Tensor) -> Tensor:
    r"""x in the next wider floating type, where there is one on its device.

    Neighbours are subtracted and the difference is multiplied by up to :math:`\cosh \operatorname{artanh} \rho`:
    quotients that are rounded before that lose as many digits as the factor has.

    Example:

        >>> widen(torch.zeros(2)).dtype, widen(torch.zeros(2, dtype=torch.float16)).dtype
        (torch.float64, torch.float32)
    """
    if x.dtype in (torch.float16, torch.bfloat16):
        return x.float()
    return x.double() if x.dtype == torch.float32 and x.device.type != "mps" else x


def is_floating(x: Tensor) -> bool:
    """Whether x is of a type to compute in: torch has floating types of 8 bits and fewer too, which only store.

    Example:

        >>> is_floating(torch.zeros(2)), is_floating(torch.zeros(2, dtype=torch.float8_e5m2))
        (True, False)
    """
    return x.dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def sign_of(x: Tensor) -> Tensor:
    """+1 where ``x >= 0``, else -1, as int8: a constant to autograd, unlike ``x.sign()`` without a zero between.

    Example:

        >>> sign_of(torch.tensor([-2.0, 0.0, 3.0]))
        tensor([-1,  1,  1], dtype=torch.int8)
    """
    return 2 * (x >= 0).to(torch.int8) - 1


def log_cosh(x: Tensor) -> Tensor:
    r""":math:`\log\cosh x = \log(1 + 2 \sinh^2(x/2))`, to full relative precision for any x: where it is
    :math:`|x| - \log 2` to every digit, it goes on as a straight line. With :math:`x = \operatorname{artanh}\rho` it
    is :math:`-\tfrac12 \log(1 - \rho^2)`.

    Example:

        >>> log_cosh(torch.tensor([0.0, 1e-4, 50.0, 1e4]))
        tensor([0.0000e+00, 5.0000e-09, 4.9307e+01, 9.9993e+03])
    """
    most = 20.0 if x.dtype == torch.float64 else 10.0
    near = x.clamp(-most, most)
    return (2 * (near / 2).sinh().square()).log1p() + (x - near).abs()


def sum_shared(x: Tensor, n: int) -> Tensor:
    """The sum of n terms along the last dimension, which has size n or, where all terms are equal, 1.

    Example:

        >>> sum_shared(torch.tensor([2.0]), 3), sum_shared(torch.tensor([1.0, 2.0, 3.0]), 3)
        (tensor(6.), tensor(6.))
    """
    return x.sum(-1) if x.shape[-1] == n else n * x.squeeze(-1)


def atanh_of(correlation: Tensor, atanh: bool) -> Tensor:
    r"""The :math:`\operatorname{artanh} \rho` that a correlation is or gives.

    Example:

        >>> atanh_of(torch.tensor(0.5), atanh=False)
        tensor(0.5493)
    """
    return correlation if atanh else correlation.atanh()


def join(first: Tensor, rest: Tensor) -> Tensor:
    """Concatenation along the last dimension of tensors whose leading dimensions broadcast.

    Example:

        >>> join(torch.zeros(2, 1), torch.ones(3)).shape
        torch.Size([2, 4])
    """
    batch_shape = broadcast_shape(first.shape[:-1], rest.shape[:-1])
    return torch.cat([part.expand(batch_shape + part.shape[-1:]) for part in (first, rest)], -1)
