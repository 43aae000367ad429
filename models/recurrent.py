"""Recurrent language models, LSTM or GRU, in blocks that are pruned as those of transformers are.

    x_0 = embedding(words),    x_l = x_{l-1} + dropout(recurrence_l(norm_l(x_{l-1}))),    p = softmax(head(norm(x_n)))

The recurrences are those of `torch.nn.LSTM` and `torch.nn.GRU`, gates stacked in their order, but each of the two
matrices of a layer is an `nn.Linear` of its own. References: Hochreiter and Schmidhuber (1997); Cho et al. (2014).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from argprune.models.adaptive import AdaptiveConfig, AdaptiveLanguageModel

# How many gates the rows of a layer's matrices stack.
_GATES = {"lstm": 4, "gru": 3}


class RecurrentConfig(AdaptiveConfig):
    """A recurrent language model: the tables of `AdaptiveConfig`, and layers between them.

    cell: "lstm" or "gru". num_hidden_layers; dropout: of embeddings, and of every layer's outputs.
    It reads texts of any length, so there are no max_position_embeddings.
    """

    model_type = "argprune-recurrent"

    cell: Literal["lstm", "gru"] = "lstm"
    num_hidden_layers: int = 2
    dropout: float = 0.1

    def __post_init__(self, **kwargs: Any) -> None:
        if self.cell not in _GATES:
            raise ValueError(f"RecurrentConfig: cell {self.cell!r}; choose of {', '.join(_GATES)}.")
        if min(self.vocab_size, self.hidden_size, self.num_hidden_layers) < 1:
            raise ValueError(
                f"RecurrentConfig: vocab_size {self.vocab_size}, hidden_size {self.hidden_size}, num_hidden_layers "
                f"{self.num_hidden_layers}; all are at least 1."
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"RecurrentConfig: dropout {self.dropout}; it lies in [0, 1).")
        super().__post_init__(**kwargs)


class Gates(nn.Linear):
    """One matrix of a layer, (gates x width, width), and its bias."""

    def reset_parameters(self) -> None:
        """As torch draws them, but biases are 0, and of an LSTM's forget gates 1 in all, so that it remembers."""
        width = self.in_features
        nn.init.uniform_(self.weight, -(width**-0.5), width**-0.5)
        nn.init.zeros_(self.bias)
        # A slice does not know what transformers notes on a parameter that was loaded.
        if self.out_features == _GATES["lstm"] * width and not getattr(self.bias, "_is_hf_initialized", False):
            # Of the two matrices, each has half.
            nn.init.constant_(self.bias[width : 2 * width], 0.5)


class RecurrentLayer(nn.Module):
    """One block: a norm, the recurrence over time, dropout, and the way around them.

    width: of inputs, states and outputs. input_gates, hidden_gates: matrices (gates x width, width), rows in the order
    input, forget, cell, output (LSTM) or reset, update, new (GRU).
    """

    def __init__(self, cell: Literal["lstm", "gru"], width: int, dropout: float) -> None:
        super().__init__()
        self.cell = cell
        self.norm = nn.LayerNorm(width)
        self.input_gates = Gates(width, _GATES[cell] * width)
        self.hidden_gates = Gates(width, _GATES[cell] * width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, inputs: Tensor) -> Tensor:
        """inputs: (rows, tokens, width), and so the result."""
        return inputs + self.dropout(self.recur(self.norm(inputs)))

    def recur(self, inputs: Tensor) -> Tensor:
        """The states after every token, (rows, tokens, width), from a state of zeros before the first."""
        step = self._lstm if self.cell == "lstm" else self._gru
        # All tokens at once where no state is needed.
        gates = self.input_gates(inputs)
        return torch.stack(step(gates, inputs.new_zeros(inputs.shape[0], inputs.shape[2])), 1)

    def _lstm(self, gates: Tensor, state: Tensor) -> list[Tensor]:
        memory, states = state, []
        for token in gates.unbind(1):
            enter, forget, new, leave = (token + self.hidden_gates(state)).chunk(4, 1)
            memory = forget.sigmoid() * memory + enter.sigmoid() * new.tanh()
            state = leave.sigmoid() * memory.tanh()
            states.append(state)
        return states

    def _gru(self, gates: Tensor, state: Tensor) -> list[Tensor]:
        states = []
        width = state.shape[1]
        for token in gates.unbind(1):
            hidden = self.hidden_gates(state)
            reset, update = (token[:, : 2 * width] + hidden[:, : 2 * width]).sigmoid().chunk(2, 1)
            new = (token[:, 2 * width :] + reset * hidden[:, 2 * width :]).tanh()
            state = new + update * (state - new)
            states.append(state)
        return states


class RecurrentForCausalLM(AdaptiveLanguageModel):
    """A recurrent language model; every text begins with a state of zeros."""

    config: RecurrentConfig
    config_class = RecurrentConfig

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__(config)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(
            RecurrentLayer(config.cell, config.hidden_size, config.dropout) for _ in range(config.num_hidden_layers)
        )
        self.norm = nn.LayerNorm(config.hidden_size)
        self.make_tables(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits (rows, tokens, vocab_size), and the loss of predicting each token of labels from those before it.

        attention_mask: 1 where there is text; only what comes after it may be padding, since the state goes through
        every token. Raises ValueError for padding in front.
        """
        if attention_mask is not None and not bool(attention_mask[:, 0].all()):
            raise ValueError("attention_mask: padding in front of the text; pad on the right (padding_side='right').")
        hidden = self.dropout(self.embedding(input_ids))
        for layer in self.layers:
            hidden = layer(hidden)
        return self.predict(self.norm(hidden), labels, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, Gates):
            module.reset_parameters()
        else:
            super()._init_weights(module)


AutoConfig.register(RecurrentConfig.model_type, RecurrentConfig)
AutoModelForCausalLM.register(RecurrentConfig, RecurrentForCausalLM)
