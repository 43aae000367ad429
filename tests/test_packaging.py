"""The wheel holds what the checkout holds, and imports point one way: tasks -> models -> solvers."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("solvers", "models", "tasks")
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
# What each room must not import; solvers knows no transformer library either.
FORBIDDEN = {
    "solvers": ("argprune.models", "argprune.tasks", "transformers", "datasets", "accelerate"),
    "models": ("argprune.tasks", "datasets"),
    "tasks": (),
}
OPTIONAL = ("cvxpy", "ortools", "matplotlib", "highspy", "optuna", "ray")


def sources(room: str) -> list[Path]:
    return sorted(path for path in (ROOT / room).rglob("*.py") if "__pycache__" not in path.parts)


def module_name(path: Path) -> str:
    """argprune.solvers.prox.base for ROOT/solvers/prox/base.py; a package's name for its __init__.py."""
    return ".".join(("argprune", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


def imported(path: Path) -> set[str]:
    """Absolute names of everything that a file imports, at the top or inside functions."""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package.pop()
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join((*base, *(node.module or "").split("."))).rstrip(".")
            names.add(origin)
            names.update(f"{origin}.{alias.name}" for alias in node.names)
    return names


def run_python(*arguments: str, cwd: Path, **environment: str) -> str:
    """Standard output of a fresh interpreter, which must succeed; -P leaves out the current folder."""
    done = subprocess.run(
        [sys.executable, "-P", *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked wheel, built by way of the source distribution from a copy of the working tree."""
    folder = tmp_path_factory.mktemp("wheel")
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listing.returncode:
        pytest.skip(f"needs a git checkout to know its files: {listing.stderr.strip()}")
    for name in filter(None, listing.stdout.split("\0")):
        if os.path.lexists(ROOT / name):
            target = folder / "tree" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target, follow_symlinks=False)
    built = subprocess.run(
        [sys.executable, "-P", "-m", "build", "--no-isolation", "--outdir", folder / "dist", folder / "tree"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (archive,) = (folder / "dist").glob("*.whl")
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(folder / "unpacked")
    return folder / "unpacked"


def test_every_package_is_listed() -> None:
    found = {module_name(init) for room in ROOMS for init in sources(room) if init.name == "__init__.py"}
    listed = set(SETUPTOOLS["packages"]) - {"argprune"}
    assert found == listed, "an unlisted package is there when editable and missing from the wheel"


@pytest.mark.parametrize("room", ROOMS)
def test_every_folder_of_python_is_a_package(room: str) -> None:
    bare = [path for path in sources(room) if not path.with_name("__init__.py").exists()]
    assert not bare, "these files lie in a folder without __init__.py"


@pytest.mark.parametrize("room", ROOMS)
def test_links(room: str) -> None:
    link = ROOT / "src" / "argprune" / room
    assert link.is_symlink()
    assert os.readlink(link) == f"../../{room}", "a link that is not relative breaks in every other checkout"
    assert SETUPTOOLS["package-dir"][f"argprune.{room}"] == room


def test_wheel_holds_every_file(wheel: Path) -> None:
    expected = {Path("argprune", room, path.relative_to(ROOT / room)) for room in ROOMS for path in sources(room)}
    home = ROOT / "src" / "argprune"
    expected |= {Path("argprune", path.name) for path in (*home.glob("*.py"), home / "py.typed")}
    expected |= {Path("argprune", "tasks", "report", f"page.{suffix}") for suffix in ("html", "css", "js")}
    packed = {path.relative_to(wheel) for path in (wheel / "argprune").rglob("*") if path.is_file()}
    assert expected <= packed
    assert {path for path in packed if path.suffix == ".py"} <= expected
    (licence,) = wheel.glob("argprune-*.dist-info/licenses/LICENSE")
    assert licence.read_bytes() == (ROOT / "LICENSE").read_bytes()


def test_wheel_imports(wheel: Path, tmp_path: Path) -> None:
    code = """
import importlib, json, pkgutil, sys
import argprune
light = sorted(sys.modules)
names = ["argprune", *(m.name for m in pkgutil.walk_packages(argprune.__path__, "argprune."))]
names = [name for name in names if not name.endswith("__main__")]
files = {name: importlib.import_module(name).__file__ for name in names}
print(json.dumps({"light": light, "files": files, "all": sorted(sys.modules)}))
"""
    seen = json.loads(run_python("-c", code, cwd=tmp_path, PYTHONPATH=str(wheel)).splitlines()[-1])
    expected = {module_name(path) for room in ROOMS for path in sources(room)}
    assert expected <= set(seen["files"])
    elsewhere = {name: file for name, file in seen["files"].items() if not Path(file).is_relative_to(wheel)}
    assert not elsewhere, "imported from outside the wheel"
    heavy = {"torch", "transformers", "datasets"} & set(seen["light"])
    assert not heavy, "`import argprune` must stay light: bring public names in lazily"
    eager = set(OPTIONAL) & set(seen["all"])
    assert not eager, "optional dependencies are imported where they are used, inside functions"


def test_wheel_runs(wheel: Path, tmp_path: Path) -> None:
    assert "magnitude" in run_python("-m", "argprune", "list", "methods", cwd=tmp_path, PYTHONPATH=str(wheel))


@pytest.mark.parametrize("first", ["cvxpy", "ortools.sat.python.cp_model"])
def test_exact_solvers_share_a_process(first: str, tmp_path: Path) -> None:
    """Two libraries of the name libhighs.so.1 cannot be loaded together: see the `exact` extra."""
    code = f"import {first}, cvxpy, ortools.sat.python.cp_model; assert 'HIGHS' in cvxpy.installed_solvers()"
    run_python("-c", code, cwd=tmp_path)


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_one_way(room: str) -> None:
    upward = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in sources(room)
        for name in imported(path)
        if any(name == taboo or name.startswith(f"{taboo}.") for taboo in FORBIDDEN[room])
    }
    assert not upward, "imports point one way: tasks -> models -> solvers"
