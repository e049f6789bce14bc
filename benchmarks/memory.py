"""The memory that a guide's step takes beyond its parameters and their gradients, in tensors of batch × d.

Of the most that is allocated at once during the step, the gradients, which stay, are not counted; parameters, the
standard normal and the given gradients of the sample and the divergence are there before. It is measured twice:

- *allocated*: by torch's profiler, which sees every tensor;
- *resident*: by Linux, the greatest size of a fresh process less its size before the step.

    python benchmarks/memory.py [--d 10000000] [--batch 1]
"""

import argparse
import itertools
import json
import math
import multiprocessing
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from common import print_table
from operations import DISTRIBUTIONS, OPERATIONS, REFERENCE, SEPARATE, SHARED, Shape, name_of
from torch.profiler import ProfilerActivity, profile

from ar1_dist import set_kernels

__all__ = ["HEADER", "memory_rows", "peak_bytes"]

GUIDES = (SHARED, SEPARATE, REFERENCE)
HEADER = ["guide", "computed by", "parameters and gradients", "allocated", "resident"]


def peak_bytes(function: Callable[[], object]) -> int:
    """The most bytes that a call has allocated at once, less those that it leaves allocated."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    memory = sorted((event for event in events if event["name"] == "[memory]"), key=lambda event: event["ts"])
    totals = list(itertools.accumulate(event["args"]["Bytes"] for event in memory))
    return max(totals, default=0) - (totals[-1] if totals else 0)


def resident_bytes(name: str, kernels: str, shape: Shape) -> int:
    """By how much a step increases the greatest size of this process, less the gradients."""
    set_kernels(kernels)
    family, step_of = DISTRIBUTIONS[name], OPERATIONS["guide step"]
    step_of(family, (1, 10))()  # loads and compiles
    step = step_of(family, shape)
    before = status("VmRSS")
    step()
    return status("VmHWM") - before - parameter_bytes(name, shape)


def status(name: str) -> int:
    """What Linux tells of this process, in bytes. Unlike these, what getrusage tells includes the parent's peak."""
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines[name].split()[0])


def parameter_bytes(name: str, shape: Shape) -> int:
    return 4 * sum(math.prod(size) for size in DISTRIBUTIONS[name].shapes(*shape).values())


def memory_rows(shape: Shape) -> list[list[str]]:
    """A row for each of the guides and of what computes them."""
    tensor = 4 * math.prod(shape)
    rows = []
    for name in GUIDES:
        for kernels in DISTRIBUTIONS[name].kernels:
            set_kernels(kernels)
            function = OPERATIONS["guide step"](DISTRIBUTIONS[name], shape)
            function()
            allocated = peak_bytes(function)
            del function
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                held = pool.apply(resident_bytes, (name, kernels, shape))
            figures = (2 * parameter_bytes(name, shape), allocated, held)
            rows.append([name, kernels, *(f"{figure / tensor:.2f}" for figure in figures)])
    set_kernels("auto")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--d", type=int, default=10_000_000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    shape = (arguments.batch, arguments.d)
    print_table(f"Tensors of {name_of(shape)} that a guide's step takes", HEADER, memory_rows(shape))


if __name__ == "__main__":
    main()
