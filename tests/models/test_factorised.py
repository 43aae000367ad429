"""Models with factors against the models that they stand for, of every kind, gated and compacted."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from tiny_models import WIDTH, WORDS, albert, bart, bert, gpt2, llama, masked_bert, t5
from torch import Tensor, nn
from transformers import (
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)
from transformers.pytorch_utils import Conv1D

from argprune.models import compact, factorise, find_factors, find_weights, input_grams
from argprune.models.export import example_inputs, largest_difference, read_logits
from argprune.models.factorised import (
    FactorisedEmbedding,
    FactorisedLinear,
    TiedFactorisedEmbedding,
    TiedFactorisedHead,
    compact_size,
)
from argprune.solvers.groups import Weight
from argprune.solvers.low_rank import break_even_rank, stored_size

MODELS: Mapping[str, Callable[[], Any]] = {
    "bert": bert,
    "masked-bert": masked_bert,
    "gpt2": gpt2,
    "t5": t5,
    "bart": bart,
    "albert": albert,
    "llama": llama,
}
every_model = pytest.mark.parametrize("name", MODELS)


def logits(model: PreTrainedModel) -> dict[str, Tensor]:
    return read_logits(model, example_inputs(model, 2, 8))


def randomise_gates(model: nn.Module, closed: float, seed: int = 0) -> dict[str, Tensor]:
    """Gates between 0.5 and 1, and a share of zeros; returns them by name."""
    generator = torch.Generator().manual_seed(seed)
    gates = {}
    for factors in find_factors(model):
        gate = 0.5 + 0.5 * torch.rand(factors.rank, generator=generator)
        gate[torch.rand(factors.rank, generator=generator) < closed] = 0
        factors.set_gate(gate)
        gates[factors.name] = gate
    return gates


@pytest.mark.parametrize("closed", [0.0, 0.5])
def test_autocast(closed: float) -> None:
    model = bert().train()
    factorise(model, find_weights(model))
    randomise_gates(model, closed)
    with torch.autocast("cpu", torch.bfloat16):
        module = model.bert.encoder.layer[0].intermediate.dense
        assert module(torch.randn(2, WIDTH)).dtype == torch.bfloat16
        loss = model(**example_inputs(model, 2, 8), labels=torch.tensor([0, 1])).loss
    loss.backward()
    for factors in find_factors(model):
        assert factors.gate is not None
        assert factors.gate.grad is not None
        assert factors.gate.grad.dtype == torch.float32
        assert factors.gate.grad.isfinite().all()


@every_model
@pytest.mark.parametrize("embeddings", [False, True])
def test_full_rank_is_exact_and_compacts_to_the_dense_model(name: str, embeddings: bool) -> None:
    model = MODELS[name]().eval()
    wanted, parameters = logits(model), model.num_parameters()
    kinds = {path: type(module) for path, module in model.named_modules()}
    ties = dict(model.all_tied_weights_keys)
    weights = find_weights(model)
    found = factorise(model, weights, rank="full", embeddings=embeddings)
    assert [factors.name for factors in found[: len(weights)]] == [weight.name for weight in weights]
    assert len(found) == len(weights) + embeddings
    assert {f.name for f in find_factors(model)} == {f.name for f in found}
    # Logits of T5 are of order ten, the others' of order one or less.
    assert largest_difference(logits(model), wanted) < 3e-5
    done = compact(model)
    assert set(done.ranks.values()) == {None}
    assert done.size == done.dense_size
    assert done.sparsity == 0
    assert {path: type(module) for path, module in model.named_modules()} == kinds
    assert model.num_parameters() == parameters
    assert model.all_tied_weights_keys == ties
    assert not hasattr(model.config, "quantization_config")
    assert largest_difference(logits(model), wanted) < 3e-5


@every_model
@pytest.mark.parametrize("closed", [0.1, 0.5, 1.0])
def test_compacting_keeps_what_the_gated_model_computes(name: str, closed: float) -> None:
    model = MODELS[name]().eval()
    dense = logits(model)
    factorise(model, find_weights(model), rank="full", embeddings=True)
    before = model.num_parameters()
    gates = randomise_gates(model, closed)
    wanted = logits(model)
    size = compact_size(model)
    shapes = {factors.name: factors.shape for factors in find_factors(model)}
    done = compact(model)
    # T5's logits are of order ten.
    assert largest_difference(logits(model), wanted) < (1e-4 if name == "t5" else 1e-5)
    assert largest_difference(wanted, dense) > 1e-3, "the gates must change something, or the test shows nothing"
    for weight, rank in done.ranks.items():
        left = max(1, int(gates[weight].count_nonzero()))
        outputs, inputs = shapes[weight]
        assert rank == (None if left * (outputs + inputs) >= outputs * inputs else left)
    assert done.size == size == sum(stored_size(max(1, int(gates[n].count_nonzero())), *s) for n, s in shapes.items())
    full = sum(min(shape) * sum(shape) for shape in shapes.values())
    assert model.num_parameters() == before - full + done.size
    assert all(factors.gate is None for factors in find_factors(model))


def test_compacting_keeps_what_it_is_told_to() -> None:
    model = bert().eval()
    names = [factors.name for factors in factorise(model, find_weights(model), rank="full")]
    mask = torch.zeros(WIDTH, dtype=torch.bool)
    mask[[3, 5]] = True
    twin = copy.deepcopy(model)
    done = compact(model, {names[0]: mask, names[1]: torch.tensor([5, 3, 0])})
    assert [done.ranks[name] for name in names[:3]] == [2, 3, None]
    gate = torch.zeros(WIDTH)
    gate[[3, 5]] = 1
    one, other, *_ = find_factors(twin)
    one.set_gate(gate)
    gate[0] = 1
    other.set_gate(gate)
    assert largest_difference(logits(model), logits(twin)) < 1e-5


def test_compacting_by_measured_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"whole": 1.0, "factors": 1.04}

    def measured(candidates: Mapping[str, nn.Module], x: Tensor, repetitions: int) -> dict[str, float]:
        assert x.shape[0] == 7
        torch.testing.assert_close(candidates["whole"](x).shape, candidates["factors"](x).shape)
        return seconds

    # By its name in the package stands the function.
    module = importlib.import_module("argprune.models.factorised.compact")
    monkeypatch.setattr(module, "median_seconds", measured)
    for slow, ranks in ((1.04, {4}), (1.06, {None})):
        seconds["factors"] = slow
        model = bert().eval()
        factorise(model, find_weights(model), rank=4)
        wanted = logits(model)
        done = compact(model, measure=True, tokens=7)
        assert set(done.ranks.values()) == ranks
        assert set(done.milliseconds.values()) == {(1e3, 1e3 * slow)}
        assert largest_difference(logits(model), wanted) < 1e-5
        stored = sum(p.numel() for n, p in model.bert.encoder.named_parameters() if n.endswith(("weight", "second")))
        assert stored > 0
        assert (done.size == done.dense_size) == (None in ranks)


def test_measuring_takes_the_real_layers() -> None:
    model = bert().eval()
    factorise(model, find_weights(model), rank=1)
    done = compact(model, measure=True, tokens=2, repetitions=2)
    assert len(done.milliseconds) == len(done.ranks)
    assert all(one > 0 and other > 0 for one, other in done.milliseconds.values())


def test_ranks() -> None:
    for rank, wanted in (("break-even", None), ("full", WIDTH), (3, 3)):
        model = bert()
        for factors in factorise(model, find_weights(model), rank=rank):  # type: ignore[arg-type]
            assert factors.rank == (break_even_rank(*factors.shape) if wanted is None else wanted)
            assert factors.unit_size == sum(factors.shape)
            assert factors.values is not None
            assert factors.values.shape == (factors.rank,)
            first, second = factors.matrices
            assert first.shape == (factors.rank, factors.shape[1])
            assert second.shape == (factors.shape[0], factors.rank)


def test_break_even_ranks_of_large_layers_are_multiples_of_eight() -> None:
    stack = nn.Sequential(nn.Linear(384, 192), nn.Linear(192, 300), nn.Linear(300, 250))
    weights = [Weight(f"{index}.weight", stack[index].weight) for index in range(3)]  # type: ignore[arg-type]
    found = factorise(stack, weights, initial="random")
    assert [break_even_rank(*factors.shape) for factors in found] == [128, 117, 136]
    assert [factors.rank for factors in found] == [128, 117, 136]
    wide = nn.Sequential(nn.Linear(400, 300))
    [factors] = factorise(wide, [Weight("0.weight", wide[0].weight)], initial="random")  # type: ignore[arg-type]
    assert break_even_rank(*factors.shape) == 171
    assert factors.rank == 168


def test_svd_start_is_the_best_of_its_rank_and_random_is_the_generators() -> None:
    model = gpt2()
    weights = find_weights(model)
    dense = {weight.name: weight.matrix.clone() for weight in weights}
    for factors in factorise(model, weights, rank=5):
        first, second = factors.matrices
        lost = (dense[factors.name] - second @ first).square().sum()
        wanted = torch.linalg.svdvals(dense[factors.name])[5:].square().sum()
        torch.testing.assert_close(lost, wanted, rtol=1e-4, atol=1e-6)
    starts = []
    for seed in (0, 0, 1):
        other = gpt2()
        generator = torch.Generator().manual_seed(seed)
        found = factorise(other, find_weights(other), initial="random", generator=generator)
        starts.append(found[0].second.detach())
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


def test_embeddings_of_several_scales_and_heads() -> None:
    model = bart()
    found = factorise(model, find_weights(model), embeddings=True)[-1]
    assert found.name == "model.shared.weight"
    assert found.shape == (WIDTH, WORDS)
    assert isinstance(model.model.shared, FactorisedEmbedding)
    assert isinstance(model.model.encoder.embed_tokens, TiedFactorisedEmbedding)
    assert isinstance(model.lm_head, TiedFactorisedHead)
    assert model.lm_head.embedding is model.model.decoder.embed_tokens.embedding is model.model.shared
    twin = copy.deepcopy(model)
    assert twin.lm_head.embedding is twin.model.shared
    assert twin.model.shared is not model.model.shared
    compact(model, {found.name: torch.arange(WIDTH // 2 + WIDTH // 4)[: found.rank]})
    assert model.model.encoder.embed_tokens.embedding is model.model.shared


def test_weights_that_lose_most_by_truncation_stay_whole() -> None:
    model = bert()
    weights = find_weights(model)
    flat = model.bert.encoder.layer[0].attention.self.query.weight
    with torch.no_grad():
        flat.copy_(torch.linalg.qr(torch.randn(WIDTH, WIDTH)).Q)
    before = {weight.name: weight.parameter.detach().clone() for weight in weights}
    found = factorise(model, weights, whole=0.3, embeddings=True)
    whole = set(before) - {factors.name for factors in found}
    # The table of words was asked for, whatever it loses.
    assert "bert.embeddings.word_embeddings.weight" in {factors.name for factors in found}
    assert "bert.encoder.layer.0.attention.self.query.weight" in whole
    assert 0 < len(whole) < len(before)
    for name in whole:
        assert torch.equal(model.get_parameter(name), before[name])


def test_untied_heads_are_left_alone() -> None:
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    factorise(model, find_weights(model), embeddings=True)
    assert isinstance(model.model.embed_tokens, FactorisedEmbedding)
    assert type(model.lm_head) is nn.Linear


def test_shared_weights_become_one_pair_of_factors() -> None:
    model = bert(BertModel).eval()
    first, second = (block.attention.self for block in model.encoder.layer)
    second.query = first.query
    second.key.weight, second.key.bias = first.key.weight, first.key.bias
    wanted = logits(model)
    names = [weight.name for weight in find_weights(model)]
    assert len(names) == 10
    found = factorise(model, find_weights(model), rank="full")
    assert first.query is second.query
    assert first.key is second.key
    assert isinstance(first.key, FactorisedLinear)
    assert largest_difference(logits(model), wanted) < 1e-5
    randomise_gates(model, 0.7)
    gated = logits(model)
    assert len(compact(model).ranks) == len(found) == 10
    assert largest_difference(logits(model), gated) < 1e-5
    assert first.query is second.query


def test_conv1d_comes_back_as_conv1d() -> None:
    model = gpt2().eval()
    wanted = logits(model)
    factorise(model, find_weights(model), rank="full")
    compact(model)
    attention = model.transformer.h[0].attn
    # 32 x 32: stored the wrong way round, its shape would not tell.
    assert type(attention.c_proj) is Conv1D
    assert attention.c_attn.weight.shape == (WIDTH, 3 * WIDTH)
    assert largest_difference(logits(model), wanted) < 1e-5


def test_frozen_weights_give_frozen_factors_and_modes_are_kept() -> None:
    model = bert().train()
    weights = find_weights(model)
    weights[0].parameter.requires_grad_(False)
    model.bert.encoder.layer[0].attention.self.key.eval()
    found = factorise(model, weights, rank="full")
    assert not found[0].first.requires_grad
    assert not found[0].second.requires_grad
    assert found[1].first.requires_grad
    assert not model.bert.encoder.layer[0].attention.self.key.training
    compact(model)
    assert not model.bert.encoder.layer[0].attention.self.query.weight.requires_grad
    assert model.bert.encoder.layer[1].attention.self.query.training


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtypes(dtype: torch.dtype) -> None:
    model = bert().to(dtype).eval()
    wanted = logits(model)
    factorise(model, find_weights(model), rank="full")
    assert {p.dtype for p in model.parameters()} == {dtype}
    tolerance = 0.05 if dtype == torch.bfloat16 else 1e-9
    assert largest_difference(logits(model), wanted) < tolerance
    compact(model)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert largest_difference(logits(model), wanted) < tolerance


def test_training_moves_the_factors() -> None:
    model = gpt2().train()
    found = factorise(model, find_weights(model), embeddings=True)
    randomise_gates(model, 0.5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    inputs = example_inputs(model, 2, 8)
    losses = []
    for _ in range(8):
        loss = model(**inputs, labels=inputs["input_ids"]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.5
    assert all(factors.gate is not None and factors.gate.grad is not None for factors in found)


@pytest.mark.parametrize("name", ["bert", "t5", "gpt2"])
def test_input_grams_are_the_moments_of_the_texts(name: str) -> None:
    model = MODELS[name]().train()
    batches = [example_inputs(model, 2, 8, seed) for seed in range(2)]
    if "decoder_input_ids" in batches[0]:
        for batch in batches:
            batch["decoder_attention_mask"] = torch.ones_like(batch["decoder_input_ids"])
            batch["decoder_attention_mask"][1, -1] = 0
    weights = find_weights(model)
    grams = input_grams(model, weights, batches, embeddings=True)
    assert model.training
    chosen = weights[-1]
    module = model.get_submodule(chosen.name.removesuffix(".weight"))
    tokens = []
    hook = module.register_forward_pre_hook(lambda called, args: tokens.append(args[0].detach()))
    model.eval()
    for batch in batches:
        model(**batch)
    hook.remove()
    mask = "decoder_attention_mask" if "decoder_attention_mask" in batches[0] else "attention_mask"
    rows = torch.cat([x.flatten(0, -2)[b[mask].flatten().bool()] for x, b in zip(tokens, batches, strict=True)])
    # With gradients attention takes another kernel, which rounds differently.
    torch.testing.assert_close(grams[chosen.name], rows.double().t() @ rows.double() / len(rows), atol=1e-5, rtol=1e-5)
    assert [*grams][:-1] == [weight.name for weight in weights]
    shares = grams[[*grams][-1]]
    words = torch.cat([b["input_ids"][b["attention_mask"].bool()] for b in batches])
    if "decoder_input_ids" in batches[0]:
        words = torch.cat([words, *(b["decoder_input_ids"][b[mask].bool()] for b in batches)])
    torch.testing.assert_close(shares, torch.bincount(words, minlength=WORDS).double() / len(words))


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_whitened_factors_lose_less_of_the_outputs(name: str) -> None:
    model = MODELS[name]()
    batches = [example_inputs(model, 8, 16, seed) for seed in range(2)]
    weights = find_weights(model)
    dense = {weight.name: weight.matrix.double().clone() for weight in weights}
    grams = input_grams(model, weights, batches, embeddings=True)

    def lost(initial: Any) -> dict[str, float]:
        found = factorise(copy_of := copy.deepcopy(model), find_weights(copy_of), initial=initial, rank=4, grams=grams)
        changes = {f.name: dense[f.name] - (f.matrices[1] @ f.matrices[0]).double() for f in found}
        return {n: float((change @ grams[n] * change).sum()) for n, change in changes.items()}

    plain, whitened = lost("svd"), lost("whitened")
    # Rounding to float32 apart, no matrix may do worse; some must do clearly better.
    assert all(whitened[n] <= plain[n] * (1 + 1e-4) for n in plain)
    assert min(whitened[n] / plain[n] for n in plain) < 0.9
    factorise(model, weights, initial="whitened", grams=grams, embeddings=True)
    assert isinstance(model.get_input_embeddings(), FactorisedEmbedding)


def test_plain_modules_need_no_config() -> None:
    stack = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))
    x = torch.randn(3, 6)
    wanted = stack(x).detach()
    weights = [Weight(f"{index}.weight", stack[index].weight) for index in (0, 2)]  # type: ignore[arg-type]
    factorise(stack, weights, rank="full")
    torch.testing.assert_close(stack(x), wanted)
    compact(stack)
    assert isinstance(stack[0], nn.Linear)
    torch.testing.assert_close(stack(x), wanted)


def refused(model: Any, message: str, weights: Any = None, **options: Any) -> None:
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        factorise(model, find_weights(model) if weights is None else weights, **options)
    assert {name: value.shape for name, value in model.state_dict().items()} == {n: v.shape for n, v in state.items()}


def test_factorise_refuses_and_changes_nothing() -> None:
    model = bert()
    weights = find_weights(model)
    refused(model, "no weights given", [])
    refused(model, "initial 'magic'", initial="magic")
    refused(model, "rank 33 for 'bert.encoder.layer.0.attention.self.query.weight'", rank=33)
    refused(model, "rank 0", rank=0)
    refused(model, "rank 'all'", rank="all")
    refused(model, "rank True", rank=True)
    refused(model, "no gram of", initial="whitened")
    refused(model, "whole 0.5, initial 'random'", initial="random", whole=0.5)
    refused(model, "whole 1.0", whole=1.0)
    refused(model, r"is \(3, 3\); give \(32, 32\)", initial="whitened", grams={w.name: torch.eye(3) for w in weights})
    refused(model, "give it once", [*weights, weights[0]])
    refused(model, "is a weight of another model", find_weights(bert()))
    norm = model.bert.encoder.layer[0].output.LayerNorm
    refused(model, "is a LayerNorm", [Weight("bert.encoder.layer.0.output.LayerNorm.weight", norm.weight)])
    bias = model.bert.encoder.layer[0].output.dense.bias
    refused(model, "is no weight", [Weight("bert.encoder.layer.0.output.dense.bias", bias)])
    table: Any = model.bert.embeddings.word_embeddings.weight
    refused(model, "is a table of words", [Weight("bert.embeddings.word_embeddings.weight", table)])
    refused(model, "is no weight", [Weight("bert.nothing.weight", table)])
    model.config.quantization_config = {"quant_method": "gptq"}
    refused(model, r"is quantised \(gptq\)")
    linear: Any = nn.Linear(3, 4)
    refused(linear, "is itself a Linear", [Weight("weight", linear.weight)])
    factorised = gpt2()
    weights = find_weights(factorised)
    factorise(factorised, weights, embeddings=True)
    refused(factorised, "is no weight", weights)
    refused(factorised, "has no table of word embeddings", weights, embeddings=True)


class Doubled(nn.Linear):
    """A linear layer that does more than to multiply by its weight."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_factorise_refuses_layers_that_do_more() -> None:
    stack = nn.Sequential(Doubled(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    refused(stack, "which does more", [Weight("0.weight", stack[0].weight)])  # type: ignore[arg-type]
    stack[2].weight = stack[1].weight
    refused(stack, "has another bias", [Weight("1.weight", stack[1].weight)])  # type: ignore[arg-type]
    words = nn.Sequential(nn.Embedding(3, 3), nn.Linear(3, 3))
    words[1].weight = words[0].weight
    refused(words, "another type", [Weight("1.weight", words[1].weight)])  # type: ignore[arg-type]


def test_input_grams_refuse() -> None:
    model = bert()
    batch = example_inputs(model, 2, 8)
    with pytest.raises(ValueError, match="no batches"):
        input_grams(model, find_weights(model), [])
    pooler = model.bert.pooler.dense
    with pytest.raises(ValueError, match="in no block"):
        input_grams(model, [Weight("bert.pooler.dense.weight", pooler.weight)], [batch])


def test_compact_refuses() -> None:
    model = bert()
    with pytest.raises(ValueError, match="has no factors"):
        compact(model)
    name = factorise(model, find_weights(model), rank=8)[0].name
    for kept, message in (
        ({"nothing.weight": torch.ones(8, dtype=torch.bool)}, "no factors of 'nothing.weight'"),
        ({name: torch.ones(7, dtype=torch.bool)}, r"mask of .* is \(7,\); it has 8 components"),
        ({name: torch.zeros(8, dtype=torch.bool)}, "at least one"),
        ({name: torch.tensor([8])}, r"index \[8\]; give indices from 0 to 7"),
        ({name: torch.tensor([1, 1])}, "none twice"),
        ({name: torch.tensor([0.5])}, "torch.float32"),
    ):
        with pytest.raises(ValueError, match=message):
            compact(model, kept)
    with pytest.raises(ValueError, match="tokens 0"):
        compact(model, tokens=0)
    assert all(factors.rank == 8 for factors in find_factors(model)), "what is refused changes nothing"
