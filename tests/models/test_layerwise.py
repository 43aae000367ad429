"""Block by block: what each matrix is fed, against a plain forward pass of the network as it was then."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from argprune.models import find_weights
from argprune.models.blocks import Pipeline, Stream, evaluating
from argprune.models.layer_inputs import Evidence, token_masks
from argprune.models.layerwise import LayerReport, prune_layerwise
from argprune.solvers.admm.layer import Layer, LayerSolution, relative_error, solve_layer
from argprune.solvers.admm.moments import Moments
from argprune.solvers.admm.supports import Unstructured
from argprune.solvers.groups import Weight

LAYERS, VOCABULARY, PAD = 3, 50, 0
BERT = {
    "hidden_size": 16,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": VOCABULARY,
}
TOKENS = {"pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}


CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "BertForSequenceClassification": ("BertConfig", BERT),
    "AlbertForSequenceClassification": ("AlbertConfig", {**BERT, "embedding_size": 8}),
    "DebertaV2ForSequenceClassification": (
        "DebertaV2Config",
        {**BERT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "conv_kernel_size": 3},
    ),
    "XLMWithLMHeadModel": ("XLMConfig", {"emb_dim": 16, "n_layers": LAYERS, "n_heads": 2, "n_words": VOCABULARY}),
    "GPT2LMHeadModel": (
        "GPT2Config",
        {"n_embd": 16, "n_layer": LAYERS, "n_head": 2, "vocab_size": VOCABULARY, **TOKENS},
    ),
    "OPTForCausalLM": (
        "OPTConfig",
        {
            "hidden_size": 16,
            "word_embed_proj_dim": 8,
            "ffn_dim": 24,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 2,
            "vocab_size": VOCABULARY,
        },
    ),
    "LlamaForCausalLM": ("LlamaConfig", {**BERT, "num_key_value_heads": 1}),
    "T5ForConditionalGeneration": (
        "T5Config",
        {
            "d_model": 16,
            "d_kv": 8,
            "d_ff": 24,
            "num_layers": LAYERS,
            "num_heads": 2,
            "vocab_size": VOCABULARY,
            **TOKENS,
        },
    ),
    "BartForConditionalGeneration": (
        "BartConfig",
        {
            "d_model": 16,
            **{f"{side}_layers": LAYERS for side in ("encoder", "decoder")},
            **{f"{side}_attention_heads": 2 for side in ("encoder", "decoder")},
            **{f"{side}_ffn_dim": 24 for side in ("encoder", "decoder")},
            "vocab_size": VOCABULARY,
            "encoder_layerdrop": 0.5,
            **TOKENS,
        },
    ),
}


def build(kind: str) -> nn.Module:
    """A tiny random network, dropout included, in training mode."""
    config, options = CONFIGS[kind]
    torch.manual_seed(1)
    model: nn.Module = getattr(transformers, kind)(getattr(transformers, config)(**options)).train()
    # Fresh networks are close to linear: with larger weights, what earlier blocks do matters to later ones.
    with torch.no_grad():
        for weight in find_weights(model):
            weight.parameter.mul_(5)
    return model


KINDS = [
    "BertForSequenceClassification",
    "GPT2LMHeadModel",
    "OPTForCausalLM",
    "LlamaForCausalLM",
    "T5ForConditionalGeneration",
    "BartForConditionalGeneration",
]
MORE = ["AlbertForSequenceClassification", "DebertaV2ForSequenceClassification", "XLMWithLMHeadModel"]
kinds = pytest.mark.parametrize("kind", KINDS)
all_kinds = pytest.mark.parametrize("kind", [*KINDS, *MORE])


def batches_for(kind: str, count: int = 3, seed: int = 0) -> list[dict[str, Tensor]]:
    """Rows of 7 to 9 tokens, the last of them padding; what an encoder-decoder writes is as long as what it reads."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for number in range(count):
        width = 7 + number
        tokens = torch.randint(3, VOCABULARY, (4, width), generator=generator)
        mask = torch.arange(width) < torch.randint(3, width + 1, (4, 1), generator=generator)
        batch = {"input_ids": tokens.where(mask, torch.tensor(PAD)), "attention_mask": mask.long()}
        if "Conditional" in kind:
            labels = torch.randint(3, VOCABULARY, (4, width), generator=generator)
            written = torch.arange(width) < torch.randint(3, width + 1, (4, 1), generator=generator)
            batch["labels"] = labels.where(written, torch.tensor(-100))
        found.append(batch)
    return found


