"""`argprune verify prox`, and regularizers that come from elsewhere: a scratch file, another distribution."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from argprune.cli import main

ROOT = Path(__file__).resolve().parents[1]

WRONG = '''
import torch


class Wrong:
    """The l1 norm, with the threshold of another."""

    convex = separable = True

    def value(self, w):
        return w.abs().sum()

    def prox(self, w, step):
        return (w.detach().sign() * (w.detach().abs() - 2 * step).clamp(min=0)) + 0.0
'''

RIGHT = WRONG.replace("Wrong", "Right").replace("2 * step", "step")


def test_named_operators_pass_and_the_json_lists_every_check(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "verify.json"
    arguments = ["verify", "prox", "--regularizer", "l1", "--regularizer", "mcp", "--regularizer.gamma", "2.5"]
    assert main([*arguments, "--regularizer.strength", "0.7", "--json", str(file), "--jobs", "1"]) == 0
    assert "2 operators, 3 instances" in capsys.readouterr().out
    data = json.loads(file.read_text())
    assert data["passed"] is True
    reports = {report["operator"]: report for report in data["reports"]}
    assert "MCP(strength=0.7, gamma=2.5)" in reports
    for report in reports.values():
        assert report["speed"]["gigabytes_per_second"] > 0
        for check in report["checks"]:
            assert {"name", "status", "error", "tolerance", "where", "tried", "note"} <= set(check)


def test_a_wrong_prox_fails_with_an_input_to_paste(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "scratch_wrong.py").write_text(WRONG + RIGHT, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert main(["verify", "prox", "--regularizer", "scratch_wrong:Wrong", "--no-speed"]) == 1
    out = capsys.readouterr().out
    assert "local-search: error" in out
    assert "w = torch.tensor(" in out
    assert main(["verify", "prox", "--regularizer", f"{tmp_path}/scratch_wrong.py:Right", "--no-speed"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--regularizer", "l11"], "Did you mean 'l1'?"),
        (["--regularizer", "no_such:Thing"], "Cannot load regularizer 'no_such:Thing'"),
        (["--regularizer"], "--regularizer without a value."),
        (["--regularizer.eps", "1"], "--regularizer.eps before --regularizer NAME"),
        (["--regularizer", "mcp", "--regularizer.gamma", "-1", "--regularizer.strength", "1"], "gamma -1"),
        (["--regularizer", "mcp", "--regularizer.gama", "1"], "gama"),
        (["--json", "no/such/folder/x.json"], "there is no folder"),
        (["--json", "."], "that is a folder; give a file"),
        (["--jobs", "0"], "jobs 0"),
    ],
)
def test_bad_usage_is_one_line_before_anything_is_checked(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", "prox", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.count("\n") == 1


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the example distribution installed in it."""
    target, source = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("source") / "plugin"
    # Built from a copy: setuptools leaves files beside what it builds.
    subprocess.run(["cp", "-r", ROOT / "tests" / "plugin", source], check=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target"]
    subprocess.run([*command, target, source], check=True, capture_output=True)
    return target


def argprune(installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [str(installed), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "argprune", *arguments]
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False)


def test_an_installed_plugin_is_listed_without_being_imported(installed: Path) -> None:
    done = argprune(installed, "list", "regularizers")
    assert done.returncode == 0, done.stderr
    assert "smooth_l1" in done.stdout
    assert "plug-in argprune_example:SmoothL1" in done.stdout


def test_an_installed_plugin_is_verified_by_name(installed: Path) -> None:
    done = argprune(installed, "verify", "prox", "--regularizer", "smooth_l1", "--no-speed", "--jobs", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 operators, 2 instances" in done.stdout
