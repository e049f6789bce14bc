"""What ``vae_models`` exports, and what importing costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import vae_models

ROOMS = ["settings", "model", "data", "training", "results", "study", "cli"]  # each imports those before it, no other


@pytest.mark.parametrize("name", vae_models.__all__)
def test_exports(name):
    assert name in dir(vae_models)
    assert getattr(vae_models, name) is not None


def test_unknown_name():
    with pytest.raises(AttributeError, match="module 'vae_models' has no attribute 'nope'"):
        vae_models.nope  # noqa: B018


def test_nothing_is_imported_before_it_is_asked_for():
    code = "import vae_models, sys; print(len({'torch', 'lightning', 'typer'} & set(sys.modules)), end=' ');"
    code += (
        "vae_models.Config; print('torch' in sys.modules, end=' '); vae_models.load; print('lightning' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "0 False False\n"


def test_type_checkers_see_what_is_exported():
    tree = ast.parse(Path(vae_models.__file__).read_text("utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: each.module for each in block.body for alias in each.names}
    assert seen == {name: f"vae_models.{module}" for name, module in vae_models._MODULES.items()}
    assert sorted(seen) == sorted(vae_models.__all__)


def test_imports_point_one_way():
    package = Path(vae_models.__file__).parent
    for path in package.rglob("*.py"):
        room = path.relative_to(package).parts[0]
        if room not in ROOMS:
            continue
        tree = ast.parse(path.read_text("utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vae_models."):
                other = node.module.split(".")[1]
                assert other not in ROOMS or ROOMS.index(other) <= ROOMS.index(room), f"{path}: {node.module}"
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        inside = [each.module for node in functions for each in ast.walk(node) if isinstance(each, ast.ImportFrom)]
        assert room == "cli" or not [each for each in inside if each.startswith("vae_models")], path
