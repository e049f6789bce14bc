"""What a step of training costs with each guide of a latent series of T values, and what it holds.

The model is a random walk of T steps that is seen with normal noise. Each step is one of SVI with Trace_ELBO, one
particle and Adam, on one thread, and the guides of one length take turns. GaussianHMM is no guide: its step is the
gradient of the exact log likelihood in the two noise scales, which it has by a parallel scan, for a model that is
linear and Gaussian. A guide stops at the length at which a step takes longer than the limit, or whose parameters,
gradients and moments take more than the memory.

    python benchmarks/guide_cost.py [--lengths 100 1000 10000 100000] [--rounds 15] [--limit 20] [--memory-gb 8]
"""

import argparse
import statistics
import time
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from common import interleaved, print_table, ratio
from fitting import Program, guides_of, parameter_count
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import PyroOptim

from ar1_dist import AR1Normal

REFERENCE = "AutoDiagonalNormal"
HMM = "GaussianHMM, exact"


def model_of(length: int) -> Program:
    prior = AR1Normal.from_transitions(torch.zeros(length), coefficient=1.0, noise_scale=1.0, initial_scale=1.0)
    data = prior.sample() + torch.randn(length)

    def model() -> None:
        z = pyro.sample("z", prior)
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=data)

    return model


def guide_step(guide, model: Program) -> Callable[[], object]:
    return SVI(model, guide, PyroOptim(torch.optim.Adam, {"lr": 1e-3}), Trace_ELBO()).step


def hmm_step(length: int) -> Callable[[], object]:
    one, data = torch.ones(1, 1), torch.randn(length, 1).cumsum(0)
    log_scales = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.Adam([log_scales], lr=1e-3)

    def step() -> None:
        noise, observation = (dist.Normal(torch.zeros(1), scale).to_event(1) for scale in log_scales.exp())
        initial = dist.Normal(torch.zeros(1), 1.0).to_event(1)
        hmm = dist.GaussianHMM(initial, one, noise, one, observation, duration=length)
        optimizer.zero_grad()
        (-hmm.log_prob(data)).backward()
        optimizer.step()

    return step


def numbers(name: str, length: int) -> int:
    """Of the parameters, before they are made."""
    if name == "AutoMultivariateNormal":
        return length * (length + 2)
    return length * (2 + round(length**0.5)) if "LowRank" in name else 3 * length


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[100, 1000, 10_000, 100_000])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--limit", type=float, default=20.0, help="seconds")
    parser.add_argument("--memory-gb", type=float, default=8.0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    milliseconds: dict[str, list[str]] = {}
    parameters: dict[str, list[str]] = {}
    gone: dict[str, str] = {}
    for length in arguments.lengths:
        pyro.set_rng_seed(0)
        model = model_of(length)
        counts, steps = {}, {}
        for name, (guide, guided) in guides_of(model, "z").items():
            if 5 * 4e-9 * numbers(name, length) > arguments.memory_gb:
                gone.setdefault(name, f"over {arguments.memory_gb:g} GB")
            if name in gone:
                continue
            pyro.clear_param_store()
            steps[name] = guide_step(guide, guided)
            steps[name]()
            counts[name] = parameter_count(guide)
        steps[HMM], counts[HMM] = hmm_step(length), 2
        for name in list(steps):
            start = time.perf_counter()
            steps[name]()
            if time.perf_counter() - start > arguments.limit:
                gone[name] = f"over {arguments.limit:g} s"
                del steps[name]
        seconds = interleaved(steps, arguments.rounds, clock=time.process_time)
        for name in (*guides_of(model, "z"), HMM):
            timed = seconds.get(name)
            cell = (
                f"{1e3 * statistics.median(timed):.2f} (×{ratio(timed, seconds[REFERENCE]):.1f})"
                if timed
                else gone[name]
            )
            milliseconds.setdefault(name, []).append(cell)
            parameters.setdefault(name, []).append(f"{counts[name]:,}" if timed else "-")
    title = f"a step of SVI, one particle, one thread, processor time, median of {arguments.rounds}"
    for what, table in ((f"Milliseconds of {title} (× {REFERENCE})", milliseconds), ("Parameters", parameters)):
        header = ["guide", *(f"T = {length:,}" for length in arguments.lengths)]
        print_table(what, header, [[name, *row] for name, row in table.items()])
        print()


if __name__ == "__main__":
    main()
