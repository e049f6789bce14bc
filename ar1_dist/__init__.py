"""The first-order autoregressive (Gauss–Markov) normal distribution for PyTorch and Pyro."""

from ar1_dist import kl as kl
from ar1_dist.ar1_normal import AR1Normal
from ar1_dist.guides.analytic_kl import assert_analytic_kl
from ar1_dist.guides.autoguide import AutoAR1Normal
from ar1_dist.guides.event_time import MovedimDistribution
from ar1_dist.guides.messenger import AutoAR1NormalMessenger
from ar1_dist.kernels import set_kernels
from ar1_dist.transforms import AR1Transform

__all__ = ["AR1Normal", "AR1Transform", "AutoAR1Normal", "AutoAR1NormalMessenger", "assert_analytic_kl", "set_kernels"]
__version__ = "0.1.0"

kl.look_up_every_pair(MovedimDistribution)
