"""The families of transformers as tiny configurations: name -> (model class, config class, its numbers, kind of batch)."""
from __future__ import annotations

from typing import Any

_BODY: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
_SPECIAL: dict[str, Any] = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_TEXT: dict[str, Any] = {**_BODY, **_SPECIAL, "max_position_embeddings": 32}
_GROUPED: dict[str, Any] = {**_TEXT, "num_key_value_heads": 1, "head_dim": 8}
_IMAGE: dict[str, Any] = {**_BODY, "image_size": 32, "patch_size": 8}
_SEQ2SEQ: dict[str, Any] = {
    "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, **_SPECIAL, "decoder_start_token_id": 1}
_T5: dict[str, Any] = {
    "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, **_SPECIAL, "decoder_start_token_id": 0}
_DISENTANGLED: dict[str, Any] = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}

HUGGING_FACE: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "bert": ("BertForSequenceClassification", "BertConfig", _TEXT, "text"),
    "roberta": ("RobertaForSequenceClassification", "RobertaConfig", _TEXT, "text"),
    "deberta": ("DebertaForSequenceClassification", "DebertaConfig", {**_TEXT, **_DISENTANGLED}, "text"),
    "deberta_v2": ("DebertaV2ForSequenceClassification", "DebertaV2Config", {**_TEXT, **_DISENTANGLED, "position_buckets": 8},
                   "text"),
    "distilbert": ("DistilBertForSequenceClassification", "DistilBertConfig",
                   {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "vocab_size": 64, "max_position_embeddings": 32},
                   "text"),
    "mpnet": ("MPNetForSequenceClassification", "MPNetConfig", _TEXT, "text"),
    "t5": ("T5ForConditionalGeneration", "T5Config", _T5, "seq2seq"),
    "t5_gated": ("T5ForConditionalGeneration", "T5Config", {**_T5, "feed_forward_proj": "gated-gelu"}, "seq2seq"),
    "bart": ("BartForConditionalGeneration", "BartConfig", {**_SEQ2SEQ, "max_position_embeddings": 32}, "seq2seq"),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config",
             {**_SPECIAL, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}, "text"),
    "gpt_neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", _TEXT, "text"),
    "llama": ("LlamaForCausalLM", "LlamaConfig", _GROUPED, "text"),
    "mistral": ("MistralForCausalLM", "MistralConfig", _GROUPED, "text"),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", {**_GROUPED, "num_local_experts": 2}, "text"),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", _GROUPED, "text"),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", _GROUPED, "text"),
    "qwen2_moe": ("Qwen2MoeForCausalLM", "Qwen2MoeConfig",
                  {**_GROUPED, "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16,
                   "shared_expert_intermediate_size": 16}, "text"),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", _GROUPED, "text"),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", _GROUPED, "text"),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", _GROUPED, "text"),
    "phi": ("PhiForCausalLM", "PhiConfig", _TEXT, "text"),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", {**_TEXT, "num_key_value_heads": 1}, "text"),
    "vit": ("ViTForImageClassification", "ViTConfig", _IMAGE, "image"),
    "deit": ("DeiTForImageClassification", "DeiTConfig", _IMAGE, "image"),
    "dinov2": ("Dinov2ForImageClassification", "Dinov2Config",
               {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8},
               "image"),
    "swin": ("SwinForImageClassification", "SwinConfig",
             {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4},
             "image"),
    "beit": ("BeitForImageClassification", "BeitConfig", _IMAGE, "image"),
    "clip": ("CLIPModel", "CLIPConfig",
             {"text_config": {**_TEXT, "projection_dim": 16, "max_position_embeddings": 16},
              "vision_config": {**_IMAGE, "projection_dim": 16}, "projection_dim": 16}, "pair"),
    "siglip": ("SiglipModel", "SiglipConfig",
               {"text_config": {**_TEXT, "max_position_embeddings": 16}, "vision_config": dict(_IMAGE)}, "pair"),
    "whisper": ("WhisperForConditionalGeneration", "WhisperConfig",
                {**_SEQ2SEQ, "num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 16,
                 "suppress_tokens": None, "begin_suppress_tokens": None}, "speech"),
    "resnet": ("ResNetForImageClassification", "ResNetConfig",
               {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "bottleneck"}, "image"),
    "convnext": ("ConvNextForImageClassification", "ConvNextConfig",
                 {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}, "image"),
    "mobilenet_v2": ("MobileNetV2ForImageClassification", "MobileNetV2Config", {"depth_multiplier": 0.25, "image_size": 32},
                     "image"),
}
