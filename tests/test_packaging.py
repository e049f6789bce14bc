"""What importing costs, and that the packages say what they are."""

import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import resources
from pathlib import Path

import pytest

import ar1_dist

ROOT = Path(__file__).parents[1]
OPTIONAL = ["torchvision", "lightning", "sklearn", "matplotlib", "typer", "safetensors", "scipy", "hypothesis"]


def test_import_needs_and_loads_nothing_beyond_torch_and_pyro():
    """With the optional packages made unimportable AR1Normal works, and not even asks for them or for others."""
    code = f"""
import sys
for name in {OPTIONAL}:
    sys.modules[name] = None
import torch, pyro, pyro.distributions
before, asked = set(sys.modules), set()
sys.addaudithook(lambda event, arguments: event == "import" and asked.add(arguments[0]))
import ar1_dist
print(*sorted({{name.partition(".")[0] for name in asked | set(sys.modules) - before}}))
q = ar1_dist.AR1Normal(torch.zeros(3), 1.0, 0.5)
assert torch.distributions.kl_divergence(q, q).abs() < 1e-6
q.log_prob(q.rsample())
"""
    run = subprocess.run([sys.executable, "-W", "error::RuntimeWarning", "-c", code], capture_output=True, text=True)
    assert (run.returncode, run.stdout.split()) == (0, ["ar1_dist"]), run.stderr


def test_template_of_the_report_is_in_the_package():
    assert resources.files("vae_models.results").joinpath("report.html.jinja").is_file()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The names in a wheel that is built of this tree, and its metadata."""
    builder = pytest.importorskip("hatchling.builders.wheel").WheelBuilder(str(ROOT))
    path = next(builder.build(directory=str(tmp_path_factory.mktemp("dist")), versions=["standard"]))
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        return names, archive.read(metadata).decode()


def test_wheel_has_the_packages_alone(wheel):
    names, metadata = wheel
    info = f"ar1_dist-{ar1_dist.__version__}.dist-info"
    assert {name.partition("/")[0] for name in names} == {"ar1_dist", "vae_models", info}
    assert {
        "ar1_dist/py.typed",
        "vae_models/py.typed",
        "vae_models/results/report.html.jinja",
        "vae_models/data/loading.py",
        "vae_models/study/plan.py",
        f"{info}/licenses/LICENSE",
        f"{info}/entry_points.txt",
    } <= set(names)
    assert {Path(name).suffix for name in names if not name.startswith(info)} == {".py", ".typed", ".jinja"}
    assert not [name for name in names if "test" in Path(name).name]
    assert "License-Expression: MIT" in metadata
    assert "Classifier: Typing :: Typed" in metadata


def test_extras_of_the_pages():
    """What a page's code imports comes with what its top says."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    names = {re.split(r"[>\[]", dependency)[0] for dependency in extras["examples"]}
    assert names == {"statsmodels", "matplotlib"}
    for page in (ROOT / "docs").glob("*.md"):
        text = page.read_text(encoding="utf-8")
        top, code = text.partition("```python")[0], "".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
        imported = set(re.findall(r"^(?:from|import) (\w+)", code, re.MULTILINE))
        if imported & names:
            assert "pip install '.[examples]'" in top, page.name
        if "vae_models" in imported:
            assert "pip install '.[vae]'" in top, page.name


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
