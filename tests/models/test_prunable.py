"""The structural rule, against names and counts written by hand from each architecture."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

from argprune.models import find_weights

LAYERS = 2
BASE = {
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 50,
}
T5 = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": LAYERS, "num_heads": 2, "vocab_size": 50}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

BERT = [
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
]
DEBERTA = [
    "attention.self.query_proj",
    "attention.self.key_proj",
    "attention.self.value_proj",
    "attention.self.pos_key_proj",
    "attention.self.pos_query_proj",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
]
DISTILBERT = [
    "attention.q_lin",
    "attention.k_lin",
    "attention.v_lin",
    "attention.out_lin",
    "ffn.lin1",
    "ffn.lin2",
]
GPT2 = ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]
OPT = ["self_attn.k_proj", "self_attn.v_proj", "self_attn.q_proj", "self_attn.out_proj", "fc1", "fc2"]
ATTENTION = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
LLAMA = [*ATTENTION, "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
VIT = ["attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj", "mlp.fc1", "mlp.fc2"]
BART_CROSS = ["encoder_attn.k_proj", "encoder_attn.v_proj", "encoder_attn.q_proj", "encoder_attn.out_proj"]
T5_SELF = [f"layer.0.SelfAttention.{part}" for part in "qkvo"]
T5_CROSS = [f"layer.1.EncDecAttention.{part}" for part in "qkvo"]
T5_ENCODER = [*T5_SELF, "layer.1.DenseReluDense.wi", "layer.1.DenseReluDense.wo"]
T5_DECODER = [*T5_SELF, *T5_CROSS, "layer.2.DenseReluDense.wi", "layer.2.DenseReluDense.wo"]


@dataclass(frozen=True)
class Family:
    """A tiny model as its authors lay it out: stacks of blocks, their matrices, prefixes under a head."""

    config: str
    options: Mapping[str, object]
    stacks: Sequence[tuple[str, Sequence[str]]]
    classes: Mapping[str, str]
    count: int

    def build(self, kind: str) -> nn.Module:
        with torch.device("meta"):
            model: nn.Module = getattr(transformers, kind)(getattr(transformers, self.config)(**self.options))
        return model

    def names(self, kind: str) -> list[str]:
        return [
            f"{self.classes[kind]}{stack}.{layer}.{matrix}.weight"
            for stack, matrices in self.stacks
            for layer in range(LAYERS)
            for matrix in matrices
        ]


FAMILIES = [
    Family(
        "BertConfig",
        BASE,
        [("encoder.layer", BERT)],
        {"BertModel": "", "BertForSequenceClassification": "bert.", "BertForMaskedLM": "bert."},
        12,
    ),
    Family(
        "RobertaConfig",
        BASE,
        [("encoder.layer", BERT)],
        {
            "RobertaModel": "",
            "RobertaForSequenceClassification": "roberta.",
            "RobertaForMaskedLM": "roberta.",
        },
        12,
    ),
    Family(
        "DistilBertConfig",
        {"dim": 32, "n_layers": LAYERS, "n_heads": 2, "hidden_dim": 64, "vocab_size": 50},
        [("transformer.layer", DISTILBERT)],
        {"DistilBertModel": "", "DistilBertForSequenceClassification": "distilbert."},
        12,
    ),
    Family(
        "ElectraConfig",
        {**BASE, "embedding_size": 16},
        [("encoder.layer", BERT)],
        {
            "ElectraModel": "",
            "ElectraForPreTraining": "electra.",
            "ElectraForSequenceClassification": "electra.",
        },
        12,
    ),
    Family(
        "DebertaV2Config",
        {**BASE, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "conv_kernel_size": 3},
        [("encoder.layer", DEBERTA)],
        {"DebertaV2Model": "", "DebertaV2ForSequenceClassification": "deberta."},
        16,
    ),
    Family(
        "GPT2Config",
        {"n_embd": 32, "n_layer": LAYERS, "n_head": 2, "vocab_size": 50, **TOKENS},
        [("h", GPT2)],
        {
            "GPT2Model": "",
            "GPT2LMHeadModel": "transformer.",
            "GPT2ForSequenceClassification": "transformer.",
        },
        8,
    ),
    Family(
        "OPTConfig",
        {
            "hidden_size": 32,
            "word_embed_proj_dim": 16,
            "ffn_dim": 64,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 2,
            "vocab_size": 50,
        },
        [("decoder.layers", OPT)],
        {"OPTModel": "", "OPTForCausalLM": "model.", "OPTForSequenceClassification": "model."},
        12,
    ),
    Family(
        "LlamaConfig",
        {**BASE, "num_key_value_heads": 1},
        [("layers", LLAMA)],
        {"LlamaModel": "", "LlamaForCausalLM": "model.", "LlamaForSequenceClassification": "model."},
        14,
    ),
    Family(
        "Qwen2Config",
        {**BASE, "num_key_value_heads": 1},
        [("layers", LLAMA)],
        {"Qwen2Model": "", "Qwen2ForCausalLM": "model.", "Qwen2ForSequenceClassification": "model."},
        14,
    ),
    Family(
        "Qwen3Config",
        {**BASE, "num_key_value_heads": 1, "head_dim": 16},
        [("layers", LLAMA)],
        {"Qwen3Model": "", "Qwen3ForCausalLM": "model.", "Qwen3ForSequenceClassification": "model."},
        14,
    ),
    Family(
        "T5Config",
        T5,
        [("encoder.block", T5_ENCODER), ("decoder.block", T5_DECODER)],
        {"T5Model": "", "T5ForConditionalGeneration": "", "T5ForSequenceClassification": "transformer."},
        32,
    ),
    Family(
        "T5Config",
        {**T5, "is_encoder_decoder": False},
        [("encoder.block", T5_ENCODER)],
        {"T5EncoderModel": ""},
        12,
    ),
    Family(
        "BartConfig",
        {
            "d_model": 32,
            "encoder_layers": LAYERS,
            "decoder_layers": LAYERS,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64,
            "vocab_size": 50,
            **TOKENS,
        },
        [("encoder.layers", OPT), ("decoder.layers", [*OPT[:4], *BART_CROSS, *OPT[4:]])],
        {
            "BartModel": "",
            "BartForConditionalGeneration": "model.",
            "BartForSequenceClassification": "model.",
        },
        32,
    ),
    Family(
        "ViTConfig",
        {
            "hidden_size": 32,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "image_size": 8,
            "patch_size": 4,
        },
        [("layers", VIT)],
        {"ViTModel": "", "ViTForImageClassification": "vit."},
        12,
    ),
    # Mixtral's experts are 3-D parameters and its router a bare one: only the attention is left.
    Family(
        "MixtralConfig",
        {**BASE, "num_key_value_heads": 2, "num_local_experts": 4},
        [("layers", ATTENTION)],
        {"MixtralModel": "", "MixtralForCausalLM": "model."},
        8,
    ),
    # XLM keeps attentions, norms and feed-forward layers in parallel lists.
    Family(
        "XLMConfig",
        {"emb_dim": 32, "n_layers": LAYERS, "n_heads": 2, "n_words": 50},
        [("attentions", ["q_lin", "k_lin", "v_lin", "out_lin"]), ("ffns", ["lin1", "lin2"])],
        {"XLMModel": "", "XLMWithLMHeadModel": "transformer."},
        12,
    ),
]
CASES = [pytest.param(family, kind, id=kind) for family in FAMILIES for kind in family.classes]
OUTSIDE = re.compile(
    r"pooler|classifier|classification_head|lm_head|predictions|score|embed|norm|conv\.|shared"
    r"|rel_embeddings|relative_attention_bias|pred_layer|project_(in|out)|gate\.weight",
    re.IGNORECASE,
)


def names(model: nn.Module, *args: Sequence[str], **kwargs: Any) -> list[str]:
    return [weight.name for weight in find_weights(model, *args, **kwargs)]


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_the_matrices_of_the_blocks_and_nothing_else(family: Family, kind: str) -> None:
    model = family.build(kind)
    weights = find_weights(model)
    found = [weight.name for weight in weights]
    assert len(found) == family.count
    assert sorted(found) == sorted(family.names(kind))
    assert not [name for name in found if OUTSIDE.search(name)]
    parameters = dict(model.named_parameters())
    assert all(parameters[weight.name] is weight.parameter for weight in weights)
    assert found == [name for name in parameters if name in set(found)]  # module order
    assert {weight.transposed for weight in weights} == {"GPT2" in kind}


@pytest.mark.parametrize(
    ("layers", "width", "heads", "count", "entries"),
    [(12, 768, 12, 72, 84_934_656), (24, 1024, 16, 144, 301_989_888)],
    ids=["base", "large"],
)
def test_bert_as_published(layers: int, width: int, heads: int, count: int, entries: int) -> None:
    config = transformers.BertConfig(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=4 * width
    )
    with torch.device("meta"):
        model = transformers.BertForSequenceClassification(config)
    weights = find_weights(model)
    assert (len(weights), sum(weight.parameter.numel() for weight in weights)) == (count, entries)


def test_albert_shares_one_block_among_its_layers() -> None:
    with torch.device("meta"):
        model = transformers.AlbertForSequenceClassification(
            transformers.AlbertConfig(
                hidden_size=32, num_attention_heads=2, intermediate_size=64, embedding_size=16, vocab_size=50
            )
        )
    block = "albert.encoder.albert_layer_groups.0.albert_layers.0"
    matrices = ["attention.query", "attention.key", "attention.value", "attention.dense", "ffn", "ffn_output"]
    assert names(model) == [f"{block}.{matrix}.weight" for matrix in matrices]


def test_experts_kept_as_modules_are_found_with_their_router() -> None:
    with torch.device("meta"):
        model = transformers.SwitchTransformersForConditionalGeneration(
            transformers.SwitchTransformersConfig(
                d_model=32,
                d_kv=16,
                d_ff=64,
                num_layers=2,
                num_decoder_layers=2,
                num_heads=2,
                vocab_size=50,
                num_experts=3,
                num_sparse_encoder_layers=1,
                num_sparse_decoder_layers=1,
            )
        )
    # A dense and a sparse layer each; encoder: (4 + 2) + (4 + 3 * 2 + 1), decoder: (8 + 2) + (8 + 3 * 2 + 1).
    assert len(names(model)) == 17 + 25
    experts = names(model, ["*.experts.*"])
    assert experts == [
        f"{block}.mlp.experts.expert_{expert}.{part}.weight"
        for block in ("encoder.block.1.layer.1", "decoder.block.1.layer.2")
        for expert in range(3)
        for part in ("wi", "wo")
    ]
    assert set(names(model)) - set(names(model, exclude=["*.router.*"])) == {
        "encoder.block.1.layer.1.mlp.router.classifier.weight",
        "decoder.block.1.layer.2.mlp.router.classifier.weight",
    }


def test_conv1d_is_offered_with_rows_as_outputs() -> None:
    model = transformers.GPT2Model(transformers.GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=50))
    weight = find_weights(model, ["*.c_fc.*"])[0]
    layer = model.get_submodule("h.0.mlp.c_fc")
    assert isinstance(layer, Conv1D)
    assert weight.parameter.shape == (32, 128)
    assert weight.matrix.shape == (128, 32)
    x = torch.randn(3, 32)
    torch.testing.assert_close(layer(x), x @ weight.matrix.t() + layer.bias)


class Block(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)


class Model(nn.Module):
    """Blocks, and a head in each of the shapes that must not be taken for blocks."""

    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(4, 4)
        self.layers = nn.ModuleList(Block() for _ in range(layers))
        self.heads = nn.ModuleList(nn.Linear(4, 2) for _ in range(2))
        self.projection = nn.ModuleList([nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2)])
        self.boxes = nn.ModuleDict(
            {"deep": nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)) for _ in range(2))}
        )
        self.classifier = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 2))


def dense(model: nn.Module, layer: int) -> nn.Module:
    return model.get_submodule(f"layers.{layer}.dense")


@pytest.mark.parametrize("layers", [1, 3])
def test_lists_of_heads_are_no_blocks(layers: int) -> None:
    assert names(Model(layers)) == [f"layers.{layer}.dense.weight" for layer in range(layers)]


def test_a_weight_tied_to_an_embedding_or_a_head_is_left_out() -> None:
    model = Model(4)
    dense(model, 0).weight = model.embeddings.weight
    dense(model, 1).weight = model.get_parameter("classifier.1.weight")
    model.head = dense(model, 2)
    assert names(model) == ["layers.3.dense.weight"]


def test_a_weight_shared_among_blocks_is_found_once() -> None:
    model = Model(3)
    dense(model, 1).weight = dense(model, 0).weight
    model.layers[2] = model.layers[0]
    model.alias = model.layers
    assert names(model) == ["layers.0.dense.weight"]


def test_integer_weights_are_left_out() -> None:
    model = Model(2)
    dense(model, 0).weight = nn.Parameter(torch.ones(4, 4, dtype=torch.int8), requires_grad=False)
    assert names(model) == ["layers.1.dense.weight"]


def test_a_bare_list_of_blocks_is_a_model_too() -> None:
    assert names(Model(2).layers) == ["0.dense.weight", "1.dense.weight"]


@pytest.fixture(scope="module")
def bert() -> nn.Module:
    return FAMILIES[0].build("BertForSequenceClassification")


def test_include_and_exclude(bert: nn.Module) -> None:
    assert len(names(bert, ["*.attention.*"])) == 8
    assert len(names(bert, ["*.query.*", "*.key.*"])) == 4
    assert len(names(bert, ["*.attention.*"], ["*.layer.1.*"])) == 4
    assert names(bert, exclude=["*.layer.0.*", "*.attention.*"]) == [
        "bert.encoder.layer.1.intermediate.dense.weight",
        "bert.encoder.layer.1.output.dense.weight",
    ]


@pytest.mark.parametrize("argument", ["include", "exclude"])
def test_a_pattern_without_a_match_names_the_closest(argument: str) -> None:
    model = FAMILIES[5].build("GPT2Model")
    with pytest.raises(ValueError, match=r"^No weight matches 'attn\.\*\.out' in GPT2Model\. Closest: ") as caught:
        names(model, **{argument: ["attn.*.out"]})
    message = str(caught.value)
    assert "'h.0.attn.c_proj.weight'" in message
    assert "h.1" not in message
    assert message.endswith("See argprune.models.find_weights(model).")
    assert "\n" not in message


def test_a_typing_error_is_answered_with_the_name_meant(bert: nn.Module) -> None:
    meant = "bert.encoder.layer.1.attention.self.query.weight"
    with pytest.raises(ValueError, match=re.escape("Closest: 'bert.encoder.layer.0.attention.self.query.weight'")):
        find_weights(bert, [meant.replace("query", "qeury")])


def test_matching_is_case_sensitive(bert: nn.Module) -> None:
    with pytest.raises(ValueError, match="No weight matches"):
        find_weights(bert, ["*.ATTENTION.*"])


def test_nothing_left(bert: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"leave none of the 12 weights of BertForSequenceClassification"):
        find_weights(bert, ["*.attention.*"], ["*.layer.*"])
    with pytest.raises(ValueError, match=r"leave none"):
        find_weights(bert, [])


def test_a_bare_string_is_refused(bert: nn.Module) -> None:
    with pytest.raises(TypeError, match=r"\['\*\.attention\.\*'\]"):
        find_weights(bert, "*.attention.*")
    with pytest.raises(TypeError, match="exclude"):
        find_weights(bert, exclude="*")


def test_models_without_blocks_are_refused_in_one_line() -> None:
    with torch.device("meta"):
        resnet = transformers.ResNetModel(
            transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1])
        )
    with pytest.raises(ValueError, match=r"in ResNetModel\. Found: .*\d+ ResNetConvLayer|\d+ Conv2d") as caught:
        find_weights(resnet)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"in Sequential\. Found: 2 Linear, 1 ReLU\."):
        find_weights(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)))
