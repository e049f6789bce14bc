"""The numbered formulas of docs/mathematics.md, against dense linear algebra, SciPy and finite differences.

Nothing here uses the package. The docstring of every test says which formulas it checks; together they are all.
"""

import re
from pathlib import Path

import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
import scipy.stats
from numpy.testing import assert_allclose
from scipy.special import expit

D = 5
PAGE = Path(__file__).parents[1] / "docs" / "mathematics.md"


class Chain:
    """Arrays are indexed from 0; rho and alpha have an entry 0, for t = 1, that is 0: then c_1 = 1 without a case."""

    def __init__(self, seed: int, *, shared: bool = False) -> None:
        random = np.random.default_rng(seed)
        self.loc = random.normal(size=D)
        self.scale = np.full(D, 0.7) if shared else random.uniform(0.3, 3.0, size=D)
        self.rho = np.append(0.0, np.full(D - 1, -0.8) if shared else random.uniform(-0.95, 0.95, size=D - 1))
        self.alpha = np.arctanh(self.rho)
        # From the definition (1), as a linear map of the noise: the one thing all else is compared with.
        self.map = np.zeros((D, D))
        for j, noise in enumerate(np.eye(D)):
            u = np.zeros(D)
            for t in range(D):
                u[t] = self.rho[t] * u[t - 1] * (t > 0) + np.sqrt(1 - self.rho[t] ** 2) * noise[t]
            self.map[:, j] = self.scale * u
        self.covariance = self.map @ self.map.T
        self.normal = scipy.stats.multivariate_normal(self.loc, self.covariance)

    def product(self, j: int, i: int) -> float:
        return float(np.prod(self.rho[j + 1 : i + 1]))

    def whiten(self, u: np.ndarray) -> np.ndarray:
        """Formula (6), of standardised values."""
        previous = np.append(0.0, u[:-1])
        return (u - self.rho * previous) / np.sqrt(1 - self.rho**2)

    @property
    def precision_diagonal(self) -> np.ndarray:
        """Formula (10)."""
        squares = np.sinh(np.append(self.alpha, 0.0)) ** 2
        return (1 + squares[:-1] + squares[1:]) / self.scale**2

    @property
    def total_correlation(self) -> float:
        """Formula (12)."""
        return -0.5 * np.log(1 - self.rho**2).sum()


def dense_kl(q_loc, q_cov, p_loc, p_cov) -> float:
    solved = np.linalg.solve(p_cov, np.column_stack([q_cov, p_loc - q_loc]))
    log_dets = np.linalg.slogdet(p_cov)[1] - np.linalg.slogdet(q_cov)[1]
    return 0.5 * (np.trace(solved[:, :-1]) + (p_loc - q_loc) @ solved[:, -1] - len(q_loc) + log_dets)


@pytest.fixture(params=[1, 2, 3])
def q(request) -> Chain:
    return Chain(request.param)


@pytest.fixture
def p() -> Chain:
    return Chain(7)


@pytest.fixture
def shared() -> Chain:
    return Chain(4, shared=True)


def test_every_formula_of_the_page_is_checked():
    numbers = {int(number) for number in re.findall(r"\\tag\{(\d+)\}", PAGE.read_text(encoding="utf-8"))}
    checked = {
        int(number)
        for name, test in globals().items()
        if name.startswith("test_") and (doc := test.__doc__)
        for number in re.findall(r"\((\d+)\)", doc)
    }
    assert numbers == checked == set(range(1, len(numbers) + 1))


def test_covariance(q, shared):
    """(1) by simulation, (2)."""
    noise = np.random.default_rng(0).normal(size=(D, 200_000))
    u = np.empty_like(noise)
    u[0] = noise[0]
    for t in range(1, D):
        u[t] = q.rho[t] * u[t - 1] + np.sqrt(1 - q.rho[t] ** 2) * noise[t]
    assert_allclose(np.corrcoef(u), q.covariance / np.outer(q.scale, q.scale), atol=0.01)
    assert_allclose(u.var(1), 1, atol=0.02)
    for i in range(D):
        for j in range(i, D):
            assert_allclose(q.covariance[i, j], q.scale[i] * q.scale[j] * q.product(i, j), rtol=1e-12)
    assert_allclose(shared.covariance, 0.49 * scipy.linalg.toeplitz((-0.8) ** np.arange(D)), rtol=1e-12)


