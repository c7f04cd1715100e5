"""A tiny random BERT with its tokenizer, and a set of texts that it can learn, for training jobs that take seconds."""
from __future__ import annotations

import csv
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import transformers as T
from tokenizers import Tokenizer, models, pre_tokenizers, processors

THEMES = {"water": "pipe leak tap flood drain", "light": "lamp dark bulb pole glow", "road": "hole tar kerb crack stone"}
FILLER = ["the", "a", "on", "at", "our", "near", "street", "again", "old", "new", "there", "is", "was", "it", "and"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
WORDS = [*SPECIAL, *FILLER, *" ".join(THEMES.values()).split()]


def bert(folder: Path, dropout: float = 0.1) -> Path:
    """Two layers of width 32, pooled by the mean. Dropout is on unless told, so that random state matters."""
    torch.manual_seed(7)
    config = T.BertConfig(vocab_size=len(WORDS), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
                          max_position_embeddings=32, initializer_range=0.1, hidden_dropout_prob=dropout,
                          attention_probs_dropout_prob=dropout)
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
                                                         special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    reader = T.PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=32, unk_token="[UNK]", pad_token="[PAD]")
    T.BertModel(config).save_pretrained(folder)
    reader.save_pretrained(folder)
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    return folder


def rows(count: int, seed: int) -> list[tuple[str, str]]:
    """(text, label): three words of the label's theme among filler. All texts differ."""
    drawn, seen = random.Random(seed), set()
    found: list[tuple[str, str]] = []
    while len(found) < count:
        label = drawn.choice(sorted(THEMES))
        words = drawn.choices(FILLER, k=drawn.randint(3, 7))
        for word in drawn.choices(THEMES[label].split(), k=3):
            words.insert(drawn.randrange(len(words)), word)
        text = " ".join(words)
        if text not in seen:
            seen.add(text)
            found.append((text, label))
    return found


def table(folder: Path, train: int = 96, rest: int = 30) -> Path:
    """A folder of three CSV files."""
    folder.mkdir(parents=True, exist_ok=True)
    every = rows(train + 2 * rest, 3)
    parts = {"train": every[:train], "validation": every[train : train + rest], "test": every[train + rest :]}
    for split, part in parts.items():
        with (folder / f"{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *part])
    return folder


def command(*words: object) -> list[str]:
    """The words that run `thrifty` in a process of its own."""
    return [sys.executable, "-m", "thrifty", *map(str, words)]


def environment(**more: str) -> dict[str, str]:
    """One thread, this source tree, and no launcher's variables."""
    source = str(Path(__file__).resolve().parents[2] / "src")
    kept = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    path = os.pathsep.join([source, *filter(None, [kept.get("PYTHONPATH")])])
    return {**kept, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": path, **more}


def run(*words: object, **more: str) -> subprocess.CompletedProcess[str]:
    """Run `thrifty` to its end."""
    return subprocess.run(command(*words), env=environment(**more), capture_output=True, text=True, timeout=300)


def numbers(folder: Path) -> dict[str, Any]:
    """What metrics.json says, without what differs from one run to the next of the same numbers: time, place and memory."""
    found = json.loads((folder / "metrics.json").read_text())
    for key in ("created", "command", "timing", "memory"):
        del found[key]
    return dict(found)
