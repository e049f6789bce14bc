"""Guides of a posterior that is not normal: stochastic volatility of 1,046 daily returns,

    h ~ AR1Normal(1.0, 0.8, 0.97),   return_t ~ N(0, exp(h_t)),

in per cent, of a share that Matplotlib carries (goog.npz, August 2004 to October 2008). The guides' means and standard
deviations of h are compared with those of NUTS, which runs on h's white noise; in its own row the error is that of
Monte Carlo, by the difference of its two halves.

    python benchmarks/volatility.py [--steps 2000] [--particles 10] [--lr 0.03] [--samples 600] [--warmup 200]
"""

import argparse
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from common import print_table
from fitting import elbo_of, fit, guides_of, parameter_count
from matplotlib.cbook import get_sample_data
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide import AutoGuide
from torch import Tensor

from ar1_dist import AR1Normal

SAMPLE: Any = get_sample_data("goog.npz")
PRICES = SAMPLE["price_data"]["adj_close"].astype(np.float64)
RETURNS = torch.from_numpy(100 * np.diff(np.log(PRICES)))


def prior() -> AR1Normal:
    return AR1Normal(torch.ones_like(RETURNS), 0.8, 0.97)


def model() -> Tensor:
    h = pyro.sample("h", prior())
    observe(h)
    return h


def observe(h: Tensor) -> None:
    pyro.sample("return", dist.Normal(torch.zeros_like(h), (h / 2).exp()).to_event(1), obs=RETURNS)


def whitened_model() -> None:
    noise = pyro.sample("noise", dist.Normal(torch.zeros_like(RETURNS), 1.0).to_event(1))
    observe(prior().transform(noise))


def nuts(samples: int, warmup: int) -> Tensor:
    """Draws of h."""
    pyro.set_rng_seed(0)
    kernel = NUTS(whitened_model, jit_compile=True, ignore_jit_warnings=True, max_tree_depth=7)
    mcmc = MCMC(kernel, num_samples=samples, warmup_steps=warmup, disable_progbar=True)
    mcmc.run()
    return prior().transform(mcmc.get_samples()["noise"])


def draws_of(guide: AutoGuide, guided, count: int = 2000) -> Tensor:
    """Draws of h from a guide, through the model where it is a guide of something else."""
    with torch.no_grad():
        values = [pyro.poutine.condition(guided, guide())() for _ in range(count)]
    return torch.stack(values)


def neighbours(h: Tensor) -> Tensor:
    """The correlations of neighbouring days."""
    u = (h - h.mean(0)) / h.std(0)
    return (u[:, 1:] * u[:, :-1]).mean(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--particles", type=int, default=10)
    parser.add_argument("--lr", type=float, default=0.03)
    parser.add_argument("--samples", type=int, default=600)
    parser.add_argument("--warmup", type=int, default=200)
    arguments = vars(parser.parse_args())
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    exact = nuts(arguments.pop("samples"), arguments.pop("warmup"))
    rows = []
    for name, (guide, guided) in guides_of(model, "h").items():
        seconds = fit(guide, guided, **arguments, decay=0.01)
        h = draws_of(guide, guided)
        rows.append(
            [
                name,
                f"{parameter_count(guide):,}",
                f"{1e3 * seconds:.2f}",
                f"{elbo_of(guide, guided, draws=10, rounds=200):.1f}",
                f"{((h.mean(0) - exact.mean(0)) / exact.std(0)).square().mean().sqrt():.2f}",
                f"{(h.std(0) / exact.std(0)).log().mean().exp():.2f}",
                f"{neighbours(h).mean():.3f}",
            ]
        )
    halves = exact.chunk(2)
    error = ((halves[0].mean(0) - halves[1].mean(0)) / exact.std(0) / 2).square().mean().sqrt()  # of Monte Carlo
    rows.append(["NUTS", "", "", "", f"{error:.2f}", "1", f"{neighbours(exact).mean():.3f}"])
    print_table(
        f"Volatility of {len(RETURNS)} daily returns; {arguments['steps']} steps with {arguments['particles']} "
        "particles, one thread",
        [
            "guide",
            "parameters",
            "ms per step",
            "ELBO in nats",
            "rms error of the mean, in standard deviations",
            "its standard deviation / NUTS's",
            "mean correlation of neighbours",
        ],
        rows,
    )


if __name__ == "__main__":
    main()
