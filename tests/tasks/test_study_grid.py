"""Study files: what a grid expands to, how points are named, which references they get, what is refused."""

from __future__ import annotations

import hashlib
import itertools
import random
import re
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from fake_runs import Instant
from hypothesis import given
from hypothesis import strategies as st

from argprune.cli import main
from argprune.tasks.settings import SHARED
from argprune.tasks.studies import Point, Study, load_study, run_study
from argprune.tasks.studies.grid import flatten

ROOT = Path(__file__).resolve().parents[2]
BASE = {"model": "minilm", "task": "stdlib-docs", "method": "magnitude", "sparsity": 0.5}


def options_of(grid: Any) -> list[dict[str, Any]]:
    """The options beyond BASE of the points that prune."""
    points = Study(Path("x"), grid=grid, base=BASE).points
    return [
        {key: value for key, value in point.options.items() if BASE.get(key) != value and key != "seed"}
        for point in points
        if point.reference is not None
    ]


axes = st.dictionaries(
    st.sampled_from(["learning_rate", "warmup", "method.eps_rw", "epochs"]),
    st.lists(st.one_of(st.integers(1, 99), st.floats(0.001, 0.999), st.text(max_size=3)), min_size=1, max_size=3),
    min_size=1,
)


def options_of_method(point: Point) -> dict[str, Any]:
    method = point.options["method"]
    return dict(method) if isinstance(method, dict) else {}


@given(axes)
def test_grid_is_the_product_of_its_axes(grid: dict[str, list[Any]]) -> None:
    points = Study(Path("x"), grid=grid, base=BASE).points
    flat = [
        flatten({**point.options, "method": {"name": point.method, **options_of_method(point)}})
        for point in points
        if point.reference is not None
    ]
    found = [tuple(options[key] for key in grid) for options in flat]
    expected = list(dict.fromkeys(itertools.product(*grid.values())))
    assert found == expected
    assert len({point.name for point in points}) == len(points)


@given(axes, st.randoms(use_true_random=False))
def test_names_do_not_depend_on_spelling(grid: dict[str, list[Any]], chance: random.Random) -> None:
    shuffled = list(grid.items())
    chance.shuffle(shuffled)
    respelled = {
        key: [float(value) if isinstance(value, int) else value for value in values] for key, values in shuffled
    }
    one, other = Study(Path("x"), grid=grid, base=BASE), Study(Path("y"), grid=[respelled, grid], base=BASE)
    assert {point.name for point in one.points} == {point.name for point in other.points}


@given(axes)
def test_yaml_says_the_same(grid: dict[str, list[Any]]) -> None:
    one = Study(Path("x"), grid=[grid, {"seed": [1, 2]}], base=BASE, reference={"learning_rate": 1e-5})
    data = yaml.safe_load(one.to_yaml())
    other = Study(Path(data["output"]), grid=data["grid"], base=data["base"], reference=data["reference"])
    assert [point.name for point in other.points] == [point.name for point in one.points]


def test_names_are_those_of_earlier_versions() -> None:
    """A change here makes every study in the world run again from nothing."""
    points = Study(
        Path("x"),
        grid={"method": {"name": "my.plugins:RPP", "eps_rw": 0.1}, "sparsity": 0.95, "seed": 3},
        base={"model": "minilm", "task": "stdlib-docs", "include": ["*query*", "*key*"], "data_dir": None},
    ).points
    text = (
        '{"data_dir":null,"include":["*query*","*key*"],"method":%s,"model":"minilm","seed":3,"sparsity":%s,'
        '"task":"stdlib-docs"}'
    )
    methods = ('"dense"', 0), ('{"eps_rw":0.1,"name":"my.plugins:RPP"}', 0.95)
    digests = [hashlib.sha256((text % method).encode()).hexdigest()[:8] for method in methods]
    assert [point.name for point in points] == [
        f"dense-s0-seed3-{digests[0]}",
        f"my.plugins-RPP-s0.95-seed3-{digests[1]}",
    ]


def test_grid_by_example() -> None:
    rpp = {"name": "rpp", "eps_rw": 0.1}
    assert options_of({"sparsity": [0.5, 0.9]}) == [{}, {"sparsity": 0.9}]
    assert options_of({"method": rpp, "method.eps_rw": [0.01, 0.1]}) == [
        {"method": {**rpp, "eps_rw": 0.01}},
        {"method": rpp},
    ]
    # A method named in the grid starts from nothing: the other one's options are not its own.
    assert options_of({"method": ["rpp", rpp, {"name": "rpp"}]}) == [{"method": "rpp"}, {"method": rpp}]
    # A list that is a value is an entry of an axis.
    assert options_of({"include": [["a", "b"], ["c"]]}) == [{"include": ["a", "b"]}, {"include": ["c"]}]
    union = [{"sparsity": [0.5, 0.9]}, {"method": "rpp", "sparsity": [0.9]}, {"sparsity": 0.9}]
    assert options_of(union) == [{}, {"sparsity": 0.9}, {"method": "rpp", "sparsity": 0.9}]


