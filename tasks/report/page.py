"""The page: one HTML file with its style, its script and its data inside, which asks the network for nothing.

Charts are drawn by page.js (37 kB, ours) instead of Plotly, which would put 4.6 MB into every report: text keeps its
size at every width, colours follow the reader's light or dark mode, and keyboard and screen reader reach the points.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from argprune._version import __version__
from argprune.tasks.report.charts import chart_data, curve_looks, is_share
from argprune.tasks.report.files import describe, table_paths
from argprune.tasks.report.folders import UNREADABLE, Found, Loaded
from argprune.tasks.report.pictures import Picture, draw_masks
from argprune.tasks.report.tables import DENSE, Row, Tables, cell_of, smaller_is_better

# Pictures on one page, and their bytes; it is said where more were left out.
_PICTURES, _PICTURE_BYTES = 24, 400_000


def render(found: Found, tables: Tables, title: str, output: Path) -> str:
    """The page's HTML. title: of the page. output: where it goes, which names the tables beside it."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    here = files(__package__)
    style, script, template = (
        (here / name).read_text(encoding="utf-8") for name in ("page.css", "page.js", "page.html")
    )
    curves = curve_looks(tables.runs)
    cells = list(dict.fromkeys(map(cell_of, tables.runs)))
    data = chart_data(found, tables, cells, curves)
    content = {
        "title": title,
        "version": __version__,
        "style": Markup(style),
        "style_hash": _hash(style),
        "script": Markup(script),
        "script_hash": _hash(script),
        "data": _json(data),
        "subtitle": _subtitle(tables),
        "tiles": _tiles(tables),
        "problems": tables.problems,
        "filters": _filters(tables.runs, data["cells"]),
        "files": describe(table_paths(output, tables)),
        "has_exports": bool(tables.exports),
        "has_criteria": bool(tables.criteria),
    }
    content |= _runs_content(found, tables, data, curves)
    names = {
        "scores": (content["runs"], "Scores"),
        "differences": (content["runs"] and content["baselines"], "Differences"),
        "layers": (content["runs"] and content["targets"], "Layers"),
        "training": (content["runs"] and content["targets"], "Training"),
        "patterns": (content["pictures"], "Patterns"),
        "speed": (tables.exports, "Speed"),
        "criteria": (tables.criteria, "Criteria"),
        "certificates": (content["runs"], "Certificates"),
        "runs": (content["runs"], "Runs"),
    }
    content["sections"] = [(name, label) for name, (there, label) in names.items() if there]
    return environment.from_string(template).render(content)


def _json(data: Any) -> Markup:
    """JSON that no HTML parser sees anything in: a run may be called anything."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _hash(text: str) -> Markup:
    digest = hashlib.sha256(text.encode()).digest()
    return Markup(f"sha256-{base64.b64encode(digest).decode()}")


def _subtitle(tables: Tables) -> str:
    runs = tables.runs
    tasks, models = (sorted({str(Path(row[key]).name) for row in runs}) for key in ("task", "model"))
    told = []
    if runs:
        told.append(f"{', '.join(models)} on {', '.join(tasks)}.")
    rows = [row for row in runs if row["picked"] and row["method"] != DENSE and row["dense_score"] is not None]
    if rows:
        told.append(_best(rows))
    return " ".join(told)


def _best(rows: Sequence[Row]) -> str:
    """A sentence on the hardest sparsity that several curves share, in the first cell, on its first run's test rows."""
    task = rows[0]["task"]
    here = [row for row in rows if (cell_of(row), row["test_rows"]) == (cell_of(rows[0]), rows[0]["test_rows"])]
    curves: dict[float, dict[str, list[float]]] = {}
    for row in here:
        curves.setdefault(row["sparsity_target"], {}).setdefault(row["curve"], []).append(row["score"])
    sparsity = max(curves, key=lambda target: (len(curves[target]) > 1, target))
    means = {curve: fmean(values) for curve, values in curves[sparsity].items()}
    smaller = smaller_is_better(here[0])
    curve = (min if smaller else max)(means, key=means.__getitem__)
    score = f"{100 * means[curve]:.1f} %" if is_share(here) else f"{means[curve]:.4g}"
    count = len(curves[sparsity][curve])
    seeds = "one seed" if count == 1 else f"mean of {count} seeds"
    return f"At {sparsity:.0%} the best {here[0]['metric']} on {Path(task).name} is {score}, by {curve} ({seeds})."


