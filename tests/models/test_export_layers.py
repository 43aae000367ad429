"""Sparse layers: the outputs of the dense layer they replace, and the fastest is chosen by measuring."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from argprune.models import find_weights
from argprune.models.export import (
    FORMATS,
    Choice,
    SparseLinear,
    Unsuitable,
    apply_formats,
    choose_formats,
    load_sparse,
    save_sparse,
    sparse_layer,
)
from argprune.models.export import kernels as kernels_module
from argprune.models.export.kernels import kernels
from argprune.models.export.layers import StripLinear
from argprune.models.export.strips import make_strips

PATTERNS = ("entries", "blocks", "columns", "strips", "rows", "all", "none")


def pattern(kind: str, rows: int, columns: int, sparsity: float, generator: torch.Generator) -> Tensor:
    """A mask, True = kept."""

    def rand(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator) >= sparsity

    masks = {
        "entries": rand(rows, columns),
        "blocks": rand(-(-rows // 16), -(-columns // 16)).repeat_interleave(16, 0).repeat_interleave(16, 1),
        "strips": rand(-(-rows // 16), columns).repeat_interleave(16, 0),
        "columns": rand(1, columns).expand(rows, columns),
        "rows": rand(rows, 1).expand(rows, columns),
        "all": torch.ones(rows, columns, dtype=torch.bool),
        "none": torch.zeros(rows, columns, dtype=torch.bool),
    }
    return masks[kind][:rows, :columns]


def linear_layer(mask: Tensor, bias: bool, generator: torch.Generator) -> nn.Linear:
    layer = nn.Linear(mask.shape[1], mask.shape[0], bias=bias)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(mask.shape, generator=generator) * mask)
    return layer


@given(
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(PATTERNS),
    sparsity=st.floats(0.1, 1),
    rows=st.sampled_from([1, 4, 16, 30, 48]),
    columns=st.sampled_from([1, 2, 16, 33, 64]),
    tokens=st.lists(st.integers(1, 40), min_size=1, max_size=2),
    bias=st.booleans(),
)
@settings(max_examples=100)
def test_every_format_gives_the_dense_layers_outputs(
    seed: int, kind: str, sparsity: float, rows: int, columns: int, tokens: list[int], bias: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    layer = linear_layer(pattern(kind, rows, columns, sparsity, generator), bias, generator)
    x = torch.randn(*tokens, columns, generator=generator)
    wanted = layer(x).detach()
    suitable = {"csr", "rows"}
    if rows % 16 == 0:
        suitable.add("strips")
    if rows % 16 == columns % 16 == 0:
        suitable.add("bsr")
    if (layer.weight.count_nonzero(0) == 0).any() or (layer.weight.count_nonzero(1) == 0).any():
        suitable.add("compact")
    for name in FORMATS:
        if name not in suitable:
            with pytest.raises(Unsuitable, match=f"^{name}: "):
                sparse_layer(layer, name)
            continue
        with torch.inference_mode():
            # Up to 64 products of order one, added in another order.
            torch.testing.assert_close(sparse_layer(layer, name)(x), wanted, atol=2e-5, rtol=0)


@given(
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(PATTERNS),
    sparsity=st.floats(0, 1),
    height=st.sampled_from([1, 16]),
)
@settings(max_examples=40)
def test_strips_hold_the_matrix_and_nothing_more(seed: int, kind: str, sparsity: float, height: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(96, 64, generator=generator) * pattern(kind, 96, 64, sparsity, generator)
    strips = make_strips(matrix, height)
    assert torch.equal(strips.to_dense(), matrix)
    assert strips.values.numel() == matrix.reshape(96 // height, height, 64).ne(0).any(1).sum() * height


@pytest.mark.parametrize("name", ["strips", "rows"])
def test_strips_give_the_same_bits_on_any_number_of_threads(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    # Tokens beyond what a core's cache holds, and none that divides them.
    layer = linear_layer(pattern("blocks", 64, 4096, 0.7, generator), True, generator)
    sparse = sparse_layer(layer, name)
    x = torch.randn(101, 4096, generator=generator)
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(sparse(x))
    torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    torch.testing.assert_close(results[0], layer(x).detach(), atol=1e-3, rtol=0)
    # Not contiguous, and no token at all.
    assert torch.equal(sparse(x.t().contiguous().t()), results[0])
    assert sparse(x[:0]).shape == (0, 64)


def test_strips_refuse_what_they_cannot_multiply() -> None:
    sparse = sparse_layer(nn.Linear(8, 16), "strips")
    with pytest.raises(ValueError, match=r"inputs \(2, 7\), torch.float32 on cpu; give float32 \(..., 8\) on the CPU"):
        sparse(torch.zeros(2, 7))
    with pytest.raises(ValueError, match=r"torch\.bfloat16 on cpu"):
        sparse(torch.zeros(2, 8, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="12 x 4 in strips of 3 rows; give a height of 1, or 16"):
        make_strips(torch.ones(12, 4), 3)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("compact", (4, 4), "no row and no column is zero"),
        ("bsr", (4, 16), "does not divide into blocks of 16 x 16"),
        ("strips", (24, 4), "24 x 4 in strips of 16 rows; give a height of 1, or 16 that divides rows"),
        ("2:4", (4, 4), "give float16 or bfloat16 on cuda"),
    ],
)
def test_layers_that_a_format_cannot_hold_are_refused(name: str, shape: tuple[int, int], message: str) -> None:
    layer = nn.Linear(shape[1], shape[0])
    with pytest.raises(Unsuitable, match=message):
        sparse_layer(layer, name)


def test_strips_of_other_dtypes_are_refused() -> None:
    with pytest.raises(Unsuitable, match="strips are float32"):
        sparse_layer(nn.Linear(4, 4).double(), "rows")


def test_unknown_formats_and_other_modules_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Unknown format 'coo'. Known: compact, csr"):
        sparse_layer(nn.Linear(2, 2), "coo")
    with pytest.raises(ValueError, match="ReLU is no linear layer"):
        sparse_layer(nn.ReLU(), "csr")
    with pytest.raises(ValueError, match="Unknown format 'coo'"):
        choose_formats(nn.ReLU(), kinds=["coo"])
    with pytest.raises(ValueError, match="batch 0; give at least 1"):
        choose_formats(nn.ReLU(), batch=0)


def test_conv1d_is_taken_as_it_is_stored() -> None:
    layer = Conv1D(32, 16)
    with torch.no_grad():
        layer.weight[:, 5:9] = 0
        layer.bias.normal_()
    x = torch.randn(2, 3, 16)
    for name in ("compact", "csr", "strips", "rows"):
        with torch.inference_mode():
            torch.testing.assert_close(sparse_layer(layer, name)(x), layer(x), atol=1e-5, rtol=0)


@pytest.fixture
def fresh_kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A cache folder without kernels."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kernels.cache_clear()
    yield tmp_path / "argprune"
    kernels.cache_clear()


def test_kernels_are_compiled_once(fresh_kernels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = linear_layer(torch.eye(6, dtype=torch.bool), True, torch.Generator().manual_seed(0))
    x = torch.randn(4, 6)
    with torch.no_grad():
        torch.testing.assert_close(sparse_layer(layer, "rows")(x), layer(x))
    (library,) = fresh_kernels.iterdir()
    kernels.cache_clear()
    monkeypatch.setattr(kernels_module, "_build", lambda *_: pytest.fail("it is there already"))
    assert kernels()._name == str(library)


@pytest.mark.parametrize(
    ("compiler", "message"),
    [
        ("none-such", r"no C\+\+ compiler 'none-such' \(CXX\)"),
        ("#!/bin/sh\necho 1.0; case $* in *shared*) echo 'x: error: no' >&2; exit 1;; esac\n", "c: x: error: no"),
        ("#!/bin/sh\n[ $# -eq 1 ] && exit; while [ $# -gt 1 ]; do shift; done; echo 1.0 > $1\n", "cannot be loaded"),
    ],
)
@pytest.mark.usefixtures("fresh_kernels")
def test_what_cannot_be_compiled_runs_dense_with_a_warning(
    compiler: str, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if compiler.startswith("#!"):
        (tmp_path / "c").write_text(compiler)
        (tmp_path / "c").chmod(0o755)
        compiler = str(tmp_path / "c")
    monkeypatch.setenv("CXX", compiler)
    layer = linear_layer(torch.eye(6, dtype=torch.bool), True, torch.Generator().manual_seed(0))
    sparse = sparse_layer(layer, "rows")
    x = torch.randn(4, 6)
    with pytest.warns(UserWarning, match=f"run as dense ones, since nothing compiles here: .*{message}"):
        first = sparse(x)
    assert torch.equal(first, layer(x))
    assert torch.equal(sparse(x), first)


def small_model(name: str) -> Any:
    if name == "bert":
        config = BertConfig(
            vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48
        )  # fmt: skip
        return BertForSequenceClassification(config).eval()
    return GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=2, n_positions=32)).eval()


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_a_sparse_model_gives_the_logits_and_reloads(name: str, tmp_path: Path) -> None:
    model = small_model(name)
    generator = torch.Generator().manual_seed(0)
    for index, weight in enumerate(find_weights(model)):
        rows, columns = weight.matrix.shape
        mask = pattern(PATTERNS[index % 4], rows, columns, 0.6, generator)
        weight.parameter.data[~weight.oriented(mask)] = 0
    ids = torch.randint(0, 40, (2, 7))
    with torch.inference_mode():
        wanted = model(ids).logits
        choices = [
            Choice(weight.name.removesuffix(".weight"), kind, 0.6)
            for weight, kind in zip(find_weights(model), ["rows", "strips", "csr", "dense"] * 6, strict=False)
        ]
        size = save_sparse(model, tmp_path, choices, batch=2)
        loaded = load_sparse(tmp_path)
        torch.testing.assert_close(loaded(ids).logits, wanted, atol=1e-5, rtol=0)
    assert size.ratio > 1
    replaced = [module for module in loaded.modules() if isinstance(module, SparseLinear)]
    assert len(replaced) == sum(choice.kind != "dense" for choice in choices)
    table = json.loads((tmp_path / "export.json").read_text())
    assert table["batch"] == 2
    assert len(table["layers"]) == len(choices)


def test_the_fastest_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model("bert")
    weights = find_weights(model)
    for weight in weights[:3]:
        weight.parameter.data[::2] = 0
    seconds = {
        "Linear": 1.0,
        "CSRLinear": 0.5,
        "CompactLinear": 0.9,
        "RowLinear": 0.96,
        "StripLinear": 3.2,
        "BSRLinear": 9,
    }
    monkeypatch.setattr("argprune.models.timing.timed", lambda module, x: seconds[type(module).__name__])
    before = torch.get_num_threads()
    choices = choose_formats(model, length=4, threads=2)
    assert torch.get_num_threads() == before
    assert [choice.kind for choice in choices] == ["csr"] * 3 + ["dense"] * (len(weights) - 3)
    assert choices[0].milliseconds == {"dense": 1000, "csr": 500, "compact": 900, "rows": 960}
    assert choices[0].refused["strips"] == "strips: more than 3 times as slow as the fastest."
    assert choices[0].refused["2:4"].startswith("2:4: ")
    assert choices[0].sparsity == 0.5
    assert choices[3].milliseconds == {}
    # Four percent is not worth another format.
    assert [choice.kind for choice in choose_formats(model, length=4, kinds=["rows"])] == ["dense"] * len(weights)
    apply_formats(model, choices)
    assert sum(isinstance(module, SparseLinear) for module in model.modules()) == 3


def test_measured_choices_run(tmp_path: Path) -> None:
    model = small_model("gpt2")
    for weight in find_weights(model)[:2]:
        weight.parameter.data[:, ::2] = 0
    choices = choose_formats(model, batch=1, length=8, threads=1, repetitions=1)
    assert [choice.name for choice in choices] == [w.name.removesuffix(".weight") for w in find_weights(model)]
    for choice in choices[:2]:
        assert choice.milliseconds["dense"] > 0
    assert not any(isinstance(module, StripLinear) for module in model.modules())


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "Give a folder of a sparse export"), ("{", "is no table of formats"), ('{"layers": [1]}', "no table")],
)
def test_damaged_tables_are_refused(content: str | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "export.json").write_text(content)
    with pytest.raises(ValueError, match=message) as info:
        load_sparse(tmp_path)
    assert "\n" not in str(info.value)


def test_choices_of_another_model_are_refused() -> None:
    with pytest.raises(ValueError, match="has no prunable layer 'hat'"):
        apply_formats(small_model("bert"), [Choice("hat", "csr", 0.5)])
