"""Tiny models of several families, built from configs, with random weights."""

from __future__ import annotations

from typing import Any

from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

WORDS, WIDTH = 60, 32


def bert(kind: type[PreTrainedModel] = BertForSequenceClassification) -> Any:
    config = BertConfig(
        vocab_size=WORDS, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    return kind(config)


def gpt2() -> Any:
    return GPT2LMHeadModel(GPT2Config(vocab_size=WORDS, n_embd=WIDTH, n_layer=2, n_head=2, n_positions=64))


def t5() -> Any:
    config: Any = T5Config(vocab_size=WORDS, d_model=WIDTH, d_kv=16, d_ff=64, num_layers=2, num_heads=2)
    config.decoder_start_token_id = 0
    return T5ForConditionalGeneration(config)


def bart() -> Any:
    sizes: dict[str, Any] = {
        f"{part}_{name}": 2 for part in ("encoder", "decoder") for name in ("layers", "attention_heads")
    }
    config = BartConfig(
        vocab_size=WORDS,
        d_model=WIDTH,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_position_embeddings=64,
        scale_embedding=True,
        **sizes,
    )
    return BartForConditionalGeneration(config)


def generation() -> GenerationConfig:
    """Generation that is not the default in anything: other texts show where it is lost."""
    return GenerationConfig(
        num_beams=3,
        no_repeat_ngram_size=2,
        max_new_tokens=12,
        forced_bos_token_id=5,
        forced_eos_token_id=7,
        eos_token_id=7,
        pad_token_id=0,
        decoder_start_token_id=2,
    )


def albert() -> Any:
    config = AlbertConfig(
        vocab_size=WORDS,
        embedding_size=16,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
    )
    return AlbertForMaskedLM(config)


def llama() -> Any:
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def masked_bert() -> Any:
    return bert(BertForMaskedLM)
