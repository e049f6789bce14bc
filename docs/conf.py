"""Sphinx's configuration. ``make docs`` builds docs/_build/html, without a network and with warnings as errors."""

import html
import os
import re
import sys
from pathlib import Path

from docutils import nodes
from math_core import LatexError, LatexToMathML
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ["OMP_NUM_THREADS"] = "1"

import ar1_dist  # noqa: E402 (from the folder above)

project = "ar1-dist"
author = copyright = "The ar1-dist authors"
version = release = ar1_dist.__version__
language = "en-GB"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "performance_table.md", "study/results", "study/runs"]  # which pages include

autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False
autodoc_typehints = "none"  # Args say it
napoleon_google_docstring, napoleon_numpy_docstring = True, False
napoleon_use_rtype = napoleon_use_ivar = False
python_use_unqualified_type_names = True

nitpicky = True  # a reference into this documentation that leads nowhere is an error; these are not in it
nitpick_ignore_regex = [
    ("py:mod", r"ar1_dist\.kernels\.triton"),
    ("py:.*", r"(torch|pyro|lightning|torchvision|matplotlib|rich|numpy|json|fcntl)\b.*"),
    ("py:(class|obj)", r"[\w ,.]*"),  # types in Args, in plain words
    ("py:exc", r"\w+"),
]

html_theme = "furo"
html_title = "ar1-dist"
html_static_path = ["_static"]
html_css_files = ["style.css"]
html_show_sourcelink = False
html_math_renderer = "mathml"


def setup(app: Sphinx) -> None:
    app.add_html_math_renderer("mathml", (_visit_inline, None), (_visit_block, None))
    app.connect("build-finished", _check_pages)


# Formulas become MathML when the pages are built: no script and no network are needed to read them.
_CONVERTER = LatexToMathML(fancy_error=False)


def _mathml(latex: str, *, block: bool) -> str:
    try:
        return _CONVERTER.convert_with_local_state(latex, displaystyle=block)
    except LatexError as error:
        raise ExtensionError(f"{error} in the formula {latex}") from error


def _visit_inline(writer: nodes.NodeVisitor, node: nodes.math) -> None:
    writer.body.append(_mathml(node.astext(), block=False))
    raise nodes.SkipNode


def _visit_block(writer: nodes.NodeVisitor, node: nodes.math_block) -> None:
    for latex in re.split(r"\n\s*\n", node.astext().strip()):  # a blank line starts a new formula
        numbered = r"\begin{equation}" + latex + r"\end{equation}" if r"\tag" in latex else latex
        writer.body.append(f'<div class="math">{_mathml(numbered, block=True)}</div>\n')
    raise nodes.SkipNode


# What is broken without a warning: a role that nobody has read, and the start of a docstring taken for a type, which
# napoleon does of whatever stands before a colon in the first line of a property.
_CODE = re.compile(r"<(script|style|math|pre|code)\b.*?</\1>", re.DOTALL)
_TYPE = re.compile(r'>Type<span class="colon">:</span></dt>\s*<dd[^>]*>(.*?)</dd>', re.DOTALL)
_ROLE = re.compile(r"\b(math|class|func|meth|attr|mod|data|exc|ref):(?! )")


def _check_pages(app: Sphinx, error: Exception | None) -> None:
    if error is not None or app.builder.format != "html":
        return
    for page in Path(app.outdir).rglob("*.html"):
        text = _CODE.sub("", page.read_text("utf-8"))
        types = [_plain(each) for each in _TYPE.findall(text)]
        broken = [each for each in types if len(each.split()) > 5] + [
            each.group() for each in _ROLE.finditer(_plain(text))
        ]
        if broken:
            raise ExtensionError(
                f"{page.relative_to(app.outdir)}: {broken[0]!r} is a sentence for a type, or raw markup"
            )


def _plain(text: str) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", text))