def test_cholesky_factor(q, shared):
    """(3), (4), (5)."""
    c = np.sqrt(1 - q.rho**2)
    factor = [[q.scale[i] * c[j] * q.product(j, i) if i >= j else 0.0 for j in range(D)] for i in range(D)]
    assert_allclose(factor, np.linalg.cholesky(q.covariance), rtol=1e-10, atol=1e-14)
    rho, root = -0.8, 0.6
    three = 0.7 * np.array([[1, 0, 0], [rho, root, 0], [rho**2, rho * root, root]])
    assert_allclose(three, np.linalg.cholesky(shared.covariance[:3, :3]), rtol=1e-12)
    log_det = np.log(q.scale).sum() + 0.5 * np.log(1 - q.rho**2).sum()
    assert_allclose(log_det, 0.5 * np.linalg.slogdet(q.covariance)[1], rtol=1e-10)
    assert_allclose(np.linalg.det(shared.covariance), 0.49**D * (1 - 0.64) ** (D - 1), rtol=1e-10)


def test_density(q):
    """(6), (7), (8), (9)."""
    z = np.random.default_rng(1).normal(size=D)
    u = (z - q.loc) / q.scale
    w = q.whiten(u)
    assert_allclose(w, np.linalg.solve(np.linalg.cholesky(q.covariance), z - q.loc), rtol=1e-9)
    log_det = 0.5 * np.linalg.slogdet(q.covariance)[1]
    assert_allclose(-0.5 * w @ w - log_det - D / 2 * np.log(2 * np.pi), q.normal.logpdf(z), rtol=1e-10)
    sign, previous = np.where(q.rho >= 0, 1, -1), np.append(0.0, u[:-1])
    stable = np.cosh(q.alpha) * (u - sign * previous) + sign * np.exp(-abs(q.alpha)) * previous
    assert_allclose(stable, w, rtol=1e-12)
    for form in (-2 * np.log(np.cosh(q.alpha)), -2 * np.log1p(2 * np.sinh(q.alpha / 2) ** 2)):
        assert_allclose(form, np.log(1 - q.rho**2), rtol=1e-12)


def test_precision(q):
    """(10)."""
    neighbours = -np.sinh(2 * q.alpha[1:]) / (2 * q.scale[1:] * q.scale[:-1])
    tridiagonal = np.diag(q.precision_diagonal) + np.diag(neighbours, 1) + np.diag(neighbours, -1)
    assert_allclose(tridiagonal, np.linalg.inv(q.covariance), rtol=1e-9, atol=1e-12)


def test_entropy_and_total_correlation(q):
    """(11), (12), (16)."""
    entropy = D / 2 * (1 + np.log(2 * np.pi)) + np.log(q.scale).sum() + 0.5 * np.log(1 - q.rho**2).sum()
    assert_allclose(entropy, q.normal.entropy(), rtol=1e-12)
    from_marginals = sum(scipy.stats.norm(scale=scale).entropy() for scale in q.scale) - q.normal.entropy()
    assert_allclose(q.total_correlation, from_marginals, rtol=1e-10)
    assert_allclose(np.log(np.cosh(q.alpha)).sum(), from_marginals, rtol=1e-10)
    assert_allclose(
        q.total_correlation, dense_kl(q.loc, q.covariance, q.loc, np.diag(np.diag(q.covariance))), rtol=1e-9
    )
    factor = np.random.default_rng(2).normal(size=(D, D))
    covariance = factor @ factor.T
    general = 0.5 * np.log(np.diag(covariance)).sum() - 0.5 * np.linalg.slogdet(covariance)[1]
    zero = np.zeros(D)
    assert_allclose(general, dense_kl(zero, covariance, zero, np.diag(np.diag(covariance))), rtol=1e-9)