def halve(name: str, matrix: Tensor, moments: Moments) -> LayerSolution:
    return solve_layer(Layer(matrix, moments, Unstructured(0.5)), "wanda")


@dataclass
class Spy:
    """A solver that prunes by magnitude, and keeps the Gram matrix that it was given."""

    sparsity: float = 0.5
    grams: dict[str, Tensor] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    given: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, name: str, matrix: Tensor, moments: Moments) -> LayerSolution:
        self.grams[name], self.tokens[name] = moments.gram(), moments.tokens
        self.given[name] = matrix.clone()
        return solve_layer(Layer(matrix, moments, Unstructured(self.sparsity)), "magnitude")


def plain_moments(
    model: nn.Module, weights: Sequence[Weight], batches: Sequence[dict[str, Tensor]]
) -> dict[str, Moments]:
    """By whole forward passes with one hook a matrix, padding told apart by the side that a matrix reads."""
    modules = {weight.name: model.get_submodule(weight.name.removesuffix(".weight")) for weight in weights}
    found = {weight.name: Moments(weight.matrix.shape[1]) for weight in weights}
    model.eval()
    for batch in batches:
        source = batch["attention_mask"].bool()
        target = batch["labels"] != -100 if "labels" in batch else source
        fed: dict[str, list[Tensor]] = {}
        handles = [
            module.register_forward_pre_hook(
                lambda _, args, fed=fed, name=name: fed.setdefault(name, []).append(args[0].clone())
            )
            for name, module in modules.items()
        ]
        with torch.no_grad():
            model(**batch)
        for handle in handles:
            handle.remove()
        for name, inputs in fed.items():
            of_encoder = "decoder" not in name or any(
                f"{cross}.{part}" in name
                for cross, parts in (("EncDecAttention", "kv"), ("encoder_attn", ["k_proj", "v_proj"]))
                for part in parts
            )
            mask = source if of_encoder or "OPT" in type(model).__name__ else target
            # DeBERTa's table of relative positions has one row for all texts.
            parts = [t[0] if len(t) == 1 else t.reshape(*mask.shape, -1)[mask] for t in inputs]
            found[name].update(torch.cat(parts))
    return found


@all_kinds
@pytest.mark.parametrize("order", ["block", "layer"])
def test_sparsity_0_changes_nothing(kind: str, order: Any) -> None:
    model, batches = build(kind), batches_for(kind)
    modes = {name: module.training for name, module in model.named_modules()}
    hooks = sum(len(module._forward_pre_hooks) for module in model.modules())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    weights = find_weights(model)
    found = prune_layerwise(model, batches, weights, Spy(0.0), held_out=batches, order=order)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert sum(len(module._forward_pre_hooks) for module in model.modules()) == hooks
    assert not any("forward" in module.__dict__ for module in model.modules())
    assert [report.error for report in found.layers] == [0.0] * len(weights)
    assert [report.held_out for report in found.layers] == [0.0] * len(weights)
    assert all(bool(mask.all()) for mask in found.masks.values())
    assert set(found.masks) == {weight.name for weight in weights}


def in_blocks(names: Sequence[str]) -> list[list[str]]:
    """Names in runs of those that lie in one block: equal up to the first number."""
    runs: dict[str, list[str]] = {}
    for name in names:
        parts = name.split(".")
        first = next(place for place, part in enumerate(parts) if part.isdigit())
        runs.setdefault(".".join(parts[: first + 1]), []).append(name)
    return list(runs.values())


