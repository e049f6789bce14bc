"""Kernels against the formulas in plain torch that they stand for."""

import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.distributions import Independent, Normal, kl_divergence

import ar1_dist
from ar1_dist import functional, recurrence
from ar1_dist.kernels import KernelError, set_kernels
from ar1_dist.kernels.numba import determinant
from tests.ar1_dist import reference
from tests.ar1_dist.cases import CASES, SMALL_CASES, TOLERANCE, Case, assert_close, over

SHAPES = [(1,), (4,), (2, 3), (0,), (3, 0, 2)]
LONG = [Case(100_000, shared_scale=shared, shared_rho=shared) for shared in (False, True)]
# Around the places at which kernels change the loop, and where their parts meet.
PARTS = [
    Case(d, (2,), shared_scale=scale, shared_rho=rho)
    for d in (7, 8, 9, 257, 258, 600)
    for scale in (False, True)
    for rho in (False, True)
]


@pytest.fixture(autouse=True)
def _as_before():
    yield
    set_kernels("auto")


def arguments_of(case: Case, name: str, atanh: bool, dtype=torch.float64) -> tuple[list[torch.Tensor], dict]:
    """Tensors and options for an operation, of one chain."""
    p = case.parameters(torch.float64)
    correlation = p["rho"].atanh() if atanh else p["rho"]
    chain = [p["loc"], p["scale"], correlation]
    other = torch.randn(case.batch_shape + (case.d,), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    tensors, options = {
        "linear_recurrence": ([p["rho"], other], {"reverse": atanh}),
        "moebius_recurrence": ([p["rho"].square(), p["rho"].abs(), other.square()], {}),
        "colour": ([*chain, other], {"atanh": atanh}),
        "log_prob": ([other, *chain], {"atanh": atanh}),
        "log_prob_of_draw": ([functional.colour(*chain, other, atanh=atanh), *chain, other], {"atanh": atanh}),
        "log_det": (chain[1:], {"atanh": atanh, "d": case.d}),
        "kl_to_normal": ([*chain, other, other.exp()], {"atanh": atanh}),
    }[name]
    return [x.to(dtype).requires_grad_() for x in tensors], options


OPERATIONS = {
    "linear_recurrence": recurrence.linear_recurrence,
    "moebius_recurrence": recurrence.moebius_recurrence,
    "colour": functional.colour,
    "log_prob": functional.log_prob,
    "log_prob_of_draw": functional.log_prob_of_draw,
    "log_det": functional.log_det,
    "kl_to_normal": functional.kl_to_normal,
}
each_operation = pytest.mark.parametrize("name", OPERATIONS)
each_parametrisation = pytest.mark.parametrize("atanh", [False, True])


def value_and_gradients(choice: str, name: str, tensors: list[torch.Tensor], options: dict) -> list[torch.Tensor]:
    set_kernels(choice)
    value = OPERATIONS[name](*tensors, **options)
    weights = torch.randn(value.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).to(value.dtype)
    return [value, *torch.autograd.grad(value, tensors, weights, materialize_grads=True)]


def assert_same(got: list[torch.Tensor], expected: list[torch.Tensor], tolerance: float) -> None:
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype
        scale = max(1.0, b.abs().max().item() if b.numel() else 0.0)
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * scale)


@each_operation
@each_parametrisation
@over(CASES + PARTS + LONG)
def test_both_paths_agree(case, atanh, name):
    tensors, options = arguments_of(case, name, atanh)
    plain = value_and_gradients("torch", name, tensors, options)
    assert_same(value_and_gradients("numba", name, tensors, options), plain, TOLERANCE[torch.float64])


@pytest.mark.parametrize("choice", ["numba", "torch"])
@over(CASES)
def test_every_path_against_dense_algebra(case, choice):
    set_kernels(choice)
    q, arrays = case.build(), case.arrays()
    value = np.random.default_rng(1).normal(size=(*case.batch_shape, case.d))
    assert_close(q.log_prob(torch.tensor(value)), reference.log_prob(arrays, value))
    assert_close(q.entropy(), reference.entropy(arrays))
    p = {"loc": value, "scale": np.exp(value), "rho": np.zeros(1)}
    other = Independent(Normal(torch.tensor(value), torch.tensor(p["scale"])), 1)
    assert_close(kl_divergence(q, other), reference.kl(arrays, p))
    factor = np.linalg.cholesky(reference.covariance(arrays))
    assert_close(q.transform(torch.tensor(value)), arrays["loc"] + (factor @ value[..., None])[..., 0])


