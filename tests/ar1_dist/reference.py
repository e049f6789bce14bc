"""Dense and exact references that share no code with the package: SciPy, NumPy's linear algebra and mpmath."""

import mpmath
import numpy as np
import scipy.linalg
import scipy.stats


def correlation(rho: np.ndarray, d: int) -> np.ndarray:
    """The correlation matrix: SciPy's Toeplitz matrix for one rho, else products over the gap, pair by pair."""
    if rho.shape == (1,):
        return scipy.linalg.toeplitz(rho ** np.arange(d))
    matrix = np.eye(d)
    for i in range(d):
        for j in range(i):
            matrix[i, j] = matrix[j, i] = np.prod(rho[j:i])
    return matrix


def over_batch(function):
    """Lift a function of unbatched arrays to arrays with leading batch dimensions, which broadcast."""

    def lifted(*parameters: dict[str, np.ndarray]):
        batch_shape = np.broadcast_shapes(*(array.shape[:-1] for each in parameters for array in each.values()))
        expanded = [
            {name: np.broadcast_to(array, batch_shape + array.shape[-1:]) for name, array in each.items()}
            for each in parameters
        ]
        results = [
            function(*({name: array[index] for name, array in each.items()} for each in expanded))
            for index in np.ndindex(batch_shape)
        ]
        return np.reshape(np.stack(results), batch_shape + np.shape(results[0]))

    return lifted


@over_batch
def covariance(p: dict[str, np.ndarray]) -> np.ndarray:
    d = p["loc"].size
    scale = np.broadcast_to(p["scale"], (d,))
    return scale[:, None] * correlation(p["rho"], d) * scale


@over_batch
def entropy(p: dict[str, np.ndarray]) -> np.ndarray:
    return scipy.stats.multivariate_normal(p["loc"], covariance(p)).entropy()


def log_prob(p: dict[str, np.ndarray], value: np.ndarray) -> np.ndarray:
    return _log_prob(p, {"value": value})


@over_batch
def _log_prob(p: dict[str, np.ndarray], value: dict[str, np.ndarray]) -> np.ndarray:
    return scipy.stats.multivariate_normal(p["loc"], covariance(p)).logpdf(value["value"])


def dense_kl(q_loc: np.ndarray, q_cov: np.ndarray, p_loc: np.ndarray, p_cov: np.ndarray) -> float:
    """The textbook formula for two dense normals, by LU factorisation."""
    difference = p_loc - q_loc
    trace = np.trace(np.linalg.solve(p_cov, q_cov))
    quadratic = difference @ np.linalg.solve(p_cov, difference)
    log_dets = np.linalg.slogdet(p_cov)[1] - np.linalg.slogdet(q_cov)[1]
    return 0.5 * (trace + quadratic - q_loc.size + log_dets)


@over_batch
def kl(q: dict[str, np.ndarray], p: dict[str, np.ndarray]) -> np.ndarray:
    return dense_kl(q["loc"], covariance(q), p["loc"], covariance(p))


@over_batch
def covariance_of_times(p: dict[str, np.ndarray]) -> np.ndarray:
    """Of the Ornstein-Uhlenbeck process, one timescale for all gaps or one for each."""
    elapsed = np.concatenate([[0.0], np.cumsum(np.diff(p["times"]) / p["timescale"])])
    scale = np.broadcast_to(p["scale"], elapsed.shape)
    return scale[:, None] * np.exp(-np.abs(elapsed[:, None] - elapsed)) * scale


@over_batch
def covariance_of_transitions(p: dict[str, np.ndarray]) -> np.ndarray:
    """z - loc = (I - C)^-1 N e, with C the coefficients below the diagonal."""
    d = p["loc"].size
    below = np.eye(d) - np.diag(np.broadcast_to(p["coefficient"], (d - 1,)), -1)
    noise = np.concatenate([p["initial_scale"], np.broadcast_to(p["noise_scale"], (d - 1,))])
    factor = np.linalg.solve(below, np.diag(noise))
    return factor @ factor.T


@over_batch
def conditional(p: dict[str, np.ndarray], given: dict[str, np.ndarray]) -> np.ndarray:
    """The mean, as the first row, and the covariance of the coordinates that are not in the index."""
    index, cov = given["index"], covariance(p)
    rest = np.setdiff1d(np.arange(p["loc"].size), index)
    gain = np.linalg.solve(cov[np.ix_(index, index)], cov[np.ix_(index, rest)]).T
    mean = p["loc"][rest] + gain @ (given["value"] - p["loc"][index])
    return np.vstack([mean, cov[np.ix_(rest, rest)] - gain @ cov[np.ix_(index, rest)]])


