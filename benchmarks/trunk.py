"""What a training costs per epoch when its frozen part is computed once: seconds with states read from disk, and without.

    python benchmarks/trunk.py [--rows 264] [--repeats 5] [--only minilm,vit] [--methods linear-probe,lst,lora] [--threads 2]

MiniLM on texts of `cityline`, and a randomly drawn ViT of the shape of ViT-S/16 on pictures of noise (JPEG, 256 x 256, decoded and
resized in every epoch that does not read states). Each epoch is the whole of it: making batches, forward, backward, AdamW. Epochs
with and without take turns in one process on one model; medians and the range of the ratio are printed. Dropout is held still below
the cut, in both. "Limit" is what the ratio could be at most if everything below the cut took no time at all, from the share of
blocks alone: with b of n blocks below, and a backward pass through frozen weights that costs as much as a forward one, it is
n + (n - b) over 2 (n - b).
"""
from __future__ import annotations

import argparse
import io
import os
import platform
import random
import statistics
import tempfile
import time
from typing import Any

import torch

import thrifty
from thrifty import tasks, trunk
from thrifty.core import Attachment
from thrifty.data import read
from thrifty.methods import make
from thrifty.models import Backbone, load, wrap

BATCH = 32


def minilm(rows: int) -> tuple[Backbone, Any]:
    """The built-in sentence encoder and texts with labels."""
    table = read("cityline").splits["train"]
    taken = {"text": [table["text"][i % len(table["text"])] + f" {i}" for i in range(rows)], "label": [i % 3 for i in range(rows)]}
    backbone = load("minilm", "text-classification", ["a", "b", "c"])
    return backbone, tasks.get("text-classification", backbone, ["a", "b", "c"]).encode(taken)


def vit(rows: int) -> tuple[Backbone, Any]:
    """ViT-S/16 with random weights, and pictures of noise."""
    import transformers
    from PIL import Image

    torch.manual_seed(0)
    config = transformers.ViTConfig(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, intermediate_size=1536,
                                    num_labels=3)
    processor = transformers.ViTImageProcessorPil(size={"height": 224, "width": 224})
    backbone = wrap(transformers.ViTForImageClassification(config).eval(), processor, new=["classifier"], name="ViT-S/16")
    drawn, pictures = random.Random(0), []
    for _ in range(rows):
        held = io.BytesIO()
        Image.frombytes("RGB", (32, 32), drawn.randbytes(32 * 32 * 3)).resize((256, 256)).save(held, "JPEG")
        pictures.append(held.getvalue())
    table = {"image": pictures, "label": [i % 3 for i in range(rows)]}
    return backbone, tasks.get("image-classification", backbone, ["a", "b", "c"]).encode(table)


def methods(blocks: int) -> list[tuple[Any, int]]:
    """Method and how many blocks lie below all that it trains."""
    top = blocks - max(1, blocks // 4)
    lora = make("lora", where=f"attn.q[{top}:]|attn.v[{top}:]")
    return [(make("linear-probe"), blocks), (make("lst", init="magnitude"), blocks), (lora, top)]


def epoch(at: Attachment, task: Any, rows: Any, kept: trunk.Direct, optimizer: torch.optim.Optimizer) -> float:
    """Seconds of one pass over the rows, each batch a step."""
    began = time.perf_counter()
    at.model.train()
    for module in at.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.eval()
    for start in range(0, len(rows), BATCH):
        own = rows[start : start + BATCH]
        batch = kept.collate(task, own)
        with kept.giving(own, batch):
            loss, _ = task.loss(at.model, batch)
            loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return time.perf_counter() - began


def measure(name: str, backbone: Backbone, rows: Any, method: Any, below: int, blocks: int, repeats: int) -> str:
    """One line of the table."""
    kind = "text-classification" if name == "minilm" else "image-classification"
    task = tasks.get(kind, backbone, ["a", "b", "c"])
    train, validation = trunk.number(rows[:-8], rows[-8:])
    at = thrifty.attach(backbone.model, method, also_train="|".join(task.head_parameters),
                        example=task.inputs(backbone.model, task.collate(train[:2])))
    kept = trunk.keep(at, task, train, validation, trunk.Terms("still" if name == "minilm" else "auto", "exact", BATCH,
                                                               torch.device("cpu"), lambda: torch.autocast("cpu", enabled=False),
                                                               prepared=backbone.source.get("image")))
    assert kept.record is not None and kept.record["used"], kept.record
    optimizer, direct = torch.optim.AdamW(at.parameters(), lr=1e-4), trunk.Direct()
    epoch(at, task, train[:BATCH], direct, optimizer), epoch(at, task, train[:BATCH], kept, optimizer)
    pairs = [(epoch(at, task, train, direct, optimizer), epoch(at, task, train, kept, optimizer)) for _ in range(repeats)]
    kept.remove()
    at.detach()
    ratios = [whole / less for whole, less in pairs]
    limit = "–" if below == blocks else f"{(2 * blocks - below) / (2 * (blocks - below)):.1f}"
    whole, less = (statistics.median(pair[i] for pair in pairs) for i in (0, 1))
    return (f"| {name} | {method.name} | {below} of {blocks} | {whole:.2f} | {less:.3f} | {statistics.median(ratios):.1f}× "
            f"({min(ratios):.1f}–{max(ratios):.1f}) | {limit} | {kept.record['seconds']:.1f} | {kept.record['bytes'] / 1e6:.1f} |")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=264)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default="minilm,vit")
    parser.add_argument("--methods", default="linear-probe,lst,lora")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(f"{platform.machine()}, {given.threads} threads, torch {torch.__version__}, {given.rows - 8} rows, batches of {BATCH}, "
          f"median of {given.repeats} epochs\n\n| model | method | blocks below | s per epoch, computed | s, kept | ratio (range) "
          "| limit | s, to store | MB |\n|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["THRIFTY_CACHE"] = folder
        for name in given.only.split(","):
            backbone, rows = {"minilm": minilm, "vit": vit}[name](given.rows)
            blocks = len(thrifty.sites(backbone.model, "block"))
            for method, below in methods(blocks):
                if method.name in given.methods.split(","):
                    print(measure(name, backbone, rows, method, below, blocks, given.repeats), flush=True)


if __name__ == "__main__":
    main()
