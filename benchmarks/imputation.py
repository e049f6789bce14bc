"""An amortised guide of a chain: 61 years of monthly sea temperatures, seen at uneven times, with gaps to impute.

The temperatures are those of statsmodels' "elnino", off Peru from 1950 to 2010. Windows of 48 months are cut from them,
of each a third of the months is dropped at random, and of the 32 readings that are left six consecutive ones are held
out: a gap of about nine months. The state z of the sea is red noise (K. Hasselmann, *Stochastic climate models*, 1976):

    z ~ an Ornstein-Uhlenbeck process of scale 1 at the times of the readings,
    temperature_t ~ N(f(z_t, month_t), noise_scale²),

where f is a network; it, the timescale and the noise are learnt together with the guide, by SVI with
TraceMeanField_ELBO on random windows. An encoder turns each reading into the location and the scale of a normal factor,
alone, or (recurrent, in both directions) knowing the whole window, its times and its gap. The guides:

- chain: the prior, updated by the factors of what is seen.
- mean field: the factors, of what is seen and of the gap.
- mean field, prior in the gap: the factors of what is seen; the gap's states have the prior conditioned on these.

Each of five folds of twelve years is left out of training once, with what overlaps it, and measured in three windows
that are thinned many times. Standard errors are over the windows of all folds. Predictions are of 1,000 draws each.

In a second table f is linear in z. There the posterior is a chain, and conjugate_update has the exact evidence.

    python benchmarks/imputation.py [--steps 1500] [--seeds 2] [--thinnings 40]
"""

import argparse
import math
import time
from collections import defaultdict
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import statsmodels.api
import torch
from common import print_table
from pyro.infer import SVI, TraceMeanField_ELBO
from torch import Tensor, nn
from torch.distributions import kl_divergence

from ar1_dist import AR1Normal, assert_analytic_kl

TEMPERATURE = torch.tensor(statsmodels.api.datasets.elnino.load_pandas().data.iloc[:, 1:].to_numpy()).float().flatten()
CENTRE, UNIT = 23.0, 2.0  # in degrees: the network's inputs are of the order of 1
WINDOW, READINGS, GAP, FOLDS, LEFT_OUT = 48, 32, 6, 5, 3
GUIDES = ("chain", "mean field", "mean field, prior in the gap")
COVERAGES = (0.5, 0.8, 0.95)


@dataclass
class Windows:
    """The readings of a batch of windows, of shape (windows, readings)."""

    months: Tensor  # increasing, from the first month of all
    seen: Tensor  # False in the gap

    @property
    def value(self) -> Tensor:
        return (TEMPERATURE[self.months] - CENTRE) / UNIT

    @property
    def season(self) -> Tensor:
        """A sine and a cosine of the month, of shape (windows, readings, 2)."""
        angle = self.months * (math.pi / 6)
        return torch.stack([angle.sin(), angle.cos()], -1)

    def without_gap(self) -> "Windows":
        months = self.months[self.seen].view(len(self.months), -1)
        return Windows(months, torch.ones_like(months, dtype=torch.bool))


def windows(starts: Tensor) -> Windows:
    """Windows that start in these months, thinned at random."""
    kept = torch.rand(len(starts), WINDOW).argsort(-1)[:, :READINGS].sort(-1).values
    first = torch.randint(1, READINGS - GAP, (len(starts), 1))
    since = torch.arange(READINGS) - first
    return Windows(starts.unsqueeze(-1) + kept, (since < 0) | (since >= GAP))


def starts_of(fold: int) -> tuple[Tensor, Tensor]:
    """The months in which windows may start that have nothing in common with the fold, and those of the fold's own."""
    starts, first = torch.arange(len(TEMPERATURE) - WINDOW + 1), fold * LEFT_OUT * WINDOW
    apart = (starts + WINDOW <= first) | (starts >= first + LEFT_OUT * WINDOW)
    return starts[apart], first + WINDOW * torch.arange(LEFT_OUT)


class Encoder(nn.Module):
    """Locations and scales of factors, one for each reading."""

    def __init__(self, recurrent: bool, width: int = 32) -> None:
        super().__init__()
        self.gru = nn.GRU(6, width, bidirectional=True, batch_first=True) if recurrent else None
        inputs = 4 + 2 * width * recurrent
        self.hidden = nn.Sequential(nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, 2))
        self.linear = nn.Linear(inputs, 2)

    def forward(self, x: Windows) -> tuple[Tensor, Tensor]:
        features = torch.cat([torch.stack([x.value * x.seen, x.seen], -1), x.season], -1)
        if self.gru is not None:
            waits = nn.functional.pad(x.months.diff() / 3.0, (1, 1))
            around = torch.cat([features, waits[:, :-1, None], waits[:, 1:, None]], -1)
            features = torch.cat([features, self.gru(around)[0]], -1)
        loc, raw_scale = (self.hidden(features) + self.linear(features)).unbind(-1)
        return loc, nn.functional.softplus(raw_scale) + 1e-3


