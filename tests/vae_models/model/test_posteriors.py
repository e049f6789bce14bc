import pytest
import torch
from torch.distributions import Independent, LowRankMultivariateNormal, Normal

from ar1_dist import AR1Normal
from vae_models.model.posteriors import POSTERIORS

FEATURES, D = 30, 8


def moved(name, d=D, **options):
    """A head whose weights are not those of its initialisation."""
    head = POSTERIORS[name](FEATURES, d, **options)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return head


def count(module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", POSTERIORS)
@pytest.mark.parametrize("d", [1, 2, D])
def test_shapes_and_gradients(name, d):
    head = moved(name, d)
    q = head(torch.randn(5, FEATURES))
    assert q.batch_shape == (5,)
    assert q.event_shape == (d,)
    kl = torch.distributions.kl_divergence(q, Independent(Normal(torch.zeros(d), 1.0), 1))
    assert kl.shape == (5,)
    (kl.sum() + q.rsample().sin().sum()).backward()
    for parameter_name, parameter in head.named_parameters():
        if not (d == 1 and parameter_name.startswith(("atanh_rho", "coefficients"))):
            assert parameter.grad.abs().sum() > 0, parameter_name


def test_diagonal():
    head = moved("diagonal")
    features = torch.randn(5, FEATURES)
    q = head(features)
    assert isinstance(q, Independent)
    torch.testing.assert_close(q.mean, head.loc(features))
    torch.testing.assert_close(q.variance, head.log_variance(features).exp())


@pytest.mark.parametrize(
    ("name", "options", "scales", "pairs"),
    [
        ("ar1", {}, 1, 1),
        ("ar1", {"per_pair": True}, 1, D - 1),
        ("markov", {}, D, D - 1),
        ("markov", {"shared_rho": True}, D, 1),
    ],
)
def test_autoregressive(name, options, scales, pairs):
    head = moved(name, **options)
    features = torch.randn(5, FEATURES)
    q = head(features)
    assert isinstance(q, AR1Normal)
    assert q.scale.shape == (5, scales)
    assert q.rho.shape == (5, pairs)
    torch.testing.assert_close(q.mean, head.loc(features))
    torch.testing.assert_close(q.variance, head.log_variance(features).exp().expand(5, D))
    neighbours = q.covariance_matrix.diagonal(1, -2, -1) / (q.stddev[:, 1:] * q.stddev[:, :-1])
    torch.testing.assert_close(neighbours, head.atanh_rho(features).tanh().expand(5, D - 1))


@pytest.mark.parametrize("rank", [1, 3])
def test_low_rank(rank):
    head = moved("low_rank", rank=rank)
    features = torch.randn(5, FEATURES)
    q = head(features)
    assert isinstance(q, LowRankMultivariateNormal)
    factor = head.factor(features).reshape(5, D, rank)
    torch.testing.assert_close(q.mean, head.loc(features))
    scale = torch.diag_embed(head.log_variance(features).exp().sqrt())
    torch.testing.assert_close(q.covariance_matrix, scale @ (torch.eye(D) + factor @ factor.mT) @ scale)
    with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
        POSTERIORS["low_rank"](FEATURES, D, rank=0)


@pytest.mark.parametrize("order", [1, 3, D - 1, D + 5])
def test_banded(order):
    """By its definition, coordinate by coordinate, and by the zeros of its precision."""
    head = moved("banded", order=order)
    features = torch.randn(FEATURES)
    q = head(features)
    coefficients = iter(head.coefficients(features))
    scale = head.log_variance(features).exp().sqrt()
    noise, u = torch.randn(D), []
    for t in range(D):
        u.append(noise[t] + sum(next(coefficients) * u[s] for s in range(max(t - order, 0), t)))
    assert next(coefficients, None) is None
    torch.testing.assert_close(q.loc + q.scale_tril @ noise, q.loc + scale * torch.stack(u))
    rows, columns = torch.tril_indices(D, D, -1)
    precision = q.precision_matrix[rows, columns].abs()
    assert (precision[rows - columns > order] < 1e-5).all()
    assert (precision[rows - columns <= order] > 1e-5).all()
    with pytest.raises(ValueError, match="order must be at least 1, got 0"):
        POSTERIORS["banded"](FEATURES, D, order=0)


def test_families_contain_each_other():
    """The chain of markov is banded of order 1, and that of order d - 1 is full."""
    markov, features = moved("markov")(torch.randn(FEATURES)), torch.zeros(FEATURES)
    for name, options in [("banded", {"order": 1}), ("banded", {"order": D - 1}), ("full", {})]:
        head = POSTERIORS[name](FEATURES, D, **options)
        tril = markov.scale_tril
        scale = tril.diagonal()
        unit = tril / scale[:, None]
        with torch.no_grad():
            head.loc.bias.copy_(markov.loc)
            head.log_variance.bias.copy_(2 * scale.log())
            head.coefficients.bias.copy_((torch.eye(D) - unit.inverse())[tuple(head.places)])
        torch.testing.assert_close(head(features).covariance_matrix, markov.covariance_matrix)


def test_full():
    head = moved("full", 3)
    features = torch.randn(FEATURES)
    scale = head.log_variance(features).exp().sqrt()
    a, b, c = head.coefficients(features)
    zero, one = torch.zeros(()), torch.ones(())
    rows = [[one, zero, zero], [a, one, zero], [b + c * a, c, one]]
    tril = scale[:, None] * torch.stack([torch.stack(row) for row in rows])
    q = head(features)
    torch.testing.assert_close(q.scale_tril, tril)
    torch.testing.assert_close(q.covariance_matrix, tril @ tril.T)
    torch.testing.assert_close(q.mean, head.loc(features))


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("diagonal", ["log_variance"]),
        ("ar1", ["log_variance", "atanh_rho"]),
        ("markov", ["log_variance", "atanh_rho"]),
        ("banded", ["log_variance", "coefficients"]),
        ("full", ["log_variance", "coefficients"]),
    ],
)
def test_covariance_starts_at_the_identity(name, parts):
    """And the gradients of its parts are not zero."""
    head = POSTERIORS[name](FEATURES, D)
    q = head(torch.randn(5, FEATURES))
    z = q.rsample((10_000,))
    torch.testing.assert_close((z - q.mean)[:, 0].T.cov(), torch.eye(D), atol=0.07, rtol=0)
    (z.sum(-1) ** 2).sum().backward()
    for part in parts:
        assert getattr(head, part).bias.grad.abs().min() > 0


