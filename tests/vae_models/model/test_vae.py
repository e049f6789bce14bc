import copy
import math
import pickle
import re
from functools import partial

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch.distributions import MultivariateNormal, kl_divergence

from vae_models.files import FileError, read_json
from vae_models.model.mmd import mmd
from vae_models.model.posteriors import POSTERIORS
from vae_models.model.vae import VAE
from vae_models.settings.config_file import write_config_file
from vae_models.settings.objectives import Objective

every_posterior = pytest.mark.parametrize("posterior", POSTERIORS)


def dense(q) -> MultivariateNormal:
    """The same normal distribution, by its covariance matrix."""
    covariance = q.covariance_matrix if hasattr(q, "covariance_matrix") else torch.diag_embed(q.variance)
    return MultivariateNormal(q.mean, covariance)


def bernoulli_log_prob(logits: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    pi = logits.double().sigmoid()
    return (x * pi.log() + (1 - x) * (1 - pi).log()).flatten(-3).sum(-1)


@every_posterior
def test_shapes(posterior, build, digits):
    vae, x = build(posterior), digits.train[:3]
    assert vae.encode(x).batch_shape == (3,)
    assert vae.encode(x).event_shape == (4,)
    assert vae.decode(torch.randn(5, 3, 4)).batch_shape == (5, 3)
    assert vae.decode(torch.randn(4)).event_shape == (1, 8, 8)
    for images in (vae.sample(3), vae.reconstruct(x)):
        assert images.shape == (3, 1, 8, 8)
        assert images.min() > 0
        assert images.max() < 1
        assert not images.requires_grad
    assert vae.log_likelihood(x, 2).shape == (3,)


def test_unknown_names():
    with pytest.raises(ValueError, match="unknown posterior 'nope'; choose from diagonal, ar1, markov"):
        VAE.build((1, 8, 8), posterior="nope")
    with pytest.raises(ValueError, match="unknown network 'nope'; choose from mlp"):
        VAE.build((1, 8, 8), network="nope")
    with pytest.raises(ValueError, match="unknown likelihood 'nope'; choose from bernoulli"):
        VAE.build((1, 8, 8), likelihood="nope")
    with pytest.raises(ValueError, match=r"posterior 'ar1' does not take the options \{'rank': 2\}"):
        VAE.build((1, 8, 8), posterior="ar1", posterior_options={"rank": 2})


def test_one_seed_gives_one_start_for_every_posterior():
    start = {}
    for posterior in POSTERIORS:
        torch.manual_seed(3)
        start[posterior] = VAE.build((1, 8, 8), posterior=posterior).state_dict()
    for name in ("encoder.1.weight", "decoder.0.weight", "decoder.2.bias", "posterior.loc.weight"):
        assert all(torch.equal(start[posterior][name], start["diagonal"][name]) for posterior in POSTERIORS)


@every_posterior
def test_elbo_is_the_hand_computed_one(posterior, build, digits):
    """log p(x|z) at the guide's own z minus the KL divergence of dense normals."""
    vae, x = build(posterior), digits.train[:5]
    torch.manual_seed(1)
    loss = TraceMeanField_ELBO().loss(vae.model, vae.guide, x)
    torch.manual_seed(1)
    z = vae.encode(x).rsample()
    identity = MultivariateNormal(torch.zeros(4), torch.eye(4))
    expected = kl_divergence(dense(vae.encode(x)), identity) - bernoulli_log_prob(vae.decoder(z), x)
    assert loss == pytest.approx(expected.sum().item(), rel=1e-5)


@every_posterior
def test_elbo_uses_the_analytic_kl(posterior, build, digits):
    """With a decoder that ignores z the noise enters the bound only where the KL divergence is sampled: it does so in
    Trace_ELBO, and must not in TraceMeanField_ELBO."""
    vae, x = build(posterior), digits.train[:5]
    torch.nn.init.zeros_(vae.decoder[0].weight)
    analytic = {TraceMeanField_ELBO().loss(vae.model, vae.guide, x) for _ in range(5)}
    sampled = {Trace_ELBO().loss(vae.model, vae.guide, x) for _ in range(5)}
    assert len(analytic) == 1
    assert len(sampled) == 5
    reconstruction = -bernoulli_log_prob(vae.decoder(torch.zeros(5, 4)), x)
    kl = kl_divergence(dense(vae.encode(x)), MultivariateNormal(torch.zeros(4), torch.eye(4)))
    assert analytic.pop() == pytest.approx((reconstruction + kl).sum().item(), rel=1e-5)


@every_posterior
def test_vectorised_particles(posterior, build, digits):
    vae, x = build(posterior), digits.train[:5]
    elbo = TraceMeanField_ELBO(num_particles=500, vectorize_particles=True, max_plate_nesting=1)
    loop = sum(TraceMeanField_ELBO().loss(vae.model, vae.guide, x) for _ in range(200)) / 200
    assert elbo.loss(vae.model, vae.guide, x) == pytest.approx(loop, rel=0.01)


@every_posterior
def test_svi_as_in_the_tutorials(posterior, build, digits):
    vae, x = build(posterior), digits.train[:64]
    before = copy.deepcopy(vae.state_dict())
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 3e-3}), TraceMeanField_ELBO())
    losses = [svi.step(x) / len(x) for _ in range(60)]
    assert sum(losses[-5:]) / 5 < 0.85 * sum(losses[:5]) / 5
    assert all(not torch.equal(before[name], value) for name, value in vae.state_dict().items())
    assert {name.partition("$$$")[0] for name in pyro.get_param_store()} == {"encoder", "posterior", "decoder"}


