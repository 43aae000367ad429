"""Factorised models on disk: plain save_pretrained and from_pretrained, bit for bit, and what cannot be loaded."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import WORDS, bart, bert, gpt2, masked_bert, t5
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    MarianConfig,
    MarianMTModel,
    PreTrainedModel,
    T5EncoderModel,
    Trainer,
    TrainingArguments,
)

from argprune.models import compact, factorise, find_factors, find_weights, load_model
from argprune.models.export import example_inputs, largest_difference, read_logits
from argprune.models.factorised import METHOD, LowRankConfig, TiedFactorisedHead

MODELS: Mapping[str, tuple[Callable[[], Any], Any]] = {
    "bert": (bert, AutoModelForSequenceClassification),
    "masked-bert": (masked_bert, AutoModelForMaskedLM),
    "gpt2": (gpt2, AutoModelForCausalLM),
    "t5": (t5, AutoModelForSeq2SeqLM),
    "bart": (bart, AutoModelForSeq2SeqLM),
}
every_model = pytest.mark.parametrize("name", MODELS)


def logits(model: PreTrainedModel) -> dict[str, Tensor]:
    return read_logits(model, example_inputs(model, 2, 8))


def compacted(model: Any, *, embeddings: bool = True, seed: int = 0) -> Any:
    """The model with factors of different ranks, some of them multiplied back, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    factorise(model, find_weights(model), rank="full", embeddings=embeddings)
    for factors in find_factors(model):
        closed = torch.rand((), generator=generator) * torch.ones(factors.rank)
        factors.set_gate((torch.rand(factors.rank, generator=generator) > closed).float())
    ranks = compact(model.eval()).ranks.values()
    assert None in ranks
    assert len(set(ranks)) > 3
    return model


def saved(model: Any, folder: Path) -> dict[str, Any]:
    model.save_pretrained(folder)
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


