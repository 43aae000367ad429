"""What the matrices of a network are fed, token by token and without padding, and what that says of their weights."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from argprune.models.blocks import Batch, Block
from argprune.solvers.admm.layer import relative_error
from argprune.solvers.admm.moments import Moments

# What encoder-decoder models call the encoder's outputs, handed to every block of the decoder.
_SOURCE = "encoder_hidden_states"


class Evidence:
    """What is known of the inputs of a matrix (or of several that share theirs) on one set of batches.

    columns, folds, dtype, device: of the `Moments`. paired: the inputs are those of a pruned network, and each token
    comes with what the dense network feeds the matrix there. Then the outputs to keep are X_dense W^T, else X W^T.
    """

    def __init__(
        self, columns: int, folds: int, dtype: torch.dtype, device: torch.device, *, paired: bool = False
    ) -> None:
        self.moments = Moments(columns, folds, dtype, device)
        # Of the dense network's inputs, and the sum of x x_dense^T.
        self._dense = Moments(columns, 1, dtype, device)
        self._cross = torch.zeros(columns, columns, dtype=dtype, device=device) if paired else None

    def update(self, inputs: Tensor, dense: Tensor | None = None) -> None:
        """Add the tokens of a batch, (tokens, columns); dense: those of the dense network, where paired."""
        self.moments.update(inputs)
        if self._cross is not None:
            assert dense is not None
            self._dense.update(dense)
            self._cross.addmm_(inputs.to(self._cross).t(), dense.to(self._cross))

    def target(self, weight: Tensor, damping: float) -> Tensor:
        """The weight (rows = outputs) whose outputs on these inputs come closest to those to keep.

        damping: of the Gram matrix, a share of its diagonal's mean. Raises ValueError where that leaves it singular.
        """
        if self._cross is None:
            return weight
        gram, dense = self.moments.gram(), weight.to(self._cross)
        change = dense @ (self._cross.t() / self.moments.tokens - gram)
        damped = gram + damping * gram.diagonal().mean() * torch.eye(len(gram)).to(gram)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if bool(failed):
            raise ValueError(
                f"{self.moments.tokens} tokens of {len(gram)} inputs leave their Gram matrix singular at damping "
                f"{damping:g}; raise the damping, or give more tokens."
            )
        return (dense + torch.cholesky_solve(change.t(), factor).t()).to(weight)

    def error(self, weight: Tensor, pruned: Tensor) -> float:
        """What a pruned weight loses of the outputs to keep, relative to them."""
        gram = self.moments.gram()
        if self._cross is None:
            return relative_error(weight, pruned, gram)
        w, v = weight.to(gram), pruned.to(gram)
        kept = float((w @ self._dense.gram()).mul_(w).sum())
        lost = kept + float((v @ gram - 2 * w @ (self._cross.t() / self.moments.tokens)).mul_(v).sum())
        if kept > 0:
            return max(0.0, lost) / kept
        return 0.0 if lost <= 0 else math.inf


@contextmanager
def heard(modules: Sequence[nn.Module]) -> Iterator[list[tuple[nn.Module, Tensor]]]:
    """Within, every call of the modules is noted, with the very tensor that it was given."""
    calls: list[tuple[nn.Module, Tensor]] = []
    hooks = [
        module.register_forward_pre_hook(lambda called, args: calls.append((called, args[0]))) for module in modules
    ]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def heard_tokens(
    blocks: Sequence[Block], modules: Sequence[nn.Module], batch: Batch
) -> Iterator[dict[nn.Module, list[Tensor]]]:
    """Within, every call of the modules is noted with the tokens that it was given, (tokens, columns), no padding.

    blocks: those that hold the modules. batch: what the model is run on meanwhile. What a decoder's block is handed of
    the encoder is known by being that very tensor. Raises ValueError where it cannot be told which inputs are padding.
    """
    source, target = token_masks(batch)
    tokens: dict[nn.Module, list[Tensor]] = {module: [] for module in modules}
    of_encoder: Tensor | None = None

    def enter(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal of_encoder
        bound = inspect.signature(type(block).forward).bind_partial(block, *args, **kwargs).arguments
        of_encoder = bound.get(_SOURCE)

    def listen(module: nn.Module, args: tuple[Any, ...]) -> None:
        inputs = args[0]
        mask = source if of_encoder is None or inputs is of_encoder else target
        # A copy: what comes after the matrix may be computed in place.
        tokens[module].append(_without_padding(inputs, mask).clone())

    hooks = [block.module.register_forward_pre_hook(enter, with_kwargs=True) for block in blocks]
    hooks += [module.register_forward_pre_hook(listen) for module in modules]
    try:
        yield tokens
    finally:
        for hook in hooks:
            hook.remove()


def token_masks(batch: Batch) -> tuple[Tensor | None, Tensor | None]:
    """Where a batch holds text: (rows, tokens) booleans for what the model reads, and for what its decoder reads.

    The first is `attention_mask`. The second is `decoder_attention_mask`, else where `labels` of tokens are not -100,
    else, with no `decoder_input_ids`, the first: the decoder is fed the text itself. None: every position counts.
    """
    source, target = batch.get("attention_mask"), batch.get("decoder_attention_mask")
    labels = batch.get("labels")
    if target is None and "decoder_input_ids" not in batch:
        # The decoder's inputs are the labels, shifted by one: as many of both are text.
        target = labels != -100 if labels is not None and labels.dim() == 2 else source
    for name, mask in (("attention_mask", source), ("decoder_attention_mask", target)):
        if mask is not None and mask.dim() != 2:
            raise ValueError(f"{name} of shape {tuple(mask.shape)}; give (rows, tokens), 1 where there is text.")
    return (None if source is None else source.bool()), (None if target is None else target.bool())


def _without_padding(inputs: Tensor, mask: Tensor | None) -> Tensor:
    flat = inputs.detach().reshape(-1, inputs.shape[-1])
    if mask is None:
        return flat
    if inputs.shape[:-1] == mask.shape or (inputs.dim() == 2 and len(flat) == mask.numel()):
        return flat[mask.flatten().to(flat.device)]
    # What all rows share, such as DeBERTa's embeddings of relative positions, is no text.
    is_table = inputs.dim() == 3 and len(inputs) == 1 and len(mask) > 1
    if is_table or bool(mask.all()):
        return flat
    raise ValueError(
        f"inputs of shape {tuple(inputs.shape)} for texts of {tuple(mask.shape)}: which of them are padding cannot be "
        "told; give batches without padding."
    )