def test_elbo_module_and_torch_optimiser(build, digits):
    vae, x = build("ar1"), digits.train[:64]
    loss = TraceMeanField_ELBO()(vae.model, vae.guide)
    optimiser = torch.optim.Adam(vae.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        optimiser.zero_grad()
        value = loss(x)
        value.backward()
        optimiser.step()
        losses.append(value.item() / len(x))
    assert sum(losses[-5:]) / 5 < 0.85 * sum(losses[:5]) / 5


def test_second_vae_in_one_parameter_store_is_an_error(build, digits):
    """Pyro alone would train the first one's parameters, and leave the second as it is."""
    x = digits.train[:5]
    first, second = build("ar1"), build("ar1")
    elbo = TraceMeanField_ELBO()
    elbo.loss(first.model, first.guide, x)
    for program in (second.model, second.guide, copy.deepcopy(first).model):
        with pytest.raises(RuntimeError, match=r"pyro.clear_param_store\(\).*scope"):
            program(x)
    with pyro.get_param_store().scope():
        elbo.loss(second.model, second.guide, x)
    elbo.loss(first.model, first.guide, x)
    pyro.clear_param_store()
    elbo.loss(second.model, second.guide, x)


@every_posterior
@pytest.mark.parametrize("latent_dim", [1, 2])
def test_log_likelihood_against_quadrature(posterior, latent_dim, build, digits):
    vae, x = build(posterior, latent_dim).double(), digits.train[:1].double()
    grid = torch.linspace(-7, 7, 141, dtype=torch.float64)
    z = torch.cartesian_prod(*[grid] * latent_dim).reshape(-1, latent_dim)
    with torch.no_grad():
        log_prior = -z.square().sum(-1) / 2 - latent_dim / 2 * math.log(2 * math.pi)
        log_joint = bernoulli_log_prob(vae.decoder(z), x) + log_prior
    # The trapezoid rule is precise to many digits for a smooth function that vanishes at the edges.
    expected = log_joint.logsumexp(0).item() + latent_dim * math.log(14 / 140)
    assert vae.log_likelihood(x, 10_000).item() == pytest.approx(expected, abs=0.02)


@every_posterior
def test_log_likelihood_bounds(posterior, build, digits):
    """It is above the ELBO, rises with the number of samples, and with one sample is the ELBO in expectation."""
    vae, x = build(posterior), digits.train[:200]
    elbo = -TraceMeanField_ELBO(num_particles=50).loss(vae.model, vae.guide, x) / len(x)
    one = torch.stack([vae.log_likelihood(x, 1).mean() for _ in range(50)]).mean().item()
    ten, many = (vae.log_likelihood(x, n).mean().item() for n in (10, 1000))
    assert one == pytest.approx(elbo, abs=0.05)
    assert one < ten < many


@pytest.mark.parametrize("chunk_size", [1, 3, 7, 64, 4096])
def test_log_likelihood_in_chunks(chunk_size, build, digits, monkeypatch):
    """No more than so many latent vectors are decoded at once, and the number of samples is right: with the prior as
    the posterior and a decoder that ignores z, every weight is the same, and the estimate exact."""
    vae, x = build("diagonal"), digits.train[:5]
    for parameter in [*vae.posterior.parameters(), vae.decoder[0].weight]:
        torch.nn.init.zeros_(parameter)
    decoded = []
    decode = vae.decode
    monkeypatch.setattr(vae, "decode", lambda z: decoded.append(z.shape[:-1].numel()) or decode(z))
    got = vae.log_likelihood(x, 10, chunk_size=chunk_size)
    assert max(decoded) <= chunk_size
    assert sum(decoded) == 10 * len(x)
    torch.testing.assert_close(got, bernoulli_log_prob(vae.decoder(torch.zeros(5, 4)), x).float())


@pytest.mark.parametrize("arguments", [{"num_samples": 0}, {"num_samples": 1, "chunk_size": 0}])
def test_log_likelihood_needs_samples(arguments, build, digits):
    with pytest.raises(ValueError, match="at least 1"):
        build("ar1").log_likelihood(digits.train[:2], **arguments)


def test_sample_is_from_the_prior(build, monkeypatch):
    """The images are the decoder's means at standard normal latent vectors."""
    vae = build("ar1")
    seen = []
    decode = vae.decode
    monkeypatch.setattr(vae, "decode", lambda z: seen.append(z) or decode(z))
    images = vae.sample(20_000)
    (z,) = seen
    torch.testing.assert_close(images, vae.decoder(z).sigmoid())
    torch.testing.assert_close(z.mean(0), torch.zeros(4), atol=0.03, rtol=0)
    torch.testing.assert_close(z.T.cov(), torch.eye(4), atol=0.04, rtol=0)


def test_moves_between_dtypes_and_saves_only_weights(build):
    vae = build("markov").double()
    assert vae.sample(1).dtype == torch.float64
    assert all(name.partition(".")[0] in ("encoder", "posterior", "decoder") for name in vae.state_dict())


@every_posterior
def test_mixed_precision_does_not_round_the_distributions(posterior, build, digits):
    vae, x = build(posterior), digits.train[:5]
    with torch.autocast("cpu", torch.bfloat16):
        assert vae.encoder(x).dtype == torch.bfloat16
        q, p = vae.encode(x), vae.decode(torch.zeros(5, 4))
    assert q.mean.dtype == q.rsample().dtype == kl_divergence(q, vae.prior).dtype == torch.float32
    assert p.mean.dtype == p.log_prob(x).dtype == torch.float32


# --- Images of the wrong meaning ---

GREY = torch.linspace(0, 1, 320).reshape(5, 1, 8, 8)
WRONG_SHAPES = {
    "without channels": GREY.squeeze(1),
    "channels last": GREY.movedim(1, -1),
    "another size": torch.ones(5, 1, 9, 9),
    "colours": GREY.expand(-1, 3, -1, -1),
    "one image": GREY[0],
    "bytes": (255 * GREY).byte(),
    "an array": GREY.numpy(),
}
WRONG_VALUES = {
    "0 to 255": 255 * GREY,
    "-1 to 1": 2 * GREY - 1,
    "nan": GREY.index_fill(0, torch.tensor([3]), torch.nan),
}
TAKES_IMAGES = {
    "encode": lambda vae, x: vae.encode(x),
    "reconstruct": lambda vae, x: vae.reconstruct(x),
    "log_likelihood": lambda vae, x: vae.log_likelihood(x, 2),
    "model": lambda vae, x: vae.model(x),
    "guide": lambda vae, x: vae.guide(x),
    "SVI": lambda vae, x: SVI(vae.model, vae.guide, pyro.optim.SGD({"lr": 0.0}), TraceMeanField_ELBO()).step(x),
}


@pytest.mark.parametrize("call", TAKES_IMAGES.values(), ids=TAKES_IMAGES)
def test_images_of_the_wrong_meaning(call, build):
    vae = build("ar1")
    for x in WRONG_SHAPES.values():
        got = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, torch.Tensor) else "ndarray"
        said = f"images must be a floating-point tensor of shape (N, 1, 8, 8), N > 0, got {got}"
        with pytest.raises(ValueError, match=f"^{re.escape(said)}"):
            call(vae, x)
    for x in WRONG_VALUES.values():
        with pytest.raises(ValueError, match=r"^images must be finite and within Interval\(lower_bound=0.0, upper_b"):
            call(vae, x)
        with pyro.validation_enabled(False), pyro.get_param_store().scope():
            call(vae, x)  # as torch's distributions, which then do not look at values


