"""The command line: what it prints, and with which exit status, in process and once as a real command."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from argprune.cli import main
from argprune.solvers.registry import registered

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> tuple[int, str, str]:
        status = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prnue"], "Unknown command 'prnue'. Known: prune, verify, study, export, report, analyse, list."),
        (["list", "colours"], "invalid choice: 'colours'"),
        (["prune"], "No output. Give --output RUN"),
        (["prune", "--sparsity", "0.5"], "No output. Give --output RUN"),
        (["prune", "--method", "rrp", "--sparsity", "0.5"], "Unknown method 'rrp'. Did you mean 'rpp'?"),
        (["prune", "--method", "no_such_module:X", "--sparsity", "0.5"], "Cannot load method 'no_such_module:X'"),
        (
            ["prune", "--sparsity", "1.5"],
            "sparsity 1.5: it is the fraction of zeros over the prunable weights, in [0, 1).",
        ),
        (["prune", "--sparsity", "most"], "--sparsity: 'most' is not float or null."),
        (["prune"], "Method 'rpp' needs sparsity"),
        (["prune", "--sparsity", "0.5", "--method.eps_rw", "x"], "--method.eps_rw: 'x' is not float."),
        (["prune", "--sparsity", "0.5", "--method.colour", "x"], "unrecognized arguments: --method.colour x"),
        (
            ["prune", "--method", "pins", "--sparsity", "0.5", "--sign", "abs"],
            "--criterion.sign before --criterion NAME, which says whose option it is.",
        ),
        (
            ["prune", "--method", "pins", "--sparsity", "0.5", "--criterion", "pins", "--criterion", "obd"],
            "--criterion was given 2 times; give one.",
        ),
        (
            ["prune", "--method", "pins", "--sparsity", "0.5", "--criterion", "pins", "--sign", "minus"],
            "pins: sign 'minus'; choose one of displacement, signed, abs.",
        ),
        (["prune", "--sparsity", "0.5", "--criterion", "pins"], "unrecognized arguments: --method.criterion"),
        (
            ["prune", "--sparsity", "0.5", "--task", "stdlib-doc"],
            "Unknown task 'stdlib-doc'. Did you mean 'stdlib-docs'?",
        ),
        (["prune", "--sparsity", "0.5", "--model", "/no/such/model"], "No folder '/no/such/model'."),
        (["prune", "--sparsity", "0.5", "--batch-size", "0"], "batch_size 0"),
        (
            ["prune", "--sparsity", "0.5", "--include", "*.query.*"],
            """'*.query.*' is not a list, such as ["*.query.*"].""",
        ),
        (["prune", "--sparsity", "0.5", "--config", "no-such.yaml"], "no-such.yaml"),
        (["prune", "--config", "cut.yaml"], "--config cut.yaml: not valid YAML: line 2: expected ',' or ']'"),
        (["prune", "--config", "list.yaml"], "--config list.yaml: holds a list; give a mapping of options."),
        (["prune", "--config", "latin.yaml"], "--config latin.yaml: not UTF-8 text; give a YAML file"),
        (
            ["prune", "--method", "pins", "--sparsity", "0.5", "--criterion", "pins", "--criterion.sign", "["],
            "--criterion.sign '[' is not YAML; give a value, or quote the text.",
        ),
        (["prune", "--sparsity", "0.5", "--precision", "fp8"], "--precision: 'fp8' is not one of auto, fp32, bf16."),
        (["prune", "--sparsity", "0.5", "--distill", '{"hiddn": 1}'], "--distill.hiddn: there is no such option."),
        (["prune", "--sparsity", "0.5", "--distill", '{"hidden": "x"}'], "--distill.hidden: 'x' is not float."),
        (["prune", "--sparsity", "0.5", "--distill", "5"], "'5' is not a mapping of options or bool or null."),
        (["prune", "--method", "dense", "--output", "a" * 300], "a: File name too long; give a folder that can be"),
        (
            ["prune", "--method", "rpp", "--sparsity", "0.5", "--dense", "a" * 300, "--model", "{tiny}"],
            "Dense reference aaa",
        ),
        (["prune", "--method", "argprune.tasks.runs:RunDirectory"], "'argprune.tasks.runs:RunDirectory' is no method"),
        (["export"], "the following arguments are required: RUN, --format, --output"),
        (["report", "a", "--output", "b.html", "--colour"], "unrecognized arguments: --colour"),
        (["study", "no-such.yaml"], "no-such.yaml"),
        (["study", "s.yaml", "--backend", "slurm"], "invalid choice: 'slurm'"),
    ],
)
def test_bad_usage_is_one_line_and_status_2(
    run: Run, tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content in (("cut", b"a: [1\n"), ("list", b"- a\n"), ("latin", b"model: \xe9\n")):
        (tmp_path / f"{name}.yaml").write_bytes(content)
    arguments = [argument.replace("{tiny}", tiny_model) for argument in arguments]
    if arguments[0] == "prune" and message.split(".")[0] != "No output" and "--output" not in arguments:
        arguments = [*arguments, "--output", "run"]
    status, out, err = run(*arguments)
    assert status == 2
    assert message in err
    assert err.startswith("argprune: error: ")
    assert err.count("\n") == 1
    assert out == ""
    assert not (tmp_path / "run").exists()


def test_what_the_system_says_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(error: Exception) -> Any:
        def job(*_: Any) -> None:
            raise error

        return job

    monkeypatch.setattr("argprune.cli._list", fail(PermissionError(13, "Permission denied", "a\nfolder")))
    assert run("list", "tasks") == (1, "", "argprune: error: a folder: Permission denied.\n")
    # A mistake of ours is for us to see.
    monkeypatch.setattr("argprune.cli._list", fail(KeyError("x")))
    with pytest.raises(KeyError):
        run("list", "tasks")


def test_a_number_of_processes_that_is_none(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "")
    assert run("list", "models")[0] == 0
    monkeypatch.setenv("WORLD_SIZE", "two")
    status, out, err = run("list", "models")
    assert (status, out) == (2, "")
    assert err == "argprune: error: WORLD_SIZE 'two' is no number of processes; unset it, or launch with torchrun.\n"


def test_missing_extra_is_named(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    status, _, err = run("prune", "--sparsity", "0.5", "--output", tmp_path / "run")
    assert status == 2
    assert "pip install 'argprune[demo]'" in err


@pytest.mark.parametrize("method", registered("methods"))
def test_every_option_of_a_method_has_a_type_that_is_checked(capsys: pytest.CaptureFixture[str], method: str) -> None:
    """What jsonargparse cannot resolve takes any value, and help says so."""
    with pytest.raises(SystemExit) as ended:
        main(["prune", "--method", method, "--help"])
    assert ended.value.code == 0
    help_text = capsys.readouterr().out
    assert "--sparsity" in help_text
    assert "Unvalidated" not in help_text


def test_no_arguments_print_help(run: Run) -> None:
    status, out, _ = run()
    assert status == 2
    assert "prune" in out


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("methods", {"dense", "magnitude", "rpp"}),
        ("regularizers", {"l1", "weighted_l1"}),
        ("criteria", {"magnitude", "pins", "platon", "random"}),
        ("tasks", {"stdlib-docs"}),
        ("models", {"minilm"}),
        ("criteria", set()),
    ],
)
def test_list(run: Run, kind: str, names: set[str]) -> None:
    status, out, _ = run("list", kind)
    assert status == 0
    assert names <= {line.split()[0] for line in out.splitlines()}


def test_print_config_is_a_config(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["prune", "--method", "magnitude", "--sparsity", "0.7", "--method.every", "5", "--print_config"])
    assert not stop.value.code
    text = capsys.readouterr().out
    assert yaml.safe_load(text)["method"]["every"] == 5
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(SystemExit):
        main(["prune", "--config", str(tmp_path / "c.yaml"), "--print_config"])
    assert yaml.safe_load(capsys.readouterr().out) == yaml.safe_load(text)


@pytest.mark.parametrize("switch", [["--fsdp"], ["--fsdp", "true"], ["--fsdp=true"]])
def test_fsdp_is_a_switch(switch: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--method", "rpp", *switch, "--sparsity", "0.7"], ["--sparsity", "0.7", *switch]):
        with pytest.raises(SystemExit):
            main(["prune", *arguments, "--print_config"])
        assert yaml.safe_load(capsys.readouterr().out)["fsdp"] is True


@pytest.mark.parametrize("method", ["sparsebert", "block-lasso"])
def test_literal_is_short_for_the_methods_own(method: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["prune", "--method", method, "--literal", "--sparsity", "0.7", "--print_config"])
    assert yaml.safe_load(capsys.readouterr().out)["method"]["literal"] is True


@pytest.fixture
def tiny(tiny_model: str, tiny_data: str, tmp_path: Path) -> Path:
    """A config file of a run that takes a second."""
    options: dict[str, Any] = {"model": tiny_model, "task": "words", "data_dir": tiny_data, "max_steps": 6}
    options |= {"batch_size": 8, "max_length": 16, "log_every": 1, "method": "magnitude", "sparsity": 0.5}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(options))
    return path


def test_prune_reports_lines_and_a_table(run: Run, tiny: Path, tmp_path: Path) -> None:
    status, out, err = run("prune", "--config", tiny, "--method.every", "1", "--output", tmp_path / "run")
    assert status == 0
    assert "magnitude" in out
    assert "dense" in out
    assert "50.0%" in out
    assert "step 6/6" in err
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["method"]["every"] == 1
    assert run("prune", "--config", tiny, "--output", tmp_path / "run")[0] == 2
    assert run("prune", "--config", tmp_path / "run" / "config.yaml", "--output", tmp_path / "run", "--resume")[0] == 0


def test_quiet_says_nothing(run: Run, tiny: Path, tmp_path: Path) -> None:
    assert run("prune", "--config", tiny, "--output", tmp_path / "run", "-q") == (0, "", "")


def test_failed_run_is_status_1(run: Run, tiny: Path, tmp_path: Path) -> None:
    # Adam's first step has the length of the learning rate: weights of 1e38 overflow in the next forward pass.
    status, _, err = run(
        "prune", "--config", tiny, "--learning_rate", "1e38", "--lr_warmup", "0", "--output", tmp_path / "run", "-q"
    )
    assert status == 1
    assert err.count("\n") == 1
    assert "loss is" in err
    assert "Lower learning_rate" in err
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_study_from_end_to_end(tiny: Path, tmp_path: Path) -> None:
    base = yaml.safe_load(tiny.read_text()) | {"data_dir": str(yaml.safe_load(tiny.read_text())["data_dir"])}
    del base["method"], base["sparsity"]
    study = {
        "output": str(tmp_path / "runs"),
        "base": base,
        "grid": {"method": ["rpp"], "sparsity": [0.5], "seed": [0]},
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    command = [sys.executable, "-m", "argprune", "study", "study.yaml", "--jobs", "2", "--collect", "table.csv"]
    first = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr
    assert "rpp" in first.stdout
    assert len((tmp_path / "table.csv").read_text().splitlines()) == 3
    finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*/metrics.json")}
    assert len(finished) == 2
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert json.loads(next(iter(finished)).read_text())["task"] == "words"