class Imputation(nn.Module):
    """Model and guide."""

    def __init__(self, guide: str, recurrent: bool = False, linear: bool = False) -> None:
        super().__init__()
        self.kind = guide
        self.encoder = Encoder(recurrent)
        self.log_slope, self.season = nn.Parameter(torch.zeros(())), nn.Linear(2, 1)
        self.network = None if linear else nn.Sequential(nn.Linear(3, 32), nn.Tanh(), nn.Linear(32, 1))
        self.log_noise_scale, self.log_timescale = nn.Parameter(torch.tensor(-1.0)), nn.Parameter(torch.tensor(1.5))

    def prior(self, x: Windows) -> AR1Normal:
        return AR1Normal.from_times(x.months, torch.zeros_like(x.value), 1.0, self.log_timescale.exp())

    def reading(self, z: Tensor, x: Windows) -> dist.Normal:
        loc = self.log_slope.exp() * z + self.season(x.season).squeeze(-1)
        if self.network is not None:
            inputs = torch.cat([z.unsqueeze(-1), x.season.expand(*z.shape, 2)], -1)
            loc = loc + self.network(inputs).squeeze(-1)
        return dist.Normal(loc, self.log_noise_scale.exp())

    def posterior(self, x: Windows) -> AR1Normal | dist.Independent:
        loc, scale = self.encoder(x)
        if self.kind != "chain":
            return dist.Normal(loc, scale).to_event(1)
        return self.prior(x).conjugate_update(dist.Normal(loc, scale.where(x.seen, math.inf)).to_event(1))[0]

    def model(self, x: Windows) -> None:
        with pyro.plate("windows", len(x.months)):
            z = pyro.sample("z", self.prior(x))
            pyro.sample("temperature", self.reading(z, x).mask(x.seen).to_event(1), obs=x.value)

    def guide(self, x: Windows) -> None:
        pyro.module("imputation", self)
        with pyro.plate("windows", len(x.months)):
            pyro.sample("z", self.posterior(x))

    def latent(self, x: Windows) -> Windows:
        """The readings whose states the guide is of."""
        return x.without_gap() if self.kind == "mean field, prior in the gap" else x

    def draw(self, x: Windows, draws: int) -> Tensor:
        """Draws of the states of all readings."""
        z = self.posterior(self.latent(x)).rsample((draws,))
        if self.kind != "mean field, prior in the gap":
            return z
        loc = z.new_zeros(draws, *x.seen.shape).masked_scatter(x.seen, z)
        near = dist.Normal(loc, torch.where(x.seen, 1e-3, math.inf)).to_event(1)
        return self.prior(x).conjugate_update(near)[0].rsample()

    def elbo(self, x: Windows, draws: int) -> Tensor:
        """Of each window, of the temperatures in degrees."""
        x = self.latent(x)
        q = self.posterior(x)
        fit = (self.reading(q.rsample((draws,)), x).log_prob(x.value) - math.log(UNIT)) * x.seen
        return fit.sum(-1).mean(0) - kl_divergence(q, self.prior(x))

    def log_evidence(self, x: Windows) -> Tensor:
        """Of each window, where the network is linear."""
        slope, offset = self.log_slope.exp(), self.reading(torch.zeros_like(x.value), x).mean
        noise = (self.log_noise_scale.exp() / slope).expand_as(offset).where(x.seen, math.inf)
        _, evidence = self.prior(x).conjugate_update(dist.Normal((x.value - offset) / slope, noise).to_event(1))
        return evidence - x.seen.sum(-1) * (slope * UNIT).log()