def test_kl_to_factorised_normals(q, shared):
    """(14), (15)."""
    mu, tau = np.linspace(-1, 1, D), np.linspace(0.5, 2, D)
    terms = (q.scale**2 + (q.loc - mu) ** 2) / (2 * tau**2) - 0.5 - np.log(q.scale / tau)
    assert_allclose(terms.sum() + q.total_correlation, dense_kl(q.loc, q.covariance, mu, np.diag(tau**2)), rtol=1e-9)
    s, rho = 0.49, -0.8
    paper = 0.5 * (shared.loc @ shared.loc + D * (s - 1 - np.log(s)) - (D - 1) * np.log(1 - rho**2))
    assert_allclose(paper, dense_kl(shared.loc, shared.covariance, np.zeros(D), np.eye(D)), rtol=1e-10)


def test_kl_to_any_factorised_distribution():
    """(13), by quadrature over the plane, with a Laplace and a logistic distribution."""
    loc, scale, rho = np.array([0.3, -0.2]), np.array([0.8, 1.3]), 0.7
    q = scipy.stats.multivariate_normal(loc, np.outer(scale, scale) * [[1, rho], [rho, 1]])
    marginals = [scipy.stats.norm(*each) for each in zip(loc, scale, strict=True)]
    p = [scipy.stats.laplace(0.1, 0.9), scipy.stats.logistic(-0.5, 1.1)]
    points = [np.linspace(m - 9 * s, m + 9 * s, 2001) for m, s in zip(loc, scale, strict=True)]
    log_q = q.logpdf(np.stack(np.meshgrid(*points, indexing="ij"), -1))
    log_p = p[0].logpdf(points[0])[:, None] + p[1].logpdf(points[1])

    def integral(values, *axes):
        for axis in reversed(axes):
            values = scipy.integrate.simpson(values, x=axis)
        return values

    joint = integral(np.exp(log_q) * (log_q - log_p), *points)
    of_marginals = [
        integral(qt.pdf(x) * (qt.logpdf(x) - pt.logpdf(x)), x) for qt, pt, x in zip(marginals, p, points, strict=True)
    ]
    assert_allclose(sum(of_marginals) - 0.5 * np.log(1 - rho**2), joint, rtol=1e-4)


def test_kl_between_chains(q, p):
    """(17), (18), (19)."""
    gamma, delta = q.scale / p.scale, (q.loc - p.loc) / p.scale
    gamma_before, delta_before = np.append(0.0, gamma[:-1]), np.append(0.0, delta[:-1])
    r, sign = p.rho, np.where(p.rho >= 0, 1, -1)
    moment = (gamma - sign * r * gamma_before) ** 2 + 2 * sign * r * (1 - sign * q.rho) * gamma * gamma_before
    moment = (moment + (delta - r * delta_before) ** 2) / (1 - r**2)
    # With r = 0 and gamma_before = 0 at t = 1 it is the first one.
    inverse = np.linalg.inv(np.linalg.cholesky(p.covariance))
    second_moments = inverse @ (q.covariance + np.outer(q.loc - p.loc, q.loc - p.loc)) @ inverse.T
    assert_allclose(moment, np.diag(second_moments), rtol=1e-9)
    kl = 0.5 * (moment.sum() - D) - np.log(gamma).sum() + 0.5 * np.log((1 - r**2) / (1 - q.rho**2)).sum()
    assert_allclose(kl, dense_kl(q.loc, q.covariance, p.loc, p.covariance), rtol=1e-9)
    deviation = np.cosh(p.alpha) * (gamma - gamma_before) + np.exp(-abs(p.alpha)) * gamma_before
    overlap = 2 * sign * np.sinh(2 * p.alpha) * expit(-2 * sign * q.alpha) * gamma * gamma_before
    assert_allclose(p.whiten(delta) ** 2 + deviation**2 + overlap, moment, rtol=1e-9)


