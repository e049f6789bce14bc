import pytest
import torch
from torch.distributions import kl_divergence

from vae_models.results import evaluation
from vae_models.study.permutation import permuted, random_order


@pytest.mark.parametrize("posterior", ["ar1", "markov"])
def test_identity_is_the_same_vae(posterior, build, digits):
    vae = build(posterior).eval()
    other = permuted(vae, torch.arange(4))
    figures = []
    for each in (vae, other):
        torch.manual_seed(1)
        figures.append(evaluation.evaluate(each, digits.test, num_samples=3))
    assert figures[0] == pytest.approx(figures[1])


@pytest.mark.parametrize("posterior", ["ar1", "markov"])
def test_chain_runs_in_another_order(posterior, build, digits):
    vae, order, x = build(posterior), torch.tensor([2, 0, 3, 1]), digits.test[:3]
    q, other = vae.encode(x), permuted(vae, order)
    p = other.encode(x)
    torch.testing.assert_close(p.mean, q.mean[:, order])
    torch.testing.assert_close(p.stddev, q.stddev[:, order])
    torch.testing.assert_close(p.rho, q.rho)
    z = torch.randn(5, 3, 4)
    torch.testing.assert_close(other.decode(z[..., order]).mean, vae.decode(z).mean)
    if posterior == "ar1":
        torch.testing.assert_close(kl_divergence(p, other.prior), kl_divergence(q, vae.prior))


def test_order_that_undoes_another_gives_the_vae_back(build, digits):
    """Marginals and decoder are not changed by any order; of the joint distribution the identity alone is."""
    vae, order, x = build("markov"), torch.tensor([2, 0, 3, 1]), digits.test[:3]
    back = permuted(permuted(vae, order), order.argsort())
    torch.testing.assert_close(back.encode(x).covariance_matrix, vae.encode(x).covariance_matrix)
    torch.testing.assert_close(back.decode(vae.prior_loc).mean, vae.decode(vae.prior_loc).mean)


def test_random_order():
    assert sorted(random_order(20, 0).tolist()) == list(range(20))
    assert torch.equal(random_order(20, 0), random_order(20, 0))
    assert not torch.equal(random_order(20, 0), random_order(20, 1))