def test_values_that_fit_the_likelihood(build):
    """Any finite ones under the normal, whether it is of the package or one's own without a support."""
    x = WRONG_VALUES["-1 to 1"]
    gaussian = VAE.build((1, 8, 8), likelihood="gaussian", latent_dim=4)
    own = VAE(gaussian.encoder, gaussian.posterior, gaussian.decoder, 4, likelihood=torch.nn.Sequential())
    for vae in (gaussian, own):
        assert vae.encode(x).batch_shape == (5,)
        with pytest.raises(ValueError, match=r"must be finite and within Real\(\), got -?inf"):
            vae.encode(x / 0)
    with pytest.raises(ValueError, match="Interval"):
        VAE.build((1, 8, 8), likelihood="continuous-bernoulli").encode(x)


def test_own_networks_that_would_broadcast(build):
    """What a VAE of parts of one's own decodes is compared with what it is given."""
    parts = build("ar1")
    vae = VAE(parts.encoder, parts.posterior, parts.decoder, 4)
    x = GREY.reshape(5, 1, 1, 64)
    for call in (lambda: vae.model(x), lambda: vae.log_likelihood(x, 2)):
        with pytest.raises(ValueError, match=r"gives images of shape \(1, 8, 8\), x is of shape \(5, 1, 1, 64\)"):
            call()
    with pytest.raises(ValueError, match=r"shape \(N, C, H, W\), N > 0, got torch.float32 of shape \(5, 64\)"):
        vae.encode(GREY.reshape(5, 64))