def test_references_are_shared_and_first() -> None:
    grid: list[dict[str, Any]] = [
        {"method": ["rpp", "magnitude"], "sparsity": [0.5, 0.9], "seed": [0, 1]},
        {"epochs": 9, "warmup": 0.5},
    ]
    points = Study(Path("x"), grid=grid, base={**BASE, "learning_rate": 1e-3}, reference={"learning_rate": 1e-5}).points
    dense, others = points[:3], points[3:]
    assert all(point.method == "dense" and point.reference is None for point in dense)
    assert all(point.options["sparsity"] == 0 and point.options["learning_rate"] == 1e-5 for point in dense)
    assert len(others) == 9
    for point in others:
        assert point.reference in dense
        assert point.options["learning_rate"] == 1e-3
        for key in SHARED:
            assert point.reference is not None
            assert point.options.get(key) == point.reference.options.get(key)
    assert "warmup" not in dense[-1].options, "the reference has the grid's options only where it must"


def test_references_learn_from_no_teacher_and_from_texts_as_they_are() -> None:
    base = {**BASE, "distill": {"hidden": 0.5}, "augment": {"copies": 2}}
    dense, other = Study(Path("x"), grid={"method": "rpp", "sparsity": 0.5}, base=base).points
    assert not {key for key in dense.options if key in ("distill", "augment")}
    assert {key for key in other.options if key in ("distill", "augment")}


def test_dense_points_are_the_reference_where_they_agree() -> None:
    grid = {"method": ["dense", "rpp"], "sparsity": [0.5, 0.9]}
    assert [point.method for point in Study(Path("x"), grid=grid, base=BASE).points] == [
        "dense",
        "rpp",
        "rpp",
    ]
    other = Study(Path("x"), grid=grid, base=BASE, reference={"learning_rate": 1e-5}).points
    assert [point.method for point in other] == ["dense", "dense", "rpp", "rpp"]


