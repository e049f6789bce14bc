"""What importing costs, and that the packages say what they are."""

import subprocess
import sys
import tomllib
from importlib import resources
from pathlib import Path

import ar1_dist

ROOT = Path(__file__).parents[1]
OPTIONAL = ["torchvision", "lightning", "sklearn", "matplotlib", "typer", "safetensors", "scipy", "hypothesis"]


def test_core_needs_the_core_dependencies_only():
    """With the optional packages made unimportable, AR1Normal still works."""
    code = f"""
import sys
for name in {OPTIONAL}:
    sys.modules[name] = None
import torch, ar1_dist
q = ar1_dist.AR1Normal(torch.zeros(3), 1.0, 0.5)
assert torch.distributions.kl_divergence(q, q).abs() < 1e-6
q.log_prob(q.rsample())
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_import_loads_nothing_heavy_beyond_torch_and_pyro():
    code = """
import sys, torch, pyro, pyro.distributions
before = set(sys.modules)
import ar1_dist
print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
"""
    run = subprocess.run([sys.executable, "-W", "error::RuntimeWarning", "-c", code], capture_output=True, text=True)
    assert run.stdout.split() == ["ar1_dist"], run.stderr


def test_template_of_the_report_is_in_the_package():
    assert resources.files("vae_models").joinpath("report.html.jinja").is_file()


def test_versions_in_the_readme_are_the_lower_bounds():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    bounds = dict(dependency.split(">=") for dependency in project["dependencies"])
    python = project["requires-python"].removeprefix(">=")
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"with Python {python}, torch {bounds['torch']} and Pyro {bounds['pyro-ppl']} or later" in text


def test_one_version():
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert pyproject["project"]["version"] == ar1_dist.__version__
    assert f"version: {ar1_dist.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"## {ar1_dist.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