def test_no_images(build):
    """An empty batch is encoded to an empty one; there is nothing to train or average."""
    vae, x = build("ar1"), torch.rand(0, 1, 8, 8)
    assert vae.encode(x).batch_shape == (0,)
    assert vae.reconstruct(x).shape == vae.sample(0).shape == x.shape
    for name in ("log_likelihood", "model", "guide", "SVI"):
        with pytest.raises(ValueError, match="N > 0, got torch.float32 of shape \\(0, 1, 8, 8\\)"):
            TAKES_IMAGES[name](vae, x)


@pytest.mark.parametrize("z", [torch.zeros(3), torch.zeros(2, 5), torch.tensor(1.0), torch.zeros(4, dtype=torch.int64)])
def test_latent_vectors_of_another_size(z, build):
    with pytest.raises(ValueError, match=r"latent vectors must be a floating-point tensor of shape \(..., 4\), got to"):
        build("ar1").decode(z)


def test_encode_and_decode_compile_and_map(build, digits):
    """Values are not looked at, which would break the graph."""
    vae, x = build("ar1"), digits.test[:3]
    expected = vae.encode(x).mean
    torch.testing.assert_close(torch.compile(lambda x: vae.encode(x).mean, fullgraph=True)(x), expected)
    mapped = torch.func.vmap(lambda x: vae.encode(x.unsqueeze(0)).mean.squeeze(0))(x)
    torch.testing.assert_close(mapped, expected)