@each_operation
@each_parametrisation
@over(CASES)
def test_float32_is_float64_rounded(case, atanh, name):
    tensors, options = arguments_of(case, name, atanh, torch.float32)
    wide = [x.detach().double().requires_grad_() for x in tensors]
    exact = [x.float() for x in value_and_gradients("torch", name, wide, options)]
    got = value_and_gradients("numba", name, tensors, options)
    assert all(x.dtype == torch.float32 for x in got)
    assert_same(got, exact, TOLERANCE[torch.float32])


@each_operation
@pytest.mark.parametrize("batch_shape", SHAPES, ids=str)
def test_any_batch(batch_shape, name):
    tensors, options = arguments_of(Case(6, batch_shape), name, False)
    plain = value_and_gradients("torch", name, tensors, options)
    assert_same(value_and_gradients("numba", name, tensors, options), plain, TOLERANCE[torch.float64])


@each_operation
@pytest.mark.parametrize("layout", ["transposed", "reversed", "expanded", "own batch"])
def test_any_layout(layout, name):
    tensors, options = arguments_of(Case(6, (4, 3)), name, False)
    change = {
        "transposed": lambda i, x: x.transpose(0, 1).contiguous().transpose(0, 1),
        "reversed": lambda i, x: x.flip(0)[::2].repeat(2, 1, 1),
        "expanded": lambda i, x: x[:1, :, :1].expand_as(x),
        "own batch": lambda i, x: x[(slice(None), slice(0, 1)) if i % 2 else 0],
    }[layout]
    tensors = [change(i, x.detach()).requires_grad_() for i, x in enumerate(tensors)]
    plain = value_and_gradients("torch", name, tensors, options)
    got = value_and_gradients("numba", name, tensors, options)
    assert [x.shape for x in got] == [x.shape for x in plain]
    assert_same(got, plain, TOLERANCE[torch.float64])


def _sum_of_everything(value):
    return value.sum()


def _weighted_sum_of_means(value):
    """Of which the gradient is expanded along the last dimension alone."""
    means = value.mean(-1) if value.dim() > 0 else value
    return (means * torch.linspace(1, 2, means.numel(), dtype=value.dtype).view(means.shape)).sum()


@each_operation
@pytest.mark.parametrize("reduce", [_sum_of_everything, _weighted_sum_of_means])
@over([Case(1), Case(1, (3,)), Case(7, (1,)), Case(9, (2, 3)), Case(300, (4,)), Case(300, (4,), True, True)])
def test_gradient_that_is_expanded(case, reduce, name):
    tensors, options = arguments_of(case, name, False)
    gradients = {}
    for choice in ("torch", "numba"):
        set_kernels(choice)
        total = reduce(OPERATIONS[name](*tensors, **options))
        gradients[choice] = torch.autograd.grad(total, tensors, materialize_grads=True)
    assert_same(list(gradients["numba"]), list(gradients["torch"]), TOLERANCE[torch.float64])


# The derivatives of a draw's density are not those of its number, which is the noise's: see test_draws.py.
@pytest.mark.parametrize("name", [name for name in OPERATIONS if name != "log_prob_of_draw"])
@each_parametrisation
@over(SMALL_CASES)
def test_derivatives(case, atanh, name):
    set_kernels("numba")
    tensors, options = arguments_of(case, name, atanh)

    def function(*x):
        return OPERATIONS[name](*x, **options)

    assert gradcheck(function, tensors, check_batched_grad=True)
    assert gradgradcheck(function, tensors)


def test_second_derivative_where_one_argument_is_a_function_of_another():
    x = torch.tensor([0.3, 0.7, -0.2], dtype=torch.float64, requires_grad=True)

    def function(choice):
        set_kernels(choice)
        (first,) = torch.autograd.grad(
            functional.log_prob(x, x.sin(), x.exp(), x[:2].tanh(), atanh=False), x, create_graph=True
        )
        return first, *torch.autograd.grad(first.square().sum(), x)

    assert_same(list(function("numba")), list(function("torch")), 1e-12)


