"""The first-order autoregressive (Gauss–Markov) normal distribution for PyTorch and Pyro."""

from ar1_dist import inference as inference
from ar1_dist import kl as kl
from ar1_dist.ar1_normal import AR1Normal
from ar1_dist.transforms import AR1Transform

__all__ = ["AR1Normal", "AR1Transform"]
__version__ = "0.1.0"