# --- Objectives ---


def hand_computed_parts(vae, x, seed):
    """The reconstruction, the divergence and z, from the noise that the guide draws first under this seed."""
    torch.manual_seed(seed)
    q = vae.encode(x)
    z = q.rsample()
    kl = kl_divergence(dense(q), MultivariateNormal(torch.zeros(4), torch.eye(4)))
    return -bernoulli_log_prob(vae.decoder(z), x).sum(), kl.sum(), z


@pytest.mark.parametrize("elbo", [TraceMeanField_ELBO, Trace_ELBO])
@pytest.mark.parametrize("beta", [0.0, 0.25, 4.0])
@every_posterior
def test_beta_weighs_the_divergence_alone(posterior, beta, elbo, build, digits):
    vae, x = build(posterior), digits.train[:5]
    vae.beta = beta
    torch.manual_seed(1)
    loss = elbo().loss(vae.model, vae.guide, x)
    reconstruction, kl, z = hand_computed_parts(vae, x, seed=1)
    if elbo is Trace_ELBO:
        kl = (vae.encode(x).log_prob(z) - vae.prior.log_prob(z)).sum()
    assert loss == pytest.approx((reconstruction + beta * kl).item(), rel=1e-5)


def test_objective_sets_beta():
    assert VAE.build((1, 8, 8), objective=Objective.beta_vae(3.0)).beta == 3.0


@every_posterior
def test_info_vae_adds_the_discrepancy(posterior, digits):
    objective = Objective.info_vae(alpha=0.5, lambda_=20.0)
    vae, x = VAE.build((1, 8, 8), posterior=posterior, latent_dim=4, objective=objective), digits.train[:5]
    torch.manual_seed(1)
    loss = TraceMeanField_ELBO().loss(vae.model, vae.guide, x)
    reconstruction, kl, z = hand_computed_parts(vae, x, seed=1)
    expected = reconstruction + 0.5 * kl + 19.5 * len(x) * mmd(z, torch.randn_like(z))
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    particles = TraceMeanField_ELBO(num_particles=200, vectorize_particles=True, max_plate_nesting=1)
    one_by_one = [TraceMeanField_ELBO().loss(vae.model, vae.guide, x) for _ in range(200)]
    assert particles.loss(vae.model, vae.guide, x) == pytest.approx(sum(one_by_one) / 200, rel=0.02)
    assert math.isfinite(TraceMeanField_ELBO().loss(vae.model, vae.guide, x[:1]))  # no discrepancy of a single image


# --- Saving ---


@pytest.mark.parametrize(
    "arguments",
    [
        {"posterior": "markov"},
        {"posterior": "low_rank", "posterior_options": {"rank": 2}, "network_options": {"hidden": 7}},
        {"network": "dcgan", "likelihood": "gaussian", "likelihood_options": {"learn_scale": True}},
        {"objective": Objective.info_vae(0.25, 10.0)},
    ],
)
def test_round_trip(arguments, digits, tmp_path):
    torch.manual_seed(0)
    vae = VAE.build((1, 8, 8), latent_dim=4, **arguments)
    vae.decode(torch.randn(9, 4))  # moves the running statistics of batch normalisation
    vae.eval().save_pretrained(tmp_path / "new" / "folder")
    again = VAE.from_pretrained(tmp_path / "new" / "folder")
    assert not again.training
    assert again.config == vae.config
    assert again.objective == vae.objective
    x = digits.test[:3]
    assert torch.equal(again.reconstruct(x), vae.reconstruct(x))
    for seed in (1, 2):
        torch.manual_seed(seed)
        expected = vae.log_likelihood(x, 5)
        torch.manual_seed(seed)
        assert torch.equal(again.log_likelihood(x, 5), expected)


