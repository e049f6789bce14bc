"""The kernels' checks, triton_checks.py, in a process of their own: Triton reads TRITON_INTERPRET when it is imported,
so that it can't be both interpreted here and compiled for another test of the same process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

CHECKS = Path(__file__).with_name("triton_checks.py")


def run_checks(**environment: str) -> None:
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "--tb=short", "-p", "no:cacheprovider", str(CHECKS)]
    run = subprocess.run(
        command, env=inherited | environment, cwd=CHECKS.parents[3], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert run.returncode == 0, run.stdout.decode()


def test_in_the_interpreter():
    run_checks(TRITON_INTERPRET="1")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_device():
    run_checks()


@pytest.mark.parametrize("dtype", ["fp32", "fp64"])
@pytest.mark.parametrize("name", ["_recurrence_kernel", "_forward_kernel", "_backward_kernel"])
def test_compiles_without_a_device(name, dtype, tmp_path, monkeypatch):
    """The interpreter knows no types and no layouts; the compiler, which needs no device, does."""
    triton = pytest.importorskip("triton")
    if "nvidia" not in triton.backends.backends or os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("needs Triton's compiler for CUDA")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from ar1_dist.kernels.triton import colouring, recurrences

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = getattr(recurrences if name == "_recurrence_kernel" else colouring, name)
    choices = [(True, True, True), (False, False, False), (False, True, True)]
    for first_pass, shared, flag in choices if dtype == "fp32" else choices[:1]:
        sizes = {"ROWS": 1, "BLOCK": 1024, "CHUNKS": 128}
        constants = {"COMPOSE": first_pass, "CHUNKED": not flag or first_pass, **sizes}
        flags = [argument for argument in kernel.arg_names if argument.isupper() and argument not in constants]
        constants |= {argument: shared if argument.startswith("SHARED") else flag for argument in flags}
        signature = {
            argument: "constexpr"
            if argument in constants
            else f"*{dtype}"
            if argument == "maps" or argument.endswith("_ptr")
            else "i32"
            for argument in kernel.arg_names
        }
        compiled = triton.compile(ASTSource(kernel, signature, constants), target=GPUTarget("cuda", 80, 32))
        assert compiled.metadata.shared < 48 * 1024
