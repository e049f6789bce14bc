"""A user's script passes a strict type checker, which sees what the packages return."""

import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = """
import torch
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from ar1_dist import AR1Normal, AR1Transform, AutoAR1Normal, AutoAR1NormalMessenger, assert_analytic_kl, set_kernels

q = AR1Normal(torch.zeros(4, 3), 1.0, 0.5)
reveal_type(q.rsample((5,)))  # Tensor
reveal_type(q.log_prob(q.rsample()))  # Tensor
reveal_type(q.entropy())  # Tensor
reveal_type(q.mean)  # Tensor
reveal_type(q.rho)  # Tensor
reveal_type(q.precision_matrix)  # Tensor
reveal_type(q.total_correlation)  # Tensor
reveal_type(q.transform)  # AR1Transform
reveal_type(q.expand((4,)))  # AR1Normal
reveal_type(q.marginal([0, 2]))  # AR1Normal
reveal_type(q.condition(slice(1), torch.zeros(1)))  # AR1Normal
reveal_type(q.conjugate_update(Independent(Normal(torch.zeros(3), 1.0), 1)))  # tuple[AR1Normal, Tensor]
reveal_type(AR1Normal.from_times(torch.arange(3), torch.zeros(3), 1.0, timescale=2.0))  # AR1Normal
reveal_type(AR1Normal.from_transitions(torch.zeros(3), 1.0, 1.0, initial_scale=5.0))  # AR1Normal
reveal_type(AR1Normal.infer_shapes(loc=(7, 3), scale=(), rho=(1,)))  # tuple[Size, Size]
reveal_type(AR1Transform(torch.zeros(3), 1.0, atanh_rho=0.5).rho)  # Tensor
reveal_type(kl_divergence(q, q))  # Tensor


def model(data: Tensor | None = None) -> None: ...


chain, chains = AutoAR1Normal(model), AutoAR1NormalMessenger(model)
reveal_type(chain.get_posterior())  # AR1Normal
reveal_type(chain.median())  # dict[str, Tensor]
reveal_type(chain.quantiles([0.05, 0.95]))  # dict[str, Tensor]
reveal_type(chains.median())  # dict[str, Tensor]
reveal_type(chains.quantiles([0.05, 0.95]))  # dict[str, Tensor]
reveal_type(set_kernels("torch"))  # str
assert_analytic_kl(model, chains)
"""
VAE = """
from vae_models import VAE, Config, Objective, evaluate, fit, load

reveal_type(Config(objective=Objective.beta_vae(4.0)).latent_dim)  # int
images = load("digits")
reveal_type(images.test)  # Tensor
vae = VAE.build((1, 8, 8), latent_dim=4, posterior="ar1")
reveal_type(vae)  # VAE
reveal_type(vae.encode(images.test))  # TorchDistributionMixin
reveal_type(vae.sample(3))  # Tensor
reveal_type(vae.reconstruct(images.test))  # Tensor
reveal_type(fit(vae, images, Config()))  # History
reveal_type(evaluate(vae, images.test))  # dict[str, float | int | None]
"""
# No type of these is in the interface: of one that was, Any would be revealed. Reading them takes most of the time.
UNREAD = """
[mypy]
[mypy-torch._dynamo.*,torch._inductor.*,torch.distributed.*,torch.export.*,torch.fx.*,torch.onnx.*,sympy.*,lightning.*]
follow_imports = skip
"""


def test_scripts_of_users(tmp_path, monkeypatch):
    api = pytest.importorskip("mypy.api")
    scripts = {"core.py": CORE, "vae.py": VAE}
    for name, script in scripts.items():
        (tmp_path / name).write_text(script)
    (tmp_path / "mypy.ini").write_text(UNREAD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MYPYPATH", str(ROOT))
    # Of the packages only the interface counts, as of those that are installed.
    options = ["--strict", "--follow-imports", "silent", "--cache-dir", os.devnull]
    printed, errors, status = api.run([*options, *scripts])
    assert (status, errors) == (0, ""), printed
    for name, script in scripts.items():
        pattern = rf'^{re.escape(name)}:\d+: note: Revealed type is "(.*)"$'
        revealed = [re.sub(r"\w+\.", "", kind) for kind in re.findall(pattern, printed, re.MULTILINE)]
        assert revealed == re.findall(r"^reveal_type\(.*\)  # (.*)$", script, re.MULTILINE)
