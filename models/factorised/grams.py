"""What the weights of a network are fed, as second moments: X^T X over the tokens of some batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from argprune.models.blocks import Batch, Pipeline, evaluating, run
from argprune.models.factorised.places import holders, word_embeddings
from argprune.models.layer_inputs import heard_tokens, token_masks
from argprune.solvers.admm.moments import Moments
from argprune.solvers.groups import Weight


@torch.no_grad()
def input_grams(
    model: nn.Module,
    weights: Sequence[Weight],
    batches: Sequence[Batch],
    *,
    embeddings: bool = False,
    dtype: torch.dtype = torch.float64,
) -> dict[str, Tensor]:
    """The mean of x x^T over the tokens that come to each weight: name -> (inputs, inputs), for "whitened" factors.

    model: encoder, decoder or encoder-decoder; it is run in evaluation mode, and left in its own. weights: those of its
    blocks, as `find_weights` gives them. batches: keyword arguments of its forward; padding is left out, marked as
    `token_masks` says. embeddings: also the word embeddings' name -> (words,), the share of each word among the tokens.
    dtype: of the sums. Of one batch, the inputs of all weights are held at a time.
    A weight that stands in several modules, or runs several times, gets the moments of all its calls.
    Raises ValueError for no batches, a weight that no block holds or that no token came to, and padding that cannot be
    told from text.
    """
    if not batches:
        raise ValueError("input_grams: no batches; give at least one.")
    modules = {weight.name: [model.get_submodule(path) for path in holders(model, weight.name)] for weight in weights}
    moments = {w.name: Moments(w.matrix.shape[1], 1, dtype, w.parameter.device) for w in weights}
    with evaluating(model):
        pipeline = Pipeline.trace(model, batches[0])
        inside = {module for block in pipeline.blocks for module in block.module.modules()}
        outside = [name for name, holding in modules.items() if not inside.issuperset(holding)]
        if outside:
            raise ValueError(f"input_grams: {outside[0]!r} is in no block that {type(model).__name__} runs.")
        every = list({module: None for holding in modules.values() for module in holding})
        for batch in batches:
            with heard_tokens(pipeline.blocks, every, batch) as tokens:
                run(model, batch)
            for name, holding in modules.items():
                for module in holding:
                    for inputs in tokens[module]:
                        moments[name].update(inputs)
    idle = [name for name, seen in moments.items() if not seen.tokens]
    if idle:
        raise ValueError(f"input_grams: no token of the batches came to {idle[0]!r}; give more batches, or exclude it.")
    grams = {name: seen.gram() for name, seen in moments.items()}
    if embeddings:
        name = word_embeddings(model)
        grams[name] = _word_shares(model, model.get_parameter(name), batches, dtype)
    return grams


def _word_shares(model: Any, table: nn.Parameter, batches: Sequence[Batch], dtype: torch.dtype) -> Tensor:
    counts = torch.zeros(len(table), dtype=torch.int64)
    for batch in batches:
        source, target = token_masks(batch)
        texts = [(batch["input_ids"], source)]
        if model.config.is_encoder_decoder:
            read = batch.get("decoder_input_ids", batch.get("labels"))
            texts += [] if read is None or read.dim() != 2 else [(read, target)]
        for words, mask in texts:
            shown = words if mask is None else words[mask]
            counts += torch.bincount(shown.flatten().cpu(), minlength=len(table))
    return (counts.to(dtype) / counts.sum()).to(table.device)