@all_kinds
def test_inputs_are_those_of_the_network_pruned_so_far(kind: str) -> None:
    """To the bit: those of a plain forward pass with all blocks before pruned, and this one not yet."""
    model, batches, spy = build(kind), batches_for(kind), Spy()
    found = prune_layerwise(model, batches, find_weights(model), spy)
    pruned = {weight.name: weight.parameter.detach() for weight in find_weights(model)}
    assert [report.name for report in found.layers] == list(spy.grams)
    assert set(spy.grams) == set(pruned)
    replay = build(kind)
    weights = {weight.name: weight for weight in find_weights(replay)}
    for block in in_blocks(list(spy.grams)):
        plain = plain_moments(replay, [weights[name] for name in block], batches)
        for name in block:
            assert spy.tokens[name] == plain[name].tokens, name
            assert torch.equal(spy.grams[name], plain[name].gram()), name
            assert torch.equal(spy.given[name], weights[name].matrix), name
        with torch.no_grad():
            for name in block:
                weights[name].parameter.copy_(pruned[name])


@kinds
def test_layer_by_layer_the_inputs_are_those_of_the_pruned_network(kind: str) -> None:
    """What is before a matrix does not change once it is pruned, so that its inputs are still those in the end."""
    model, batches, spy = build(kind), batches_for(kind), Spy()
    prune_layerwise(model, batches, find_weights(model), spy, order="layer")
    plain = plain_moments(model, find_weights(model), batches)
    for name, gram in spy.grams.items():
        assert torch.equal(gram, plain[name].gram()), name


@kinds
def test_masks_are_the_supports_and_errors_those_of_the_moments(kind: str) -> None:
    model, batches, unseen = build(kind), batches_for(kind), batches_for(kind, 2, seed=5)
    dense = {weight.name: weight.matrix.clone() for weight in find_weights(model)}
    spy, heard = Spy(), list[LayerReport]()
    found = prune_layerwise(
        model, batches, find_weights(model), spy, held_out=unseen, order="layer", progress=heard.append
    )
    assert heard == list(found.layers)
    weights = {weight.name: weight for weight in find_weights(model)}
    # As in the test before: the inputs are still what they were.
    plain = plain_moments(model, list(weights.values()), unseen)
    for report in found.layers:
        weight = weights[report.name]
        assert torch.equal(found.masks[report.name], weight.parameter != 0)
        assert report.sparsity == 0.5
        assert report.shape == tuple(weight.matrix.shape)
        pruned, before = weight.matrix, dense[report.name]
        assert report.error == relative_error(before, pruned, spy.grams[report.name])
        assert report.held_out == relative_error(before, pruned, plain[report.name].gram())
        assert 0 < report.error < 1
        assert report.tokens == spy.tokens[report.name]


def test_one_blocks_activations_are_held() -> None:
    """Of every batch the last output of its stack: counted while the solver works, and while a block runs."""
    for kind, stacks in (("BertForSequenceClassification", 1), ("T5ForConditionalGeneration", 2)):
        model, batches = build(kind), batches_for(kind)
        outputs: list[weakref.ref[Tensor]] = []
        counts: list[int] = []

        def note(module: nn.Module, args: Any, output: Any, outputs: list[Any] = outputs) -> None:
            outputs.append(weakref.ref(output if isinstance(output, Tensor) else output[0]))

        def count(
            name: str, matrix: Tensor, moments: Moments, outputs: list[Any] = outputs, counts: list[int] = counts
        ) -> LayerSolution:
            counts.append(len({id(tensor) for each in outputs if (tensor := each()) is not None}))
            return halve(name, matrix, moments)

        for block in Pipeline.trace(model.eval(), batches[0]).blocks:
            block.module.register_forward_hook(note)
        prune_layerwise(model, batches, find_weights(model), count, held_out=batches[:2])
        assert max(counts) == 5 * stacks, kind
        assert len(outputs) > 5 * LAYERS * stacks
        assert all(each() is None for each in outputs)


@pytest.mark.parametrize(("kind", "chained"), [*((kind, True) for kind in KINDS), ("XLMWithLMHeadModel", False)])
def test_networks_whose_blocks_do_not_chain_are_told_apart(kind: str, chained: bool) -> None:
    """XLM's layers add to what came in before them: the last output is not all that the next one needs."""
    model, batches = build(kind), batches_for(kind)
    with evaluating(model):
        pipeline = Pipeline.trace(model, batches[0])
    assert pipeline.chained is chained
    assert pipeline.calls == list(range(len(pipeline.blocks)))