GOOD = "output: runs\nbase: {model: minilm, task: stdlib-docs, method: magnitude}\n"


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What was given to `check_options`, which refuses `epochs: -1` and does not import torch."""
    seen: list[dict[str, Any]] = []

    def check_options(options: dict[str, Any]) -> None:
        seen.append(options)
        if options.get("epochs") == -1:
            raise ValueError("epochs -1: it must be > 0.")

    monkeypatch.setitem(sys.modules, "argprune.tasks.prune", SimpleNamespace(check_options=check_options))
    return seen


def test_load_study(tmp_path: Path, checked: list[dict[str, Any]]) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(GOOD + "# a comment\ngrid: {sparsity: [0.5], learning_rate: [1e-4, 0.0001, 3E-5]}\n")
    loaded = load_study(path)
    assert loaded.output == Path("runs")
    assert loaded.to_yaml() == path.read_text()
    assert [point.options.get("learning_rate") for point in loaded.points] == [None, 1e-4, 3e-5]
    assert checked == [point.options for point in loaded.points], "every point is checked, references too"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("- a\n", "is a list"),
        ("grid: {a: [1\n", "not valid YAML: line 2"),
        ("grid: \x00", "not valid YAML"),
        ("output: x\noutput: y\n", "line 2: the key 'output' stands twice"),
        ("grids: {}\n", "unknown key 'grids'. Did you mean 'grid'?"),
        ("zzz: {}\n", "unknown key 'zzz'. Known: output, base, reference, tune, grid."),
        ("grid: {seed: [1]}\n", "output: None; give the folder"),
        (GOOD, "grid: empty"),
        (GOOD + "grid: {}\n", "grid: empty"),
        (GOOD + "grid: []\n", "grid: empty"),
        (GOOD + "grid: [{sparsity: 0.5}, {}]\n", "grid[1]: empty"),
        (GOOD + "grid: 5\n", "grid: 5 is not a mapping"),
        (GOOD + "grid: sparsity\n", "grid: 'sparsity' is not a mapping"),
        (GOOD + "grid: [seed]\n", "grid[0]: 'seed' is not a mapping"),
        (GOOD + "grid: {sparsity: []}\n", "grid: 'sparsity' is an axis without values"),
        (GOOD + "grid: {1: [2]}\n", "grid: the key 1 is not a name"),
        (GOOD + "grid: {model: {1: 2}}\n", "grid: 'model': the key 1 is not a name"),
        (GOOD + "grid: {dense: [a]}\n", "grid: 'dense' is set by the study"),
        (GOOD + "grid: {optimizer.lr: [1]}\n", "grid: 'optimizer.lr': dots are for"),
        (GOOD + "grid: {method.name: [rpp]}\n", "grid: 'method.name': dots are for"),
        (GOOD + "grid: {sparsity: 0.5, epochs: [.nan]}\n", "grid: 'epochs': nan is not a finite number"),
        (GOOD + "grid: {sparsity: 0.5, data_dir: 2020-01-01}\n", "is a date, not text or a number"),
        (GOOD + "grid: {seed: [1, 2]}\n", "grid: sparsity None of method magnitude"),
        (GOOD + "grid: {sparsity: [half]}\n", "grid: sparsity 'half' of method magnitude"),
        (GOOD + "grid: {sparsity: 0.5, seed: [x]}\n", "grid: seed 'x' of method magnitude"),
        (GOOD + "grid: {sparsity: 0.5, method: [3]}\n", "grid: method 3; give a name"),
        (GOOD + "grid: {sparsity: 0.5, method: {eps: 1}}\n", "grid: method {'eps': 1}; give a name"),
        ("output: x\ngrid: {sparsity: 0.5, method.eps: 1}\n", "grid: 'method.eps' without a method"),
        (GOOD + "reference: {seed: 1}\ngrid: {sparsity: 0.5}\n", "reference: 'seed' is that of the points"),
        (GOOD + "reference: [1]\ngrid: {sparsity: 0.5}\n", "reference: [1] is not a mapping"),
        ("output: x\nbase: 3\ngrid: {sparsity: 0.5}\n", "base: 3 is not a mapping"),
        (GOOD + "grid: {sparsity: 0.5, epochs: [1, -1]}\n", "epochs -1: it must be > 0."),
    ],
)
@pytest.mark.usefixtures("checked")
def test_bad_study_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        load_study(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_unreadable_study_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.yaml: cannot read the study: No such file"):
        load_study(tmp_path / "none.yaml")
    with pytest.raises(ValueError, match="cannot read the study: Is a directory"):
        load_study(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"output: \xe9\n")
    with pytest.raises(ValueError, match="not UTF-8"):
        load_study(tmp_path / "latin.yaml")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("checkpoint_every: 2.5", "checkpoint_every: '2.5' is not int."),
        ("method.every: 2.5", "method.every: '2.5' is not int."),
        ("include: 5", "include: '5' is not a list, such as"),
        ("batch_size: 8.5", "batch_size: '8.5' is not int."),
        ("task: 5", "task: '5' is not str."),
        ("epochs: true", "epochs: 'True' is not float."),
        ("learning_rate: fast", "learning_rate: 'fast' is not float."),
        ("distill: {hidden: x}", "distill.hidden: 'x' is not float."),
        ("colour: 5", "Unknown option 'colour'. Known: "),
        ("method.colour: 5", "Method 'magnitude' has no option 'colour'. It has: "),
        ("epochs: -1", "epochs -1.0: it must be finite and >= 0."),
    ],
)
def test_options_of_another_type_are_refused_before_any_run(tmp_path: Path, options: str, message: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(f"{GOOD}grid: {{sparsity: 0.5, {options}}}\n")
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        load_study(path)
    assert re.match(rf"{path}: point \S+: ", str(caught.value))
    assert "\n" not in str(caught.value)


def test_whole_numbers_may_be_written_as_floats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run is given them as `argprune prune` takes them, and is the same run however they are written."""
    names = set()
    for text in ("100", "1e2", "100.0"):
        path = tmp_path / f"{text}.yaml"
        axes = f"checkpoint_every: {text}, method.every: {text}, epochs: 2.0"
        path.write_text(f"output: {tmp_path / text}\nbase: {{method: magnitude}}\ngrid: {{sparsity: 0.5, {axes}}}\n")
        study = load_study(path)
        run_study(study, executor=Instant())
        config = tmp_path / text / f"{study.points[-1].name}.yaml"
        assert main(["prune", "--config", str(config)]) == 2
        # All else was in order.
        assert capsys.readouterr().err.startswith("argprune: error: No output.")
        names.add((study.points[-1].name, config.read_text().replace(str(tmp_path / text), "")))
    assert len(names) == 1


def test_many_points_are_checked_within_seconds(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(f"{GOOD}grid: {{method: [rpp, magnitude], sparsity: 0.5, seed: {list(range(50))}}}\n")
    start = time.process_time()
    assert len(load_study(path).points) == 150
    assert time.process_time() - start < 10


def test_the_how_to_is_true(tmp_path: Path) -> None:
    """The examples are studies that `argprune prune` accepts, and the first has the points that the page says."""
    page = (ROOT / "docs" / "how-to" / "studies.md").read_text()
    example, tuned = re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL)
    (tmp_path / "example.yaml").write_text(example)
    points = load_study(tmp_path / "example.yaml").points
    references = sum(point.method == "dense" for point in points)
    assert f"{len(points) - references} runs and {references} dense references" in page
    (tmp_path / "tuned.yaml").write_text(tuned)
    tune = load_study(tmp_path / "tuned.yaml").tune
    assert tune is not None
    assert tune.space_of("rpp").keys() == {"learning_rate", "method.eps_rw"}