def _tiles(tables: Tables) -> list[tuple[str, str]]:
    runs = tables.runs
    tiles = []
    if runs:
        targets = sorted({row["sparsity_target"] for row in runs if row["method"] != DENSE})
        proved = sum(row["certificate"] == "verified" for row in runs)
        tiles = [
            (str(len(runs)), "run" if len(runs) == 1 else "runs"),
            (str(len({row["method"] for row in runs} - {DENSE})), "methods"),
            (str(len({row["seed"] for row in runs})), "seeds"),
            (f"{proved} of {len(runs)}", "certificates verified"),
        ]
        if targets:
            span = f"{targets[0]:.0%}" if len(targets) == 1 else f"{100 * targets[0]:g} to {100 * targets[-1]:g}%"
            tiles.insert(3, (span, "sparsity"))
    if tables.exports:
        tiles.append((str(len(tables.exports)), "exports timed"))
    if tables.criteria:
        tiles.append((str(len({row["criterion"] for row in tables.criteria})), "criteria judged"))
    return tiles


def _filters(
    rows: Sequence[Row], cells: Sequence[Mapping[str, Any]]
) -> list[tuple[str, str, list[tuple[Any, str]], bool]]:
    methods = sorted({row["method"] for row in rows})
    targets = sorted({row["sparsity_target"] for row in rows if row["method"] != DENSE})
    seeds = sorted({row["seed"] for row in rows})
    return [
        ("cell", "Task and model", [(index, cell["label"]) for index, cell in enumerate(cells)], True),
        ("method", "Method", [(method, method) for method in methods], True),
        ("sparsity", "Sparsity", [(_key(target), f"{100 * target:g} %") for target in targets], False),
        ("seed", "Seed", [(seed, str(seed)) for seed in seeds], False),
    ]


def _key(target: float) -> str:
    """A number as JavaScript writes it."""
    return str(int(target)) if target == int(target) else repr(target)


def _runs_content(found: Found, tables: Tables, data: Mapping[str, Any], curves: Mapping[str, Any]) -> dict[str, Any]:
    """What the template says of runs."""
    runs = tables.runs
    places = {label: index for index, label in enumerate(curves)}
    compared = {label for row in tables.comparisons for label in (row["first"], row["second"])}
    counts = {label: sum(label in (row["first"], row["second"]) for row in tables.comparisons) for label in compared}
    baseline = "magnitude" if "magnitude" in compared else max(sorted(counts), key=counts.__getitem__, default=None)
    targets = sorted({row["sparsity_target"] for row in runs if row["method"] != DENSE})
    shared = {target: len({row["method"] for row in runs if row["sparsity_target"] == target}) for target in targets}
    pictures, note = _pictures(found, tables)
    kinds = {picture["kinds"] for picture in pictures}
    metrics = {cell["metric"] for cell in data["cells"]}
    metric = metrics.pop() if len(metrics) == 1 else "scores"
    proved = [row for row in runs if row["certificate"] == "verified"]
    return {
        "score_title": f"{metric.replace('_', ' ').capitalize()} and sparsity",
        "picked_text": _picked_text(runs),
        "tests_text": _tests_text(tables.comparisons),
        "baselines": [(places[label], label) for label in sorted(compared, key=places.__getitem__)],
        "baseline": places.get(baseline) if baseline else None,
        "targets": [(_key(target), f"{100 * target:g} %") for target in targets],
        "target": _key(max(targets, key=lambda target: (shared[target], target))) if targets else None,
        "pictures": pictures,
        "pictures_note": note,
        "columns": ", ".join(kinds.pop()) if len(kinds) == 1 else "",
        "proof_text": _proof_text(len(proved), len(runs)),
        "unproved": [
            {"index": index, **{key: row[key] for key in ("path", "certificate", "certificate_text")}}
            for index, row in enumerate(runs)
            if row["certificate"] != "verified"
        ],
        "heads": [
            *((head, False) for head in ("run", "task", "method")),
            *((head, True) for head in ("seed", "sparsity", "score", "to dense", "steps", "train s")),
            ("certificate", False),
        ],
        "runs": [_shown(index, row, run) for index, (row, run) in enumerate(zip(runs, found.runs, strict=True))],
    }


def _picked_text(runs: Sequence[Row]) -> str:
    if all(row["picked"] for row in runs):
        return ""
    return (
        "Where learning rates, strengths or other numbers were tuned, a curve takes at each sparsity the value with "
        "most seeds, and of these the best on validation; the filter shows all."
    )


