"""The tables and the figure of docs/performance.md, from what ``pytest benchmarks --benchmark-json FILE`` has written.

The rest is measured here: the memory of a guide's step and the cost of the first call, each in processes of its own,
and the training step of a VAE.

    python benchmarks/performance.py FILE [--table docs/performance_table.md] [--figure docs/figures/performance.png]
"""

import argparse
import json
from pathlib import Path
from typing import Any

import first_call
import matplotlib.pyplot as plt
import memory
import torch
import vae_step
from common import markdown
from operations import DENSE, DISTRIBUTIONS, OPERATIONS, REFERENCE, SEPARATE, SHAPES, SHARED, Shape, name_of

TARGETS = {  # of the guide step, as a ratio to the reference
    SHARED: dict(zip(SHAPES, (1.25, 1.25, 1.15, 1.0, 1.0, 0.9, 0.7), strict=True)),
    SEPARATE: dict.fromkeys(SHAPES, 1.4),
}
FIRST_CALL: Shape = (128, 20)
VAE_BATCH, VAE_LATENTS = 128, 20
SHOWN = {  # colour and dashes of the figure's lines
    (SHARED, "numba"): "C0-",
    (SEPARATE, "numba"): "C1-",
    (SHARED, "torch"): "C0--",
    (SEPARATE, "torch"): "C1--",
    (REFERENCE, "torch"): "k:",
    (DENSE, "torch"): "C3-",
}
NOTES = {
    "guide step": "From the parameters to their gradients: the distribution, `rsample`, the divergence from a standard "
    "normal, and the backward pass from given gradients of both.",
    "guide step, of sums": "The same, but for `(z.sum() + kl.sum()).backward()`.",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--table", type=Path, default=Path("docs/performance_table.md"))
    parser.add_argument("--figure", type=Path, default=Path("docs/figures/performance.png"))
    parser.add_argument("--d", type=int, default=10_000_000, help="of the step whose memory is measured")
    parser.add_argument("--kernels", default="numba", help="whose first call is measured")
    parser.add_argument("--steps", type=int, default=300, help="of each VAE's training, of which the median is taken")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    report = json.loads(arguments.file.read_text())
    results = Results(report["benchmarks"])
    parts = [f"{report['machine_info']['described']}."]
    for operation in OPERATIONS:
        parts += [f"## {operation}", *filter(None, [NOTES.get(operation)]), results.table(operation)]
    shape = (1, arguments.d)
    parts += [f"## memory of a guide step, in tensors of {name_of(shape)}"]
    parts += [markdown(memory.HEADER, memory.memory_rows(shape))]
    parts += [f"## first call, {name_of(FIRST_CALL)}"]
    parts += [markdown(first_call.HEADER, first_call.first_call_rows(FIRST_CALL, arguments.kernels))]
    parts += [f"## training step of a VAE, batch {VAE_BATCH}, {VAE_LATENTS} latents"]
    parts += [markdown(vae_step.HEADER, vae_step.step_rows(arguments.steps, VAE_BATCH, VAE_LATENTS))]
    arguments.table.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    results.draw(arguments.figure)


class Results:
    """What a report of pytest-benchmark says, by operation, distribution, kernels and shape."""

    def __init__(self, benchmarks: list[dict[str, Any]]) -> None:
        self.seconds: dict[tuple[str, str, str, Shape], float] = {}
        self.extra: dict[tuple[str, str, str, Shape], dict[str, float]] = {}
        for benchmark in benchmarks:
            params = benchmark["params"]
            n, d = params["shape"]
            key = (params["operation"], params["distribution"], params["kernels"], (n, d))
            self.seconds[key], self.extra[key] = benchmark["stats"]["median"], benchmark["extra_info"]

    def table(self, operation: str) -> str:
        """Ratios to the reference; its own time in microseconds, and the targets, come first."""
        shapes = list(dict.fromkeys(key[3] for key in self.seconds if key[0] == "log_prob"))
        rows = [[f"{REFERENCE}, µs", "", *(self.microseconds(operation, shape) for shape in shapes)]]
        for name, family in DISTRIBUTIONS.items():
            if name == REFERENCE or operation not in family.operations:
                continue
            rows += [
                [
                    name,
                    kernels if len(family.kernels) > 1 else "",
                    *(self.ratio((operation, name, kernels, shape)) for shape in shapes),
                ]
                for kernels in family.kernels
            ]
            targets = TARGETS.get(name, {})
            if operation.startswith("guide step") and targets:
                rows.append(
                    [f"{name}: target", "", *(f"{targets[shape]:.2f}" if shape in targets else "-" for shape in shapes)]
                )
        return markdown(["distribution", "computed by", *map(name_of, shapes)], rows)

    def microseconds(self, operation: str, shape: Shape) -> str:
        return f"{1e6 * self.seconds[operation, REFERENCE, 'torch', shape]:,.0f}"

    def ratio(self, key: tuple[str, str, str, Shape]) -> str:
        if key not in self.extra:
            return "-"
        ratio = self.extra[key]["ratio"]
        return f"{ratio:.2f}" if ratio < 10 else f"{ratio:,.0f}"

    def draw(self, path: Path) -> None:
        """Time and memory of the guide step of one chain, by its length."""
        figure, (times, sizes) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
        for (name, kernels), style in SHOWN.items():
            lengths = sorted(k[3][1] for k in self.extra if k[:3] == ("guide step", name, kernels) and k[3][0] == 1)
            keys = [("guide step", name, kernels, (1, d)) for d in lengths]
            label = name if kernels == "numba" or len(DISTRIBUTIONS[name].kernels) == 1 else f"{name}, plain torch"
            times.loglog(lengths, [1e3 * self.seconds[key] for key in keys], style, marker=".", label=label)
            sizes.loglog(lengths, [self.extra[key]["peak_bytes"] / 2**20 for key in keys], style, marker=".")
        times.set(xlabel="d", ylabel="ms", title="time of a guide step")
        sizes.set(xlabel="d", ylabel="MiB", title="memory beyond parameters and gradients")
        figure.legend(*times.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize="small")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
        plt.close(figure)


if __name__ == "__main__":
    main()
