r"""Training objectives, all of one form: per image,

.. math:: \mathbb{E}_q \log p(x \mid z) - \beta \operatorname{KL}(q(z \mid x) \Vert p(z))
    - \gamma \operatorname{MMD}^2(q(z), p(z)) .
"""

from dataclasses import dataclass

from vae_models.settings.setting import setting

__all__ = ["Objective"]


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

    beta: float = setting(1.0, "Weight of the KL divergence.", min=0, shown="the preset's")
    warmup_epochs: int = setting(0, "Epochs over which beta rises linearly from 0.", min=0, shown="the preset's")
    mmd_weight: float = setting(
        0.0,
        "Weight of the MMD between aggregate posterior and prior. InfoVAE's alpha and lambda are beta = 1 - alpha and "
        "this weight = alpha + lambda - 1.",
        min=0,
        shown="the preset's",
    )

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
