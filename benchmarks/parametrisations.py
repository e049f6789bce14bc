"""Parametrisations of the posteriors' covariances, compared on validation images: the same families, or families one
within the other, whose linear units mean other things. The VAE is the study's vanilla one, trained by the project's own
`fit`; the number is the least validation negative ELBO of the epochs, in nats per image.

    python benchmarks/parametrisations.py [--forms FORM ...] [--dataset mnist ...] [--latent-dim 20] [--seeds 0 1 2]
        [--epochs 15] [--data-root data] [--out runs/parametrisations.jsonl] [--table runs/parametrisations.md]

Each run that is done is a line of the file, and is not done again; the table is of what the file holds. With --forms
and none after it nothing is run: so the study's page has its table, by --out docs/study/parametrisations.jsonl --table
docs/study/results/parametrisations.md.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import torch
from common import markdown
from torch import Tensor, nn

from ar1_dist import AR1Normal
from vae_models import VAE, Config, fit, load
from vae_models.model.posteriors import POSTERIORS
from vae_models.study.tables import estimate


def _linear(num_features: int, size: int, *, random: bool = False) -> nn.Linear:
    layer = nn.Linear(num_features, size)
    nn.init.zeros_(layer.bias)
    if random:
        nn.init.xavier_uniform_(layer.weight)
    else:
        nn.init.zeros_(layer.weight)
    return layer


class Triangular(nn.Module):
    """A normal by a Cholesky factor that is made of scales s and a strictly lower triangular matrix O, banded if an
    order is given."""

    places: Tensor

    def __init__(self, num_features: int, d: int, form: Callable[[Tensor, Tensor], Tensor], order: int | None) -> None:
        super().__init__()
        rows, columns = torch.tril_indices(d, d, -1)
        kept = rows - columns <= (order or d)
        self.register_buffer("places", torch.stack([rows[kept], columns[kept]]), persistent=False)
        self.loc = _linear(num_features, d, random=True)
        self.log_variance, self.below = _linear(num_features, d), _linear(num_features, int(kept.sum()))
        self.form = form

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        scale = (0.5 * self.log_variance(features)).exp()
        below = scale.new_zeros(*scale.shape, scale.shape[-1])
        below[..., self.places[0], self.places[1]] = self.below(features)
        return dist.MultivariateNormal(self.loc(features), scale_tril=self.form(scale, below), validate_args=False)


def _unit(below: Tensor) -> Tensor:
    return below + torch.eye(below.shape[-1])


def _normalised(scale: Tensor, below: Tensor) -> Tensor:
    factor = _unit(below)
    return (scale / factor.square().sum(-1).sqrt()).unsqueeze(-1) * factor


def _autoregressive(scale: Tensor, below: Tensor) -> Tensor:
    return torch.linalg.solve_triangular(_unit(-below), torch.diag_embed(scale), upper=False, unitriangular=True)


def _autoregressive_in_scale(scale: Tensor, below: Tensor) -> Tensor:
    return scale.unsqueeze(-1) * _autoregressive(torch.ones_like(scale), below)


class LowRank(nn.Module):
    """Of rank 1 or more; relative is diag(s) (I + F F') diag(s)."""

    def __init__(self, num_features: int, d: int, rank: int, relative: bool, gain: float = 1.0) -> None:
        super().__init__()
        self.loc, self.log_variance = _linear(num_features, d, random=True), _linear(num_features, d)
        self.factor, self.shape, self.relative = _linear(num_features, d * rank, random=True), (d, rank), relative
        with torch.no_grad():
            self.factor.weight *= gain

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        factor, scale = self.factor(features).unflatten(-1, self.shape), (0.5 * self.log_variance(features)).exp()
        if self.relative:
            factor = scale.unsqueeze(-1) * factor
        return dist.LowRankMultivariateNormal(self.loc(features), factor, scale.square(), validate_args=False)


class Innovations(nn.Module):
    """A chain by its coefficients and the scales of its innovations, each relative to its own coordinate; shared ones
    are those of a stationary chain, as ar1's are."""

    def __init__(self, num_features: int, d: int, shared: bool) -> None:
        super().__init__()
        self.loc, self.log_variance = _linear(num_features, d, random=True), _linear(num_features, 1 if shared else d)
        self.coefficient, self.shared = _linear(num_features, 1 if shared else d - 1), shared

    def forward(self, features: Tensor) -> AR1Normal:
        loc, noise, c = self.loc(features), (0.5 * self.log_variance(features)).exp(), self.coefficient(features)
        if self.shared:  # of variance noise^2/(1 - rho^2), with rho = c/sqrt(1 + c^2)
            return AR1Normal(loc, noise * (1 + c.square()).sqrt(), atanh_rho=c.asinh(), validate_args=False)
        return AR1Normal.from_transitions(loc, c, noise[..., 1:], noise[..., :1], validate_args=False)


class Mixed(nn.Module):
    """Multiplies by a fixed random rotation before the decoder."""

    rotation: Tensor

    def __init__(self, d: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        rotation, _ = torch.linalg.qr(torch.randn(d, d, generator=generator))
        self.register_buffer("rotation", rotation)

    def forward(self, z: Tensor) -> Tensor:
        return z @ self.rotation


def _triangular(form: Callable[[Tensor, Tensor], Tensor], order: int | None = None) -> Callable[[int, int], nn.Module]:
    return lambda num_features, latent_dim: Triangular(num_features, latent_dim, form, order)


def _low_rank(rank: int, relative: bool, gain: float = 1.0) -> Callable[[int, int], nn.Module]:
    return lambda num_features, latent_dim: LowRank(num_features, latent_dim, rank, relative, gain)


FORMS: dict[str, Callable[[int, int], nn.Module]] = {
    "diagonal": POSTERIORS["diagonal"],
    "full, diag(s) + O": _triangular(lambda s, o: torch.diag_embed(s) + o),
    "full, rows: diag(s) (I + O)": _triangular(lambda s, o: s.unsqueeze(-1) * _unit(o)),
    "full, columns: (I + O) diag(s)": _triangular(lambda s, o: _unit(o) * s.unsqueeze(-2)),
    "full, autoregressive: (I - O)^-1 diag(s)": _triangular(_autoregressive),
    "full, autoregressive in its own scale: diag(s) (I - O)^-1": _triangular(_autoregressive_in_scale),
    "full, rows normalised": _triangular(_normalised),
    "low_rank 1, W W' + diag(s)^2": _low_rank(1, relative=False),
    "low_rank 1, relative": _low_rank(1, relative=True),
    "low_rank 1, relative, small start": _low_rank(1, relative=True, gain=0.1),
    "banded 3, autoregressive": _triangular(_autoregressive, 3),
    "banded 3, autoregressive in its own scale": _triangular(_autoregressive_in_scale, 3),
    "banded 1, autoregressive": _triangular(_autoregressive, 1),
    "markov": POSTERIORS["markov"],
    "markov, coefficient and innovations": lambda features, d: Innovations(features, d, shared=False),
    "ar1": POSTERIORS["ar1"],
    "ar1, coefficient and innovations": lambda features, d: Innovations(features, d, shared=True),
    "markov, rotated before the decoder": POSTERIORS["markov"],
    "ar1, rotated before the decoder": POSTERIORS["ar1"],
}


def run(form: str, dataset: str, latent_dim: int, seed: int, epochs: int, data_root: str) -> dict[str, Any]:
    """Train one VAE, and give its validation losses."""
    images = load(dataset, data_root, seed=seed)
    POSTERIORS["of the benchmark"] = FORMS[form]
    config = Config(
        dataset=dataset, posterior="of the benchmark", latent_dim=latent_dim, seed=seed, epochs=epochs, batch_size=128
    )
    torch.manual_seed(seed)
    vae = VAE.build(tuple(images.train.shape[1:]), **config.vae_arguments())  # type: ignore[arg-type]
    if "rotated" in form:
        vae.decoder = nn.Sequential(Mixed(latent_dim), vae.decoder)
    history = fit(vae, images, config, accelerator="cpu", enable_progress_bar=False)
    losses = history.column("validation_negative_elbo")
    key = {"form": form, "dataset": dataset, "latent_dim": latent_dim, "seed": seed, "epochs": epochs}
    return key | {"losses": losses}


def table(done: Sequence[Mapping[str, Any]], epochs: int) -> str:
    """A row for each form, a column for each data set and size of the latent vector: the diagonal one's mean over seeds
    of its least validation loss, and the others' minus its, ± the standard error; bold where zero is not within the
    interval of 95 per cent."""
    best = {
        (each["dataset"], each["latent_dim"], each["form"], each["seed"]): min(each["losses"])
        for each in done
        if each["epochs"] == epochs
    }
    columns = sorted({key[:2] for key in best}, key=lambda key: (key[0] != "mnist", key[1]))
    lines = []
    for form in [form for form in FORMS if any(key[2] == form for key in best)]:
        cells = [form]
        for column in columns:
            losses = {key[3]: loss for key, loss in best.items() if key[:3] == (*column, form)}
            others = {key[3]: loss for key, loss in best.items() if key[:3] == (*column, "diagonal")}
            is_base = form == "diagonal"
            found = estimate(
                loss - (0 if is_base else others[seed]) for seed, loss in losses.items() if is_base or seed in others
            )
            text = "–" if found is None else found.text(signed=not is_base)
            cells.append(f"**{text}**" if found and not is_base and found.differs_from_zero else text)
        lines.append(cells)
    seeds = [str(len({key[3] for key in best if key[:2] == column})) for column in columns]
    lines.append(["seeds", *seeds])
    return markdown(["covariance", *(f"{dataset}, {d} latents" for dataset, d in columns)], lines)


def read(path: Path) -> list[dict[str, Any]]:
    """The runs that are done."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--forms", nargs="*", choices=FORMS, default=list(FORMS))
    parser.add_argument("--dataset", nargs="*", default=["mnist", "fashion-mnist"])
    parser.add_argument("--latent-dim", type=int, default=20)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--out", type=Path, default=Path("runs/parametrisations.jsonl"))
    parser.add_argument("--table", type=Path, help="file that the table is written to as well")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    done = read(options.out)
    for seed in options.seeds:
        for dataset in options.dataset:
            for form in options.forms:
                key = {"form": form, "dataset": dataset, "latent_dim": options.latent_dim, "seed": seed}
                key["epochs"] = options.epochs
                if any(all(each[name] == value for name, value in key.items()) for each in done):
                    continue
                done.append(run(**key, data_root=options.data_root))
                with options.out.open("a") as file:
                    print(json.dumps(done[-1]), file=file)
    text = table(done, options.epochs)
    print(f"Least validation negative ELBO of {options.epochs} epochs, and differences from diagonal's.\n\n{text}")
    if options.table:
        options.table.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
