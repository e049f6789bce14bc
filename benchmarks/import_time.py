"""What importing costs, each time in a fresh interpreter with its files in the system's cache.

- ``import ar1_dist`` after torch and pyro: the seconds that it adds to theirs;
- ``vae-models --help``: from the start of the interpreter to its end.

    python benchmarks/import_time.py [--rounds 5]
"""

import argparse
import statistics
import subprocess
import sys
import time

from common import print_table

IMPORT = """
import time
start = time.perf_counter()
import torch, pyro
between = time.perf_counter()
import ar1_dist
print(between - start, time.perf_counter() - between)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    imports = [[float(value) for value in run("-c", IMPORT).split()] for _ in range(1 + rounds)][1:]
    helps = [seconds_of_help() for _ in range(1 + rounds)][1:]
    rows = {
        "import torch, pyro": [values[0] for values in imports],
        "import ar1_dist, after these": [values[1] for values in imports],
        "vae-models --help": helps,
    }
    print_table(
        f"Importing, median of {rounds} fresh interpreters",
        ["what", "seconds", "from", "to"],
        [
            [name, *(f"{figure:.3f}" for figure in (statistics.median(values), min(values), max(values)))]
            for name, values in rows.items()
        ],
    )


def seconds_of_help() -> float:
    start = time.perf_counter()
    run("-m", "vae_models", "--help")
    return time.perf_counter() - start


def run(*arguments: str) -> str:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    main()