def test_kl_with_dense_and_low_rank_normals(q, p):
    """(20), (21), (22), (23)."""
    random = np.random.default_rng(3)
    few, diagonal = random.normal(size=(D, 2)), random.uniform(0.5, 2, size=D)
    low_rank = few @ few.T + np.diag(diagonal)
    trace = np.trace(np.linalg.solve(p.covariance, q.covariance))
    kl = 0.5 * trace - p.normal.logpdf(q.loc) - q.normal.entropy()
    assert_allclose(kl, dense_kl(q.loc, q.covariance, p.loc, p.covariance), rtol=1e-9)

    for factor, rest in ((few, diagonal), (np.linalg.cholesky(low_rank), np.zeros(D))):
        columns = sum((p.whiten(column / p.scale) ** 2).sum() for column in factor.T)
        trace = np.trace(np.linalg.solve(p.covariance, low_rank))
        assert_allclose(columns + p.precision_diagonal @ rest, trace, rtol=1e-9)

    trace = np.trace(np.linalg.solve(low_rank, q.covariance))
    cholesky = np.linalg.cholesky(low_rank)
    assert_allclose((np.linalg.solve(cholesky, q.map) ** 2).sum(), trace, rtol=1e-9)
    weighted = few.T / diagonal
    small = np.linalg.cholesky(np.eye(2) + weighted @ few)
    woodbury = (q.scale**2 / diagonal).sum() - (np.linalg.solve(small, weighted @ q.map) ** 2).sum()
    assert_allclose(woodbury, trace, rtol=1e-9)


def recurrence(a: np.ndarray, x: np.ndarray) -> np.ndarray:
    y = list(x[:1])
    for coefficient, value in zip(a, x[1:], strict=True):
        y.append(coefficient * y[-1] + value)
    return np.array(y)


def derivative(function, x: np.ndarray) -> np.ndarray:
    """By complex steps, which subtract nothing: exact to rounding."""
    return np.array([function(x + 1e-30j * unit).imag / 1e-30 for unit in np.eye(len(x))])


def adjoint(a: np.ndarray, g: np.ndarray) -> np.ndarray:
    h = list(g[-1:])
    for coefficient, value in zip(a[::-1], g[-2::-1], strict=True):
        h.append(value + coefficient * h[-1])
    return np.array(h[::-1])


def test_recurrence_and_adjoint(q):
    """(24), (25), (26), (27)."""
    random = np.random.default_rng(4)
    a, x, g = q.rho[1:], random.normal(size=D), random.normal(size=D)
    y, h = recurrence(a, x), adjoint(a, g)
    matrix = np.array([[q.product(j, i) if i >= j else 0.0 for j in range(D)] for i in range(D)])
    assert_allclose(y, matrix @ x, rtol=1e-12)
    assert_allclose(h, matrix.T @ g, rtol=1e-12)
    assert_allclose(h, derivative(lambda x: g @ recurrence(a, x), x), rtol=1e-12)
    assert_allclose(h[1:] * y[:-1], derivative(lambda a: g @ recurrence(a, x), a), rtol=1e-12)

    def chain(alpha, noise):
        return recurrence(np.tanh(alpha), np.append(noise[:1], noise[1:] / np.cosh(alpha)))

    alpha = q.alpha[1:]
    u, sech = chain(alpha, x), 1 / np.cosh(alpha)
    assert_allclose(np.append(h[0], h[1:] * sech), derivative(lambda x: g @ chain(alpha, x), x), rtol=1e-12)
    of_alpha = h[1:] * sech * (u[:-1] * sech - a * x[1:])
    assert_allclose(of_alpha, derivative(lambda alpha: g @ chain(alpha, x), alpha), rtol=1e-12)

    merged = a[2] * a[1] * y[1] + (x[3] + a[2] * x[2])
    assert_allclose(merged, y[3], rtol=1e-12)