def rewritten(folder: Path, **changes: Any) -> None:
    """Change the entry of config.json that describes the factors."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config["quantization_config"] |= changes
    file.write_text(json.dumps(config))


def same_bits(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(
        tensor.dtype == theirs[name].dtype and tensor.equal(theirs[name]) for name, tensor in mine.items()
    )


@every_model
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    make, auto = MODELS[name]
    model = compacted(make().to(dtype))
    wanted = logits(model)
    config = saved(model, tmp_path / "a")
    assert config["quantization_config"]["quant_method"] == METHOD
    assert config["quantization_config"]["ranks"] == {f.name: f.rank for f in find_factors(model)}
    loaded, info = auto.from_pretrained(tmp_path / "a", output_loading_info=True, dtype="auto")
    assert type(loaded) is type(model)
    assert not any(info.values()), info
    assert same_bits(loaded, model)
    assert largest_difference(logits(loaded), wanted) == 0
    assert not loaded.training
    assert loaded.all_tied_weights_keys == model.all_tied_weights_keys
    # Once more, and the folders are the same.
    saved(loaded, tmp_path / "b")
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()
    assert (tmp_path / "a" / "config.json").read_text() == (tmp_path / "b" / "config.json").read_text()


@every_model
def test_factors_that_are_not_compact_yet(name: str, tmp_path: Path) -> None:
    """What a checkpoint of a run holds: all components, and no gate."""
    make, auto = MODELS[name]
    model = make().eval()
    factorise(model, find_weights(model), embeddings=True)
    wanted = logits(model)
    for factors in find_factors(model):
        factors.set_gate(torch.rand(factors.rank))
    saved(model, tmp_path)
    loaded = auto.from_pretrained(tmp_path)
    assert all(factors.gate is None for factors in find_factors(loaded))
    assert largest_difference(logits(loaded), wanted) == 0


def test_a_dense_model_again_is_an_ordinary_folder(tmp_path: Path) -> None:
    model = bert()
    factorise(model, find_weights(model), rank="full")
    compact(model)
    assert "quantization_config" not in saved(model, tmp_path)
    assert same_bits(AutoModelForSequenceClassification.from_pretrained(tmp_path), model)


def test_tied_heads_and_embeddings_stay_tied(tmp_path: Path) -> None:
    model = gpt2()
    factorise(model, find_weights(model), rank=8, embeddings=True)
    saved(model, tmp_path)
    assert not [name for name in load_file(tmp_path / "model.safetensors") if name.startswith("lm_head")]
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(loaded.lm_head, TiedFactorisedHead)
    assert loaded.lm_head.embedding is loaded.transformer.wte
    loaded.tie_weights()
    assert largest_difference(logits(loaded), logits(model.eval())) == 0
    words = example_inputs(loaded, 1, 4)["input_ids"]
    assert loaded.generate(words, max_new_tokens=3, do_sample=False, pad_token_id=0).shape[1] <= 7


def test_heads_come_and_go(tmp_path: Path) -> None:
    model = compacted(bert())
    saved(model, tmp_path / "head")
    base = AutoModel.from_pretrained(tmp_path / "head")
    assert type(base) is BertModel
    assert same_bits(base, model.bert)
    assert [f.name for f in find_factors(base)] == [f.name.removeprefix("bert.") for f in find_factors(model)]
    assert saved(base, tmp_path / "base")["quantization_config"]["ranks"].keys() == {f.name for f in find_factors(base)}
    again = BertForSequenceClassification.from_pretrained(tmp_path / "base")
    assert same_bits(again.bert, model.bert)
    masked = compacted(bert(BertForMaskedLM))
    saved(masked, tmp_path / "masked")
    assert same_bits(BertModel.from_pretrained(tmp_path / "masked", add_pooling_layer=False), masked.bert)
    whole = compacted(t5())
    saved(whole, tmp_path / "t5")
    encoder = T5EncoderModel.from_pretrained(tmp_path / "t5")
    assert same_bits(encoder.encoder, whole.encoder)
    assert encoder.config.quantization_config.ranks.keys() < whole.config.quantization_config.ranks.keys()


def test_a_loaded_model_is_like_any_other(tmp_path: Path) -> None:
    """Nothing of what transformers forbids to quantised models."""
    model = compacted(bert())
    saved(model, tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert not getattr(loaded, "is_quantized", False)
    assert getattr(loaded, "hf_quantizer", None) is None
    assert not hasattr(loaded.config, "_is_quantized")
    assert loaded.bfloat16().float().dtype == torch.float32
    twin = copy.deepcopy(loaded)
    assert largest_difference(logits(twin), logits(loaded)) == 0
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float64).dtype == torch.float64


def test_the_trainer_trains_saves_and_resumes(tmp_path: Path) -> None:
    saved(compacted(bert()), tmp_path / "model")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    before = copy.deepcopy(model.state_dict())
    rows = [{"input_ids": torch.randint(5, WORDS, (6,)), "labels": i % 2} for i in range(8)]

    def trainer(steps: int) -> Any:
        arguments = TrainingArguments(
            output_dir=str(tmp_path / "run"),
            max_steps=steps,
            per_device_train_batch_size=4,
            learning_rate=1e-2,
            save_steps=2,
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
        )
        fresh = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
        return Trainer(model=fresh, args=arguments, train_dataset=rows)

    first = trainer(2)
    first.train()
    moved = [name for name, value in first.model.state_dict().items() if not value.equal(before[name])]
    assert any(name.endswith(".first") for name in moved)
    assert any(name.endswith(".second") for name in moved)
    checkpoint = tmp_path / "run" / "checkpoint-2"
    assert same_bits(AutoModelForSequenceClassification.from_pretrained(checkpoint), first.model)
    resumed = trainer(3)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert resumed.state.global_step == 3


def marian() -> Any:
    """One that says of itself, not its class, what it ties."""
    sizes: dict[str, Any] = {
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_ffn_dim": 24,
        "decoder_ffn_dim": 24,
        "d_model": 32,
    }
    heads: dict[str, Any] = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": 64}
    return MarianMTModel(MarianConfig(vocab_size=60, pad_token_id=1, **sizes, **heads))


def test_ties_that_a_model_says_of_itself(tmp_path: Path) -> None:
    model = marian().eval()
    factorise(model, find_weights(model), rank=5)
    compact(model)
    wanted = logits(model)
    model.save_pretrained(tmp_path)
    loaded = MarianMTModel.from_pretrained(tmp_path).eval()
    assert largest_difference(logits(loaded), wanted) == 0
    assert loaded.model.shared.weight is loaded.lm_head.weight


class SharedBert(BertModel):
    """Two layers with one query layer between them."""

    _tied_weights_keys = {  # noqa: RUF012
        f"encoder.layer.1.attention.self.query.{key}": f"encoder.layer.0.attention.self.query.{key}"
        for key in ("weight", "bias")
    }

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        blocks: Any = self.encoder.layer
        first, second = (block.attention.self for block in blocks)
        second.query = first.query


def test_a_layer_in_two_places_is_saved_once(tmp_path: Path) -> None:
    model = bert(SharedBert).eval()
    factorise(model, find_weights(model), rank=5)
    wanted = logits(model)
    saved(model, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert "encoder.layer.0.attention.self.query.first" in stored
    assert "encoder.layer.1.attention.self.query.first" not in stored
    load: Any = SharedBert.from_pretrained
    loaded, info = load(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    first, second = (block.attention.self for block in loaded.encoder.layer)
    assert first.query is second.query
    assert largest_difference(logits(loaded), wanted) == 0
    compact(loaded, {f.name: torch.arange(3) for f in find_factors(loaded)})
    saved(loaded, tmp_path / "again")
    assert same_bits(load(tmp_path / "again"), loaded)


def test_load_model_takes_such_folders(tmp_path: Path) -> None:
    model = compacted(bert())
    saved(model, tmp_path / "some")
    loaded: Any = load_model(str(tmp_path / "some"), num_labels=2)
    assert same_bits(loaded, model)
    base = bert(BertModel)
    factorise(base, find_weights(base), rank=4)
    saved(base, tmp_path / "all")
    # No matrix of a block is left as such, and the head is fresh.
    loaded = load_model(str(tmp_path / "all"), num_labels=3)
    assert loaded.num_labels == 3
    assert len(find_factors(loaded)) == 12
    assert same_bits(loaded.bert, base)
    with pytest.raises(ValueError, match=r"classifier.bias is \(2,\)"):
        load_model(str(tmp_path / "some"), num_labels=5)


def test_weights_that_are_missing_are_said(tmp_path: Path) -> None:
    model = compacted(bert(), embeddings=False)
    saved(model, tmp_path)
    file = tmp_path / "model.safetensors"
    stored = load_file(file)
    factor = next(name for name in stored if name.endswith(".second"))
    save_file({n: t for n, t in stored.items() if n != factor}, file, {"format": "pt"})
    with pytest.raises(ValueError, match=f"lacks '{factor}' of rank"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"lacks '{factor}' of rank"):
        load_model(str(tmp_path), num_labels=2)
    dense = next(w.name for w in find_weights(model))
    save_file({n: t for n, t in stored.items() if n != dense}, file, {"format": "pt"})
    with pytest.raises(ValueError, match=f"lacks 1 weights of BertForSequenceClassification, such as '{dense}'"):
        load_model(str(tmp_path), num_labels=2)


def test_ranks_are_those_of_the_moment(tmp_path: Path) -> None:
    """Components dropped by hand, in the model or in a copy of it, are gone in what is saved."""
    model = bert()
    found = factorise(model, find_weights(model), rank=6)
    twin = copy.deepcopy(model)
    found[0].keep(torch.tensor([0, 1]))
    find_factors(twin)[1].keep(torch.tensor([3]))
    for number, each in enumerate((model, twin)):
        ranks = saved(each, tmp_path / str(number))["quantization_config"]["ranks"]
        assert [ranks[factors.name] for factors in found[:3]] == ([2, 6, 6], [6, 1, 6])[number]
        assert same_bits(load_model(str(tmp_path / str(number)), num_labels=2), each)
    alone = copy.deepcopy(model.config)
    unpickled = pickle.loads(pickle.dumps(model))
    found[0].keep(torch.tensor([0]))
    for config in (alone, unpickled.config):
        assert config.quantization_config.ranks[found[0].name] == 2
    assert dict(model.config.quantization_config)["ranks"][found[0].name] == 1
    assert same_bits(pickle.loads(pickle.dumps(model)), model)


def test_ranks_that_are_not_the_weights_are_said(tmp_path: Path) -> None:
    model = bert()
    name = factorise(model, find_weights(model), rank=6)[0].name
    ranks = saved(model, tmp_path)["quantization_config"]["ranks"]
    rewritten(tmp_path, ranks=ranks | {name: 5})
    with pytest.raises(ValueError, match=f"lacks '{name.removesuffix('weight')}first' of rank 5"):
        load_model(str(tmp_path), num_labels=2)
    rewritten(tmp_path, ranks={other: rank for other, rank in ranks.items() if other != name})
    with pytest.raises(ValueError, match=f"lacks 1 weights of BertForSequenceClassification, such as '{name}'"):
        load_model(str(tmp_path), num_labels=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ranks": {"bert.nothing.weight": 3}}, "'bert.nothing.weight' in quantization_config is no weight of BertFor"),
        ({"ranks": {"bert.embeddings.LayerNorm.weight": 3}}, "is a LayerNorm"),
        ({"ranks": {"bert.encoder.layer.0.output.dense.bias": 3}}, "is no weight of this"),
        ({"ranks": {"bert.encoder.layer.0.output.dense.weight": 0}}, "rank 0 of 'bert.encoder"),
        ({"ranks": {"bert.encoder.layer.0.output.dense.weight": True}}, "rank True"),
        ({"ranks": {"bert.encoder.layer.0.output.dense.weight": "4"}}, "rank '4'"),
        ({"ranks": {"bert.encoder.layer.0.output.dense.weight": 33}}, "the weight is 32 x 64"),
        ({"ranks": ["bert.encoder.layer.0.output.dense.weight"]}, "it maps names of weights to ranks"),
        ({"ranks": None}, "ranks None"),
        ({"bits": 4}, "unknown key 'bits'"),
    ],
)
def test_malformed_configs_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    model = bert()
    factorise(model, find_weights(model, ["*.layer.0.output.dense.weight"]), rank=4)
    saved(model, tmp_path)
    rewritten(tmp_path, **changes)
    with pytest.raises(ValueError, match=message) as caught:
        AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="Cannot load the model"):
        load_model(str(tmp_path), num_labels=2)


def test_dense_folders_are_not_factorised_on_the_way(tmp_path: Path) -> None:
    bert().save_pretrained(tmp_path)
    ranks = LowRankConfig({"bert.encoder.layer.0.output.dense.weight": 4})
    with pytest.raises(ValueError, match="then factorise it"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path, quantization_config=ranks)


def test_configs_refuse_another_method() -> None:
    with pytest.raises(ValueError, match="quant_method 'gptq'"):
        LowRankConfig({}, quant_method="gptq")