def test_saving_keeps_the_other_entries_of_the_config(tmp_path):
    write_config_file(tmp_path / "config.json", {"run": {"epochs": 3}})
    VAE.build((1, 8, 8)).save_pretrained(tmp_path)
    config = read_json(tmp_path / "config.json")
    assert config["run"] == {"epochs": 3}
    assert config["vae"]["image_shape"] == [1, 8, 8]


def test_saving_needs_named_parts(build, tmp_path):
    vae = build("ar1")
    custom = VAE(vae.encoder, vae.posterior, vae.decoder, 4)
    with pytest.raises(ValueError, match=r"only a VAE made by VAE.build"):
        custom.save_pretrained(tmp_path)
    assert list(tmp_path.iterdir()) == []


def _describe(folder, **parts):
    config = read_json(folder / "config.json")
    write_config_file(folder / "config.json", {"vae": config["vae"] | parts})


def damage(folder, name, content):
    (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda folder: (folder / "config.json").unlink(), r"config.json does not exist"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"model.safetensors does not exist"),
        (lambda folder: damage(folder, "config.json", b'{"vae": {'), r"config.json is damaged"),
        (lambda folder: damage(folder, "config.json", b"\xff\xfe"), r"config.json is damaged"),
        (lambda folder: damage(folder, "config.json", b"[1]"), r"config.json does not describe a VAE"),
        (partial(_describe, image_shape=3), r"does not describe a VAE"),
        (lambda folder: damage(folder, "config.json", b'{"vae": {}}'), r"config.json is of another version"),
        *(
            (partial(_describe, **part), r"config.json does not describe a VAE: .+")
            for part in (
                {"latent_dim": -1},
                {"latent_dim": "4"},
                {"latent_dim": 10**15},
                {"image_shape": [1, 8, "8"]},
                {"network": "../mlp"},
                {"network_options": {"hidden": -1}},
                {"network_options": {"image_shape": 1}},
                {"network_options": 3},
                {"posterior": None},
                {"objective": {"beta": "1"}},
            )
        ),
        (lambda folder: damage(folder, "model.safetensors", b"PK\x03\x04"), r"model.safetensors is damaged"),
        (
            lambda folder: damage(folder, "model.safetensors", (folder / "model.safetensors").read_bytes()[:-100]),
            r"model.safetensors is damaged",
        ),
        (
            lambda folder: (
                VAE.build((1, 4, 4)).save_pretrained(folder / "x")
                or (folder / "x" / "model.safetensors").replace(folder / "model.safetensors")
            ),
            r"model.safetensors does not fit the VAE that .*config.json describes",
        ),
    ],
)
def test_damaged_folder(break_it, said, tmp_path):
    VAE.build((1, 8, 8)).save_pretrained(tmp_path)
    break_it(tmp_path)
    with pytest.raises(FileError, match=said):
        VAE.from_pretrained(tmp_path)


def test_nothing_is_unpickled(tmp_path):
    """A pickle in the weights' place is not run."""

    class Bomb:
        def __reduce__(self):
            return (tmp_path.joinpath("exploded").touch, ())

    VAE.build((1, 8, 8)).save_pretrained(tmp_path)
    damage(tmp_path, "model.safetensors", pickle.dumps(Bomb()))
    with pytest.raises(FileError, match=r"model.safetensors is damaged"):
        VAE.from_pretrained(tmp_path)
    assert not (tmp_path / "exploded").exists()
