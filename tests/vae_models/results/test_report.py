import base64
import os
import re
from html.parser import HTMLParser

import pytest
import torch

from vae_models.files import FileError
from vae_models.model.vae import VAE
from vae_models.results.evaluation import evaluate
from vae_models.results.figures import correlations, png
from vae_models.results.report import Picture, render, write_report

RESULTS = {
    "diagonal": {"nll": 90.0, "nll_se": 0.3, "kl": 20.0, "kl_se": 0.1, "mean_abs_rho": None, "active_units": 9},
    "ar1": {"nll": 88.0, "nll_se": 0.3, "kl": 15.0, "kl_se": 0.1, "mean_abs_rho": 0.25, "active_units": 12},
}
HOSTILE = """<script>alert("1")</script>&'"""


class Page(HTMLParser):
    """The table rows, pictures and tags of a page, of which each must be closed in its turn."""

    VOID = frozenset({"meta", "img"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.bold: list[str] = []
        self.text: dict[str, list[str]] = {}
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        assert len(attributes) == len(dict(attributes)), f"an attribute of {tag} is given twice"
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.text.setdefault(self.open[-1], []).append(data)
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data
        if "strong" in self.open:
            self.bold.append(data)


@pytest.fixture(scope="module")
def picture() -> Picture:
    return Picture(png(correlations({"ar1": torch.eye(2)}, title="")), caption="a caption", alt="an alternative")


def page(results=RESULTS, title="A title", settings=None, pictures=()) -> Page:
    return Page(render(title, settings or {}, results, pictures))


def test_comparison():
    rows = page().rows
    assert rows[0] == ["", "diagonal", "ar1"]
    assert rows[1:5] == [
        ["KL", "20.00 ± 0.10", "15.00 ± 0.10"],
        ["NLL", "90.00 ± 0.30", "88.00 ± 0.30"],
        ["Mean |ρ|", "–", "0.25"],
        ["Active units", "9", "12"],
    ]


def test_one_run():
    parsed = page({"ar1": RESULTS["ar1"]})
    assert parsed.rows[:3] == [["", "ar1"], ["KL", "15.00 ± 0.10"], ["NLL", "88.00 ± 0.30"]]
    assert parsed.bold == []
    assert ("details", {"open": None}) in parsed.tags


@pytest.mark.parametrize(
    ("metric", "values", "errors", "bold"),
    [
        ("nll", [90.0, 88.0], [0.3, 0.3], ["88.00"]),
        ("nll", [90.0, 88.0], [0.8, 0.8], []),  # 2 is less than 2 sqrt(0.8^2 + 0.8^2)
        ("nll", [90.0, 88.0], [0.7, 0.7], ["88.00"]),
        ("nll", [90.0, 88.1, 88.0], [0.1, 0.1, 0.1], []),  # the best is clear of the worst alone
        ("negative_elbo", [88.0, 90.0], [0.1, 0.1], ["88.00"]),
        ("gap", [3.0, 2.0], [0.1, 0.1], ["2.00"]),
        ("effective_sample_size", [3.0, 2.0], [0.1, 0.1], ["3.00"]),
        ("kl", [3.0, 2.0], [0.1, 0.1], []),  # less is not better: the reconstruction pays for it
        ("reconstruction", [3.0, 2.0], [0.1, 0.1], []),
        ("nll", [None, 88.0], [None, 0.1], []),
        ("nll", [90.0, 88.0], [None, None], []),
        ("nll", [88.0, 88.0], [0.0, 0.0], []),
    ],
)
def test_bold_only_beyond_two_standard_errors(metric, values, errors, bold):
    results = {str(i): {metric: v, f"{metric}_se": e} for i, (v, e) in enumerate(zip(values, errors, strict=True))}
    assert page(results).bold == bold


@pytest.mark.parametrize(
    ("value", "error", "expected"),
    [
        (123.456, 1.234, "123.5 ± 1.2"),
        (0.12345, 0.00678, "0.1235 ± 0.0068"),
        (12345.6, 123.0, "12,346 ± 123"),
        (-123.456, 1.234, "−123.5 ± 1.2"),
        (0.0, 0.0, "0.000 ± 0.000"),
        (float("nan"), 0.1, "–"),
    ],
)
def test_numbers_to_two_digits_of_the_error(value, error, expected):
    assert page({"ar1": {"nll": value, "nll_se": error}}).rows[1] == ["NLL", expected]


def test_further_numbers_and_nothing_else():
    rows = page({"a": {"seconds_per_epoch": 1.23456, "history": [1.0], "name": "x", "done": True, "steps": 12345}}).rows
    assert rows == [["", "a"], ["Seconds per epoch", "1.235"], ["Steps", "12,345"]]


def test_settings():
    settings = {"seed": 0, "objective": {"beta": 4.0, "mmd_weight": 0.0}, "options": {}, "early_stopping": None}
    rows = page(settings=settings | {"color": False, "channels": [4, 8]}).rows
    assert rows[-6:] == [
        ["seed", "0"],
        ["objective", "beta 4.0, mmd_weight 0.0"],
        ["options", "none"],
        ["early_stopping", "none"],
        ["color", "no"],
        ["channels", "4, 8"],
    ]


def meanings(parsed: Page) -> dict[str, str]:
    return dict(zip(parsed.text["dt"], parsed.text["dd"], strict=True))


def test_every_metric_is_explained_below_the_table():
    """All that evaluating and comparing give, whether there is one run or several."""
    figures = evaluate(VAE.build((1, 8, 8), latent_dim=3), torch.rand(4, 1, 8, 8), num_samples=2)
    figures |= {"head_parameters": 9, "epochs": 3, "best_epoch": 2, "seconds_per_epoch": 0.5}
    for results in ({"a": figures}, {"a": figures, "b": figures}):
        parsed = page(results)
        assert [row[0] for row in parsed.rows[1:]] == list(meanings(parsed))
        assert ("details", {"open": None}) in parsed.tags


def note(results, **settings) -> str:
    return page(results, settings=settings).text["p"][0]


def test_few_effective_samples_are_said():
    few, enough = {"nll": 88.0, "effective_sample_size": 1.4}, {"nll": 88.0, "effective_sample_size": 2.0}
    assert "Of a, c NLL and gap are loose" in note({"a": few, "b": enough, "c": few})
    assert "loose" not in note({"b": enough, "d": {"nll": 1.0}})
    assert "is at least so much" in meanings(page({"a": {"gap": 1.0}}))["Gap"]


@pytest.mark.parametrize(
    ("likelihood", "binarize", "said"),
    [("bernoulli", "none", True), ("bernoulli", "static", False), ("gaussian", "none", False)],
)
def test_grey_values_under_the_bernoulli_likelihood_have_no_bound(likelihood, binarize, said):
    assert ("no bounds on" in note(RESULTS, likelihood=likelihood, binarize=binarize)) == said


def test_pictures(picture):
    parsed = page(pictures=[picture])
    ((_, image),) = [each for each in parsed.tags if each[0] == "img"]
    prefix, data = image["src"].split(",")
    assert prefix == "data:image/png;base64"
    assert base64.b64decode(data, validate=True) == picture.png
    assert image["alt"] == "an alternative"
    assert int(image["width"]) == pytest.approx(5.8 * 96, abs=1)
    assert int(image["height"]) == pytest.approx(5 * 96, abs=1)
    assert parsed.text["figcaption"] == ["a caption"]


def test_needs_no_other_file(picture):
    html = render("A title", {"seed": 0}, RESULTS, [picture])
    tags = Page(html).tags
    assert not {tag for tag, _ in tags} & {"script", "link", "iframe", "object", "base", "a", "form"}
    sources = [
        value
        for _, attributes in tags
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "action")
    ]
    assert len(sources) == 1
    assert sources[0].startswith("data:image/png")
    assert not any(name.startswith("on") for _, attributes in tags for name in attributes)
    assert not re.search(r"https?:|//|@import|url\(", re.sub(r'base64,[^"]*', "", html))
    policy = {"http-equiv": "Content-Security-Policy"}.items()
    assert any(policy <= attributes.items() for _, attributes in tags)


def test_everything_is_escaped(picture):
    settings, pictures = {HOSTILE: {HOSTILE: HOSTILE}}, [picture._replace(caption=HOSTILE, alt=HOSTILE)]
    harmless = page({"a": {"nll": 1, "b": 2}}, settings={"a": 1}, pictures=[picture])
    hostile = page({HOSTILE: {"nll": 1, HOSTILE: 2}}, HOSTILE, settings, pictures)
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in harmless.tags]
    assert "".join(hostile.text["h1"]) == "".join(hostile.text["title"]) == HOSTILE
    assert hostile.rows[0] == ["", HOSTILE]
    assert hostile.rows[-1] == [HOSTILE, f"{HOSTILE} {HOSTILE}"]
    assert next(attributes for tag, attributes in hostile.tags if tag == "img")["alt"] == HOSTILE
    assert "".join(hostile.text["figcaption"]) == HOSTILE


def test_write(tmp_path, picture):
    arguments = {"title": "Ein Titel: ρ", "settings": {"seed": 0}, "results": RESULTS, "pictures": [picture]}
    path = tmp_path / "report.html"
    write_report(path, **arguments)
    assert path.read_text(encoding="utf-8") == render(*arguments.values())
    assert [each.name for each in tmp_path.iterdir()] == ["report.html"]
    with pytest.raises(FileError, match="nowhere"):
        write_report(tmp_path / "nowhere" / "report.html", **arguments)


def test_folder_whose_name_is_no_utf8(picture, tmp_path):
    path = tmp_path / "report.html"
    settings = {"data_root": os.fsdecode(b"caf\xe9")}
    write_report(path, title="t", settings=settings, results=RESULTS, pictures=[picture])
    assert ["data_root", "caf\\udce9"] in Page(path.read_text(encoding="utf-8")).rows