def test_a_shared_block_is_one_block_with_several_calls() -> None:
    model, batches = build("AlbertForSequenceClassification"), batches_for("Albert")
    with evaluating(model):
        pipeline = Pipeline.trace(model, batches[0])
    assert pipeline.calls == [0] * LAYERS
    assert (pipeline.first(0), pipeline.last(0), pipeline.first(1)) == (0, LAYERS - 1, LAYERS)
    tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
    found = prune_layerwise(model, batches, find_weights(model), halve)
    assert {report.tokens for report in found.layers} == {LAYERS * tokens}


def test_streams_go_on_from_where_they_are() -> None:
    model, batches = build("LlamaForCausalLM").eval(), batches_for("Llama")
    pipeline = Pipeline.trace(model, batches[0])
    entered: list[str] = []
    for block in pipeline.blocks:
        inner = block.module.get_submodule("mlp")
        inner.register_forward_hook(lambda *_, name=block.name: entered.append(name))
    names = [block.name for block in pipeline.blocks]
    stream = Stream(pipeline, batches)
    stream.advance(2)
    assert entered == names[:2] * len(batches)
    entered.clear()
    stream.look(1, 3)
    assert entered == names[2:3]
    stream.look(1, 2)
    assert entered == names[2:3]


# Keeping the dense network's outputs


@kinds
def test_errors_of_the_dense_target_are_those_of_whole_forward_passes(kind: str) -> None:
    """What the last matrix loses of the dense network's outputs, measured by running both networks."""
    model, batches, spy = build(kind), batches_for(kind), Spy()
    dense = build(kind).eval()
    found = prune_layerwise(model, batches, find_weights(model), spy, target="dense")
    report = found.layers[-1]
    path = report.name.removesuffix(".weight")
    lost = total = 0.0
    for batch in batches:
        mask = batch["labels"] != -100 if "labels" in batch else batch["attention_mask"].bool()
        given = []
        for network in (model.eval(), dense):
            inputs: list[Tensor] = []
            handle = network.get_submodule(path).register_forward_pre_hook(
                lambda _, args, inputs=inputs: inputs.append(args[0])
            )
            if network is model:
                # When it was pruned, its block was not yet: only the blocks before were.
                [block] = [names for names in in_blocks(list(spy.grams)) if report.name in names]
                kept = {name: model.get_parameter(name).clone() for name in block}
                with torch.no_grad():
                    for name in block:
                        model.get_parameter(name).copy_(dense.get_parameter(name))
                    network(**batch)
                    for name, value in kept.items():
                        model.get_parameter(name).copy_(value)
            else:
                with torch.no_grad():
                    network(**batch)
            handle.remove()
            given.append(inputs[0].detach().reshape(*mask.shape, -1)[mask].double())
        matrices = [
            next(w for w in find_weights(network) if w.name == report.name).matrix.double()
            for network in (model, dense)
        ]
        wanted = given[1] @ matrices[1].t()
        lost += float((given[0] @ matrices[0].t() - wanted).square().sum())
        total += float(wanted.square().sum())
    assert report.error == pytest.approx(lost / total, rel=1e-9)


def test_the_dense_target_makes_up_for_what_was_lost_before() -> None:
    """Of the last matrix, left dense: refitted to the dense outputs it loses less than as it was."""
    batches = batches_for("Llama", 12)
    losses = {}
    for target in ("weight", "dense"):
        model = build("LlamaForCausalLM")
        weights = find_weights(model)

        def solve(name: str, matrix: Tensor, moments: Moments, last: str = weights[-1].name) -> LayerSolution:
            return solve_layer(Layer(matrix, moments, Unstructured(0.0 if name == last else 0.5)), "magnitude")

        with torch.no_grad():
            wanted = [build("LlamaForCausalLM").eval()(**batch).logits for batch in batches]
            prune_layerwise(model, batches, weights, solve, target=target)
            found = [model.eval()(**batch).logits for batch in batches]
        losses[target] = sum(float((a - b).square().sum()) for a, b in zip(found, wanted, strict=True))
    assert losses["dense"] < 0.8 * losses["weight"]


