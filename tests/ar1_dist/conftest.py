import pytest

from ar1_dist.kernels import set_kernels


@pytest.fixture(params=["numba", "torch"])
def each_path(request):
    """Computed by the kernels, which have to compile, and by plain torch."""
    set_kernels(request.param)
    yield request.param
    set_kernels("auto")