@over_batch
def product(q: dict[str, np.ndarray], p: dict[str, np.ndarray]) -> np.ndarray:
    """The mean, the covariance and, in each place of a last row, the log normaliser of the product of q with another
    chain, or with normals of which those with an infinite scale are left out."""
    q_cov = covariance(q)
    seen = np.flatnonzero(np.isfinite(np.broadcast_to(p["scale"], q["loc"].shape)))
    p_cov = covariance(p) if "rho" in p else np.diag(p["scale"] ** 2)
    total = (q_cov + np.where(np.isfinite(p_cov), p_cov, 0))[np.ix_(seen, seen)]
    gain = np.linalg.solve(total, q_cov[seen]).T
    mean = q["loc"] + gain @ (p["loc"] - q["loc"])[seen]
    evidence = scipy.stats.multivariate_normal(q["loc"][seen], total).logpdf(p["loc"][seen]) if seen.size else 0.0
    return np.vstack([mean, q_cov - gain @ q_cov[seen], np.full_like(mean, evidence)])


class Exact:
    """A chain with float64 or float32 parameters taken as exact, computed with 60 digits, term by term."""

    def __init__(self, loc, scale, atanh_rho):
        d = len(loc)
        self.loc = [mpmath.mpf(float(x)) for x in loc]
        self.scale = [mpmath.mpf(float(x)) for x in np.broadcast_to(scale, (d,))]
        self.rho = [mpmath.tanh(mpmath.mpf(float(x))) for x in np.broadcast_to(atanh_rho, (d - 1,))]

    def entropy(self):
        constant = len(self.loc) * (1 + mpmath.log(2 * mpmath.pi)) / 2
        return constant + sum(map(mpmath.log, self.scale)) + sum(mpmath.log(1 - r * r) for r in self.rho) / 2

    def log_prob(self, value):
        u = [(mpmath.mpf(float(z)) - m) / s for z, m, s in zip(value, self.loc, self.scale, strict=True)]
        terms = [u[0] ** 2] + [(u[t + 1] - r * u[t]) ** 2 / (1 - r * r) for t, r in enumerate(self.rho)]
        constant = len(u) * mpmath.log(2 * mpmath.pi)
        log_dets = 2 * sum(map(mpmath.log, self.scale)) + sum(mpmath.log(1 - r * r) for r in self.rho)
        return -(sum(terms) + constant + log_dets) / 2

    def kl(self, other: "Exact"):
        a = [s / t for s, t in zip(self.scale, other.scale, strict=True)]
        delta = [(m - n) / t for m, n, t in zip(self.loc, other.loc, other.scale, strict=True)]
        total = a[0] ** 2 + delta[0] ** 2 - 1 - 2 * mpmath.log(a[0])
        for t, (rho, r) in enumerate(zip(self.rho, other.rho, strict=True), start=1):
            variance = a[t] ** 2 - 2 * r * rho * a[t] * a[t - 1] + (r * a[t - 1]) ** 2
            moment = (variance + (delta[t] - r * delta[t - 1]) ** 2) / (1 - r * r)
            total += moment - 1 - 2 * mpmath.log(a[t]) + mpmath.log(1 - r * r) - mpmath.log(1 - rho * rho)
        return total / 2

    def covariance(self):
        d = len(self.loc)
        return mpmath.matrix(
            [
                [self.scale[i] * self.scale[j] * mpmath.fprod(self.rho[min(i, j) : max(i, j)]) for j in range(d)]
                for i in range(d)
            ]
        )

    def product(self, other: "Exact"):
        """Mean, standard deviations, artanh of the neighbours' correlations, and log normaliser of the product."""
        d, mine = len(self.loc), self.covariance()
        total = mine + other.covariance()
        inverse, difference = total**-1, mpmath.matrix(other.loc) - mpmath.matrix(self.loc)
        mean = mpmath.matrix(self.loc) + mine * inverse * difference
        cov = mine - mine * inverse * mine
        scale = [mpmath.sqrt(cov[t, t]) for t in range(d)]
        atanh_rho = [mpmath.atanh(cov[t, t + 1] / (scale[t] * scale[t + 1])) for t in range(d - 1)]
        quadratic = (difference.T * inverse * difference)[0]
        evidence = -(d * mpmath.log(2 * mpmath.pi) + mpmath.log(mpmath.det(total)) + quadratic) / 2
        return list(mean), scale, atanh_rho, evidence


def relative_error(got: float, expected, d: int) -> float:
    """|got - expected| / max(1, |expected|, 0.1 d), the measure of the numerical contract."""
    return float(abs(mpmath.mpf(float(got)) - expected) / max(1, abs(expected), mpmath.mpf(d) / 10))


mpmath.mp.dps = 60

__all__ = [
    "Exact",
    "conditional",
    "correlation",
    "covariance",
    "covariance_of_times",
    "covariance_of_transitions",
    "dense_kl",
    "entropy",
    "kl",
    "log_prob",
    "product",
    "relative_error",
]
