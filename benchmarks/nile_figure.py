"""Draws docs/figures/nile.png: a mean-field guide and a chain's, of the Nile's level, where forty years are missing.

The lines are medians, the bands lie between the quantiles of 5 and 95 per cent, and the exact ones are dashed.

    python benchmarks/nile_figure.py [--out docs/figures/nile.png] [--steps 4000]
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from fitting import fit, guides_of
from nile import FLOW, OBSERVATION_SCALE, SEEN, UNIT, YEARS, level_prior, model_of

SHOWN = {"AutoDiagonalNormal": "tab:orange", "AutoAR1Normal": "tab:blue"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/figures/nile.png"))
    parser.add_argument("--steps", type=int, default=4000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    seen = SEEN["without years 21-40 and 61-80"]
    years = 1870 + YEARS
    figure, axes = plt.subplots(figsize=(8, 3.6), layout="constrained")
    axes.plot(years[seen], 1000 + UNIT * FLOW[seen], ".", color="0.5", label="flow")
    precision = level_prior().precision_matrix + torch.from_numpy(seen / OBSERVATION_SCALE**2).diag()
    covariance = UNIT**2 * precision.inverse()
    guides = guides_of(model_of(seen), "level")
    for name, colour in SHOWN.items():
        guide, model = guides[name]
        fit(guide, model, arguments.steps, particles=10, lr=0.1)
        low, median, high = (1000 + UNIT * guide.quantiles([0.05, 0.5, 0.95])["level"]).numpy()
        axes.plot(years, median, color=colour, label=name)
        axes.fill_between(years, low, high, color=colour, alpha=0.25, linewidth=0)
    mean = covariance @ torch.from_numpy(FLOW * seen) / OBSERVATION_SCALE**2 / UNIT**2
    for sign in (-1, 1):
        band = 1000 + UNIT * mean + sign * 1.645 * covariance.diagonal().sqrt()
        axes.plot(years, band, "k--", linewidth=1, label="exact" if sign > 0 else None)
    axes.set(xlabel="year", ylabel="level, 10⁸ m³", title="The Nile at Aswan: 5 to 95 per cent of the level")
    axes.legend(fontsize="small")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.out, dpi=110)


if __name__ == "__main__":
    main()