@given(st.integers(0, 10_000), st.floats(0.0, 1.0))
def test_the_dense_target_is_stationary(seed: int, damping: float) -> None:
    """Its gradient, (V G - W C^T) + damping mean(diag G) (V - W), is zero; without a difference it is the weight."""
    generator = torch.Generator().manual_seed(seed)
    weight, x, y = (torch.randn(shape, generator=generator).double() for shape in ((3, 5), (20, 5), (20, 5)))
    evidence = Evidence(5, 1, torch.float64, torch.device("cpu"), paired=True)
    evidence.update(x, y)
    target = evidence.target(weight, damping)
    gram = x.t() @ x / 20
    gradient = target @ gram - weight @ (y.t() @ x / 20) + damping * gram.diagonal().mean() * (target - weight)
    # Solved by Cholesky: condition numbers stay below 1e3 for these shapes.
    assert float(gradient.abs().max()) < 1e-9
    same = Evidence(5, 1, torch.float64, torch.device("cpu"), paired=True)
    same.update(x, x)
    assert torch.allclose(same.target(weight, damping), weight, rtol=0, atol=1e-9)
    assert same.error(weight, weight) < 1e-12


def test_an_undamped_dense_target_of_few_tokens_is_refused() -> None:
    evidence = Evidence(5, 1, torch.float64, torch.device("cpu"), paired=True)
    evidence.update(torch.zeros(2, 5), torch.ones(2, 5))
    with pytest.raises(ValueError, match=r"2 tokens of 5 inputs leave their Gram matrix singular at damping 0; raise"):
        evidence.target(torch.ones(3, 5), 0.0)


# Padding


def test_token_masks() -> None:
    source, labels = torch.tensor([[1, 1, 0]]), torch.tensor([[4, -100]])
    assert token_masks({"input_ids": source}) == (None, None)
    found = token_masks({"attention_mask": source, "labels": torch.tensor([3])})
    assert [mask.tolist() for mask in found if mask is not None] == [[[True, True, False]]] * 2
    found = token_masks({"attention_mask": source, "labels": labels})
    assert [mask.tolist() for mask in found if mask is not None] == [[[True, True, False]], [[True, False]]]
    found = token_masks({"attention_mask": source, "labels": labels, "decoder_attention_mask": torch.tensor([[1, 1]])})
    assert [mask.tolist() for mask in found if mask is not None] == [[[True, True, False]], [[True, True]]]
    assert token_masks({"attention_mask": source, "decoder_input_ids": labels})[1] is None
    with pytest.raises(ValueError, match=r"attention_mask of shape \(1, 1, 2, 2\); give \(rows, tokens\)"):
        token_masks({"attention_mask": torch.ones(1, 1, 2, 2)})


@kinds
def test_padding_does_not_matter(kind: str) -> None:
    """More of it changes sums by rounding alone."""
    batches = batches_for(kind)
    wider = [
        {
            name: nn.functional.pad(value, (0, 3), value={"input_ids": PAD, "labels": -100}.get(name, 0))
            for name, value in batch.items()
        }
        for batch in batches
    ]
    grams = []
    for given_batches in (batches, wider):
        model, spy = build(kind), Spy(0.0)
        prune_layerwise(model, given_batches, find_weights(model), spy)
        grams.append(spy)
    assert grams[0].tokens == grams[1].tokens
    for name, gram in grams[0].grams.items():
        # float32 activations, whose attention sums run over more zeros.
        assert torch.allclose(gram, grams[1].grams[name], rtol=1e-4, atol=1e-4 * float(gram.abs().max())), name


# Refusals, and what is left after an error


