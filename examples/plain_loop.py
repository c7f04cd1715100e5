"""LoRA on a sentence encoder with a loop of your own: attach, train, save, load on a fresh model, merge.

    python examples/plain_loop.py        (about a minute on two cores)
"""
from __future__ import annotations

import copy
import tempfile

import torch

import thrifty
from thrifty.data import read
from thrifty.models import load


def main() -> None:
    """Ten classes, thirty steps; prints the loss on the way."""
    data = read("cityline")
    backbone = load("minilm", "text-classification", data.labels)
    model, tokenizer = backbone.model, backbone.preprocess
    fresh = copy.deepcopy(model)

    at = thrifty.attach(model, thrifty.LoRA(rank=8, where="attn.q|attn.v"), also_train="head")
    print(at.summary())

    optimizer = torch.optim.AdamW(at.parameters(), lr=3e-3)
    order = torch.Generator().manual_seed(0)
    train = data.splits["train"]
    model.train()
    for step in range(30):
        rows = torch.randint(len(train["text"]), (16,), generator=order).tolist()
        batch = tokenizer([train["text"][i] for i in rows], padding=True, truncation=True, max_length=64, return_tensors="pt")
        loss = model(**batch, labels=torch.tensor([train["label"][i] for i in rows])).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 9:
            print(f"step {step + 1}: loss {loss.item():.3f}")

    model.eval()
    question = tokenizer("The lamp outside our door has been dark for a week", return_tensors="pt")
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        at.save(f"{folder}/adapter", labels=data.labels)
        again = thrifty.load(fresh, f"{folder}/adapter")  # refused, were this another base
        fresh.eval()
        same = torch.equal(model(**question).logits, fresh(**question).logits)
        print(f"loaded on a fresh copy, equal bit for bit: {same}")
        print(again.merge())
        print("answer:", data.labels[int(fresh(**question).logits.argmax())])


if __name__ == "__main__":
    main()
