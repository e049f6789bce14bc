"""The command ``reproduce``: a study of a few short runs on digits, from the first to the report."""

import signal

import pytest
from PIL import Image

from vae_models.cli.main import main
from vae_models.results import evaluation
from vae_models.study import records
from vae_models.study.plan import PARTS

SMALL = ["--dataset", "digits", "--latent-dim", "10", "--seeds", "1", "--epochs", "2", "--posterior", "ar1"]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Two runs and then, when they are done, three more."""
    folder = tmp_path_factory.mktemp("study")
    small = [*SMALL, "--out", str(folder)]
    assert main(["reproduce", "--only", "vanilla", "--posterior", "diagonal", *small]) == 0
    before = (folder / "runs.csv").read_bytes()
    assert main(["reproduce", "--only", "vanilla", "--only", "ablation", *small]) == 0
    assert (folder / "runs.csv").read_bytes().startswith(before)
    return folder


def test_rows(study):
    rows = records.read_runs(study)
    assert [(row["part"], row["posterior"], row["change"]) for row in rows] == [
        ("vanilla", "diagonal", ""),
        ("vanilla", "ar1", ""),
        ("ablation", "ar1", "rho-zero"),
        ("ablation", "ar1", "per-pair"),
        ("ablation", "ar1", "permuted"),
    ]
    assert {(row["num_images"], row["num_samples"], row["epochs"]) for row in rows} == {(360, 200, 2)}
    assert len(records.read_epochs(study)) == 4 * 2


def test_report_is_made_of_the_rows_alone(study, tmp_path, capsys):
    for name in ("runs.csv", "epochs.csv"):
        (tmp_path / name).write_bytes((study / name).read_bytes())
    assert main(["reproduce", "--report", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"Wrote tables and figures to {tmp_path / 'results'}\n"
    results = {path.name: path.read_bytes() for path in (tmp_path / "results").iterdir()}
    assert results == {path.name: path.read_bytes() for path in (study / "results").iterdir()}
    pictures = {f"{part}_{kind}.png" for part in ("vanilla", "ablation") for kind in ("loss", "differences")}
    tables = {f"{name}.md" for name in ("headline", "status", "summary", "progress", *PARTS)}
    assert set(results) == pictures | tables
    vanilla = results["vanilla.md"].decode()
    for row in records.read_runs(study)[:2]:
        assert f"| {row['posterior']} | 1 | {row['negative_elbo']:.2f} |" in vanilla
    assert results["cnn.md"].decode().endswith("Not run.\n")
    for name in pictures:
        assert f"]({name})" in results[name.split("_")[0] + ".md"].decode()
        with Image.open(tmp_path / "results" / name) as image:
            image.load()


def test_list(study, tmp_path, capsys):
    arguments = ["reproduce", "--list", "--only", "vanilla", "--only", "published", *SMALL]
    assert main([*arguments, "--out", str(study)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "done  vanilla  vanilla_digits_ar1_d10_e2_s0"
    assert [line.split()[0] for line in lines[1:5]] == ["open"] * 4
    assert lines[5] == f"1 of 5 runs are done in {study}"
    assert main([*arguments, "--out", str(tmp_path / "none")]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("0 of 5 runs")
    assert not (tmp_path / "none").exists()


def test_nothing_is_left_to_do(study, capsys, monkeypatch):
    monkeypatch.setattr("vae_models.training.runs.train", lambda *_, **__: pytest.fail("trained"))
    assert main(["reproduce", "--only", "vanilla", *SMALL, "--out", str(study)]) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"1 of 1 runs are done in {study}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "paper"], "unknown part 'paper'; choose from vanilla, "),
        (["--dataset", "folder"], "unknown dataset 'folder'"),
        (["--posterior", "flow"], "unknown posterior 'flow'"),
        (["--seeds", "0"], "'--seeds'"),
        (["--latent-dim", "3"], "there is no such run in the study"),
        (["--report"], "there is no finished run in "),
        (["--only", "vanilla", "--data-root", "/dev/null/data"], "MNIST is not whole in /dev/null/data"),
    ],
)
def test_bad_input_is_one_line(arguments, message, tmp_path, capsys, monkeypatch):
    if "--data-root" in arguments:
        monkeypatch.setattr("vae_models.data.loading._download", _no_network)
    assert main(["reproduce", "--out", str(tmp_path / "out"), *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("vae-models: ")
    assert message in line


def _no_network(class_name, data_root, raw):
    from vae_models.data.loading import DataError

    raise DataError(f"{class_name} is not whole in {data_root} and could not be downloaded to it")


def test_damaged_rows(tmp_path, capsys):
    (tmp_path / "runs.csv").write_text("run\n")
    assert main(["reproduce", "--list", "--out", str(tmp_path)]) == 2
    assert "runs.csv is damaged" in capsys.readouterr().err


def test_run_that_fails_does_not_end_the_study(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("vae_models.training.module.loss_per_image", _nan_for_ar1)
    arguments = ["reproduce", "--only", "vanilla", *SMALL, "--posterior", "markov", "--out", str(tmp_path)]
    assert main(arguments) == 1
    assert records.finished(tmp_path) == {"vanilla_digits_markov_d10_e2_s0"}
    error = capsys.readouterr().err
    assert "vanilla_digits_ar1_d10_e2_s0 failed: the training loss is nan, in epoch 1" in error
    assert error.splitlines()[-1] == "vae-models: 1 of 2 runs failed: vanilla_digits_ar1_d10_e2_s0"
    monkeypatch.undo()
    assert main(arguments) == 0
    assert len(records.finished(tmp_path)) == 2


def _nan_for_ar1(vae, x):
    from vae_models.model.posteriors import AR1

    nan = float("nan") if isinstance(vae.posterior, AR1) else 1.0
    return nan * -vae.decode(vae.encode(x).rsample()).log_prob(x).mean()


def test_train_leaves_a_run_of_the_study_alone(tmp_path, capsys):
    """It knows nothing of the objective with which that goes on."""
    arguments = ["reproduce", "--only", "published", *SMALL, "--out", str(tmp_path)]
    assert main(arguments) == 0
    place = tmp_path / "runs" / "vanilla_digits_ar1-walk_d10_e2_s0"
    (place / "metrics.json").unlink()
    before = {path.name: path.read_bytes() for path in place.iterdir() if path.is_file()}
    assert main(["train", "--out", str(place), "--resume"]) == 2
    assert "holds a run of the study (vanilla, walk): vae-models reproduce goes on with it" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in place.iterdir() if path.is_file()} == before


def test_ctrl_c_keeps_what_is_finished(tmp_path, capsys, monkeypatch):
    evaluate, calls = evaluation.evaluate, []

    def interrupted(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return evaluate(*arguments, **options)

    monkeypatch.setattr(evaluation, "evaluate", interrupted)
    assert main(["reproduce", "--only", "ablation", *SMALL, "--out", str(tmp_path / "study")]) == 130
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("vae-models: interrupted; what is finished is kept")
    assert "Traceback" not in error
    first, second = "vanilla_digits_ar1-rho-zero_d10_e2_s0", "vanilla_digits_ar1-per-pair_d10_e2_s0"
    assert records.finished(tmp_path / "study") == {first}
    assert (tmp_path / "study" / "runs" / second / "model.safetensors").exists()
    assert not (tmp_path / "study" / "results").exists()
