"""What the kernels do on a CUDA device; without one, this says that it is unmeasured.

- The bandwidth of the recurrence and of the chain's passes, as a fraction of a plain copy's. A function's bytes are
  those that it must move, each of its arguments and results once, however often it reads them.
- A guide's step, from leaf parameters to their gradients: a sample, the divergence from a standard normal and the
  backward pass, as a ratio to the same step with independent normals. Eager, as a CUDA graph and compiled.

    python benchmarks/gpu.py [--rounds 20] [--rows 64] [--places 262144] [--batch-size 128] [--latent-dim 64]
"""

import argparse
import statistics
from collections.abc import Callable, Mapping

import torch
from common import print_table, ratio
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal, kl_divergence

from ar1_dist import AR1Normal

REPEATS = 10  # launches between two events, so that the device never waits for Python


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--places", type=int, default=262_144)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--latent-dim", type=int, default=64)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("Unmeasured: there is no CUDA device.")
        return
    torch.manual_seed(0)
    bandwidths(arguments.rows, arguments.places, arguments.rounds)
    print()
    steps(arguments.batch_size, arguments.latent_dim, arguments.rounds)


def bandwidths(n: int, d: int, rounds: int) -> None:
    from ar1_dist.kernels.triton.colouring import chain_backward, chain_forward
    from ar1_dist.kernels.triton.recurrences import recurrence_of_rows

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, device="cuda") - 0.5

    x, out, noise, pairs, alpha = uniform(n, d), uniform(n, d), uniform(n, d), uniform(n, d - 1), uniform(1, 1)
    loc, scale = uniform(n, d), 1 + uniform(1, 1)
    functions: dict[str, tuple[Callable[[], object], int]] = {
        "plain copy": (lambda: out.copy_(x), 2),
        "recurrence, one coefficient": (lambda: recurrence_of_rows(alpha, x), 2),
        "the same, in reverse": (lambda: recurrence_of_rows(alpha, x, reverse=True), 2),
        "recurrence, a coefficient per pair": (lambda: recurrence_of_rows(pairs, x), 3),
        "the same, in reverse ": (lambda: recurrence_of_rows(pairs, x, reverse=True), 3),
        "chain forward": (lambda: chain_forward(loc, scale, alpha, noise, atanh=True), 4),
        "chain backward": (lambda: chain_backward(x, noise, out, scale, alpha, atanh=True), 3),
        "chain forward, a correlation per pair": (lambda: chain_forward(loc, scale, pairs, noise, atanh=True), 5),
        "chain backward, a correlation per pair": (lambda: chain_backward(x, noise, out, scale, pairs, atanh=True), 5),
    }
    seconds = interleaved_on_device({name: function for name, (function, _) in functions.items()}, rounds)
    copy = seconds["plain copy"]
    print_table(
        f"float32, {n:,} × {d:,}, median of {rounds}. {torch.cuda.get_device_name()}",
        ["function", "ms", "GB/s", "of a copy's bandwidth"],
        [
            [
                name,
                f"{1e3 * statistics.median(seconds[name]):.4f}",
                f"{4e-9 * n * d * numbers / statistics.median(seconds[name]):,.0f}",
                f"{numbers / 2 / ratio(seconds[name], copy):.0%}",
            ]
            for name, (_, numbers) in functions.items()
        ],
    )


def steps(n: int, d: int, rounds: int) -> None:
    def leaves(*shapes: tuple[int, ...]) -> list[Tensor]:
        return [torch.randn(shape, device="cuda", requires_grad=True) for shape in shapes]

    def independent(loc: Tensor, log_scale: Tensor) -> Distribution:
        return Independent(Normal(loc, log_scale.exp(), validate_args=False), 1, validate_args=False)

    def chain(loc: Tensor, log_scale: Tensor, atanh_rho: Tensor) -> Distribution:
        return AR1Normal(loc, log_scale.exp(), atanh_rho=atanh_rho, validate_args=False)

    prior = independent(torch.zeros(d, device="cuda"), torch.zeros(d, device="cuda"))
    guides: dict[str, tuple[Callable[..., Distribution], list[Tensor]]] = {
        "Independent(Normal)": (independent, leaves((n, d), (n, d))),
        "AR1Normal, one rho": (chain, leaves((n, d), (n, d), (n, 1))),
        "AR1Normal, a rho per pair": (chain, leaves((n, d), (n, d), (n, d - 1))),
    }
    table = []
    for mode, prepare in {"eager": lambda step: step, "CUDA graph": graphed, "compiled": None}.items():
        functions = {}
        for name, (make, parameters) in guides.items():
            loss = guide_loss(make, prior)
            step = guide_step(torch.compile(loss) if prepare is None else loss, parameters)
            functions[name] = step if prepare is None else prepare(step)
        seconds = interleaved_on_device(functions, rounds)
        reference = seconds["Independent(Normal)"]
        for name, values in seconds.items():
            table.append(
                [f"{mode}: {name}", f"{1e6 * statistics.median(values):.0f}", f"{ratio(values, reference):.2f}"]
            )
    print_table(
        f"A guide's step, {n} × {d}, float32, median of {rounds}. {torch.cuda.get_device_name()}",
        ["step", "µs", "ratio to Independent"],
        table,
    )


def guide_loss(make: Callable[..., Distribution], prior: Distribution) -> Callable[..., Tensor]:
    def loss(*parameters: Tensor) -> Tensor:
        guide = make(*parameters)
        return guide.rsample().square().sum() + kl_divergence(guide, prior).sum()

    return loss


def guide_step(loss: Callable[..., Tensor], parameters: list[Tensor]) -> Callable[[], object]:
    return lambda: torch.autograd.grad(loss(*parameters), parameters)


def graphed(step: Callable[[], object]) -> Callable[[], object]:
    """The step recorded once and replayed, after a few runs on another stream, which torch asks for."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def interleaved_on_device(functions: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of the device's time for every call, each an average over REPEATS, as :func:`common.interleaved`."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(1 + rounds):
        for name, function in functions.items():
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            function()
            start.record()
            for _ in range(REPEATS):
                function()
            end.record()
            torch.cuda.synchronize()
            seconds[name].append(1e-3 * start.elapsed_time(end) / REPEATS)
    return {name: values[1:] for name, values in seconds.items()}


if __name__ == "__main__":
    main()
