"""GPT-2's blocks between adaptive embeddings and an adaptive softmax.

Reference: Baevski and Auli, "Adaptive Input Representations for Neural Language Modeling" (2019).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2Model
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from argprune.models.adaptive.language_model import AdaptiveConfig, AdaptiveLanguageModel


class AdaptiveTransformerConfig(AdaptiveConfig):
    """A transformer language model: the tables of `AdaptiveConfig`, and GPT-2's blocks between them.

    num_hidden_layers; num_attention_heads: they divide hidden_size. max_position_embeddings: the longest text that it
    reads. dropout: of embeddings, attention, and each layer's outputs.
    """

    model_type = "argprune-transformer"

    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    max_position_embeddings: int = 128
    dropout: float = 0.1

    def __post_init__(self, **kwargs: Any) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"AdaptiveTransformerConfig: hidden_size {self.hidden_size}, num_attention_heads "
                f"{self.num_attention_heads}; heads divide the width."
            )
        super().__post_init__(**kwargs)


class AdaptiveTransformerForCausalLM(AdaptiveLanguageModel):
    """A causal transformer whose rare words have fewer dimensions."""

    config: AdaptiveTransformerConfig
    config_class = AdaptiveTransformerConfig

    def __init__(self, config: AdaptiveTransformerConfig) -> None:
        super().__init__(config)
        inner = GPT2Config(
            vocab_size=1,
            n_positions=config.max_position_embeddings,
            n_embd=config.hidden_size,
            n_layer=config.num_hidden_layers,
            n_head=config.num_attention_heads,
            resid_pdrop=config.dropout,
            embd_pdrop=config.dropout,
            attn_pdrop=config.dropout,
            initializer_range=config.initializer_range,
            bos_token_id=None,
            eos_token_id=None,
            use_cache=False,
        )
        self.transformer = GPT2Model(inner)
        # Words come embedded; a table of its own would be a parameter without use.
        self.transformer.set_input_embeddings(nn.Identity())
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
        """Logits (rows, tokens, vocab_size), and the loss of predicting each token of labels from those before it."""
        outputs = self.transformer(inputs_embeds=self.embedding(input_ids), attention_mask=attention_mask)
        return self.predict(outputs.last_hidden_state, labels, **kwargs)


AutoConfig.register(AdaptiveTransformerConfig.model_type, AdaptiveTransformerConfig)
AutoModelForCausalLM.register(AdaptiveTransformerConfig, AdaptiveTransformerForCausalLM)
