"""`argprune report` on small runs: what it writes, says and refuses; in Chromium, what a reader sees."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable, Iterator
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from argprune import prune
from argprune.cli import main
from argprune.tasks.report.folders import Proof, find
from argprune.tasks.report.page import render
from argprune.tasks.report.pictures import draw_masks
from argprune.tasks.report.tables import drop_unreadable, make_tables

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


@pytest.fixture(scope="module")
def runs(tiny_model: str, tiny_data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods on two seeds at 50 %, one at 75 % too, and a folder of everything that can be wrong."""
    folder = tmp_path_factory.mktemp("study")
    options: dict[str, Any] = {"data_dir": tiny_data, "max_steps": 6, "max_length": 16, "log_every": 2, "quiet": True}
    points = [("magnitude", 0.5, 0), ("magnitude", 0.5, 1), ("rpp", 0.5, 0), ("rpp", 0.5, 1), ("magnitude", 0.75, 0)]
    for method, sparsity, seed in points:
        dense = folder / f"dense-{seed}"
        output = folder / f"{method}-{sparsity}-{seed}"
        prune(tiny_model, "words", method=method, sparsity=sparsity, seed=seed, dense=dense, output=output, **options)
    return folder


@pytest.fixture(scope="module")
def broken(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a run whose weights came back, and the ways in which folders are no finished runs."""
    folder = tmp_path_factory.mktemp("broken")
    shutil.copytree(runs / "magnitude-0.5-0", folder / "revived")
    weights = load_file(folder / "revived" / "model" / "model.safetensors")
    name = next(name for name in weights if "query.weight" in name)
    weights[name] = torch.ones_like(weights[name])
    save_file(weights, folder / "revived" / "model" / "model.safetensors", metadata={"format": "pt"})
    (folder / "stopped").mkdir()
    (folder / "stopped" / "config.yaml").write_text("method: {name: rpp}\n")
    (folder / "failed").mkdir()
    (folder / "failed" / "error.json").write_text(json.dumps({"error": "loss is nan", "exit_status": 1}))
    for name, text in {
        "torn": '{"task": "wo',
        "empty": "{}",
        "list": "[]",
        "words": '{"task": 1, "pruned": 3}',
    }.items():
        (folder / name).mkdir()
        (folder / name / "metrics.json").write_text(text)
    shutil.copytree(runs / "rpp-0.5-0", folder / "torn-log")
    log = folder / "torn-log" / "log.jsonl"
    log.write_text(log.read_text() + '{"step": 8, "lo')
    (folder / "torn-log" / "certificate.json").unlink()
    (folder / "torn-log" / "masks.safetensors").write_bytes(b"\x00" * 20)
    (folder / "later.yaml").write_text("method: rpp\n")
    return folder


def report(output: Path, *runs: Path, more: tuple[str, ...] = ("-q",)) -> str:
    assert main(["report", *map(str, runs), "--output", str(output), *more]) == 0
    return output.read_text(encoding="utf-8")


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    data: dict[str, Any] = json.loads(found[1])
    return data


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_page_and_tables(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = report(tmp_path / "report.html", runs, more=())
    assert "7 runs, 7 certificates verified, 0 places left out" in capsys.readouterr().out
    assert page.count("badge verified") == 7
    # The only address is the name of SVG, which nobody asks for.
    assert set(re.findall(r"https?://[^\s\"'<)]+", page)) <= {"http://www.w3.org/2000/svg"}
    assert "argprune prune --config" in page
    assert page.count("data:image/png;base64,") == 3
    rows = rows_of(tmp_path / "report-runs.csv")
    assert len(rows) == 7
    for row in rows:
        metrics = json.loads((Path(row["path"]) / "metrics.json").read_text())
        assert float(row["score"]) == metrics["pruned"]["test"]["accuracy"]
        assert float(row["sparsity_encoder"]) == metrics["sparsity"]["encoder"]
    for name in ("-runs", "-logs", "-layers", "-comparisons"):
        table = pq.read_table(tmp_path / f"report{name}.parquet")
        rows = rows_of(tmp_path / f"report{name}.csv")
        assert table.num_rows == len(rows)
        assert table.column_names == list(rows[0])
    assert not (tmp_path / "report-criteria.csv").exists()
    logged = [json.loads(line) for line in (runs / "rpp-0.5-0" / "log.jsonl").read_text().splitlines()]
    told = [r for r in rows_of(tmp_path / "report-logs.csv") if r["run"] == "rpp-0.5-0" and r["quantity"] == "loss"]
    assert [(int(r["step"]), float(r["value"])) for r in told] == [(line["step"], line["loss"]) for line in logged]


def test_methods_are_compared_on_the_same_examples(runs: Path, tmp_path: Path) -> None:
    report(tmp_path / "report.html", runs)
    [row] = rows_of(tmp_path / "report-comparisons.csv")
    assert (row["first"], row["second"], row["seeds"], row["examples"]) == ("magnitude", "rpp", "2", "40")
    scores = {
        (method, seed): load_file(runs / f"{method}-0.5-{seed}" / "scores.safetensors")["test"].double()
        for method in ("magnitude", "rpp")
        for seed in (0, 1)
    }
    by_example = torch.stack([scores["magnitude", seed] - scores["rpp", seed] for seed in (0, 1)]).mean(0)
    assert float(row["difference"]) == pytest.approx(float(by_example.mean()))
    assert float(row["examples_low"]) <= float(row["difference"]) <= float(row["examples_high"])
    # Of two pairs all that sign flips can say is 1/2, or 1 where both differences are nothing or disagree.
    assert float(row["seeds_p"]) in (0.5, 1.0)


def test_runs_without_examples_are_paired_over_seeds(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs, tmp_path / "runs")
    for path in tmp_path.glob("runs/*/scores.safetensors"):
        path.unlink()
    page = report(tmp_path / "report.html", tmp_path / "runs")
    assert "did not keep how each test example was done" in page
    [row] = rows_of(tmp_path / "report-comparisons.csv")
    assert (row["seeds"], row["examples"], row["examples_p"]) == ("2", "", "")


def test_what_cannot_be_compared_is_not(runs: Path, tmp_path: Path) -> None:
    """Other metrics of a task, and other test examples."""

    def altered(name: str, source: str, change: Callable[[dict[str, Any]], None]) -> None:
        shutil.copytree(runs / source, tmp_path / "runs" / name)
        (tmp_path / "runs" / name / "scores.safetensors").unlink()
        path = tmp_path / "runs" / name / "metrics.json"
        metrics = json.loads(path.read_text())
        change(metrics)
        path.write_text(json.dumps(metrics))

    def of_other_metric(metrics: dict[str, Any]) -> None:
        metrics |= {"metric": "perplexity", "larger_is_better": False}
        metrics["config"]["objective"] = "masked-lm"
        for scores in (*metrics["pruned"].values(), *metrics["dense"].values()):
            scores["perplexity"] = 13.0

    def of_other_rows(metrics: dict[str, Any]) -> None:
        metrics["config"]["eval_rows"] = 20
        metrics["rows"] = {"test": 20}

    altered("plain", "magnitude-0.5-0", lambda metrics: None)
    altered("other", "rpp-0.5-0", of_other_metric)
    altered("fewer", "rpp-0.5-0", of_other_rows)
    page = report(tmp_path / "report.html", tmp_path / "runs")
    assert not (tmp_path / "report-comparisons.csv").exists()
    data = data_of(page)
    assert sorted(cell["metric"] for cell in data["cells"]) == ["accuracy", "perplexity"]
    assert {cell["label"].rpartition(" · ")[2] for cell in data["cells"]} == {"accuracy", "perplexity"}
    assert "best accuracy on words is 13" not in page


def test_numbers_are_tuned_and_words_are_curves(runs: Path, tmp_path: Path) -> None:
    """Of learning rates the one that is best on validation stands for a method; a structure is a curve of its own."""
    for name, changes in {
        "faster": {"learning_rate": 0.5},
        "blocks": {"method": {"name": "magnitude", "structure": "blocks"}},
    }.items():
        shutil.copytree(runs / "magnitude-0.75-0", tmp_path / "runs" / name)
        path = tmp_path / "runs" / name / "metrics.json"
        metrics = json.loads(path.read_text())
        metrics["config"] |= changes
        metrics["pruned"]["validation"]["accuracy"] += 0.01
        path.write_text(json.dumps(metrics))
    shutil.copytree(runs / "magnitude-0.75-0", tmp_path / "runs" / "plain")
    report(tmp_path / "report.html", tmp_path / "runs")
    rows = {row["run"]: row for row in rows_of(tmp_path / "report-runs.csv")}
    assert {name: row["curve"] for name, row in rows.items()} == {
        "blocks": "magnitude, structure blocks",
        "faster": "magnitude",
        "plain": "magnitude",
    }
    assert rows["faster"]["variant"] == "magnitude, learning_rate 0.5"
    assert {name: row["picked"] for name, row in rows.items()} == {"blocks": "True", "faster": "True", "plain": "False"}


def test_what_is_wrong_is_named_in_a_line(runs: Path, broken: Path, tmp_path: Path) -> None:
    page = report(tmp_path / "report.html", runs, broken)
    problems = {Path(row["place"]).name: row["reason"] for row in rows_of(tmp_path / "report-problems.csv")}
    assert problems["stopped"].startswith("not finished")
    assert problems["failed"] == "failed: loss is nan"
    assert problems["later"].startswith("not started")
    assert all(problems[name].startswith("broken: metrics.json") for name in ("torn", "empty", "list", "words"))
    assert problems["torn-log"] == "1 of 4 lines of log.jsonl are broken and left out"
    states = {row["run"]: row["certificate"] for row in rows_of(tmp_path / "report-runs.csv")}
    assert (states["revived"], states["torn-log"]) == ("fails", "missing")
    assert sum(state == "verified" for state in states.values()) == 7
    assert "the files are not those that it was made of" in page
    for reason in problems.values():
        assert "\n" not in reason


def test_whatever_a_file_holds_is_a_run_or_a_problem(runs: Path, tmp_path: Path) -> None:
    """Every value of metrics.json is replaced by every kind of another."""
    run = tmp_path / "run"
    run.mkdir()
    whole = json.loads((runs / "rpp-0.5-0" / "metrics.json").read_text())
    seen = set()
    for key in [None, *whole]:
        for value in (None, "x", [], {}, [1], {"test": "x"}, {"a": None}, -1e9, True):
            changed = {**whole, key: value} if key else value
            (run / "metrics.json").write_text(json.dumps(changed))
            found = find([run])
            drop_unreadable(found)
            tables = make_tables(found, {"run": Proof("missing", "")})
            page = render(found, tables, "title", tmp_path / "report.html")
            assert len(found.runs) + any("broken" in problem.reason for problem in found.problems) == 1, (key, value)
            seen.add(len(found.runs))
            assert "</html>" in page
    assert seen == {0, 1}


def test_a_broken_mask_file_is_no_proof(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "rpp-0.5-0", tmp_path / "run")
    (tmp_path / "run" / "masks.safetensors").write_bytes(b"\x00" * 20)
    report(tmp_path / "report.html", tmp_path / "run")
    [row] = rows_of(tmp_path / "report-runs.csv")
    assert row["certificate"] == "unreadable"


def test_refusals(runs: Path, broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*arguments: str) -> str:
        assert main(["report", *arguments]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    output = str(tmp_path / "report.html")
    assert "No finished run in" in refused(str(broken / "stopped"), "--output", output)
    assert "no such file" in refused(str(tmp_path / "nowhere"), "--output", output)
    assert "ends in .html" in refused(str(runs), "--output", str(tmp_path / "report.pdf"))
    assert "there is no folder" in refused(str(runs), "--output", str(tmp_path / "no" / "report.html"))
    assert not list(tmp_path.iterdir())
    (tmp_path / "report-logs.csv").write_text("mine")
    assert "give --overwrite" in refused(str(runs), "--output", output)
    assert [path.name for path in tmp_path.iterdir()] == ["report-logs.csv"]
    report(Path(output), runs, more=("-q", "--overwrite"))
    assert "give --overwrite" in refused(str(runs), "--output", output)


def test_the_same_runs_give_the_same_files(runs: Path, tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        report(tmp_path / name / "report.html", runs)
    first, second = ({f.name: f.read_bytes() for f in (tmp_path / name).iterdir()} for name in "ab")
    assert first == second


def test_a_run_named_twice_and_its_own_reference(tiny_model: str, tiny_data: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"data_dir": tiny_data, "max_steps": 2, "max_length": 16, "quiet": True}
    prune(tiny_model, "words", method="magnitude", sparsity=0.5, output=tmp_path / "run", **options)
    report(tmp_path / "report.html", tmp_path / "run", tmp_path / "run", tmp_path / "run" / "dense")
    assert [row["run"] for row in rows_of(tmp_path / "report-runs.csv")] == ["run", "run/dense"]


def test_criteria_and_exports(runs: Path, tmp_path: Path) -> None:
    mean = {"mean": 0.4, "spread": 0.1, "blocks": 3}
    criterion = {"name": "obd", "surrogate": "diagonal", "blocks": 3, "truth": mean, "certified": 2}
    parts = {"solver_gap": None, "sampling_error": mean, "model_error": {**mean, "mean": -0.1}}
    (tmp_path / "criteria.json").write_text(
        json.dumps({"task": "words", "model": "tiny", "layers": [], "criteria": [criterion | parts]})
    )
    (tmp_path / "small").mkdir()
    facts = {"format": "sparse", "run": str(runs / "rpp-0.5-0"), "threads": 1}
    latency = [{"batch": batch, "length": 8, "masked": 2.0 * batch, "exported": 1.0} for batch in (1, 8)]
    sizes = {"bytes": {"masked": 4000, "exported": 3000}, "latency": latency}
    (tmp_path / "small" / "export.json").write_text(json.dumps(facts | sizes))
    (tmp_path / "other.json").write_text("[1]")
    files = [tmp_path / "criteria.json", tmp_path / "small", tmp_path / "other.json"]
    page = report(tmp_path / "report.html", runs, *files)
    data = data_of(page)
    assert [row["name"] for row in data["criteria"][0]["rows"]] == ["obd"]
    assert (data["exports"][0]["curve"], data["exports"][0]["mb"]) == (data["runs"][-1]["curve"], 0.003)
    row, other = rows_of(tmp_path / "report-exports.csv")
    assert (row["run"], row["method"], row["milliseconds"]) == ("rpp-0.5-0", "rpp", "1.0")
    assert (other["batch"], other["milliseconds_reference"]) == ("8", "16.0")
    assert [r["reason"] for r in rows_of(tmp_path / "report-problems.csv")] == ["broken: not a JSON object"]
    # Without runs there is still something to show.
    assert "Criteria and their regret" in report(tmp_path / "alone.html", tmp_path / "criteria.json")


def test_a_study_file_leads_to_its_runs(
    runs: Path, tiny_model: str, tiny_data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = f"output: {tmp_path / 'out'}\nbase: {{model: {tiny_model}, task: words, data_dir: {tiny_data}}}\n"
    (tmp_path / "study.yaml").write_text(text + "grid: {method: [magnitude], sparsity: 0.5, max_steps: 2}\n")
    assert main(["report", str(tmp_path / "study.yaml"), "--output", str(tmp_path / "r.html")]) == 2
    assert "not started" in capsys.readouterr().err


def test_pictures_show_where_weights_are_kept(tmp_path: Path) -> None:
    mask = torch.zeros(48, 48, dtype=torch.bool)
    mask[:24] = True
    save_file({"layer.0.query.weight": mask, "layer.0.bias": mask[0].clone()}, tmp_path / "masks.safetensors")
    picture = draw_masks(tmp_path)
    assert picture is not None
    assert (picture.layers, picture.kinds, picture.most) == (1, ("query",), 1.0)
    image = pytest.importorskip("PIL.Image", reason="needs pillow to read a PNG")
    import base64
    import io

    pixels = image.open(io.BytesIO(base64.b64decode(picture.source.partition(",")[2]))).convert("RGB")
    assert pixels.size == (24, 24)
    assert pixels.getpixel((5, 3)) == (0xFD, 0xE7, 0x25)
    assert pixels.getpixel((5, 20)) == (0x44, 0x01, 0x54)


def test_colours_have_contrast() -> None:
    """WCAG 2.2: 4.5 for text, 3 for what charts are drawn with, on page and panel, light and dark."""
    style = (files("argprune.tasks.report") / "page.css").read_text(encoding="utf-8")
    light, dark = re.findall(r":root \{(.*?)\}", style, re.DOTALL)[:2]
    schemes = [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block)) for block in (light, dark)]
    for colours in schemes:
        for name, least in [("text", 4.5), ("soft", 4.5), ("accent", 4.5), *((f"k{i}", 3) for i in range(10))]:
            for ground in ("back", "panel"):
                assert contrast(colours[name], colours[ground]) >= least, (name, ground)
        for name in ("good", "bad", "warn"):
            assert contrast(colours[name], colours[f"{name}-back"]) >= 4.5


def contrast(one: str, other: str) -> float:
    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


# ---- in a browser ----


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a head, driven by playwright; skips where one is missing."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if find_spec("playwright") is None:
        pytest.skip("needs playwright: pip install 'argprune[dev]'")
    if program is None:
        pytest.skip("needs Chromium on the path: chromium, chromium-browser or google-chrome")
    from playwright.sync_api import sync_playwright

    quiet = ("networking", "timer-throttling")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-component-update", "--disable-sync"]
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(
            executable_path=program, args=[*flags, *(f"--disable-background-{name}" for name in quiet)]
        )
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def evil_page(runs: Path, broken: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of all runs, one of which is named and configured to run a script."""
    folder = tmp_path_factory.mktemp("evil")
    copy = folder / "runs" / EVIL.replace("/", "\u2215")
    shutil.copytree(runs / "rpp-0.5-0", copy)
    metrics = json.loads((copy / "metrics.json").read_text())
    metrics |= {"model": EVIL, "method": EVIL}
    metrics["config"] |= {"include": [EVIL], "weight_decay": EVIL}
    (copy / "metrics.json").write_text(json.dumps(metrics))
    page = folder / "report.html"
    report(page, runs, folder / "runs", broken, more=("-q", "--title", EVIL))
    return page


class Watched:
    """A page that remembers what it asked for and complained of."""

    def __init__(self, browser: Any, file: Path, width: int = 1200, scheme: str = "light") -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page = self.context.new_page()
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        # An alert that nobody answers would stop the page, and the test with it.
        self.page.on("dialog", lambda dialog: self.complaints.append(dialog.message) or dialog.dismiss())  # type: ignore[func-returns-value]
        self.page.goto(file.as_uri())
        self.page.wait_for_selector("html[data-drawn]")

    def count(self, selector: str) -> int:
        return int(self.page.locator(selector).count())

    def close(self, file: Path) -> None:
        """Nothing but the file itself was asked for, and nothing went wrong."""
        requests = [address for address in self.asked if not address.startswith("data:")]
        assert requests == [file.as_uri()]
        assert self.complaints == []
        self.context.close()


@pytest.mark.parametrize("width", [400, 900, 1600])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_charts_are_drawn(browser: Any, evil_page: Path, width: int, scheme: str) -> None:
    seen = Watched(browser, evil_page, width, scheme)
    page = seen.page
    assert seen.count("#scores svg") >= 1
    assert seen.count("#scores [role=img][tabindex='0']") == 4
    assert seen.count("#training .panels figure svg") >= 3
    assert seen.count("#layers .heat") >= 4
    assert seen.count("#patterns img") >= 3
    # Every drawing and picture says in words what it shows.
    assert page.evaluate("[...document.querySelectorAll('.chart svg')].every(e => e.getAttribute('aria-label'))")
    assert page.evaluate("[...document.querySelectorAll('img')].every(e => e.alt && e.naturalWidth > 0)")
    assert not page.evaluate("[...document.querySelectorAll('.chart')].some(e => /NaN|undefined/.test(e.innerHTML))")
    # Nothing sticks out on the side.
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (light == "rgb(255, 255, 255)") == (scheme == "light")
    seen.close(evil_page)


def test_filters_work_with_the_keyboard(browser: Any, runs: Path, tmp_path: Path) -> None:
    report(tmp_path / "report.html", runs)
    seen = Watched(browser, tmp_path / "report.html")
    page = seen.page
    assert page.inner_text("#count") == "7 of 7 runs pass the filters"
    assert seen.count("#scores .line[d]:not(.legend *)") == 2
    page.focus("input[name=method][value=rpp]")
    page.keyboard.press("Space")
    assert page.inner_text("#count") == "5 of 7 runs pass the filters"
    assert seen.count("#scores g[data-curve]") == 1
    assert seen.count("#runs tbody tr:not([hidden])") == 5
    page.focus("input[name=seed][value='1']")
    page.keyboard.press("Space")
    assert page.inner_text("#count") == "3 of 7 runs pass the filters"
    page.focus("input[name=sparsity][value='0.75']")
    page.keyboard.press("Space")
    assert page.inner_text("#count") == "2 of 7 runs pass the filters"
    page.focus("#reset")
    page.keyboard.press("Enter")
    assert page.inner_text("#count") == "7 of 7 runs pass the filters"
    # A curve is hidden by its button, which keeps the focus.
    page.focus("#scores .legend button >> nth=1")
    page.keyboard.press("Enter")
    assert seen.count("#scores g[data-curve]") == 1
    assert page.evaluate("document.activeElement.getAttribute('aria-pressed')") == "false"
    page.keyboard.press("Enter")
    # A point says what it is when it has the focus.
    page.focus("#scores [role=img][tabindex='0'] >> nth=0")
    assert "seeds" in page.inner_text("#tip")
    page.keyboard.press("Escape")
    assert not page.is_visible("#tip")
    # All are hidden: words instead of charts, no error.
    page.focus("button[data-of=method][data-set=none]")
    page.keyboard.press("Enter")
    assert page.inner_text("#count") == "0 of 7 runs pass the filters"
    assert "No run passes the filters." in page.inner_text("#scores")
    seen.close(tmp_path / "report.html")


def test_numbers_stand_beside_charts(browser: Any, runs: Path, tmp_path: Path) -> None:
    report(tmp_path / "report.html", runs)
    rows = [
        row
        for row in rows_of(tmp_path / "report-runs.csv")
        if (row["method"], row["sparsity_target"]) == ("rpp", "0.5")
    ]
    mean = sum(float(row["score"]) for row in rows) / len(rows)
    seen = Watched(browser, tmp_path / "report.html")
    seen.page.click("#scores details.numbers summary")
    assert f"{100 * mean:.1f}" in seen.page.inner_text("#scores table tr:has-text('rpp') td >> nth=0")
    # Sorted by score, upwards and downwards.
    for way in ("ascending", "descending"):
        seen.page.click("#runs th button:has-text('score')")
        scores = seen.page.locator("#runs tbody tr td:nth-child(6)").evaluate_all(
            "all => all.map(e => +e.dataset.value)"
        )
        assert scores == sorted(scores, reverse=way == "descending")
        assert seen.count(f"#runs th[aria-sort={way}]") == 1
    seen.page.emulate_media(media="print")
    assert not seen.page.is_visible("#filters")
    seen.close(tmp_path / "report.html")
