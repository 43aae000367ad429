"""The three ways in which a plug-in joins, and what happens to names that do not."""

from __future__ import annotations

import copy
import sys
import types
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from argprune.solvers import registry
from argprune.solvers.methods import Dense, Magnitude
from argprune.solvers.prox import L1


class Plugin:
    """Somebody's regularizer."""


@pytest.fixture
def scratch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registrations of the test end with it."""
    monkeypatch.setattr(registry, "_entries", {kind: dict(entries) for kind, entries in registry._entries.items()})


@pytest.fixture
def offered(monkeypatch: pytest.MonkeyPatch) -> dict[str, EntryPoint]:
    """Another distribution, importable as `somewhere_else`, with entry points."""
    module: Any = types.ModuleType("somewhere_else")
    module.Plugin, module.number = Plugin, 3
    monkeypatch.setitem(sys.modules, "somewhere_else", module)
    group = "argprune.regularizers"
    points = {
        name: EntryPoint(name, f"somewhere_else:{value}", group)
        for name, value in (("plugin", "Plugin"), ("number", "number"), ("l1", "Plugin"))
    }
    monkeypatch.setattr(
        registry, "entry_points", lambda group: points.values() if group == "argprune.regularizers" else ()
    )
    return points


def test_a_decorator_registers(scratch: None) -> None:
    examples = [{"strength": 1.0}, {"strength": 2.0}]
    assert registry.register("regularizers", "plugin", examples=examples)(Plugin) is Plugin
    entry = registry.registered("regularizers")["plugin"]
    assert (entry.name, entry.cls, entry.examples) == ("plugin", Plugin, tuple(examples))
    assert registry.resolve("regularizers", "plugin") is Plugin
    assert "plugin" not in registry.registered("methods")


def test_a_name_registered_twice_is_an_error(scratch: None) -> None:
    before = copy.copy(registry.registered("methods")["dense"])
    with pytest.raises(ValueError, match=r"methods already has 'dense' \(Dense\)"):
        registry.register("methods", "dense")(Plugin)
    assert registry.registered("methods")["dense"] == before
    # The same name among another kind is free.
    registry.register("criteria", "dense")(Plugin)
    assert registry.resolve("criteria", "dense") is Plugin


def test_what_is_registered() -> None:
    assert {"l1", "weighted_l1"} <= set(registry.registered("regularizers"))
    assert {"dense", "magnitude", "rpp"} <= set(registry.registered("methods"))
    for kind in ("regularizers", "methods"):
        for entry in registry.registered(kind).values():
            assert entry.examples
            for kwargs in entry.examples:
                assert isinstance(entry.cls(**kwargs), entry.cls)
    names = list(registry.registered("methods"))
    assert names == sorted(names)


def test_registered_gives_a_copy() -> None:
    registry.registered("methods").clear()
    assert registry.resolve("methods", "dense") is Dense


def test_names_resolve() -> None:
    assert registry.resolve("methods", "magnitude") is Magnitude
    assert registry.resolve("regularizers", "argprune.solvers.prox.separable:L1") is L1


def test_unknown_names_suggest_the_closest() -> None:
    with pytest.raises(ValueError, match=r"Unknown method 'magnitud'\. Did you mean 'magnitude'\?"):
        registry.resolve("methods", "magnitud")
    with pytest.raises(ValueError, match=r"Unknown method 'qqqq'\. Known: admm, alps, block-lasso, "):
        registry.resolve("methods", "qqqq")


def test_entry_points_are_listed_and_loaded_by_name(offered: dict[str, EntryPoint]) -> None:
    assert registry.installed("regularizers") == offered
    assert registry.installed("methods") == {}
    assert registry.resolve("regularizers", "plugin") is Plugin
    # What this package registers comes first.
    assert registry.resolve("regularizers", "l1") is L1
    with pytest.raises(ValueError, match="Did you mean 'plugin'"):
        registry.resolve("regularizers", "plugln")


def test_what_is_not_a_class_is_refused(offered: dict[str, EntryPoint]) -> None:
    for name in ("number", "somewhere_else:number"):
        with pytest.raises(ValueError, match=f"regularizer '{name}' is int, not a class"):
            registry.resolve("regularizers", name)


@pytest.mark.parametrize(
    "name", ["no_such_module:Plugin", "argprune.solvers.prox:NoSuchClass", "argprune.solvers.prox:"]
)
def test_what_cannot_be_imported_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"Cannot load method '{name}'"):
        registry.resolve("methods", name)
