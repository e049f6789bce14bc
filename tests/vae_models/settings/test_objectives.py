import math

import pytest

from vae_models.settings.objectives import Objective


def test_weights_of_the_published_objectives():
    assert Objective() == Objective(beta=1.0, warmup_epochs=0, mmd_weight=0.0)
    assert Objective.beta_vae(4.0, warmup_epochs=3) == Objective(beta=4.0, warmup_epochs=3)
    assert Objective.info_vae(alpha=0.0, lambda_=1.0) == Objective()  # no more than the ELBO
    assert Objective.info_vae(alpha=1.0, lambda_=10.0) == Objective(beta=0.0, mmd_weight=10.0)  # MMD alone


def test_warm_up_is_linear():
    objective = Objective.beta_vae(4.0, warmup_epochs=8)
    assert [objective.beta_at(epoch) for epoch in (0, 1, 2.5, 8, 100)] == [0.0, 0.5, 1.25, 4.0, 4.0]
    assert Objective(beta=2.0).beta_at(0) == 2.0


@pytest.mark.parametrize("bad", [{"beta": -1.0}, {"warmup_epochs": -1}, {"mmd_weight": -0.5}, {"beta": math.nan}])
def test_weights_are_not_negative(bad):
    with pytest.raises(ValueError, match=f"{next(iter(bad))} must be finite and not negative"):
        Objective(**bad)
