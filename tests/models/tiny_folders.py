"""Tiny random models saved as Hugging Face folders, and where real ones may lie."""
from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as T
from tokenizers import Tokenizer, models, pre_tokenizers, processors

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "</s>"]
LETTERS = "abcdefghijklmnopqrstuvwxyz.,'"
VOCABULARY = {piece: place for place, piece in enumerate([*SPECIAL, *LETTERS, *(f"##{letter}" for letter in LETTERS)])}
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
         "vocab_size": len(VOCABULARY), "pad_token_id": 0}


def tokenizer(style: str, *, pad: bool = True, longest: int = 64) -> Any:
    """Letters as pieces of words. ``style``: "encoder" ([CLS] a [SEP] b [SEP]), "plain" (nothing added), "ending" (a </s>)."""
    inner = Tokenizer(models.WordPiece(VOCABULARY, unk_token="[UNK]", max_input_chars_per_word=500))
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if style == "encoder":
        inner.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    if style == "ending":
        inner.post_processor = processors.TemplateProcessing(single="$A </s>", pair="$A $B </s>", special_tokens=[("</s>", 4)])
    names = {"unk_token": "[UNK]", "eos_token": "</s>", **({"pad_token": "[PAD]"} if pad else {})}
    segments = {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]} if style == "encoder" else {}
    return T.PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=longest, **names, **segments)


def save(folder: Path, model: Any, reader: Any) -> Path:
    model.save_pretrained(folder)
    reader.save_pretrained(folder)
    return folder


def bert(folder: Path, kind: str = "BertModel", **settings: Any) -> Path:
    torch.manual_seed(1)
    return save(folder, getattr(T, kind)(T.BertConfig(**SMALL, max_position_embeddings=64, **settings)), tokenizer("encoder"))


def masked_bert(folder: Path) -> Path:
    """A BERT that guesses hidden words; its mask is the apostrophe."""
    torch.manual_seed(1)
    reader = tokenizer("encoder")
    reader.add_special_tokens({"mask_token": "'"})
    return save(folder, T.BertForMaskedLM(T.BertConfig(**SMALL, max_position_embeddings=64)), reader)


def roberta(folder: Path) -> Path:
    torch.manual_seed(2)
    config = T.RobertaConfig(**{**SMALL, "pad_token_id": 0}, max_position_embeddings=40, type_vocab_size=1)
    return save(folder, T.RobertaModel(config), tokenizer("encoder", longest=512))


def distilbert(folder: Path) -> Path:
    torch.manual_seed(3)
    config = T.DistilBertConfig(dim=16, n_layers=2, n_heads=2, hidden_dim=32, vocab_size=len(VOCABULARY))
    return save(folder, T.DistilBertModel(config), tokenizer("encoder"))


def llama(folder: Path, *, pad: bool = False) -> Path:
    torch.manual_seed(4)
    config = T.LlamaConfig(**{**SMALL, "pad_token_id": None}, num_key_value_heads=1, max_position_embeddings=64,
                           bos_token_id=None, eos_token_id=4)
    return save(folder, T.LlamaForCausalLM(config), tokenizer("plain", pad=pad))


def t5(folder: Path) -> Path:
    torch.manual_seed(5)
    config = T.T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, vocab_size=len(VOCABULARY),
                        pad_token_id=0, eos_token_id=4, decoder_start_token_id=0)
    return save(folder, T.T5ForConditionalGeneration(config), tokenizer("ending"))


def vit(folder: Path) -> Path:
    torch.manual_seed(6)
    sizes = {key: SMALL[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")}
    model = T.ViTModel(T.ViTConfig(**sizes, image_size=32, patch_size=8), add_pooling_layer=False)
    return save(folder, model, T.ViTImageProcessorPil(size={"height": 32, "width": 32}, image_mean=[0.5, 0.4, 0.3]))


def resnet(folder: Path) -> Path:
    torch.manual_seed(7)
    config = T.ResNetConfig(embedding_size=8, hidden_sizes=[16, 32], depths=[1, 1], layer_type="bottleneck", num_labels=7)
    model = T.ResNetForImageClassification(config)
    return save(folder, model, T.ViTImageProcessorPil(size={"height": 32, "width": 32}))


def clip(folder: Path, **text: Any) -> Path:
    """Two towers of two blocks, heads of 8; a sentence ends in [SEP], whose state stands for it."""
    torch.manual_seed(8)
    sizes = {**SMALL, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "eos_token_id": 3, "bos_token_id": 2,
             "max_position_embeddings": 40, **text}
    image = {key: sizes[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")}
    config = T.CLIPConfig(text_config=sizes, vision_config={**image, "image_size": 16, "patch_size": 8}, projection_dim=24)
    save(folder, T.CLIPModel(config), tokenizer("encoder", longest=40))
    size = {"height": 16, "width": 16}
    T.CLIPImageProcessorPil(size=size, crop_size=size, do_center_crop=False).save_pretrained(folder)
    return folder


def weights(name: str) -> Path:
    """The folder of a real model, or a skip with the reason."""
    here = Path(__file__).resolve().parents[2]
    places = [Path(os.environ["THRIFTY_WEIGHTS"])] if "THRIFTY_WEIGHTS" in os.environ else [
        here.parent / ".cache" / "weights", here / ".cache" / "weights"]
    for place in places:
        if (place / name / "config.json").is_file():
            return place / name
    pytest.skip(f"no weights of {name} in {' or '.join(map(str, places))}")