@each_operation
def test_only_the_gradients_that_are_needed(name):
    tensors, options = arguments_of(Case(6, (2,)), name, True)
    set_kernels("numba")
    every = torch.autograd.grad(OPERATIONS[name](*tensors, **options).sum(), tensors)
    for i, expected in enumerate(every):
        some = [x.detach().requires_grad_(j == i) for j, x in enumerate(tensors)]
        (got,) = torch.autograd.grad(OPERATIONS[name](*some, **options).sum(), some[i])
        assert torch.equal(got, expected)


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e160, 1e300])
def test_products_of_extreme_scales_neither_overflow_nor_vanish(scale):
    scales = torch.full((50,), scale, dtype=torch.float64)
    set_kernels("numba")
    got = functional.log_det(scales, torch.zeros(1, dtype=torch.float64), d=50, atanh=True)
    torch.testing.assert_close(got, scales.log().sum(), rtol=1e-14, atol=0)


@pytest.mark.parametrize("pairs", [1, 299])
@pytest.mark.parametrize("alpha", [300.0, -354.0, 400.0, -1e4])
@pytest.mark.parametrize("choice", ["numba", "torch"])
def test_logarithms_where_one_less_rho_squared_vanishes(choice, alpha, pairs):
    """Of sech: log 2 - |alpha|, to every digit, and at the mean the density has no other term."""
    set_kernels(choice)
    correlation = torch.full((pairs,), alpha, dtype=torch.float64, requires_grad=True)
    one, zeros = torch.ones(1, dtype=torch.float64), torch.zeros(300, dtype=torch.float64)
    expected = 299 * (torch.tensor(2.0, dtype=torch.float64).log() - abs(alpha))
    got = functional.log_det(one, correlation, d=300, atanh=True)
    torch.testing.assert_close(got, expected, rtol=1e-14, atol=0)
    (slope,) = torch.autograd.grad(got, correlation)
    torch.testing.assert_close(slope, torch.full_like(slope, -299 / pairs if alpha > 0 else 299 / pairs))
    if choice == "torch" and abs(alpha) > 700:
        return  # the hyperbolic cosine of the innovations overflows
    density = functional.log_prob(zeros, zeros, one, correlation, atanh=True)
    normal = torch.distributions.Normal(zeros, one).log_prob(zeros).sum()
    torch.testing.assert_close(density, normal - expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("d", [3, 20])
def test_logarithms_of_what_has_none(d):
    """Not even of two negative ones, whose product has one."""
    set_kernels("numba")
    for wrong, expected in [([0.0], -torch.inf), ([torch.nan], torch.nan), ([-1.0, -2.0], torch.nan)]:
        numbers = torch.ones(d)
        numbers[-len(wrong) :] = torch.tensor(wrong)
        got = functional.log_det(numbers, torch.zeros(1), d=d, atanh=True)
        torch.testing.assert_close(got, torch.tensor(expected), equal_nan=True)
    rho = torch.zeros(d - 1)
    rho[-2:] = 1.5
    assert functional.log_det(torch.ones(1), rho, d=d, atanh=False).isnan()
    assert functional.log_prob(torch.ones(d), torch.zeros(d), torch.ones(1), rho, atanh=False).isnan()


@pytest.mark.parametrize("p_scale", [1.0, 3.0, 1e-30, 1e30])
@pytest.mark.parametrize("shared", [False, True])
def test_divergence_from_equal_scales(shared, p_scale):
    tensors, options = arguments_of(Case(600, (2,), shared_scale=shared), "kl_to_normal", False)
    tensors[-1] = torch.full_like(tensors[-1], p_scale).requires_grad_()
    plain = value_and_gradients("torch", "kl_to_normal", tensors, options)
    assert_same(value_and_gradients("numba", "kl_to_normal", tensors, options), plain, TOLERANCE[torch.float64])


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("scales", [[49.0], [49.0, 49.0, 7.0]], ids=str)
def test_divergence_from_itself_is_exactly_zero(scales, shared):
    d = 3
    p_scale = torch.tensor(scales, dtype=torch.float64).expand(d).clone().requires_grad_()
    scale = (p_scale[:1] if shared and len(scales) == 1 else p_scale).detach().clone().requires_grad_()
    zero = torch.zeros(d, dtype=torch.float64, requires_grad=True)
    set_kernels("numba")
    value = functional.kl_to_normal(zero, scale, zero[:1].detach(), zero.detach(), p_scale, atanh=True)
    for x in (value, *torch.autograd.grad(value, (zero, scale, p_scale))):
        assert torch.equal(x, torch.zeros_like(x))


@each_operation
def test_tensors_that_do_not_fit(name):
    set_kernels("numba")
    tensors, options = arguments_of(Case(6, (2,)), name, False)
    for i, x in enumerate(tensors):
        with pytest.raises(ValueError, match="last dimension"):
            OPERATIONS[name](*tensors[:i], x[..., :-2], *tensors[i + 1 :], **options)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_other_types_take_the_formula(dtype):
    tensors, options = arguments_of(Case(5, (2,)), "colour", False, dtype)
    assert_same(
        value_and_gradients("numba", "colour", tensors, options),
        value_and_gradients("torch", "colour", tensors, options),
        0.0,
    )


def test_zeros_without_memory():
    set_kernels("numba")
    scale = torch.ones(1, requires_grad=True)
    z = functional.colour(torch.zeros(5), scale, torch.zeros(1), torch.ones(5), atanh=True)
    (gradient,) = torch.autograd.grad(z, scale, torch._efficientzerotensor((5,)))
    assert torch.equal(gradient, torch.zeros(1))


def test_subclasses_see_operations():
    class Noted(torch.Tensor):
        names: list[str] = []

        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            cls.names.append(func.__name__)
            return super().__torch_function__(func, types, args, kwargs or {})

    set_kernels("numba")
    functional.log_det(torch.ones(3).as_subclass(Noted), torch.zeros(1), d=3, atanh=True)
    assert "log" in Noted.names


# --- Which path ---


def test_choice_is_one_of_the_known():
    with pytest.raises(ValueError, match="'auto', 'torch', 'numba' or 'triton'.*got 'fortran'"):
        set_kernels("fortran")


def broken(*arguments):
    raise OSError("no space left on device")


@pytest.mark.parametrize("kernel", ["_log_det_kernel", "_log_det_backward_kernel"])
def test_a_failing_compiler_means_plain_torch(kernel, monkeypatch):
    tensors, options = arguments_of(Case(5, (2,)), "log_det", False)
    expected = value_and_gradients("torch", "log_det", tensors, options)
    monkeypatch.setattr(determinant, kernel, broken)
    broken.__name__ = kernel
    with pytest.warns(RuntimeWarning, match="more slowly: .*no space left"):
        assert_same(value_and_gradients("auto", "log_det", tensors, options), expected, 1e-15)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        functional.log_det(*tensors, **options)  # and says so once
    with pytest.raises(KernelError, match="no space left"):
        value_and_gradients("numba", "log_det", tensors, options)


def test_a_compiler_that_was_disturbed_tries_again(monkeypatch):
    set_kernels("numba")
    expected = functional.log_det(torch.ones(3), torch.zeros(1), d=3, atanh=True)
    kernel, calls = determinant._log_det_kernel, []

    def disturbed(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            raise OSError("stale file handle")
        kernel(*arguments)

    monkeypatch.setattr(determinant, "_log_det_kernel", disturbed)
    assert torch.equal(functional.log_det(torch.ones(3), torch.zeros(1), d=3, atanh=True), expected)
    assert len(calls) == 2


SCRIPT = """
import sys
{setup}
import torch
import ar1_dist
assert "ar1_dist.kernels.numba" not in sys.modules
torch.manual_seed(0)
print(ar1_dist.AR1Normal(torch.zeros(3), 1.0, 0.5).rsample().tolist(), "ar1_dist.kernels.numba" in sys.modules)
"""


def in_a_fresh_process(setup: str = "", **environment: str) -> tuple[str, str]:
    command = [sys.executable, "-c", SCRIPT.format(setup=setup)]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, check=True)
    return result.stdout, result.stderr


@pytest.fixture(scope="module")
def usual():
    """What is drawn in a process where nothing is in the way."""
    output, errors = in_a_fresh_process("sys.modules.pop('numba', None)")
    assert errors == ""
    return output


def test_kernels_are_loaded_when_first_needed(usual):
    assert usual.endswith("True\n")


@pytest.mark.parametrize(
    ("setup", "environment"),
    [("sys.modules['numba'] = None", {}), ("", {"NUMBA_DISABLE_JIT": "1"})],
    ids=["not installed", "switched off"],
)
def test_without_a_compiler(setup, environment, usual):
    output, errors = in_a_fresh_process(setup, **environment)
    assert output == usual.replace("True", "False")
    assert "more slowly: numba can't be loaded" in errors


DRAW = """
import threading
import torch
from ar1_dist import AR1Normal, set_kernels
set_kernels("numba")
draw = lambda: AR1Normal(torch.zeros(3), 1.0, 0.5).sample()
{rest}
"""
FORK = """
import os, signal
from numba.core import event
compiling = threading.Event()
class Listener(event.Listener):
    on_start = lambda self, _: compiling.set()
    on_end = lambda self, _: None
event.register("numba:compile", Listener())
thread = threading.Thread(target=draw)
thread.start()
compiling.wait()
child = os.fork()
if child == 0:
    signal.alarm(60)
    draw()
    os._exit(0)
thread.join()
print(os.waitpid(child, 0)[1])
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_compiler_at_work_and_a_cache_that_is_damaged(tmp_path):
    """A child that is forked while another thread compiles can compile too; and what is kept on disk is not needed."""

    def run(rest):
        command = [sys.executable, "-c", DRAW.format(rest=rest)]
        environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=True, timeout=300)

    assert run(FORK).stdout == "0\n"
    kept = list(tmp_path.rglob("*.nbi"))
    assert kept
    for path in kept:
        path.write_bytes(b"")
    told = run("draw(), AR1Normal(torch.zeros(3), 1.0, 0.5).entropy()").stderr
    assert told.count("RuntimeWarning") == 1
    assert str(kept[0].parent) in told


NOWHERE = """
import numba.core.caching
def no_locator(self, function):
    raise RuntimeError("cannot cache function: no locator available")
numba.core.caching.FunctionCache.__init__ = no_locator
"""


@pytest.mark.slow
def test_where_compiled_code_can_not_be_kept(usual):
    assert in_a_fresh_process(NOWHERE) == (usual, "")


LOG_DET = """
import torch
from ar1_dist import functional
print(functional.log_det(torch.ones(3), torch.zeros(1), d=3, atanh=True))
"""


@pytest.mark.slow
def test_a_helper_that_was_changed_is_compiled_anew(tmp_path):
    """Also in the kernels of other files, which are on disk with the helper in them."""
    shutil.copytree(Path(ar1_dist.__file__).parent, tmp_path / "ar1_dist", ignore=shutil.ignore_patterns("__pycache__"))

    def log_det():
        environment = os.environ | {"PYTHONPATH": str(tmp_path), "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
        command = [sys.executable, "-c", LOG_DET]
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=True).stdout

    assert log_det() == "tensor(0.)\n"
    helpers = tmp_path / "ar1_dist" / "kernels" / "numba" / "arithmetic.py"
    text = helpers.read_text("utf-8")
    changed = text.replace("return log + np.log(product)", "return log + np.log(product) + 1.0")
    assert changed != text
    helpers.write_text(changed, "utf-8")
    assert log_det() == "tensor(1.)\n"


def _sample(queue) -> None:
    queue.put(functional.log_det(torch.ones(3), torch.zeros(1), d=3, atanh=True).item())


def test_after_a_fork():
    set_kernels("numba")
    functional.log_det(torch.ones(3), torch.zeros(1), d=3, atanh=True)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_sample, args=(queue,))
    child.start()
    assert queue.get(timeout=60) == 0.0
    child.join()


def test_two_threads_at_once():
    set_kernels("numba")
    noise = torch.randn(2, 20_000)
    chain = torch.zeros(20_000), torch.ones(1), torch.full((1,), 0.9)
    expected = [functional.colour(*chain, x, atanh=False) for x in noise]
    wrong = []

    def work(i: int) -> None:
        for _ in range(50):
            if not torch.equal(functional.colour(*chain, noise[i], atanh=False), expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
