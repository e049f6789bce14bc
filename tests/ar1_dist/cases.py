"""The one table of cases and the one table of tolerances of the ar1_dist tests."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from ar1_dist import AR1Normal

# Relative to max(1, |expected|), per dtype: what a handful of roundings at d <= 256 may cost.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 1e-2}


@dataclass(frozen=True)
class Case:
    """Shapes and magnitudes of one chain; the numbers follow from them and the seed."""

    d: int
    batch_shape: tuple[int, ...] = ()
    shared_scale: bool = False
    shared_rho: bool = False
    max_rho: float = 0.99
    seed: int = 0

    def arrays(self) -> dict[str, np.ndarray]:
        """loc, scale and rho in float64, rho of both signs."""
        random = np.random.default_rng(self.seed)
        return {
            "loc": random.normal(size=(*self.batch_shape, self.d)),
            "scale": random.uniform(0.3, 3.0, size=(*self.batch_shape, 1 if self.shared_scale else self.d)),
            "rho": random.uniform(
                -self.max_rho, self.max_rho, size=(*self.batch_shape, 1 if self.shared_rho else self.d - 1)
            ),
        }

    def parameters(self, dtype: torch.dtype = torch.float64, requires_grad: bool = False) -> dict[str, torch.Tensor]:
        arrays = self.arrays().items()
        return {name: torch.tensor(array, dtype=dtype).requires_grad_(requires_grad) for name, array in arrays}

    def build(self, dtype: torch.dtype = torch.float64) -> AR1Normal:
        return AR1Normal(**self.parameters(dtype), validate_args=True)


CASES = [
    Case(1),
    Case(1, (3,), shared_rho=True),
    Case(2, shared_scale=True, shared_rho=True),
    Case(2, (4,)),
    Case(3, (2, 1), shared_rho=True),
    Case(5, shared_scale=True),
    Case(8, (3,), shared_scale=True, shared_rho=True),
    Case(17, (2, 3)),
    Case(64, shared_rho=True),
    Case(256, shared_scale=True, shared_rho=True),
    Case(256),
]
SMALL_CASES = [case for case in CASES if case.d <= 5]


def over(cases: list[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=str)


@st.composite
def any_case(
    draw: st.DrawFn, max_d: int = 12, batch_shape: tuple[int, ...] | None = None, d: int | None = None
) -> Case:
    """Any case of up to max_d dimensions and two batch dimensions."""
    shapes = st.lists(st.integers(1, 3), max_size=2).map(tuple)
    return Case(
        d=draw(st.integers(1, max_d)) if d is None else d,
        batch_shape=draw(shapes) if batch_shape is None else batch_shape,
        shared_scale=draw(st.booleans()),
        shared_rho=draw(st.booleans()),
        max_rho=draw(st.sampled_from([0.0, 0.5, 0.99])),
        seed=draw(st.integers(0, 2**32 - 1)),
    )


@st.composite
def any_pair(draw: st.DrawFn, max_d: int = 12) -> tuple[Case, Case]:
    """Two cases over the same space whose batch shapes broadcast."""
    first = draw(any_case(max_d))
    batch_shape = draw(st.sampled_from([first.batch_shape, first.batch_shape[1:], ()]))
    return first, draw(any_case(batch_shape=batch_shape, d=first.d))


def assert_close(got: torch.Tensor, expected, dtype: torch.dtype = torch.float64) -> None:
    """Equal shapes, and errors of at most the dtype's tolerance times max(1, |expected|)."""
    if not isinstance(expected, torch.Tensor):
        expected = torch.tensor(np.array(expected, dtype=np.float64))
    assert got.dtype == dtype
    assert got.shape == expected.shape
    got, expected = got.detach().double(), expected.detach().double()
    unit = expected.abs().clamp(min=1.0)
    torch.testing.assert_close(got / unit, expected / unit, rtol=0.0, atol=TOLERANCE[dtype])
