from pathlib import Path

import pytest

from vae_models.model.vae import VAE
from vae_models.settings.config import PRESETS, Config
from vae_models.study.plan import PARTS, StudyRun, Variant, plan


def test_what_the_study_is_to_have():
    every = plan()
    for preset in PRESETS:
        for dataset in ("mnist", "fashion-mnist"):
            for latent_dim in (10, 20):
                runs = [r for r in every if (r.part, r.dataset, r.latent_dim) == (preset, dataset, latent_dim)]
                names = {r.variant.name for r in runs}
                expected = {"diagonal", "ar1", "markov", "low_rank-1", "low_rank-2", "full"}
                if latent_dim == 20:
                    expected |= {"banded-2", "banded-3", "banded-8"}
                assert names == expected
                assert {r.epochs for r in runs} == {15}
                assert {r.seed for r in runs} == set(range(5 if preset == "vanilla" else 3))
    assert {r.binarize for r in every if r.part == "binary"} == {"dynamic"}
    assert not any(r.dataset == "digits" for r in every)
    changes = {"walk", "rho", "walk-sampled", "rho-sampled"}
    assert {r.variant.change for r in every if r.part.startswith("published")} == changes
    assert {r.preset for r in every if r.part.startswith("published")} == set(PRESETS)


def test_names_are_unique():
    every = plan(datasets=["mnist", "fashion-mnist", "digits"])
    assert len({run.name for run in every}) == len(every)


def test_order():
    runs = plan(["ablation", "vanilla"], datasets=["mnist"], seeds=2)
    assert [run.part for run in runs] == ["ablation"] * (5 * 4) + ["vanilla"] * (2 * (9 + 6))
    vanilla = [run for run in runs if run.part == "vanilla"]
    assert [run.seed for run in vanilla] == [0] * 15 + [1] * 15
    assert [run.latent_dim for run in vanilla[:15]] == [20] * 9 + [10] * 6
    assert [run.variant.name for run in vanilla[:2]] == ["diagonal", "ar1"]


def test_filters():
    runs = plan(["vanilla"], datasets=["digits"], posteriors=["low_rank"], latent_dims=[10], seeds=1, epochs=3)
    assert [run.name for run in runs] == ["vanilla_digits_low_rank-1_d10_e3_s0", "vanilla_digits_low_rank-2_d10_e3_s0"]


@pytest.mark.parametrize(("posterior", "change"), [("flow", ""), ("ar1", "rho_zero")])
def test_unknown_variant(posterior, change):
    with pytest.raises(ValueError, match="unknown (posterior 'flow'|change 'rho_zero'); choose from"):
        Variant(posterior, change)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parts": ["paper"]}, "unknown part 'paper'; choose from vanilla, published"),
        ({"datasets": ["folder"]}, "unknown dataset 'folder'; choose from mnist, fashion-mnist, digits"),
        ({"posteriors": ["flow"]}, "unknown posterior 'flow'; choose from diagonal, ar1"),
        ({"seeds": 0}, "seeds must be at least 1, got 0"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"latent_dims": [7]}, "there is no such run in the study"),
        ({"parts": ["published"], "posteriors": ["full"]}, "there is no such run in the study"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        plan(**options)


def test_settings_are_the_presets():
    for run in plan(["vanilla", "beta", "cnn", "info"], seeds=1):
        config = run.config(Path("data"))
        preset = Config.from_preset(run.preset)
        for name in ("network", "objective", "image_size", "batch_size", "learning_rate", "plateau_patience", "preset"):
            assert getattr(config, name) == getattr(preset, name)
        assert (config.posterior, config.latent_dim) == (run.variant.posterior, run.latent_dim)


def test_every_variant_is_a_vae():
    variants = {variant for part in PARTS.values() for variant in part.variants}
    sizes = {}
    for variant in variants:
        run = StudyRun("vanilla", "vanilla", "digits", "none", variant, 6, 0, 15)
        vae = VAE.build((1, 8, 8), **run.config(Path("data")).vae_arguments())
        sizes[variant.name] = sum(layer.out_features for layer in vae.posterior.children())
    assert sizes["ar1"] == sizes["ar1-rho-zero"] == 6 + 1 + 1
    assert sizes["ar1-per-pair"] == 6 + 1 + 5
    assert sizes["markov-shared"] == 6 + 6 + 1
    assert sizes["markov"] == 6 + 6 + 5
    assert sizes["banded-2"] == 6 + 6 + 5 + 4


def test_changed_training_has_other_settings():
    """So that the folder of one is not resumed as the other."""
    variants = [Variant("ar1", change) for change in ("", "walk", "rho", "rho-zero", "per-pair")]
    configs = [StudyRun("", "vanilla", "digits", "none", each, 6, 0, 15).config(Path("data")) for each in variants]
    assert len({str(config) for config in configs}) == len(configs)


def test_what_is_only_evaluated():
    run = StudyRun("ablation", "vanilla", "mnist", "none", Variant("ar1", "permuted"), 10, 0, 15)
    assert run.trained.name == "vanilla_mnist_ar1_d10_e15_s0"
    assert run.trained.trained == run.trained
    run = StudyRun("published", "vanilla", "mnist", "none", Variant("ar1", "walk-sampled"), 10, 0, 15)
    assert run.trained.name == "vanilla_mnist_ar1-walk_d10_e15_s0"
    assert run.config(Path("data")) == run.trained.config(Path("data"))
