"""What the first call of each operation costs, in fresh processes: numba is loaded, and compiles each kernel or reads
it from the folder where it keeps them, which is empty for *compiled*.

    python benchmarks/first_call.py [--batch 128] [--d 20] [--kernels numba]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

import torch
from common import print_table
from operations import DISTRIBUTIONS, OPERATIONS, REFERENCE, SEPARATE, Shape, name_of

from ar1_dist import set_kernels

__all__ = ["HEADER", "first_call_rows"]

STEPS = ("guide step", "log_prob and gradient", "entropy and gradient")
HEADER = ["ms of the first", "plain torch", "compiled", "read from disk"]


def first_call_rows(shape: Shape, kernels: str = "numba") -> list[list[str]]:
    """A row of milliseconds for each operation, in the order in which they are called."""
    with tempfile.TemporaryDirectory() as folder:
        columns = [seconds_in_a_fresh_process(shape, choice, folder) for choice in ("torch", kernels, kernels)]
    rows = {name: [column[name] for column in columns] for name in STEPS}
    rows["all"] = [sum(values) for values in zip(*rows.values(), strict=True)]
    return [[name, *(f"{1e3 * value:,.0f}" for value in values)] for name, values in rows.items()]


def seconds_in_a_fresh_process(shape: Shape, kernels: str, folder: str) -> dict[str, float]:
    arguments = ["--child", "--kernels", kernels, "--batch", str(shape[0]), "--d", str(shape[1])]
    process = subprocess.run(
        [sys.executable, __file__, *arguments],
        env=os.environ | {"NUMBA_CACHE_DIR": folder},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(process.stdout)


def seconds_here(shape: Shape, kernels: str) -> dict[str, float]:
    """Of each operation's first call in this process."""
    set_kernels(kernels)
    OPERATIONS[STEPS[0]](DISTRIBUTIONS[REFERENCE], shape)()  # what torch does once
    seconds = {}
    for name in STEPS:
        function = OPERATIONS[name](DISTRIBUTIONS[SEPARATE], shape)
        start = time.perf_counter()
        function()
        seconds[name] = time.perf_counter() - start
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--d", type=int, default=20)
    parser.add_argument("--kernels", default="numba")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    shape = (arguments.batch, arguments.d)
    if arguments.child:
        print(json.dumps(seconds_here(shape, arguments.kernels)))
    else:
        title = f"The first call of each operation of {SEPARATE}; {name_of(shape)}"
        print_table(title, HEADER, first_call_rows(shape, arguments.kernels))


if __name__ == "__main__":
    main()
