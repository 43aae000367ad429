"""What is loaded back generates what the model did: its generation config goes with it into every folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch

from argprune.models import find_neurons, find_weights
from argprune.models.export import (
    Choice,
    load_compressed,
    load_shrunk,
    load_sparse,
    save_compressed,
    save_sparse,
    shrink,
)

every_model = pytest.mark.parametrize("name", ["bart", "t5", "gpt2"])


def generator(name: str, folder: Path) -> Any:
    """A masked model of few neurons that generates in a way of its own, from its folder."""
    torch.manual_seed(0)
    model: Any = getattr(tiny_models, name)().eval()
    for index, tie in enumerate(find_neurons(model)):
        stack = tie.stack().clone()
        stack[: 8 * (index + 1)] = 0
        tie.assign(stack)
    model.generation_config = tiny_models.generation()
    model.save_pretrained(folder)
    return type(model).from_pretrained(folder).eval()


def generated(model: Any) -> list[list[int]]:
    ids = torch.randint(8, 60, (2, 6), generator=torch.Generator().manual_seed(0))
    return model.generate(ids, attention_mask=torch.ones_like(ids)).tolist()


@every_model
def test_every_way_back_generates_the_same(name: str, tmp_path: Path) -> None:
    model = generator(name, tmp_path)
    wanted = generated(model)
    assert all(row[-1] == 7 for row in wanted), "as its generation config says"
    assert generated(load_shrunk(tmp_path)) == wanted

    small = shrink(model)
    assert not small.regular
    small.model.save_pretrained(tmp_path / "shrunk")
    assert generated(load_shrunk(tmp_path / "shrunk")) == wanted
    regular = shrink(model, regular=True)
    regular.model.save_pretrained(tmp_path / "regular")
    assert generated(type(model).from_pretrained(tmp_path / "regular")) == wanted

    save_compressed(model, tmp_path / "compressed")
    assert generated(load_compressed(tmp_path / "compressed")) == wanted
    save_compressed(small.model, tmp_path / "both")
    assert generated(load_compressed(tmp_path / "both")) == wanted
    choices = [Choice(weight.name.removesuffix(".weight"), "csr", 0.5) for weight in find_weights(model)]
    save_sparse(model, tmp_path / "sparse", choices)
    assert generated(load_sparse(tmp_path / "sparse")) == wanted


def test_models_that_do_not_generate_have_no_such_config(tmp_path: Path) -> None:
    save_compressed(tiny_models.bert().eval(), tmp_path)
    assert not (tmp_path / "generation_config.json").exists()


def test_a_folder_without_one_generates_by_default(tmp_path: Path) -> None:
    generator("bart", tmp_path)
    (tmp_path / "generation_config.json").unlink()
    model: Any = load_shrunk(tmp_path)
    assert model.generation_config.num_beams in (None, 1)
    assert model.generation_config.eos_token_id == model.config.eos_token_id


def test_a_broken_one_is_refused_in_one_line(tmp_path: Path) -> None:
    generator("gpt2", tmp_path)
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"generation_config\.json.*Give a folder written by save_pretrained") as info:
        load_shrunk(tmp_path)
    assert "\n" not in str(info.value)
