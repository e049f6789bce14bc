"""The time of every operation at every shape, with pytest-benchmark; what they are is in operations.py.

Before every call that is timed the reference is called and timed as well, so that a machine that is slow for a while is
slow for both. The report holds the median of the ratios of such pairs as ``extra_info["ratio"]``. The number of rounds
is what fits into ``--benchmark-max-time``, and at least ``--benchmark-min-rounds`` unless that takes ten times as long.

    pytest benchmarks [--shapes 128x64 16x1024] [-k log_prob] [--benchmark-group-by=param:operation,param:shape]
"""

import time

from common import ratio
from memory import peak_bytes


def test_operation(case, benchmark, pytestconfig) -> None:
    function, reference = case.function, case.reference
    before: list[float] = []

    def time_reference() -> None:
        start = time.perf_counter()
        reference()
        before.append(time.perf_counter() - start)

    if benchmark.disabled:
        benchmark(function)
        return
    function()  # compiles
    budget, fewest = (pytestconfig.getoption(f"benchmark_{name}") for name in ("max_time", "min_rounds"))
    start = time.perf_counter()
    function()
    reference()
    once = time.perf_counter() - start
    rounds = max(int(float(budget) / once), min(fewest, int(10 * float(budget) / once)), 2)
    benchmark.group = f"{case.operation}, {case.shape[0]}x{case.shape[1]}"
    benchmark.pedantic(function, setup=time_reference, rounds=rounds, warmup_rounds=1)
    benchmark.extra_info["ratio"] = ratio(benchmark.stats.stats.data, before[1 : 1 + rounds])
    if case.operation == "guide step" and case.shape[0] == 1:
        benchmark.extra_info["peak_bytes"] = peak_bytes(function)