def test_after_an_error_the_model_is_as_it_was() -> None:
    model, batches = build("BertForSequenceClassification"), batches_for("Bert")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fourth = find_weights(model)[9].name

    def solve(name: str, matrix: Tensor, moments: Moments) -> LayerSolution:
        if name == fourth:
            raise ValueError("no such support")
        return halve(name, matrix, moments)

    with pytest.raises(ValueError, match=rf"^{fourth}: no such support$"):
        prune_layerwise(model, batches, find_weights(model), solve)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert not any("forward" in module.__dict__ or module._forward_pre_hooks for module in model.modules())


def test_a_forward_that_was_there_before_comes_back() -> None:
    """accelerate puts one on the module, to move tensors between devices."""
    model, batches = build("BertForSequenceClassification"), batches_for("Bert")
    block = Pipeline.trace(model.eval(), batches[0]).blocks[1].module
    own, calls = block.forward, [0]

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        return own(*args, **kwargs)

    block.forward = counted
    prune_layerwise(model, batches, find_weights(model), halve)
    assert block.__dict__["forward"] is counted
    assert calls[0] > len(batches)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batches": []}, "no batches; give at least one"),
        ({"order": "row"}, "order 'row'; choose one of block, layer"),
        ({"target": "sparse"}, "target 'sparse'; choose one of weight, dense"),
        ({"damping": -1.0}, "damping -1.0; it must be finite and >= 0"),
        ({"weights": "biases"}, r"bias is of shape \(16,\); it prunes matrices, so leave biases out"),
        ({"weights": "foreign"}, "is in no block that BertForSequenceClassification runs"),
    ],
)
def test_refusals(change: dict[str, Any], message: str) -> None:
    model = build("BertForSequenceClassification")
    options = {"batches": batches_for("Bert"), "weights": find_weights(model), **change}
    if options["weights"] == "biases":
        options["weights"] = find_weights(model, biases=True)
    if options["weights"] == "foreign":
        options["weights"] = find_weights(build("BertForSequenceClassification"))
    with pytest.raises(ValueError, match=message) as caught:
        prune_layerwise(model, solve=halve, **options)
    assert "\n" not in str(caught.value)


def test_inputs_of_unknown_padding_are_refused() -> None:
    model = build("BertForSequenceClassification")

    class Pooled(nn.Module):
        """Drops the last position, so that texts and inputs no longer match."""

        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, hidden: Tensor) -> Tensor:
            return nn.functional.pad(self.inner(hidden[:, :-1]), (0, 0, 0, 1))

    layer = model.get_submodule("bert.encoder.layer.0.intermediate")
    layer.dense = Pooled(layer.get_submodule("dense"))
    batches = batches_for("Bert")
    with pytest.raises(ValueError, match="which of them are padding cannot be told; give batches without padding"):
        prune_layerwise(model, batches, find_weights(model), halve)
    full = [{"input_ids": batch["input_ids"]} for batch in batches]
    assert len(prune_layerwise(model, full, find_weights(model), halve).layers) == 6 * LAYERS


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_inputs_are_the_same() -> None:
    spies = []
    for device in ("cpu", "cuda"):
        model, spy = build("LlamaForCausalLM").to(device), Spy()
        found = prune_layerwise(model, batches_for("Llama"), find_weights(model), spy)
        assert {mask.device.type for mask in found.masks.values()} == {device}
        spies.append(spy)
    for name, gram in spies[0].grams.items():
        assert torch.allclose(gram, spies[1].grams[name].cpu(), rtol=1e-2, atol=1e-2 * float(gram.abs().max())), name


def test_layers_that_read_keys_of_earlier_ones_are_refused() -> None:
    config = transformers.Gemma3nTextConfig(
        vocab_size=60,
        vocab_size_per_layer_input=60,
        hidden_size=32,
        hidden_size_per_layer_input=8,
        num_hidden_layers=4,
        intermediate_size=[24] * 4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        altup_num_inputs=2,
        num_kv_shared_layers=2,
        laurel_rank=4,
        activation_sparsity_pattern=[0.0] * 4,
        layer_types=["sliding_attention", "full_attention"] * 2,
    )
    model = transformers.Gemma3nForCausalLM(config).eval()
    with pytest.raises(ValueError, match="read keys and values of earlier ones"):
        Pipeline.trace(model, {"input_ids": torch.full((1, 5), 7)})
