r"""Training objectives, all of one form: per image,

.. math:: \mathbb{E}_q \log p(x \mid z) - \beta \operatorname{KL}(q(z \mid x) \Vert p(z))
    - \gamma \operatorname{MMD}^2(q(z), p(z)) .
"""

from dataclasses import dataclass

from torch import Tensor

__all__ = ["Objective", "mmd"]


@dataclass(frozen=True)
class Objective:
    r"""The weights of the general form. The default is the evidence lower bound.

    Example:

        >>> Objective.beta_vae(4.0)
        Objective(beta=4.0, warmup_epochs=0, mmd_weight=0.0)
        >>> Objective.info_vae(alpha=0.25, lambda_=10.0)
        Objective(beta=0.75, warmup_epochs=0, mmd_weight=9.25)

    Args:
        beta (float): :math:`\beta`, not negative.
        warmup_epochs (int): epochs over which :math:`\beta` rises linearly from zero.
        mmd_weight (float): :math:`\gamma`, not negative.

    Raises:
        ValueError: if one of them is negative or not finite.
    """

    beta: float = 1.0
    warmup_epochs: int = 0
    mmd_weight: float = 0.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} must be finite and not negative, got {value}")

    @classmethod
    def beta_vae(cls, beta: float, *, warmup_epochs: int = 0) -> "Objective":
        """The β-VAE (Higgins et al., 2017)."""
        return cls(beta=beta, warmup_epochs=warmup_epochs)

    @classmethod
    def info_vae(cls, alpha: float, lambda_: float) -> "Objective":
        r"""The InfoVAE with the maximum mean discrepancy (Zhao et al., arXiv:1706.02262, eq. (6)): :math:`\beta = 1 -
        \alpha` and :math:`\gamma = \alpha + \lambda - 1`."""
        return cls(beta=1 - alpha, mmd_weight=alpha + lambda_ - 1)

    def beta_at(self, epoch: float) -> float:
        r""":math:`\beta` after so many epochs, of which the one in progress may count in part."""
        return self.beta if epoch >= self.warmup_epochs else self.beta * epoch / self.warmup_epochs


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
