"""Adaptive embeddings and softmaxes: the probabilities, the gates that both share, and what is left after pruning."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from argprune.models import (
    AdaptiveTransformerConfig,
    AdaptiveTransformerForCausalLM,
    RecurrentConfig,
    RecurrentForCausalLM,
    find_clusters,
    find_weights,
    load_model,
)
from argprune.models.adaptive import AdaptiveConfig, AdaptiveEmbedding, AdaptiveLanguageModel, AdaptiveSoftmax, Cluster
from argprune.models.adaptive.embedding import falling_ranks

VOCABULARY, CUTOFFS, RANKS = 30, [8, 20], [8, 4, 2]


@st.composite
def tables(draw: st.DrawFn) -> tuple[int, int, list[int], list[int]]:
    """Vocabulary, width, cutoffs and ranks, some of them 0."""
    bounds = sorted(draw(st.sets(st.integers(1, 40), min_size=1, max_size=5)))
    ranks = draw(st.lists(st.integers(0, 6), min_size=len(bounds), max_size=len(bounds)))
    return bounds[-1], draw(st.integers(1, 6)), bounds[:-1], ranks


def make(architecture: str = "lstm", **options: Any) -> AdaptiveLanguageModel:
    settings = {"vocab_size": VOCABULARY, "hidden_size": 8, "cutoffs": CUTOFFS, "div_value": 2.0, **options}
    settings["num_hidden_layers"] = 2
    if architecture == "gpt2":
        model: AdaptiveLanguageModel = AdaptiveTransformerForCausalLM(
            AdaptiveTransformerConfig(num_attention_heads=2, **settings)
        )
    else:
        model = RecurrentForCausalLM(RecurrentConfig(cell="lstm", **settings))
    with torch.no_grad():
        for factors in find_clusters(model):
            # Tables larger than they are at the start, so that every word counts.
            factors.first.mul_(20)
    return model.eval()


def texts() -> Tensor:
    return torch.arange(3 * 10).reshape(3, 10) * 7 % VOCABULARY


def dense(cluster: Cluster) -> Tensor:
    """E^T, a row a word."""
    gate = torch.ones(cluster.rank) if cluster.gate is None else cluster.gate.detach()
    return cluster.first.detach() @ torch.diag(gate.to(cluster.first.dtype)) @ cluster.second.detach().t()


# What is computed


@given(tables(), st.integers(0, 1000))
def test_an_embedding_is_a_row_of_its_clusters_product(shape: tuple[int, int, list[int], list[int]], seed: int) -> None:
    torch.manual_seed(seed)
    vocabulary, width, cutoffs, ranks = shape
    layer = AdaptiveEmbedding(vocabulary, width, cutoffs, ranks, scale=3.0).double()
    table = torch.cat([dense(cluster) for cluster in layer.clusters if isinstance(cluster, Cluster)])
    words = torch.randint(0, vocabulary, (3, 4))
    torch.testing.assert_close(layer(words), 3 * table[words])
    assert AdaptiveEmbedding(vocabulary, width, cutoffs, ranks).scale == width**0.5


@given(tables(), st.integers(0, 1000), st.booleans())
def test_probabilities_sum_to_one(shape: tuple[int, int, list[int], list[int]], seed: int, tied: bool) -> None:
    """And the losses of given words are those of all words."""
    torch.manual_seed(seed)
    vocabulary, width, cutoffs, ranks = shape
    embedding = AdaptiveEmbedding(vocabulary, width, cutoffs, ranks) if tied else None
    layer = AdaptiveSoftmax(vocabulary, width, cutoffs, ranks, tied=embedding).double()
    if embedding is not None:
        embedding.double()
    for parameter in (*layer.parameters(), *(embedding or layer).parameters()):
        nn.init.normal_(parameter)
    hidden = torch.randn(50, width, dtype=torch.float64)
    log_p = layer(hidden)
    torch.testing.assert_close(log_p.exp().sum(1), torch.ones(50, dtype=torch.float64))
    words = torch.randint(0, vocabulary, (50,))
    torch.testing.assert_close(layer.losses(hidden, words), -log_p[range(50), words])


def test_it_is_torchs_adaptive_softmax() -> None:
    """Where the first cluster has full rank, and rare words have no biases: values, losses and gradients."""
    torch.manual_seed(1)
    theirs = nn.AdaptiveLogSoftmaxWithLoss(8, VOCABULARY, CUTOFFS, div_value=2.0, head_bias=True)
    ours = AdaptiveSoftmax(VOCABULARY, 8, CUTOFFS, falling_ranks(8, 2.0, 3))
    assert ours.places is not None
    with torch.no_grad():
        head, bias = theirs.head.weight, theirs.head.bias
        ours.clusters[0].first.copy_(head[:8])
        ours.clusters[0].second.copy_(torch.eye(8))
        ours.bias[:8] = bias[:8]
        ours.places.weight.copy_(head[8:])
        ours.places.bias.copy_(bias[8:])
        for cluster, tail in zip(ours.clusters[1:], theirs.tail, strict=True):
            assert isinstance(tail, nn.Sequential)
            cluster.second.copy_(tail.get_parameter("0.weight").t())
            cluster.first.copy_(tail.get_parameter("1.weight"))
    hidden, words = torch.randn(40, 8), torch.randint(0, VOCABULARY, (40,))
    torch.testing.assert_close(ours(hidden), theirs.log_prob(hidden))
    expected = theirs(hidden, words)
    found = ours.losses(hidden, words)
    torch.testing.assert_close(found, -expected.output)
    found.mean().backward()
    expected.loss.backward()
    assert ours.clusters[2].first.grad is not None
    torch.testing.assert_close(ours.clusters[2].first.grad, theirs.tail[1].get_parameter("1.weight").grad)
    assert theirs.head.weight.grad is not None
    torch.testing.assert_close(ours.places.weight.grad, theirs.head.weight.grad[8:])


@pytest.mark.parametrize("architecture", ["lstm", "gpt2"])
@pytest.mark.parametrize("tied", [True, False])
def test_the_loss_alone_is_the_loss(architecture: str, tied: bool) -> None:
    """Without logits, in training: the same number, and the same gradients."""
    labels = texts()
    labels[0, 4:] = -100
    found = []
    for logits in (True, False):
        torch.manual_seed(0)
        model = make(architecture, tie_word_embeddings=tied, training_logits=logits, dropout=0.0).train()
        outputs = model(input_ids=texts(), labels=labels)
        assert (outputs.logits is None) != logits
        # 21 tokens are predicted; as the Trainer asks for it, in two batches.
        half = model(input_ids=texts(), labels=labels, num_items_in_batch=torch.tensor(42)).loss
        torch.testing.assert_close(2 * half, outputs.loss)
        outputs.loss.backward()
        gradients = {name: p.grad for name, p in model.named_parameters()}
        found.append((outputs.loss.detach(), gradients))
        model.eval()
        assert model(input_ids=texts(), labels=labels).logits.shape == (3, 10, VOCABULARY)
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("architecture", ["lstm", "gpt2"])
def test_in_bfloat16_probabilities_are_float32(architecture: str) -> None:
    """Whether the weights are, or autocast makes them so; a float32 gate changes no dtype of what follows."""
    model = make(architecture)
    for factors in find_clusters(model):
        factors.set_gate(torch.full((factors.rank,), 0.5))
    with torch.no_grad():
        exact = model(input_ids=texts()).logits
        with torch.autocast("cpu", torch.bfloat16):
            cast = model(input_ids=texts()).logits
        stored = model.bfloat16()(input_ids=texts()).logits
    assert all(factors.gate is not None and factors.gate.dtype == torch.float32 for factors in find_clusters(model))
    for found in (cast, stored):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.exp().sum(-1), torch.ones(3, 10))
        # Eight bits of mantissa, on logits of about 3.
        torch.testing.assert_close(found, exact, rtol=0, atol=0.2)


# Gates


@pytest.mark.parametrize("architecture", ["lstm", "gpt2"])
def test_tied_tables_have_one_gate(architecture: str) -> None:
    """One parameter, and one draw, for input and output; its gradient is the sum of both."""
    model = make(architecture)
    embedding, head = model.embedding, model.lm_head
    assert isinstance(embedding, AdaptiveEmbedding)
    assert isinstance(head, AdaptiveSoftmax)
    clusters = find_clusters(model)
    assert [factors.name for factors in clusters] == [f"embedding.clusters.{c}" for c in range(3)]
    assert [factors.layer for factors in clusters] == head.clusters
    assert not [name for name in model.state_dict() if "lm_head" in name and "cluster" in name]
    untied = make(architecture, tie_word_embeddings=False)
    for name, parameter in model.named_parameters():
        untied.get_parameter(name).data.copy_(parameter.data)
    other = untied.lm_head
    assert isinstance(other, AdaptiveSoftmax)
    for own, shared in zip(other.clusters, head.clusters, strict=True):
        own.first.data.copy_(shared.first.data)
        own.second.data.copy_(shared.second.data)
    for number, factors in enumerate(clusters):
        gate = torch.rand(factors.rank, generator=torch.Generator().manual_seed(number))
        factors.set_gate(gate)
        for twin in find_clusters(untied)[number::3]:
            twin.set_gate(gate)
    losses = [each(input_ids=texts(), labels=texts()).loss for each in (model, untied)]
    torch.testing.assert_close(losses[0], losses[1])
    for loss in losses:
        loss.backward()
    for number, factors in enumerate(clusters):
        twins = find_clusters(untied)[number::3]
        assert factors.gate is not None
        for wanted in ("gate", "first", "second"):
            gradients = [getattr(twin, wanted).grad for twin in twins]
            assert all(bool(gradient.any()) for gradient in gradients)
            torch.testing.assert_close(getattr(factors, wanted).grad, gradients[0] + gradients[1])


def test_gates_are_no_part_of_what_is_stored() -> None:
    model = make()
    names, values = list(model.state_dict()), model(input_ids=texts()).logits
    for factors in find_clusters(model):
        factors.set_gate(torch.full((factors.rank,), 0.5))
    gated = model(input_ids=texts()).logits
    assert list(model.state_dict()) == names
    assert not torch.allclose(gated, values)
    # A copy has gates of its own, shared by input and output again.
    copied = copy.deepcopy(model)
    for factors in find_clusters(model):
        factors.set_gate(None)
    assert torch.equal(model(input_ids=texts()).logits, values)
    assert torch.equal(copied(input_ids=texts()).logits, gated)
    for factors in find_clusters(copied):
        factors.set_gate(None)
    assert torch.equal(copied(input_ids=texts()).logits, values)
    with pytest.raises(ValueError, match=r"values of shape \(3,\).*; give floating \(8,\)"):
        find_clusters(model)[0].set_gate(torch.ones(3))


def test_what_a_dimension_costs() -> None:
    model = make(embedding_ranks=RANKS)
    assert [factors.unit_size for factors in find_clusters(model)] == [8 + 8, 12 + 8, 10 + 8]
    assert [factors.shape for factors in find_clusters(model)] == [(8, 8), (8, 12), (8, 10)]
    before = sum(p.numel() for p in model.parameters())
    find_clusters(model)[1].keep(torch.tensor([0, 2, 3]))
    assert before - sum(p.numel() for p in model.parameters()) == 12 + 8


# Shrinking


@pytest.mark.parametrize("architecture", ["lstm", "gpt2"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kept", [[3, 2, 1], [8, 0, 2], [1, 0, 0], [0, 0, 0]])
def test_what_is_kept_is_the_gated_model(architecture: str, tied: bool, kept: list[int], tmp_path: Path) -> None:
    """Closed clusters included; it is stored as it is, and loaded again."""
    model = make(architecture, tie_word_embeddings=tied)
    parameters = {name: parameter for name, parameter in model.named_parameters() if "clusters" in name}
    generator = torch.Generator().manual_seed(0)
    indices = []
    for factors, count in zip(find_clusters(model), kept if tied else kept + kept, strict=True):
        indices.append(torch.randperm(factors.rank, generator=generator)[:count])
        gate = torch.zeros(factors.rank)
        gate[indices[-1]] = torch.rand(count, generator=generator) + 0.5
        factors.set_gate(gate)
    # A graph that is alive would remember the parameters' shapes.
    with torch.no_grad():
        gated = model(input_ids=texts(), labels=texts())
    for factors, index in zip(find_clusters(model), indices, strict=True):
        factors.keep(index)
    with torch.no_grad():
        shrunk = model(input_ids=texts(), labels=texts())
    torch.testing.assert_close(shrunk.logits, gated.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(shrunk.logits.exp().sum(-1), torch.ones(3, 10))
    assert all(model.get_parameter(name) is parameter for name, parameter in parameters.items())
    assert [factors.rank for factors in find_clusters(model)][:3] == kept
    tables = [parameters[f"embedding.clusters.{c}.first"].numel() for c in range(3)]
    assert tables == [words * count for words, count in zip((8, 12, 10), kept, strict=True)]
    # Still to be trained: nothing that is left out asks for a gradient.
    model.train()(input_ids=texts(), labels=texts()).loss.backward()
    model.eval().save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path), kind="causal-lm")
    assert list(loaded.config.embedding_ranks) == kept
    assert type(loaded) is type(model)
    assert torch.equal(loaded(input_ids=texts()).logits, shrunk.logits)


def test_a_closed_cluster_still_tells_its_words_apart() -> None:
    """By their biases alone; as an input every one of them is the same."""
    model = make()
    find_clusters(model)[2].keep(torch.empty(0, dtype=torch.int64))
    head = model.lm_head
    assert isinstance(head, AdaptiveSoftmax)
    hidden = torch.randn(5, 8)
    log_p = head(hidden)[:, 20:]
    torch.testing.assert_close(log_p, log_p[:, :1].expand(-1, 10))
    with torch.no_grad():
        head.bias[25] = 2.0
    assert (head(hidden)[:, 20:].argmax(1) == 5).all()
    assert not model.embedding(torch.arange(20, 30)).any()


def test_what_cannot_be_kept() -> None:
    factors = find_clusters(make())[1]
    for index in ([4], [-1], [0, 0]):
        with pytest.raises(ValueError, match="give indices from 0 to 3, none twice"):
            factors.keep(torch.tensor(index))
    with pytest.raises(ValueError, match="give int64 indices"):
        factors.keep(torch.empty(0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cutoffs": [20, 8]}, r"cutoffs \[20, 8\] of 30 words; give them ascending"),
        ({"cutoffs": [8, 30]}, "give them ascending, from 1 to the last"),
        ({"cutoffs": [0]}, "give them ascending"),
        ({"embedding_ranks": [3]}, r"2 cutoffs and ranks \[3\]; give one more rank than cutoffs"),
        ({"softmax_ranks": [3, 2, -1]}, "each >= 0"),
        ({"div_value": 0.5}, r"factor 0\.5; give rank >= 1 and a finite factor >= 1"),
    ],
)
def test_clusters_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdaptiveConfig(**{"vocab_size": VOCABULARY, "cutoffs": CUTOFFS, **options})


def test_sizes_of_a_transformer() -> None:
    with pytest.raises(ValueError, match="hidden_size 10, num_attention_heads 4; heads divide the width"):
        AdaptiveTransformerConfig(hidden_size=10)
    model = make("gpt2")
    assert [weight.name.rpartition(".h.")[2] for weight in find_weights(model)][:2] == [
        "0.attn.c_attn.weight",
        "0.attn.c_proj.weight",
    ]
    assert model.config.max_position_embeddings == 128
    # GPT-2's own, but for its table of words.
    assert not [name for name, _ in model.named_parameters() if "wte" in name]
    ordinary = AdaptiveTransformerForCausalLM(AdaptiveTransformerConfig(vocab_size=9, hidden_size=8)).eval()
    assert ordinary.embedding.get_parameter("weight") is ordinary.lm_head.get_parameter("weight")
    assert ordinary(input_ids=torch.arange(9)[None]).logits.shape == (1, 9, 9)
