"""Statistics of masks against random masks, and masks whose pattern is known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model

from argprune.models import find_weights
from argprune.models.patterns import density_map, find_patterns, measure_spread, neighbour_overlap
from argprune.solvers.groups import Columns, Rows


def random_mask(rows: int, columns: int, kept: int, generator: torch.Generator) -> Tensor:
    mask = torch.zeros(rows * columns, dtype=torch.bool)
    mask[torch.randperm(rows * columns, generator=generator)[:kept]] = True
    return mask.view(rows, columns)


def test_random_masks_have_the_moments_that_are_said() -> None:
    generator = torch.Generator().manual_seed(0)
    spreads = [measure_spread(random_mask(12, 10, 30, generator), Rows()) for _ in range(2000)]
    dispersion = torch.tensor([spread.dispersion for spread in spreads], dtype=torch.float64)
    assert float(dispersion.mean()) == pytest.approx(1, abs=0.04)
    empty = torch.tensor([spread.empty for spread in spreads], dtype=torch.float64)
    assert float(empty.mean()) == pytest.approx(spreads[0].empty_by_chance, abs=0.05)
    small = sum(spread.p_value is not None and spread.p_value < 0.05 for spread in spreads) / len(spreads)
    assert 0.02 < small < 0.08


def test_whole_rows_show_in_rows_and_not_in_columns() -> None:
    mask = torch.zeros(20, 30, dtype=torch.bool)
    mask[:5] = True
    rows, columns = measure_spread(mask, Rows()), measure_spread(mask, Columns())
    assert rows.dispersion is not None
    assert columns.dispersion is not None
    assert rows.p_value is not None
    assert rows.dispersion > 20
    assert rows.p_value < 1e-6
    assert (rows.empty, rows.least, rows.most) == (15, 0.0, 1.0)
    assert columns.dispersion == 0
    assert columns.least == columns.most == 0.25


@given(kept=st.sampled_from([0, 24]))
def test_all_or_nothing_says_nothing(kept: int) -> None:
    mask = torch.full((4, 6), kept > 0)
    spread = measure_spread(mask, Rows())
    assert spread.dispersion is None
    assert spread.p_value is None
    assert spread.empty == spread.empty_by_chance == (0 if kept else 4)


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_a_pruned_head_shows(architecture: str) -> None:
    sizes: dict[str, Any] = {"vocab_size": 40, "bos_token_id": 0, "eos_token_id": 0}
    model = (
        BertModel(BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=4, intermediate_size=24, **sizes))
        if architecture == "bert"
        else GPT2Model(GPT2Config(n_embd=16, n_layer=1, n_head=4, n_inner=24, **sizes))
    )
    masks = {weight.name: torch.ones_like(weight.parameter, dtype=torch.bool) for weight in find_weights(model)}
    name = next(name for name in masks if name.endswith(("output.dense.weight", "attn.c_proj.weight")))
    weight = next(weight for weight in find_weights(model) if weight.name == name)
    weight.oriented(masks[name])[:, :4] = False
    everything = find_weights(model, biases=True)
    biases = {w.name: torch.ones(3, dtype=torch.bool) for w in everything if w.name not in masks}
    patterns = {pattern.name: pattern for pattern in find_patterns(model, masks | biases)}
    assert set(patterns) == set(masks)
    pattern = patterns[name]
    assert pattern.heads is not None
    assert (pattern.heads.groups, pattern.heads.empty, pattern.columns.empty, pattern.rows.empty) == (4, 1, 4, 0)
    assert pattern.density == 0.75
    feed_forward = next(p for n, p in patterns.items() if "intermediate" in n or "c_fc" in n)
    assert feed_forward.heads is None
    assert feed_forward.shape == (24, 16)
    with pytest.raises(ValueError, match=r"'other' is no prunable weight"):
        find_patterns(model, {"other": masks[name]})


def test_density_maps_keep_the_density() -> None:
    mask = torch.rand(96, 48, generator=torch.Generator().manual_seed(0)) < 0.3
    small = density_map(mask, 16)
    assert small.shape == (16, 16)
    assert float(small.mean()) == pytest.approx(float(mask.float().mean()))
    assert torch.equal(density_map(mask[:8, :8], 16), mask[:8, :8].float())


def test_neighbours_stay_under_rotation_and_go_by_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(300, 12, generator=generator)
    rotation = torch.linalg.qr(torch.randn(12, 12, generator=generator)).Q
    assert neighbour_overlap(table, 3 * table @ rotation) == 1.0
    other = torch.randn(300, 5, generator=generator)
    assert neighbour_overlap(table, other) == pytest.approx(10 / 299, abs=0.015)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(4, 2), torch.ones(5, 2), 2, None), "tables of 4 and 5 words"),
        ((torch.ones(4, 2), torch.ones(4, 2), 4, None), "4 neighbours of 4 words"),
        ((torch.ones(4, 2), torch.ones(4, 2), 1, [4]), "rows from 0 to 3"),
    ],
)
def test_refusals(arguments: Any, message: str) -> None:
    before, after, neighbours, words = arguments
    with pytest.raises(ValueError, match=message):
        neighbour_overlap(before, after, neighbours=neighbours, words=words)
    with pytest.raises(ValueError, match=r"float32"):
        measure_spread(torch.ones(2, 2), Rows())