def train(imputation: Imputation, starts: Tensor, steps: int, seed: int, batch: int = 64, lr: float = 5e-3) -> float:
    """Seconds of the processor per step."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    assert_analytic_kl(imputation.model, imputation.guide, imputation.latent(windows(starts[:2])))
    optimizer = pyro.optim.ClippedAdam({"lr": lr, "lrd": 0.05 ** (1 / steps)})
    svi = SVI(imputation.model, imputation.guide, optimizer, TraceMeanField_ELBO())
    start = time.process_time()
    for _ in range(steps):
        svi.step(imputation.latent(windows(starts[torch.randint(len(starts), (batch,))])))
    return (time.process_time() - start) / steps


def scores(reading: dist.Normal, x: Windows) -> dict[str, Tensor]:
    """Of the gap of each window, from draws of what a reading there may be."""
    gap = ~x.seen

    def of_gap(score: Tensor) -> Tensor:
        return torch.where(gap, score, 0.0).sum(-1) / GAP

    log_prob = reading.log_prob(x.value).logsumexp(0) - math.log(len(reading.mean)) - math.log(UNIT)
    below = (reading.sample() < x.value).float().mean(0)
    results = {"log": of_gap(log_prob), "square": of_gap((UNIT * (reading.mean.mean(0) - x.value)).square())}
    return results | {f"{c:.0%}": of_gap(((below - 0.5).abs() < c / 2).float()) for c in COVERAGES}


def of_seasons(starts: Tensor, x: Windows) -> dist.Normal:
    """Each month's mean and standard deviation in training: what to say of a gap without its neighbours."""
    months = (starts.unsqueeze(-1) + torch.arange(WINDOW)).unique()
    value = (TEMPERATURE[months] - CENTRE) / UNIT
    of_month = [value[months % 12 == month] for month in range(12)]
    loc, scale = (torch.stack([f(v) for v in of_month])[x.months % 12] for f in (torch.mean, torch.std))
    return dist.Normal(loc, scale).expand((1000, *x.months.shape))


def estimate(values: list[Tensor], places: int = 2, root: bool = False) -> str:
    """The mean over windows and its standard error; each tensor has one number for each window of a fold and thinning,
    and folds come in turn, once for each seed."""
    by_window = torch.cat([value.view(-1, LEFT_OUT).mean(0) for value in values]).view(-1, FOLDS * LEFT_OUT).mean(0)
    mean, error = by_window.mean().item(), by_window.std().item() / len(by_window) ** 0.5
    if root:
        mean, error = mean**0.5, error / (2 * mean**0.5)
    return f"{mean:.{places}f} ± {error:.{places}f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--thinnings", type=int, default=40)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    runs = [(seed, fold) for seed in range(arguments.seeds) for fold in range(FOLDS)]
    results: dict[str, dict[str, list[Tensor]]] = defaultdict(lambda: defaultdict(list))
    seconds: dict[str, list[float]] = defaultdict(list)
    linear: dict[str, dict[str, list[Tensor]]] = defaultdict(lambda: defaultdict(list))
    for seed, fold in runs:
        starts, own = starts_of(fold)
        pyro.set_rng_seed(1000 + seed)
        x = windows(own.repeat(arguments.thinnings))
        for key, score in scores(of_seasons(starts, x), x).items():
            results["the month's mean and scale"][key].append(score)
        for guide in GUIDES:
            for recurrent in (False, True):
                imputation = Imputation(guide, recurrent)
                name = f"{guide}, {'recurrent encoder' if recurrent else 'encoder per step'}"
                seconds[name].append(train(imputation, starts, arguments.steps, seed))
                with torch.no_grad():
                    results[name]["elbo"].append(imputation.elbo(x, 100))
                    for key, score in scores(imputation.reading(imputation.draw(x, 1000), x), x).items():
                        results[name][key].append(score)
            imputation = Imputation(guide, linear=True)
            train(imputation, starts, arguments.steps, seed)
            with torch.no_grad():
                elbo, evidence = imputation.elbo(x, 1000), imputation.log_evidence(x)
            linear[guide]["evidence"].append(evidence)
            linear[guide]["elbo"].append(elbo)
            linear[guide]["gap"].append(evidence - elbo)
    print_table(
        f"Gaps of {GAP} readings imputed in {FOLDS * LEFT_OUT} windows, {arguments.thinnings} thinnings of each; "
        f"{arguments.steps} steps, {arguments.seeds} seeds, one thread",
        ["guide", "ms per step", "ELBO of a window", "log predictive of a reading", "RMSE, °C"]
        + [f"in {c:.0%} intervals" for c in COVERAGES],
        [
            [
                name,
                f"{1e3 * sum(seconds[name]) / len(runs):.1f}" if name in seconds else "",
                estimate(of_guide["elbo"], 1) if "elbo" in of_guide else "",
                estimate(of_guide["log"]),
                estimate(of_guide["square"], root=True),
                *(estimate([100 * share for share in of_guide[f"{c:.0%}"]], 0) + " %" for c in COVERAGES),
            ]
            for name, of_guide in results.items()
        ],
    )
    print()
    print_table(
        "The same with f linear in z, encoder per step, in nats of a window",
        ["guide", "log evidence, exact", "ELBO", "gap"],
        [
            [g, *(estimate(row[key], 3 if key == "gap" else 1) for key in ("evidence", "elbo", "gap"))]
            for g, row in linear.items()
        ],
    )


if __name__ == "__main__":
    main()
