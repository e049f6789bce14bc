"""Every test is seeded, single-threaded and starts with an empty Pyro parameter store."""

import os
import signal

import pyro
import pytest
import torch
from hypothesis import HealthCheck, settings

from ar1_dist import set_kernels

settings.register_profile("ci", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("explore", deadline=None, max_examples=2000, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

# A shell ignores SIGINT in its background jobs, and what they start inherits that; some tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Threads of several test processes wait for each other on small tensors, and cost a hundredfold.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _fresh_state():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    pyro.enable_validation()  # which building any torch.compile wrapper turns off


@pytest.fixture
def plain_path():
    set_kernels("torch")
    yield
    set_kernels("auto")
