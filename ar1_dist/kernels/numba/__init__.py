r"""Kernels for a CPU, compiled by numba: an operation's value and its gradient, in a file for each.

Each kernel goes once over memory, row by row, with its arithmetic in float64, on one thread and without Python's lock.
They are compiled when first called, and kept on disk. Their formulas are those of the operations.

A kernel takes an empty array of the tensors' type; the addresses of all tensors, arguments first; the number of the
batch's rows; the numbers of rows of the arguments, and their widths; then options. An argument may have fewer rows than
the batch, which repeat, and rows of width 1 where it is shared; a result has all rows, and a gradient the width of its
argument. The gradient from above has all rows too or, with ``is_constant``, is one number for all of them. The
correlation of a pair is given as :math:`\rho` or, with ``atanh``, as :math:`\alpha = \operatorname{artanh} \rho`.
"""

import torch

from ar1_dist.kernels.numba.colouring import colour, colour_backward
from ar1_dist.kernels.numba.density import log_prob, log_prob_backward
from ar1_dist.kernels.numba.density_of_draw import log_prob_of_draw, log_prob_of_draw_backward
from ar1_dist.kernels.numba.determinant import log_det, log_det_backward
from ar1_dist.kernels.numba.divergence import kl_to_normal, kl_to_normal_backward
from ar1_dist.kernels.numba.recurrences import (
    linear_recurrence,
    linear_recurrence_backward,
    moebius_recurrence,
    moebius_recurrence_backward,
)

__all__ = [
    "available",
    "colour",
    "colour_backward",
    "kl_to_normal",
    "kl_to_normal_backward",
    "linear_recurrence",
    "linear_recurrence_backward",
    "log_det",
    "log_det_backward",
    "log_prob",
    "log_prob_backward",
    "log_prob_of_draw",
    "log_prob_of_draw_backward",
    "moebius_recurrence",
    "moebius_recurrence_backward",
]


def available(device: torch.device) -> bool:
    """Whether these operations compute on the device."""
    return device.type == "cpu"
