"""Batches in parts: every row once, the means of the whole batch, and sparsity that stays exact."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from argprune import prune
from argprune.models.outputs import count_terms
from argprune.tasks.encoded import LengthGroupedSampler
from argprune.tasks.parts import Parts, Shares, scaled
from argprune.tasks.ranks import Ranks, open_ranks
from argprune.tasks.settings import Settings


@pytest.mark.parametrize(("rows", "batch", "count"), [(24, 8, 4), (23, 8, 3), (17, 8, 4), (3, 8, 4)])
def test_parts_share_each_batch_of_the_sampler(rows: int, batch: int, count: int) -> None:
    sampler = LengthGroupedSampler([3 + i % 5 for i in range(rows)], batch, 0, lambda: 1)
    order, parts = list(sampler), list(Parts(sampler, rows, batch, count))
    assert len(parts) == len(Parts(sampler, rows, batch, count)) == count * -(-rows // batch)
    for step in range(len(parts) // count):
        whole, own = order[step * batch : (step + 1) * batch], parts[step * count : (step + 1) * count]
        assert max(map(len, own)) - min(map(len, own)) <= 1
        # Rows that no part had are in none; a part without a row has the first, for nothing.
        assert sorted(row for part in own[: len(whole)] for row in part) == sorted(whole)
        assert all(part == whole[:1] for part in own[len(whole) :])


def counted(batch: Mapping[str, Any]) -> dict[str, int]:
    return {"targets": len(batch["x"]), "tokens": 2 * len(batch["x"]), "pairs": 0}


def test_shares_make_the_mean_of_the_whole_batch() -> None:
    x = torch.arange(19.0)
    parts = list(Parts(range(19), 19, 8, 3))  # type: ignore[arg-type]
    shares = Shares(Ranks(), 19, 8, counted)
    for step in range(3):
        batches = [{"x": x[part]} for part in parts[3 * step : 3 * step + 3]]
        # The same step of a later epoch.
        shares.open(step + 6, batches)
        means = [scaled(batch["x"].mean(), shares.next()["targets"]) for batch in batches]
        assert sum(means) == pytest.approx(float(x[8 * step : 8 * step + 8].mean()))


def test_the_mean_over_nothing_counts_nothing() -> None:
    x = torch.tensor([float("nan")], requires_grad=True)
    term = scaled(x.sum(), 0.0)
    term.backward()
    assert float(term.detach()) == 0
    assert x.grad is not None
    assert float(x.grad) == 0


def test_what_terms_are_means_over() -> None:
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    labels = torch.tensor([[5, 6, -100, -100], [7, -100, -100, -100]])
    batch = {"input_ids": mask, "attention_mask": mask}
    assert count_terms(batch) == {"targets": 2, "tokens": 5, "pairs": 13}
    assert count_terms({**batch, "labels": torch.tensor([0, 1])})["targets"] == 2
    assert count_terms({**batch, "labels": labels})["targets"] == 3
    assert count_terms({**batch, "labels": labels}, next_token=True) == {"targets": 1, "tokens": 5, "pairs": 13}
    assert count_terms(batch, causal=True) == {"targets": 2, "tokens": 5, "pairs": 9}


@pytest.mark.parametrize("steps", [0, -1])
def test_accumulation_steps_are_positive(steps: int) -> None:
    with pytest.raises(ValueError, match=f"^gradient_accumulation_steps {steps}: at least 1"):
        Settings(gradient_accumulation_steps=steps)


@pytest.mark.parametrize(
    "method",
    [
        "magnitude",
        {"name": "rpp", "scope": "global"},
        {"name": "pins", "every": 2},
        "movement",
        "l0",
        "admm",
        {"name": "proximal", "regularizer": "mcp"},
    ],
)
def test_bf16_and_accumulation_leave_sparsity_exact(
    job: dict[str, Any], dense: Path, tmp_path: Path, method: Any
) -> None:
    run = prune(
        **job,
        method=method,
        sparsity=0.7,
        precision="bf16",
        gradient_accumulation_steps=3,
        dense=dense,
        output=tmp_path / "run",
    )
    saved, masks = load_file(tmp_path / "run" / "model" / "model.safetensors"), run.masks()
    total = sum(mask.numel() for mask in masks.values())
    kept = sum(int(mask.sum()) for mask in masks.values())
    # One count for all weights, or one for each, rounded.
    each = sum(mask.numel() - round(0.7 * mask.numel()) for mask in masks.values())
    assert kept in (total - round(0.7 * total), each)
    assert all(not saved[name][~mask].any() for name, mask in masks.items())
    assert sum(int(saved[name].count_nonzero()) for name in masks) == kept
    assert run.metrics["sparsity"]["encoder"] == pytest.approx(1 - kept / total, abs=1e-12)


def test_fsdp_of_accelerate_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match=r"^FSDP of accelerate .*give argprune --fsdp\.$"):
        open_ranks.__wrapped__()
