"""The compressed format: every bit comes back, and what was cut or changed is refused in one line."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM

from argprune.models import find_weights
from argprune.models.export import load_compressed, save_compressed
from argprune.models.export.compressed import FILE, read_compressed

_CONFIG = BertConfig(
    vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
    max_position_embeddings=16,
)  # fmt: skip


def bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def pruned_model(seed: int, sparsity: float, kind: str, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(seed)
    model = BertForMaskedLM(_CONFIG).eval()
    for weight in find_weights(model):
        rows, columns = weight.parameter.shape
        mask = {
            "entries": torch.rand(rows, columns) < sparsity,
            "rows": (torch.rand(rows, 1) < sparsity).expand(rows, columns),
            "columns": (torch.rand(1, columns) < sparsity).expand(rows, columns),
        }[kind]
        weight.parameter.data[mask] = 0
    return model.to(dtype)


def assert_same_bits(found: Any, wanted: Any) -> None:
    for (name, a), (other, b) in zip(found.state_dict().items(), wanted.state_dict().items(), strict=True):
        assert name == other
        assert a.dtype == b.dtype
        assert torch.equal(bits(a), bits(b)), name


@given(
    seed=st.integers(0, 10**6),
    sparsity=st.floats(0, 1),
    kind=st.sampled_from(["entries", "rows", "columns"]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
)
@settings(max_examples=20)
def test_every_bit_comes_back(
    tmp_path_factory: pytest.TempPathFactory, seed: int, sparsity: float, kind: str, dtype: torch.dtype
) -> None:
    folder = tmp_path_factory.mktemp("compressed")
    model = pruned_model(seed, sparsity, kind, dtype)
    size = save_compressed(model, folder)
    loaded: Any = load_compressed(folder)
    assert_same_bits(loaded, model)
    assert size.compressed == (folder / FILE).stat().st_size
    assert loaded.cls.predictions.decoder.weight is loaded.bert.embeddings.word_embeddings.weight
    assert not loaded.training


def test_logits_are_the_same_bits(tmp_path: Path) -> None:
    model = pruned_model(0, 0.8, "entries")
    save_compressed(model, tmp_path)
    ids = torch.randint(0, 40, (2, 8))
    with torch.inference_mode():
        assert torch.equal(load_compressed(tmp_path)(ids).logits, model(ids).logits)


def test_negative_zero_and_nan_keep_their_bits(tmp_path: Path) -> None:
    model = pruned_model(0, 0.9, "entries")
    weight = find_weights(model)[0].parameter.data
    weight[0, :4] = torch.tensor([-0.0, torch.nan, torch.inf, -torch.inf])
    # A NaN with a payload of its own.
    weight[1, :1] = torch.tensor([0x7FC12345], dtype=torch.int32).view(torch.float32)
    save_compressed(model, tmp_path)
    assert_same_bits(load_compressed(tmp_path), model)


@pytest.mark.parametrize(("kind", "least"), [("entries", 4.0), ("rows", 6.0), ("columns", 6.0)])
def test_files_are_as_small_as_their_layout_says(kind: str, least: float, tmp_path: Path) -> None:
    """At 90% the matrix takes 10% of its entries and a bit an entry, or no bits where rows or columns go."""
    torch.manual_seed(0)
    model = BertForMaskedLM(BertConfig(vocab_size=8, hidden_size=256, num_hidden_layers=1, num_attention_heads=2))
    for weight in find_weights(model):
        keep = torch.rand(weight.parameter.shape)
        axis = {"entries": None, "rows": 1, "columns": 0}[kind]
        keep = keep if axis is None else keep.select(axis, 0).unsqueeze(axis).expand_as(keep)
        weight.parameter.data[keep < 0.9] = 0
    size = save_compressed(model, tmp_path)
    assert size.ratio == size.dense / size.compressed
    # All else, norms and embeddings, stays as it is.
    matrices = sum(weight.parameter.nbytes for weight in find_weights(model))
    assert matrices / (size.compressed - (size.dense - matrices)) > least


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    save_compressed(pruned_model(0, 0.8, "entries"), folder)
    return folder


@given(position=st.floats(0, 1, exclude_max=True), value=st.integers(1, 255))
@settings(max_examples=150)
def test_a_changed_byte_is_refused_or_harmless(written: Path, position: float, value: int) -> None:
    data = bytearray((written / FILE).read_bytes())
    data[int(position * len(data))] ^= value
    refuse_or_equal(written, bytes(data))


@given(length=st.floats(0, 1, exclude_max=True))
@settings(max_examples=40)
def test_a_cut_file_is_refused(written: Path, length: float) -> None:
    data = (written / FILE).read_bytes()
    with pytest.raises(ValueError, match="compressed") as info:
        read(written, data[: int(length * len(data))])
    assert "\n" not in str(info.value)


def read(folder: Path, data: bytes) -> dict[str, Tensor]:
    file = folder / "changed.compressed.safetensors"
    file.write_bytes(data)
    return read_compressed(file)


def refuse_or_equal(folder: Path, data: bytes) -> None:
    wanted = read_compressed(folder / FILE)
    try:
        found = read(folder, data)
    except ValueError as error:
        message = str(error)
    else:
        message = ""
        assert found.keys() == wanted.keys()
        assert all(torch.equal(bits(found[name]), bits(wanted[name])) for name in wanted)
    assert "\n" not in message


def rewritten(written: Path, folder: Path, change: Any) -> Path:
    """A copy of the folder with other tensors, and checksums that fit them."""
    from argprune.models.export import compressed

    shutil.copytree(written, folder, dirs_exist_ok=True)
    with safe_open(written / FILE, framework="pt") as opened:
        metadata, tensors = opened.metadata(), {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    layouts = compressed._layouts(metadata, written / FILE)
    change(layouts, tensors)
    text = compressed.json.dumps(layouts)
    for name, layout in layouts.items():
        for part in layout["crc32"]:
            key = name if layout["layout"] == "plain" else f"{name}::{part}"
            if key in tensors:
                layout["crc32"][part] = compressed._checksum(tensors[key])
    text = compressed.json.dumps(layouts)
    metadata |= {"tensors": text, "crc32": str(compressed.zlib.crc32(text.encode()))}
    save_file(tensors, folder / FILE, metadata=metadata)
    return folder


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("values", lambda t: t[:-1], "bits that are set"),
        ("values", lambda t: t.double(), "float64 values, expected torch.float32"),
        ("bits", lambda t: t[:-1], "a bitmask of"),
        ("bits", lambda t: t ^ 1, "bits that are set"),
    ],
)
def test_parts_that_do_not_fit_are_refused(written: Path, tmp_path: Path, part: str, change: Any, message: str) -> None:
    def apply(layouts: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        name = next(name for name in tensors if name.endswith(f"query.weight::{part}"))
        tensors[name] = change(tensors[name]).contiguous()

    with pytest.raises(ValueError, match=message) as info:
        load_compressed(rewritten(written, tmp_path, apply))
    assert "\n" not in str(info.value)


def test_missing_and_unknown_tensors_are_refused(written: Path, tmp_path: Path) -> None:
    def drop(layouts: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        del layouts["bert.embeddings.LayerNorm.bias"]

    with pytest.raises(ValueError, match="1 tensors are missing"):
        load_compressed(rewritten(written, tmp_path / "a", drop))

    def rename(layouts: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        layouts["hat"] = layouts.pop("bert.embeddings.LayerNorm.weight")
        tensors["hat"] = tensors.pop("bert.embeddings.LayerNorm.weight")

    with pytest.raises(ValueError, match="'hat' is none of BertForMaskedLM"):
        load_compressed(rewritten(written, tmp_path / "b", rename))


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Give a folder"):
        load_compressed(tmp_path / "nowhere")
    pruned_model(0, 0.5, "entries").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="written by save_compressed"):
        load_compressed(tmp_path)
    shutil.copy(tmp_path / "model.safetensors", tmp_path / FILE)
    with pytest.raises(ValueError, match="format 'pt', expected 'argprune-compressed-1'"):
        load_compressed(tmp_path)
