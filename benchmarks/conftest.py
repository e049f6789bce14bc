"""Options of ``pytest benchmarks``, and what its reports say of the machine."""

import pytest
import torch
from common import machine
from operations import Case, cases

from ar1_dist import set_kernels


def pytest_addoption(parser):
    parser.addoption(
        "--shapes", nargs="+", type=shape_of, help="batch sizes and dimensions, as 128x64; the table's, if not given"
    )


def shape_of(text):
    n, d = text.split("x")
    return int(n), int(d)


def pytest_ignore_collect(collection_path):
    """The scripts beside the test hold no doctests and take their time to import."""
    return True if collection_path.suffix == ".py" and not collection_path.name.startswith("test_") else None


def pytest_generate_tests(metafunc):
    given = metafunc.config.getoption("--shapes")
    table = cases() if given is None else cases(given, [])
    names = ("operation", "distribution", "kernels", "shape")
    metafunc.parametrize(names, [(c.operation, c.distribution, c.kernels, c.shape) for c in table], ids=map(str, table))


def pytest_benchmark_update_machine_info(machine_info):
    machine_info["described"] = machine()


@pytest.fixture
def case(operation, distribution, kernels, shape):
    set_kernels(kernels)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield Case(operation, distribution, kernels, shape)
    set_kernels("auto")
