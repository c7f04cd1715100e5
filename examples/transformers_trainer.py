"""The same with transformers.Trainer: it sees a plain model of which little trains.

    python examples/transformers_trainer.py
"""
from __future__ import annotations

import tempfile

from transformers import Trainer, TrainingArguments

import thrifty
from thrifty.data import read
from thrifty.models import load


def main() -> None:
    """Thirty steps of (IA)3."""
    data = read("cityline")
    backbone = load("minilm", "text-classification", data.labels)
    at = thrifty.attach(backbone.model, thrifty.IA3(), also_train="head")
    print(at)
    train = data.splits["train"]
    rows = [{**backbone.preprocess(text, truncation=True, max_length=64), "labels": label}
            for text, label in zip(train["text"], train["label"], strict=True)]
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(folder, max_steps=30, per_device_train_batch_size=16, learning_rate=1e-2, logging_steps=10,
                                     save_strategy="no", report_to="none", use_cpu=True)
        Trainer(backbone.model, settings, train_dataset=rows, processing_class=backbone.preprocess).train()
        print("saved", at.save(f"{folder}/adapter"))


if __name__ == "__main__":
    main()
