"""Guides against the exact answer: the local level model of the Nile's yearly flow from 1871 to 1970,

    level_1 ~ N(1000, 250²),   level_t = level_{t-1} + N(0, 1469.1),   flow_t = level_t + N(0, 15099),

with every year, and without the years 21 to 40 and 61 to 80 (J. Durbin and S. J. Koopman, *Time Series Analysis by
State Space Methods*, 2012, chapter 2). The posterior of the levels is normal, and a Kalman filter has the evidence.
Every guide takes the same number of steps of the same optimiser with Trace_ELBO. The gap is the evidence less the ELBO:
the guide's KL to the posterior.

    python benchmarks/nile.py [--steps 4000] [--particles 10] [--lr 0.1]
"""

import argparse
import math

import numpy as np
import pyro
import pyro.distributions as dist
import statsmodels.api
import torch
from common import print_table
from fitting import Program, elbo_of, fit, guides_of, parameter_count

from ar1_dist import AR1Normal

UNIT = 100.0  # flows and levels are in hundreds, from 1000: then an optimiser's steps are of the order of 1
OBSERVATION_SCALE, LEVEL_SCALE, INITIAL_SCALE = 15099**0.5 / UNIT, 1469.1**0.5 / UNIT, 250 / UNIT
FLOW = (statsmodels.api.datasets.nile.load_pandas().data["volume"].to_numpy() - 1000) / UNIT
YEARS = np.arange(len(FLOW)) + 1
SEEN = {"every year": YEARS > 0, "without years 21-40 and 61-80": (YEARS - 1) // 20 % 2 == 0}


def level_prior() -> AR1Normal:
    level = torch.zeros(len(FLOW), dtype=torch.float64)
    return AR1Normal.from_transitions(level, coefficient=1.0, noise_scale=LEVEL_SCALE, initial_scale=INITIAL_SCALE)


def model_of(seen: np.ndarray) -> Program:
    index, flow = torch.from_numpy(np.flatnonzero(seen)), torch.from_numpy(FLOW[seen])

    def model() -> None:
        level = pyro.sample("level", level_prior())
        pyro.sample("flow", dist.Normal(level[..., index], OBSERVATION_SCALE).to_event(1), obs=flow)

    return model


def log_evidence(seen: np.ndarray) -> float:
    """By statsmodels' Kalman filter."""
    exact = statsmodels.api.tsa.UnobservedComponents(np.where(seen, FLOW, np.nan), "llevel")
    exact.ssm.initialize_known([0.0], [[INITIAL_SCALE**2]])
    exact.ssm.loglikelihood_burn = 0
    return float(exact.loglike([OBSERVATION_SCALE**2, LEVEL_SCALE**2]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--particles", type=int, default=10)
    parser.add_argument("--lr", type=float, default=0.1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: dict[str, list[str]] = {}
    evidences = []
    for seen in SEEN.values():
        model, evidence = model_of(seen), log_evidence(seen)
        evidences.append(f"{evidence - seen.sum() * math.log(UNIT):.3f}")  # of flows in their own unit
        for name, (guide, guided) in guides_of(model, "level").items():
            seconds = fit(guide, guided, **vars(arguments))
            row = rows.setdefault(name, [name, f"{parameter_count(guide):,}", f"{1e3 * seconds:.2f}"])
            row.append(f"{evidence - elbo_of(guide, guided):.3f}")
    print_table(
        f"The Nile's level in {len(FLOW)} years, log evidence {' and '.join(evidences)}; {arguments.steps} steps with "
        f"{arguments.particles} particles, one thread",
        ["guide", "parameters", "ms per step", *(f"gap in nats, {name}" for name in SEEN)],
        list(rows.values()),
    )


if __name__ == "__main__":
    main()
