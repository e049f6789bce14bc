"""Kernels for CUDA devices, in Triton: an operation's value and its gradient, in a file for each."""

from ar1_dist.kernels.triton.colouring import colour, colour_backward
from ar1_dist.kernels.triton.recurrences import linear_recurrence, linear_recurrence_backward
from ar1_dist.kernels.triton.scan import available

__all__ = ["available", "colour", "colour_backward", "linear_recurrence", "linear_recurrence_backward"]
