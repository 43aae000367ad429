"""Inputs to compare and to time models with: random tokens, the shorter texts of a batch padded."""

from __future__ import annotations

import inspect
import math
import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from transformers import PreTrainedModel

from argprune.models.inputs import longest_text


def example_inputs(model: PreTrainedModel, batch: int, length: int, seed: int = 0) -> dict[str, Tensor]:
    """Arguments of the model's forward: int64 (batch, length) each, drawn by `seed`; on the model's device.

    Every second text ends at half the length. Token types where the model has several; the decoder of an
    encoder-decoder model gets half the length, but where it classifies: it reads the texts themselves then, and tells
    their ends by an end token. Raises ValueError for a size below 1 or beyond the model's positions.
    """
    most = longest_text(model)
    if batch < 1 or length < 1 or (most is not None and length > most):
        limit = "" if most is None else f" and at most {most} tokens"
        raise ValueError(f"batch {batch} of length {length}; give at least 1 each{limit}.")
    generator = torch.Generator().manual_seed(seed)
    config = model.config.get_text_config()
    ids = torch.randint(0, config.vocab_size, (batch, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[1::2, (length + 1) // 2 :] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    accepted = inspect.signature(model.forward).parameters
    if "token_type_ids" in accepted and getattr(config, "type_vocab_size", 0) > 1:
        inputs["token_type_ids"] = torch.randint(0, 2, ids.shape, generator=generator)
    if model.config.is_encoder_decoder and type(model).__name__.endswith("ForSequenceClassification"):
        end = config.eos_token_id
        ids[ids == end] = (end + 1) % config.vocab_size
        ids[torch.arange(batch), mask.sum(1) - 1] = end
    elif model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids[:, : max(1, length // 2)].clone()
    return {name: value.to(model.device) for name, value in inputs.items()}


@torch.inference_mode()
def read_logits(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the model predicts of `inputs`, by the outputs' names: all that are logits, or its last hidden state."""
    outputs = {name: value for name, value in model(**inputs, return_dict=True).items() if isinstance(value, Tensor)}
    logits = {name: value for name, value in outputs.items() if name.endswith("logits")}
    return logits or {"last_hidden_state": outputs["last_hidden_state"]}


def largest_difference(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> float:
    """The largest absolute difference between the logits found and wanted, by name; NaN counts as infinite."""
    differences = [float((found[name].double() - wanted[name].double()).abs().max()) for name in wanted]
    return max(math.inf if math.isnan(difference) else difference for difference in differences)


def interleaved_seconds(
    actions: Mapping[str, Callable[[], object]], repetitions: int, warm: int = 3
) -> dict[str, list[float]]:
    """Seconds of each of `actions` in every round after `warm` untimed ones; they take turns, in alternating order.

    repetitions: rounds.
    """
    times: dict[str, list[float]] = {name: [] for name in actions}
    for round_number in range(warm + repetitions):
        for name in list(actions)[:: -1 if round_number % 2 else 1]:
            start = time.perf_counter()
            actions[name]()
            if round_number >= warm:
                times[name].append(time.perf_counter() - start)
    return times


def median_milliseconds(times: Mapping[str, list[float]]) -> dict[str, float]:
    """The median of each name's times, given in seconds."""
    return {name: 1e3 * statistics.median(values) for name, values in times.items()}
