"""The maximum mean discrepancy, by which the InfoVAE compares the aggregate posterior with the prior."""

from torch import Tensor

__all__ = ["mmd"]


def mmd(x: Tensor, y: Tensor) -> Tensor:
    r"""The unbiased estimate of the squared maximum mean discrepancy between the distributions of two samples (Gretton
    et al., *A kernel two-sample test*, 2012, eq. (3)),

    .. math:: \frac{1}{n(n-1)} \sum_{i \ne j} \big(k(x_i, x_j) + k(y_i, y_j)\big)
        - \frac{2}{n^2} \sum_{i, j} k(x_i, y_j),

    with the Gaussian kernel :math:`k(x, y) = \exp(-\lVert x - y \rVert^2 / 2d)`, whose width is that of a standard
    normal distribution over :math:`\mathbb{R}^d`.

    Example:

        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> x, y = torch.randn(2, 500, 3, generator=generator)
        >>> mmd(x, y) < 0.01 < mmd(x, y + 1)
        tensor(True)

    Args:
        x (Tensor): of shape ``(..., n, d)`` with n at least 2.
        y (Tensor): of the same shape.

    Returns:
        Tensor: of shape ``(...)``. It can be negative.

    Raises:
        ValueError: if n is less than 2 or the shapes differ.
    """
    if x.shape != y.shape or x.shape[-2] < 2:
        raise ValueError(f"mmd needs two samples of one shape (..., n, d), n > 1; got {x.shape} and {y.shape}")
    n, d = x.shape[-2:]

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        # ||a||^2 + ||b||^2 - 2 a.b, which unlike torch.cdist has a second derivative where a = b. Rounding can leave it
        # below zero, far below for large vectors.
        squares = a.square().sum(-1).unsqueeze(-1) + b.square().sum(-1).unsqueeze(-2) - 2 * a @ b.mT
        return (-squares.clamp(min=0) / (2 * d)).exp()

    within = kernel(x, x) + kernel(y, y)
    off_diagonal = within.sum((-2, -1)) - within.diagonal(dim1=-2, dim2=-1).sum(-1)
    return off_diagonal / (n * (n - 1)) - 2 * kernel(x, y).mean((-2, -1))
