"""What the benchmarks share: timing side by side, and a table that names the machine."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

__all__ = ["interleaved", "machine", "markdown", "print_table", "ratio"]


def interleaved(
    functions: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of every call. Every round calls each function once, so that a machine that is slow for a while is slow
    for all of them. A first round is not counted. What has one thread can be timed by ``time.process_time``, which
    other programs on the machine do not lengthen."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(1 + rounds):
        for name, function in functions.items():
            start = clock()
            function()
            seconds[name].append(clock() - start)
    return {name: values[1:] for name, values in seconds.items()}


def ratio(seconds: Sequence[float], reference: Sequence[float]) -> float:
    """The median over rounds of the ratio of two that were timed side by side."""
    return statistics.median(a / b for a, b in zip(seconds, reference, strict=True))


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table in Markdown under a line that says what was measured, and on what."""
    print(f"{title}. {machine()}.\n\n{markdown(header, rows)}")


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, whose first column is text and whose others are numbers."""
    lines = (header, ["---"] + ["---:"] * (len(header) - 1), *rows)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def machine() -> str:
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    return f"{_processor()}, {os.cpu_count()} cores, {versions}"


def _processor() -> str:
    """The name of the processor's model, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
