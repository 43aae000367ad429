"""The site: `make docs` builds build/docs from the pages here, the docstrings and the tables of docs/results.

The pages are written to be read in the repository too; so the site follows their links, and not the other way round.
"""

from __future__ import annotations

import csv
import importlib
import inspect
import re
from itertools import groupby
from pathlib import Path
from types import ModuleType
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert

import argprune

project = "argprune"
author = "the argprune developers"
version = release = argprune.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
html_theme = "furo"
html_title = f"argprune {release}"
html_static_path = ["_static"]
html_css_files = ["wide-tables.css"]
html_copy_source = False
exclude_patterns = ["_build"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
# Formulas are read by people without a network too: MathML, which browsers draw themselves.
html_math_renderer = "mathml"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 100

COLUMNS = {
    "run": "run",
    "task": "task",
    "sparsity_target": "sparsity",
    "seed": "seed",
    "option.learning_rate": "rate",
    "validation_accuracy": "validation",
    "test_accuracy": "test",
    "dense_test_accuracy": "dense, test",
    "seconds_train": "s",
    "status": "status",
}
API = Path(__file__).parent / "api"
PACKAGES = {
    "argprune.solvers.prox": "Regularizers, constraint sets, the proximal optimizer",
    "argprune.solvers.groups": "Groups",
    "argprune.solvers.ilp": "Selection and its certificates",
    "argprune.solvers.criteria": "Criteria",
    "argprune.solvers.admm": "Layer-wise reconstruction",
    "argprune.solvers.lagrangian": "Gates and multipliers",
    "argprune.solvers.low_rank": "Low-rank factors",
    "argprune.solvers.distillation": "Distillation",
    "argprune.solvers.methods": "Methods",
    "argprune.solvers.registry": "Plug-ins",
    "argprune.solvers.schedules": "Schedules",
    "argprune.solvers.verify": "Verification of operators",
    "argprune.models": "Models",
    "argprune.models.export": "Export",
    "argprune.models.factorised": "Factorised models",
    "argprune.models.adaptive": "Adaptive embeddings",
    "argprune.tasks.prune": "Runs",
    "argprune.tasks.data": "Tasks",
    "argprune.tasks.language": "Language modelling",
    "argprune.tasks.studies": "Studies",
    "argprune.tasks.report": "Reports",
}


def public_names(module: ModuleType) -> list[str]:
    """What a package offers: its own names, and those it takes from its modules, in the order of the file."""
    names = getattr(module, "__all__", None) or [name for name in vars(module) if not name.startswith("_")]
    found = []
    for name in names:
        value = getattr(module, name)
        home = getattr(value, "__module__", "")
        if (inspect.isclass(value) or inspect.isfunction(value)) and (home or "").startswith(module.__name__):
            found.append(name)
    return found


def write_api(_: Any) -> None:
    """A page for each package, of its public names; made anew at every build, and not kept in the repository."""
    API.mkdir(exist_ok=True)
    listing = ["# API", "", "```{toctree}", ":maxdepth: 1", ""]
    for package, title in PACKAGES.items():
        module = importlib.import_module(package)
        parts = [f"# {title}", "", "```{eval-rst}", f".. py:module:: {package}", "```", "", f"`{package}`", ""]
        for name in public_names(module):
            kind = "autoclass" if inspect.isclass(getattr(module, name)) else "autofunction"
            members = "\n   :members:\n   :exclude-members: attach, __init__" if kind == "autoclass" else ""
            parts += ["```{eval-rst}", f".. {kind}:: {package}.{name}{members}", "```", ""]
        (API / f"{package}.md").write_text("\n".join(parts), encoding="utf-8")
        listing.append(package)
    (API / "index.md").write_text("\n".join([*listing, "```", ""]), encoding="utf-8")


def from_markdown(app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are plain text with `code` and indented blocks; autodoc wants reStructuredText."""
    found: list[str] = []
    for indented, group in groupby(lines, lambda line: line.startswith(" ")):
        block = list(group)
        found += ["::", "", *block, ""] if indented else [*_escaped("\n".join(block)).split("\n"), ""]
    lines[:] = found


def _escaped(text: str) -> str:
    parts = re.split(r"(`[^`]+`)", text)
    plain = [part if part.startswith("`") else re.sub(r"([*|\\]|_(?!\w))", r"\\\1", part) for part in parts]
    # What ends a literal must not be followed by a letter: `Weight`s.
    return re.sub(r"`([^`]+)`(\w?)", lambda m: f"``{m[1]}``" + (f"\\ {m[2]}" if m[2] else ""), "".join(plain))


def write_tables(_: Any) -> None:
    """A page of the runs behind docs/results/README.md: the columns of the CSV files that people look for first."""
    folder = Path(__file__).parent / "results"
    parts = [
        "# Every run",
        "",
        "What the tables of [the results](README.md) are means of. The files have more columns.",
        "",
    ]
    for file in sorted(folder.glob("*.csv")):
        with file.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
        shown = [column for column in COLUMNS if column in rows[0]]
        if "run" not in rows[0] or len(shown) < 5:
            continue
        parts += [f"## {file.name}", "", f"{len(rows)} rows; {{download}}`all columns <{file.name}>`.", ""]
        parts += [f"| {' | '.join(COLUMNS[column] for column in shown)} |", "|" + "---|" * len(shown)]
        parts += [f"| {' | '.join(_shortened(row[column]) for column in shown)} |" for row in rows]
        parts.append("")
    (folder / "runs.md").write_text("\n".join(parts), encoding="utf-8")


def _shortened(value: str) -> str:
    return f"{float(value):.4g}" if re.fullmatch(r"-?\d+\.\d+(e-?\d+)?", value) else value


def inline_math(translator: Any, node: nodes.math) -> None:
    """MathML in a line."""
    translator.body.append(convert(node.astext()))
    raise nodes.SkipNode


def display_math(translator: Any, node: nodes.math_block) -> None:
    """MathML on a line of its own."""
    translator.body.append(f'<div class="math">{convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.add_html_math_renderer("mathml", (inline_math, None), (display_math, None))
    app.connect("builder-inited", write_api)
    app.connect("builder-inited", write_tables)
    app.connect("autodoc-process-docstring", from_markdown)