@pytest.mark.parametrize("name", POSTERIORS)
def test_starts_with_xaviers_weights(name):
    """Uniform with standard deviation sqrt(2/(fan in + fan out)), and without bias."""
    head = POSTERIORS[name](300, 100)
    assert head.loc.weight.std().item() == pytest.approx((2 / 400) ** 0.5, rel=0.02)
    assert all(parameter.abs().max() == 0 for key, parameter in head.named_parameters() if key.endswith("bias"))


def test_parameter_counts():
    """The paper's claim: the covariance of the ar1 posterior takes d/2 times fewer parameters than the log-variance
    layer of the diagonal one, two linear units where that takes d."""
    heads = {name: head(FEATURES, D) for name, head in POSTERIORS.items()}
    unit = FEATURES + 1
    assert count(heads["diagonal"].log_variance) == D * unit
    ar1_covariance = count(heads["ar1"].log_variance) + count(heads["ar1"].atanh_rho)
    assert ar1_covariance == 2 * unit
    assert count(heads["diagonal"].log_variance) == D / 2 * ar1_covariance
    assert {name: count(head) for name, head in heads.items()} == {
        "diagonal": 2 * D * unit,
        "ar1": (D + 2) * unit,
        "markov": (3 * D - 1) * unit,
        "low_rank": 3 * D * unit,
        "banded": (2 * D + (D - 1) + (D - 2) + (D - 3)) * unit,
        "full": (2 * D + D * (D - 1) // 2) * unit,
    }


@pytest.mark.parametrize("name", ["ar1", "markov"])
@pytest.mark.parametrize("atanh_rho", [-15.0, 15.0])
def test_correlation_whose_tanh_rounds_to_one_is_valid(name, atanh_rho):
    head = POSTERIORS[name](FEATURES, D)
    torch.nn.init.constant_(head.atanh_rho.bias, atanh_rho)
    torch.nn.init.zeros_(head.atanh_rho.weight)
    q = head(torch.randn(5, FEATURES))
    z = q.rsample()
    kl = torch.distributions.kl_divergence(q, Independent(Normal(torch.zeros(D), 1.0), 1))
    (z.sum() + kl.sum()).backward()
    assert q.rho.abs().max() == 1
    assert z.isfinite().all()
    # KL grows by log cosh(alpha) = |alpha| - log 2 per pair.
    assert (kl > (D - 1) * 14).all()
    for parameter in head.parameters():
        assert parameter.grad.isfinite().all()


@pytest.mark.parametrize("name", POSTERIORS)
def test_nan_is_not_hidden(name):
    """The divergence is NaN, or torch's Cholesky factorisation of it fails."""
    try:
        q = POSTERIORS[name](FEATURES, D)(torch.full((1, FEATURES), torch.nan))
    except torch.linalg.LinAlgError:
        assert name == "low_rank"
    else:
        assert torch.distributions.kl_divergence(q, Independent(Normal(torch.zeros(D), 1.0), 1)).isnan().all()
