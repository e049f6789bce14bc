import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from ar1_dist import recurrence
from ar1_dist.recurrence import autoregression, linear_recurrence, moebius_recurrence

pytestmark = pytest.mark.usefixtures("each_path")

SIZES = [1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 33, 64, 65, 66, 67, 128, 131]


def loop(a: torch.Tensor, x: torch.Tensor, reverse: bool) -> torch.Tensor:
    """The definition, one step after another."""
    a = a.expand(a.shape[:-1] + (x.shape[-1] - 1,))
    if reverse:
        return loop(a.flip(-1), x.flip(-1), False).flip(-1)
    steps = [x[..., 0].expand(torch.broadcast_shapes(a.shape[:-1], x.shape[:-1]))]
    for t in range(1, x.shape[-1]):
        steps.append(a[..., t - 1] * steps[-1] + x[..., t])
    return torch.stack(steps, -1)


def inputs(d: int, shared: bool, requires_grad: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    a = 2 * torch.rand(3, 1 if shared else d - 1, dtype=torch.float64) - 1
    x = torch.randn(2, 1, d, dtype=torch.float64)
    return a.requires_grad_(requires_grad), x.requires_grad_(requires_grad)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("d", SIZES)
def test_follows_its_definition(d, shared, reverse):
    a, x = inputs(d, shared)
    torch.testing.assert_close(linear_recurrence(a, x, reverse=reverse), loop(a, x, reverse), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("d", SIZES[1:])
def test_reverse_is_the_transpose(d):
    a, x = inputs(d, False)
    y = torch.randn_like(x)
    forward = (linear_recurrence(a, x) * y).sum(-1)
    torch.testing.assert_close(forward, (x * linear_recurrence(a, y, reverse=True)).sum(-1))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("d", [2, 7])
def test_derivatives(d, shared, reverse):
    def solve(a, x):
        return linear_recurrence(a, x, reverse=reverse)

    a, x = inputs(d, shared, requires_grad=True)
    assert gradcheck(solve, (a, x), check_forward_ad=True)
    assert gradgradcheck(solve, (a, x), check_fwd_over_rev=True)


@pytest.mark.parametrize("reverse", [False, True])
def test_saves_the_coefficient_and_the_result_only(reverse, plain_path):
    a, x = inputs(1024, False, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        y = linear_recurrence(a, x, reverse=reverse)
    assert {tensor.data_ptr() for tensor in saved} == {a.data_ptr(), y.data_ptr()}


def test_depth_grows_as_the_logarithm(plain_path):
    def operations(d: int) -> int:
        with torch.profiler.profile() as profile:
            linear_recurrence(torch.full((1,), 0.5), torch.ones(d))
        return sum(event.count for event in profile.key_averages() if event.key == "aten::mul")

    counts = [operations(2**k) for k in (8, 12, 16)]
    assert counts[2] - counts[1] == counts[1] - counts[0] > 0


@pytest.mark.parametrize("layout", ["expanded", "strided", "empty batch"])
def test_any_layout(layout):
    a, x = inputs(9, False)
    if layout == "expanded":
        a, x = a[:1].expand(5, 8), x[0, 0, :1].expand(5, 9)
    elif layout == "strided":
        a, x = a.mT.contiguous().mT, x.flip(-1)[..., ::2].repeat(1, 1, 2)[..., :9]
    else:
        a, x = a[:0], x[:0]
    torch.testing.assert_close(linear_recurrence(a, x), loop(a, x, False))


def test_stays_stable_over_a_long_chain():
    a = torch.full((1,), 0.999)
    x = torch.randn(100_000)
    exact = linear_recurrence(a.double(), x.double())
    error = (linear_recurrence(a, x) - exact).abs().max() / exact.abs().max()
    assert error < 1e-4


# --- The standardised chain ---


def chain_inputs(d: int, shared: bool, requires_grad: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    atanh_rho = torch.randn(3, 1 if shared else d - 1, dtype=torch.float64)
    noise = torch.randn(2, 1, d, dtype=torch.float64)
    return atanh_rho.requires_grad_(requires_grad), noise.requires_grad_(requires_grad)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("d", SIZES)
def test_autoregression_follows_its_definition(d, shared):
    atanh_rho, noise = chain_inputs(d, shared)
    scale = (1 - atanh_rho.tanh() ** 2).sqrt()
    forcing = torch.cat([noise[..., :1].expand(2, 3, 1), scale * noise[..., 1:]], -1)
    got = autoregression(atanh_rho, noise)
    torch.testing.assert_close(got, loop(atanh_rho.tanh(), forcing, False), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("d", [2, 7])
def test_derivatives_of_autoregression(d, shared):
    inputs = chain_inputs(d, shared, requires_grad=True)
    assert gradcheck(autoregression, inputs, check_forward_ad=True)
    assert gradgradcheck(autoregression, inputs, check_fwd_over_rev=True)
    plain = torch.func.jacrev(autoregression, (0, 1))(*inputs)  # torch.func differentiates the plain operations
    for got, expected in zip(torch.autograd.functional.jacobian(autoregression, inputs), plain, strict=True):
        torch.testing.assert_close(got, expected)


def test_autoregression_saves_its_arguments_and_result_only():
    atanh_rho, noise = chain_inputs(1024, False, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        u = autoregression(atanh_rho, noise)
    assert {tensor.data_ptr() for tensor in saved} == {atanh_rho.data_ptr(), noise.data_ptr(), u.data_ptr()}


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("d", SIZES)
def test_reduction_alone(d, shared, reverse, monkeypatch, plain_path):
    monkeypatch.setattr(recurrence, "_SHORT", 1)
    a, x = inputs(d, shared)
    torch.testing.assert_close(linear_recurrence(a, x, reverse=reverse), loop(a, x, reverse), rtol=1e-13, atol=1e-13)


# --- The Möbius recurrence ---


def moebius_loop(a: torch.Tensor, c: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The definition, one step after another."""
    batch_shape = torch.broadcast_shapes(a.shape[:-1], c.shape[:-1], x.shape[:-1])
    a, c = (value.expand(batch_shape + (x.shape[-1] - 1,)) for value in (a, c))
    x = x.expand(batch_shape + x.shape[-1:])
    steps = [x[..., 0]]
    for t in range(1, x.shape[-1]):
        steps.append(x[..., t] + a[..., t - 1] * steps[-1] / (1 + c[..., t - 1] * steps[-1]))
    return torch.stack(steps, -1)


def moebius_inputs(d: int, shared: bool, requires_grad: bool = False) -> tuple[torch.Tensor, ...]:
    n = 1 if shared else d - 1
    shapes = [(3, n), (n,), (2, 1, d)]
    return tuple(torch.rand(shape, dtype=torch.float64).requires_grad_(requires_grad) for shape in shapes)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("d", SIZES)
def test_moebius_follows_its_definition(d, shared):
    inputs = moebius_inputs(d, shared)
    torch.testing.assert_close(moebius_recurrence(*inputs), moebius_loop(*inputs), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("d", [2, 7])
def test_derivatives_of_moebius(d, shared):
    inputs = moebius_inputs(d, shared, requires_grad=True)
    assert gradcheck(moebius_recurrence, inputs, check_forward_ad=True)
    assert gradgradcheck(moebius_recurrence, inputs, check_fwd_over_rev=True)
    plain = torch.func.jacrev(moebius_recurrence, (0, 1, 2))(*inputs)
    for got, expected in zip(torch.autograd.functional.jacobian(moebius_recurrence, inputs), plain, strict=True):
        torch.testing.assert_close(got, expected)


def test_moebius_saves_its_arguments_and_result_only(plain_path):
    a, c, x = moebius_inputs(1024, False, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        y = moebius_recurrence(a, c, x)
    assert {tensor.data_ptr() for tensor in saved} == {a.data_ptr(), c.data_ptr(), y.data_ptr()}


def test_moebius_of_an_empty_batch():
    a, c, x = moebius_inputs(9, False)
    assert moebius_recurrence(a[:0], c, x[:1]).shape == (1, 0, 9)


@pytest.mark.parametrize("step", [1e-6, 1e-3, 1.0, 1e6])
@pytest.mark.parametrize("information", [1e-8, 1e-3, 1.0, 1e8])
def test_moebius_stays_precise_over_a_long_chain(information, step):
    """Every place to a relative precision, whatever the size of the numbers: nothing is subtracted."""
    c = step * torch.rand(99_999)
    x = information * torch.rand(100_000)
    x[torch.rand(100_000) < 0.5] = 0.0
    for a in (1 - 0.01 * torch.rand(99_999), 2 * torch.rand(99_999)):
        exact = moebius_recurrence(a.double(), c.double(), x.double())
        torch.testing.assert_close(moebius_recurrence(a, c, x).double(), exact, rtol=1e-5, atol=1e-30)


def test_depth_of_moebius_grows_as_the_logarithm(plain_path):
    def operations(d: int) -> int:
        with torch.profiler.profile() as profile:
            moebius_recurrence(torch.full((1,), 0.5), torch.ones(1), torch.ones(d))
        return sum(event.count for event in profile.key_averages() if event.key == "aten::mul")

    counts = [operations(2**k) for k in (8, 12, 16)]
    assert counts[2] - counts[1] == counts[1] - counts[0] > 0
