"""What is timed: operations of AR1Normal and of what else samples or scores such a vector, at several shapes.

The reference of every operation is the same operation of ``Independent(Normal, 1)``, with a mean and a scale for each
coordinate. Everything is in float32 and without validation. :data:`DISTRIBUTIONS` and :data:`OPERATIONS` are the
parts, :func:`cases` the table that ``pytest benchmarks``, the documentation's table and the tests go through.
"""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from scipy.signal import lfilter
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    kl_divergence,
)

from ar1_dist import AR1Normal

__all__ = ["DISTRIBUTIONS", "OPERATIONS", "REFERENCE", "SCALING", "SHAPES", "Case", "Family", "cases", "name_of"]

Shape = tuple[int, int]
Function = Callable[[], object]

SHAPES: list[Shape] = [(128, 10), (128, 20), (128, 64), (128, 256), (16, 1024), (4, 16_384), (1, 1_000_000)]
SCALING: list[Shape] = [(1, 10**k) for k in range(2, 8)]


# --- Distributions ---


@dataclass(frozen=True)
class Family:
    """Distributions that can be timed.

    Attributes:
        shapes (callable): from the batch size and d to the shapes of the parameters, by name: loc is normal, rho and
            atanh_rho lie between -0.9 and 0.9, a scale between 0.5 and 1.5, and a matrix is close to the identity.
        make (callable): from the parameters to the distribution.
        operations (tuple of str): those that it has.
        widest (int): the largest d at which a call takes seconds, not minutes.
        kernels (tuple of str): what computes, as :func:`ar1_dist.set_kernels` takes it.
    """

    shapes: Callable[[int, int], dict[str, tuple[int, ...]]]
    make: Callable[..., Distribution]
    operations: tuple[str, ...]
    widest: int = 10**7
    kernels: tuple[str, ...] = ("torch",)

    def leaves(self, n: int, d: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(0)
        parameters = {}
        for name, shape in self.shapes(n, d).items():
            if name == "loc":
                value = torch.randn(shape, generator=generator)
            else:
                value = torch.rand(shape, generator=generator)
                if "rho" in name:
                    value = value.mul_(1.8).sub_(0.9)
                elif name in ("scale_tril", "covariance_matrix"):
                    # Dominated by its diagonal, and so positive definite.
                    value = value.mul_(0.1 / d).tril_() if name == "scale_tril" else torch.zeros(shape)
                    value.diagonal(dim1=-2, dim2=-1).add_(1.0)
                else:
                    value = value.add_(0.5)
            parameters[name] = value.requires_grad_()
        return parameters


class Looped(AR1Normal):
    """Sampled as the ρ-VAE's published code does, coordinate after coordinate in Python."""

    def rsample(self, sample_shape=torch.Size()) -> Tensor:
        noise = torch.randn(self._extended_shape(sample_shape))
        rho = self.transform.rho.squeeze(-1)
        root = (1 - rho.square()).sqrt()
        u = [noise[..., 0]]
        for t in range(1, noise.shape[-1]):
            u.append(rho * u[-1] + root * noise[..., t])
        return self.loc + self.scale * torch.stack(u, -1)


class Filtered(AR1Normal):
    """Sampled by SciPy's filter, which takes the same rho for the whole batch and has no gradient."""

    def rsample(self, sample_shape=torch.Size()) -> Tensor:
        noise = torch.randn(self._extended_shape(sample_shape)).numpy()
        rho = self.transform.rho.numpy(force=True)
        root = np.sqrt(1 - rho**2)
        noise[..., :1] /= root
        u = lfilter(root, np.concatenate([np.ones_like(rho), -rho]), noise)
        return self.loc + self.scale * torch.from_numpy(u)


def _independent(loc: Tensor, scale: Tensor) -> Distribution:
    return Independent(Normal(loc, scale, validate_args=False), 1, validate_args=False)


def _hidden_markov(rho: Tensor, scale: Tensor) -> Distribution:
    """Pyro's chain of one hidden coordinate, seen with a little noise, which it needs."""
    zero = torch.zeros_like(scale)
    matrix = rho[..., None, None]
    noise = dist.Normal(torch.zeros_like(rho)[..., None], (scale * (1 - rho.square()).sqrt())[..., None]).to_event(1)
    seen = dist.Normal(zero.new_zeros(1), 0.1).to_event(1)
    return dist.GaussianHMM(
        dist.Normal(zero, scale).to_event(1), matrix, noise, zero.new_ones(1, 1), seen, validate_args=False
    )


def _of(cls: Callable[..., Distribution]) -> Callable[..., Distribution]:
    return lambda **parameters: cls(**parameters, validate_args=False)


REFERENCE = "Independent(Normal, 1)"
SHARED, SEPARATE = "AR1Normal, one rho, one scale", "AR1Normal, rho per pair, scale per coordinate"
DENSE = "MultivariateNormal, scale_tril"
STEPS = ("guide step", "guide step, of sums")
DENSITIES = ("log_prob", "log_prob and gradient", "entropy", "entropy and gradient")
COMMON = ("guide step", "rsample", "log_prob", "log_prob and gradient")

DISTRIBUTIONS = {
    REFERENCE: Family(lambda n, d: {"loc": (n, d), "scale": (n, d)}, _independent, (*STEPS, "rsample", *DENSITIES)),
    SHARED: Family(
        lambda n, d: {"loc": (n, d), "scale": (n, 1), "rho": (n, 1)},
        _of(AR1Normal),
        (*STEPS, "rsample", *DENSITIES),
        kernels=("numba", "torch"),
    ),
    SEPARATE: Family(
        lambda n, d: {"loc": (n, d), "scale": (n, d), "rho": (n, d - 1)},
        _of(AR1Normal),
        (*STEPS, "rsample", *DENSITIES),
        kernels=("numba", "torch"),
    ),
    SEPARATE.replace("rho", "atanh_rho"): Family(
        lambda n, d: {"loc": (n, d), "scale": (n, d), "atanh_rho": (n, d - 1)},
        _of(AR1Normal),
        STEPS,
        kernels=("numba", "torch"),
    ),
    DENSE: Family(
        lambda n, d: {"loc": (n, d), "scale_tril": (n, d, d)}, _of(MultivariateNormal), COMMON, widest=10_000
    ),
    "MultivariateNormal, covariance_matrix": Family(
        lambda n, d: {"loc": (n, d), "covariance_matrix": (n, d, d)}, _of(MultivariateNormal), COMMON, widest=1024
    ),
    "LowRankMultivariateNormal, rank 2": Family(
        lambda n, d: {"loc": (n, d), "cov_factor": (n, d, 2), "cov_diag": (n, d)},
        _of(LowRankMultivariateNormal),
        COMMON,
        widest=10**6,
    ),
    "GaussianHMM": Family(
        lambda n, d: {"rho": (n, d), "scale": (n, 1)},
        _hidden_markov,
        COMMON[1:],
        widest=20_000,
    ),
    "loop in Python, one rho, one scale": Family(
        lambda n, d: {"loc": (n, d), "scale": (n, 1), "rho": (n, 1)}, _of(Looped), COMMON[:2], widest=20_000
    ),
    "scipy.signal.lfilter, one rho for all": Family(
        lambda n, d: {"loc": (n, d), "scale": (n, 1), "rho": (1,)}, _of(Filtered), COMMON[1:2], widest=10**6
    ),
}


# --- Operations ---


def _guide_step(family: Family, shape: Shape, of_sums: bool) -> Function:
    """From the parameters to their gradients: the distribution, a sample, the divergence from a standard normal, and
    the gradient of both, from given gradients of the two or of their sums."""
    parameters = family.leaves(*shape)
    standard = _independent(torch.zeros(shape), torch.ones(shape))
    gradients = [torch.randn(shape), torch.ones(shape[0])]

    def step() -> None:
        _forget(parameters)
        q = family.make(**parameters)
        z, kl = q.rsample(), kl_divergence(q, standard)
        if of_sums:
            (z.sum() + kl.sum()).backward()
        else:
            torch.autograd.backward([z, kl], gradients)

    return step


def _method(family: Family, shape: Shape, name: str, gradient: bool) -> Function:
    """The distribution and one of its methods: without gradients, or with the parameters' from a given one."""
    parameters = family.leaves(*shape)
    with torch.no_grad():
        arguments: list[Any] = [family.make(**parameters).sample()] if name == "log_prob" else []
    ones = torch.ones(shape[0])

    def forward() -> None:
        with torch.no_grad():
            getattr(family.make(**parameters), name)(*arguments)

    def forward_and_backward() -> None:
        _forget(parameters)
        getattr(family.make(**parameters), name)(*arguments).backward(ones)

    return forward_and_backward if gradient else forward


def _forget(parameters: dict[str, Tensor]) -> None:
    for x in parameters.values():
        x.grad = None


OPERATIONS: dict[str, Callable[[Family, Shape], Function]] = {
    "guide step": lambda family, shape: _guide_step(family, shape, of_sums=False),
    "guide step, of sums": lambda family, shape: _guide_step(family, shape, of_sums=True),
    "rsample": lambda family, shape: _method(family, shape, "rsample", gradient=False),
    "log_prob": lambda family, shape: _method(family, shape, "log_prob", gradient=False),
    "log_prob and gradient": lambda family, shape: _method(family, shape, "log_prob", gradient=True),
    "entropy": lambda family, shape: _method(family, shape, "entropy", gradient=False),
    "entropy and gradient": lambda family, shape: _method(family, shape, "entropy", gradient=True),
}


# --- Cases ---


@dataclass(frozen=True)
class Case:
    """One number of the table."""

    operation: str
    distribution: str
    kernels: str
    shape: Shape

    def __str__(self) -> str:
        return f"{self.operation}-{self.distribution}-{self.kernels}-{self.shape[0]}x{self.shape[1]}"

    @property
    def function(self) -> Function:
        return OPERATIONS[self.operation](DISTRIBUTIONS[self.distribution], self.shape)

    @property
    def reference(self) -> Function:
        return OPERATIONS[self.operation](DISTRIBUTIONS[REFERENCE], self.shape)


def name_of(shape: Shape) -> str:
    return "×".join(f"{size:,}" for size in shape)


def cases(shapes: Sequence[Shape] = SHAPES, scaling: Sequence[Shape] = SCALING) -> list[Case]:
    """Everything at the shapes; and of those by which the cost's growth is judged the guide step alone."""
    every = [
        Case(operation, name, kernels, shape)
        for shape in shapes
        for name, family in DISTRIBUTIONS.items()
        for operation in family.operations
        for kernels in family.kernels
        if shape[1] <= family.widest and _fits(family, shape)
    ]
    growing = [
        Case("guide step", name, kernels, shape)
        for shape in scaling
        for name in (REFERENCE, SHARED, SEPARATE, DENSE)
        for kernels in DISTRIBUTIONS[name].kernels
        if shape[1] <= DISTRIBUTIONS[name].widest and _fits(DISTRIBUTIONS[name], shape)
    ]
    return list(dict.fromkeys(every + growing))


def _fits(family: Family, shape: Shape) -> bool:
    """Whether ten times the parameters, which the step of a dense normal takes, fit into the machine's memory."""
    numbers = sum(math.prod(size) for size in family.shapes(*shape).values())
    return 10 * 4 * numbers < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