def _tests_text(comparisons: Sequence[Row]) -> str:
    seeds = sorted({row["seeds"] for row in comparisons})
    examples = sorted({row["examples"] for row in comparisons if row["examples"]})
    told = []
    if examples:
        counts = f"{examples[0]}" if len(examples) == 1 else f"{examples[0]} to {examples[-1]}"
        told.append(
            f"Paired example by example ({counts} test examples): bootstrap intervals of the difference, for these "
            "trained models."
        )
    unpaired = sum(not row["examples"] for row in comparisons)
    if unpaired:
        which = "These" if not examples else f"{unpaired} of {len(comparisons)}"
        told.append(f"{which} runs did not keep how each test example was done, and are paired over seeds only.")
    if seeds:
        span = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
        least = f"{2 / 2 ** seeds[-1]:.2g}"
        told.append(
            f"Over seeds there {'is' if seeds == [1] else 'are'} {span} {'pair' if seeds == [1] else 'pairs'}"
            + (
                f": exact sign flips cannot give a p below {least}, and Student's interval is wide."
                if seeds[-1] > 1
                else ", which says nothing of chance."
            )
        )
    return " ".join(told)


def _proof_text(proved: int, runs: int) -> str:
    what = (
        "pruned entries of the saved model that are not zero, the number kept against the one asked for, and the "
        "sha256 of both files."
    )
    if proved == runs:
        return f"Every one of the {runs} was checked again when this page was made, and holds: {what}"
    return f"Checked again when this page was made, {what} {proved} of {runs} hold; the others:"


def _shown(index: int, row: Row, run: Loaded) -> dict[str, Any]:
    share = is_share([row])

    def told(value: float | None, sign: str = "") -> str:
        if value is None:
            return ""
        text = f"{100 * value:{sign}.1f}" if share else f"{value:{sign}.4g}"
        return text.replace("-", "\u2212")

    dense = row["dense_score"]
    change = row["score"] - dense if isinstance(dense, int | float) and row["method"] != DENSE else None
    numbers = [
        (row["seed"], row["seed"]),
        (row["sparsity_encoder"], f"{row['sparsity_encoder']:.1%}"),
        (row["score"], told(row["score"])),
        ("" if change is None else change, told(change, "+")),
        (row["steps"] or "", row["steps"] or ""),
        (row["seconds_train"] or "", f"{row['seconds_train']:.0f}" if row["seconds_train"] else ""),
    ]
    keys = ("run", "task", "variant", "certificate", "certificate_text", "command")
    config = yaml.safe_dump(dict(run.config), sort_keys=False, allow_unicode=True)
    return {"index": index, "numbers": numbers, "model": Path(row["model"]).name, "config": config.rstrip()} | {
        key: row[key] for key in keys
    }


def _pictures(found: Found, tables: Tables) -> tuple[list[dict[str, Any]], str]:
    """Pictures of a run a curve and sparsity, as many as a page bears, and what was left out."""
    wanted: dict[tuple[Any, ...], int] = {}
    order = sorted(range(len(tables.runs)), key=lambda index: tables.runs[index]["seed"])
    for index in order:
        row = tables.runs[index]
        if row["picked"] and row["sparsity_encoder"] > 0:
            wanted.setdefault((row["task"], row["model"], row["curve"], row["sparsity_target"]), index)
    # A curve's highest sparsity before anybody's second.
    turns: dict[tuple[Any, ...], int] = {}
    queue = []
    for key, index in sorted(wanted.items(), key=lambda item: (*item[0][:3], -item[0][3])):
        turns[key[:3]] = turns.get(key[:3], 0) + 1
        queue.append((turns[key[:3]], key, index))
    drawn: list[tuple[Any, int, Picture]] = []
    left, size = 0, 0
    several = len({key[:2] for key in wanted}) > 1
    for _, key, index in sorted(queue):
        if size > _PICTURE_BYTES or len(drawn) == _PICTURES:
            left += 1
            continue
        try:
            picture = draw_masks(found.runs[index].path)
        except UNREADABLE:
            # The certificates say what is wrong with that file.
            continue
        if picture is not None:
            size += len(picture.source)
            drawn.append((key, index, picture))
    pictures = [
        {
            "run": index,
            "source": picture.source,
            "width": picture.width,
            "height": picture.height,
            "title": f"{key[2]}, {100 * key[3]:g} %" + (f", {Path(key[0]).name}" if several else ""),
            "caption": f"dark 0, bright {picture.most:.0%} kept",
            "kinds": picture.kinds,
            "alt": f"Share of weights kept by {key[2]} at {key[3]:.0%} sparsity, {picture.layers} layers of "
            f"{', '.join(picture.kinds)}; at most {picture.most:.0%} of a part is kept.",
        }
        for key, index, picture in sorted(drawn, key=lambda each: each[0])
    ]
    return pictures, f" {left} more are left out to keep the page small; give fewer runs to see them." if left else ""
