"""What causal language models with adaptive or ordinary tables have in common: configuration, tables, loss, storage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from argprune.models.adaptive.cluster import Cluster
from argprune.models.adaptive.embedding import AdaptiveEmbedding, check_clusters, falling_ranks
from argprune.models.adaptive.softmax import AdaptiveSoftmax

_IGNORED = -100


class AdaptiveConfig(PreTrainedConfig):
    """The tables of a language model.

    vocab_size; hidden_size: the network's width. tie_word_embeddings: one table for input and output.
    cutoffs: where clusters of rarer words begin; None: an ordinary embedding and softmax, [] one cluster.
    embedding_size: the dimensions of cluster 0 (default: hidden_size); div_value: by which each further one has fewer.
    embedding_ranks, softmax_ranks: the dimensions of every cluster, instead; a model that is saved writes down those
    that pruning has left. training_logits: whether an adaptive softmax computes all logits in training too,
    which methods that compare predictions need, or the loss alone, which is cheaper.
    initializer_range: the standard deviation of tables at the start.
    """

    model_type = "argprune-adaptive"

    vocab_size: int = 4096
    hidden_size: int = 256
    tie_word_embeddings: bool = True
    cutoffs: Sequence[int] | None = None
    embedding_size: int | None = None
    div_value: float = 4.0
    embedding_ranks: Sequence[int] | None = None
    softmax_ranks: Sequence[int] | None = None
    training_logits: bool = False
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        if self.cutoffs is not None:
            ranks = falling_ranks(self.embedding_size or self.hidden_size, self.div_value, len(self.cutoffs) + 1)
            for name in ("embedding_ranks", "softmax_ranks"):
                given = getattr(self, name)
                setattr(self, name, ranks if given is None else list(given))
                check_clusters(self.vocab_size, self.cutoffs, getattr(self, name))
        super().__post_init__(**kwargs)


class AdaptiveLanguageModel(PreTrainedModel):
    """A causal language model over tables as its `AdaptiveConfig` says: a subclass makes the network between them.

    It calls `make_tables`, then `post_init`, and in its forward `predict`.
    """

    config: AdaptiveConfig
    embedding: nn.Module
    lm_head: nn.Module
    _input_embed_layer = "embedding"
    _tied_weights_keys = {"lm_head.weight": "embedding.weight"}  # noqa: RUF012

    def make_tables(self, config: AdaptiveConfig) -> None:
        """Set `embedding` and `lm_head`."""
        vocabulary, width = config.vocab_size, config.hidden_size
        if config.cutoffs is None:
            self.embedding = nn.Embedding(vocabulary, width)
            self.lm_head = nn.Linear(width, vocabulary, bias=False)
            return
        assert config.embedding_ranks is not None
        assert config.softmax_ranks is not None
        embedding = AdaptiveEmbedding(vocabulary, width, config.cutoffs, config.embedding_ranks)
        self.embedding = embedding
        self.lm_head = AdaptiveSoftmax(
            vocabulary,
            width,
            config.cutoffs,
            config.softmax_ranks,
            tied=embedding if config.tie_word_embeddings else None,
        )
        # A tied softmax has no table of its own to be tied.
        self._tied_weights_keys = {}

    def predict(self, hidden: Tensor, labels: Tensor | None, **kwargs: Any) -> CausalLMOutputWithPast:
        """The logits of hidden states (rows, tokens, width), and the loss of the next tokens where labels are given.

        The logits of an adaptive softmax are log-probabilities; None where the configuration spares them.
        """
        head = self.lm_head
        if (
            isinstance(head, AdaptiveSoftmax)
            and labels is not None
            and self.training
            and not self.config.training_logits
        ):
            return CausalLMOutputWithPast(loss=self._loss(head, hidden, labels, kwargs.get("num_items_in_batch")))
        logits = head(hidden)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=logits)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """As ever; the configuration says how many dimensions each cluster has left."""
        if isinstance(self.embedding, AdaptiveEmbedding) and isinstance(self.lm_head, AdaptiveSoftmax):
            self.config.embedding_ranks = _ranks(list(self.embedding.clusters))
            self.config.softmax_ranks = _ranks(self.lm_head.clusters)
        super().save_pretrained(*args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, Cluster | AdaptiveSoftmax):
            module.reset_parameters(self.config.initializer_range)
        else:
            super()._init_weights(module)

    @staticmethod
    def _loss(head: AdaptiveSoftmax, hidden: Tensor, labels: Tensor, count: Tensor | int | None) -> Tensor:
        """Reduced as transformers does: the mean, or the sum divided by a count over several batches."""
        words = labels[:, 1:].reshape(-1)
        predicted = words != _IGNORED
        losses = head.losses(hidden[:, :-1].reshape(-1, hidden.shape[-1])[predicted], words[predicted])
        return losses.mean() if count is None else losses.sum() / count


def _ranks(clusters: Sequence[nn.Module]) -> list[int]:
    return [cluster.rank for cluster in clusters if isinstance(cluster, Cluster)]
