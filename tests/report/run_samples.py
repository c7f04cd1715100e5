"""Run folders as training leaves them, one per task, drawn from a seed."""
from __future__ import annotations

import base64
import json
import math
import random
import struct
import zlib
from pathlib import Path
from typing import Any

INTENTS = ["delay", "lost property", "ticket refund", "season pass", "route planning", "accessibility", "noise complaint",
           "vehicle cleanliness", "staff feedback", "night service"]
TEXT = "the tram on line four was late again and nobody at the stop could say when the next one would come so we left"
WORDS = TEXT.split()


def estimate(value: float, half: float, spread: float | None = None) -> dict[str, Any]:
    return {"value": value, "low": value - half, "high": value + half, "spread": spread}


def training(seed: int, metric: str, steps: int = 400, best: float = 0.88, stopped: str = "finished") -> dict[str, Any]:
    rng = random.Random(seed)
    history = [{"step": s, "epoch": s / 80, "rate": 5e-4 * (1 - s / steps),
                "loss": 2.3 * math.exp(-s / 90) + 0.25 + rng.gauss(0, 0.12) ** 2 + rng.gauss(0, 0.06)}
               for s in range(1, steps + 1)]
    evaluations = [{"step": s, "epoch": s / 80, "values": {metric: best - 0.5 * math.exp(-s / 70) + rng.gauss(0, 0.008),
                                                          "loss": 2.2 * math.exp(-s / 80) + 0.38 + s / 4000}}
                   for s in range(20, steps + 1, 20)]
    top = max(evaluations, key=lambda e: e["values"][metric])
    return {"seed": seed, "history": history, "evaluations": evaluations, "best_step": top["step"], "stopped": stopped,
            "test": {}}


def metrics(task: str, metric: str, seeds: int, value: float, others: dict[str, float], labels: list[str] | None,
            items: int = 200, rival: float = -0.032) -> dict[str, Any]:
    trained = [training(s, metric, best=value + 0.01) for s in range(seeds)]
    values = {metric: value, **others}
    for i, one in enumerate(trained):
        one["test"] = {name: estimate(v + (i - (seeds - 1) / 2) * 0.011, 0.045) for name, v in values.items()}
    spread = 0.011 if seeds > 1 else None
    return {
        "schema": 1, "created": "2025-06-14T16:42:10+02:00",
        "command": "thrifty tune --model minilm --data cityline --method lora --out runs/x",
        "task": task, "method": "lora", "settings": {"rank": 8, "alpha": 16, "where": "attn.q|attn.v", "dropout": 0.05},
        "model": "minilm", "data": "cityline", "metric": metric, "labels": labels,
        "items": {"train": 640, "validation": 80, "test": items},
        "test": {name: estimate(v, 0.045, spread) for name, v in values.items()},
        "baselines": [
            {"name": "majority", "title": "the majority class", "test": {n: estimate(0.12, 0.04) for n in values},
             "difference": estimate(value - 0.12, 0.055)},
            {"name": "linear", "title": "frozen features with a linear head",
             "test": {n: estimate(v + rival, 0.05) for n, v in values.items()}, "difference": estimate(-rival, 0.023)}],
        "seeds": trained,
        "timing": {"train_seconds": 143.2 * seeds, "evaluate_seconds": 4.31 * seeds,
                   "steps": 400 * seeds, "examples_per_second": 89.4},
        "memory": {"peak_bytes": 912_345_600, "kind": "process"},
        "parameters": {"base": 22_713_216, "tuner": 73_728, "head": 3_850}, "adapter_bytes": 318_204, "warnings": [],
    }


def write(folder: Path, found: dict[str, Any], rows: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps(found), encoding="utf-8")
    (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps({
        "model": "minilm", "data": "cityline", "method": {"name": "lora", "rank": 8, "alpha": 16, "where": "attn.q|attn.v"},
        "epochs": 5, "batch": 8, "accumulate": 1, "rate": 5e-4, "warmup": 0.06, "decay": "linear", "clip": 1.0,
        "precision": "float32", "seed": 0, "patience": 5, "max_length": 128, "resume": False, "limit": None}))
    (folder / "environment.json").write_text(json.dumps({
        "python": "3.12.3", "platform": "Linux-6.8-x86_64",
        "packages": {"thrifty": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
        "processor": "2 cores", "threads": 1, "devices": [], "deterministic": True}))
    (folder / "data.json").write_text(json.dumps({
        "files": [{"path": "cityline/train.csv", "rows": 640, "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b"},
                  {"path": "cityline/test.csv", "rows": 200, "sha256": "60303ae22b998861bce3b28f33eec1be758a213c"}],
        "rows": {"train": 640, "validation": 80, "test": 200}, "split_seed": 0, "leaks": [], "skipped": [],
        "why": "column 'label' holds 10 distinct texts, so this is text classification"}))
    return folder


def probabilities(rng: random.Random, width: int, chosen: int, sure: float) -> list[float]:
    rest = [rng.random() ** 3 + 1e-4 for _ in range(width)]
    rest[chosen] = 0.0
    total = sum(rest)
    return [sure if i == chosen else r / total * (1 - sure) for i, r in enumerate(rest)]


def sentence(rng: random.Random) -> str:
    start = rng.randrange(len(WORDS) - 8)
    return " ".join(WORDS[start : start + rng.randint(6, 14)]).capitalize() + "."


def thumbnail(rng: random.Random, side: int = 24) -> str:
    tone = [rng.randrange(256) for _ in range(3)]
    raw = b"".join(b"\0" + bytes(min(255, t * (x + y) // side) for x in range(side) for t in tone) for y in range(side))

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    parts = [(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
    png = b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)
    return "data:image/png;base64," + base64.b64encode(png).decode()


def classification(folder: Path, classes: int = 10, items: int = 200, seeds: int = 1, images: bool = False,
                   rival: float = -0.032) -> Path:
    labels = INTENTS[:classes] + [f"class {i}" for i in range(10, classes)]
    rows, hits = [], 0
    for seed in range(seeds):
        rng = random.Random(7)
        drawn = [(i, rng.randrange(classes), "" if images else sentence(rng)) for i in range(items)]
        rng = random.Random(100 + seed)
        for i, target, said in drawn:
            sure = min(0.995, max(0.5, rng.betavariate(6, 1.2)))
            right = rng.random() < sure * 0.97
            wrong = (target + rng.choice([1, 1, 1, 2, 3, 5])) % classes
            guess = target if right else wrong
            hits += guess == target
            row = {"index": i, "seed": seed, "input": None if images else said, "target": labels[target],
                   "prediction": labels[guess], "scores": probabilities(rng, classes, guess, sure)}
            if images:
                row["image"] = thumbnail(rng)
            rows.append(row)
    share = hits / len(rows)
    found = metrics("image-classification" if images else "text-classification", "accuracy", seeds, share,
                    {"macro_f1": share - 0.012}, labels, items, rival)
    return write(folder, found, rows)


def regression(folder: Path, items: int = 300, seeds: int = 1) -> Path:
    rng = random.Random(3)
    rows = []
    for seed in range(seeds):
        for i in range(items):
            true = rng.uniform(0, 5)
            rows.append({"index": i, "seed": seed, "input": [sentence(rng), sentence(rng)], "target": true,
                         "prediction": true * 0.85 + 0.4 + rng.gauss(0, 0.4), "scores": None})
    found = metrics("regression", "pearson", seeds, 0.871, {"spearman": 0.866, "mse": 0.412}, None, items)
    found["baselines"][0]["title"] = "the mean of the training targets"
    return write(folder, found, rows)


def generation(folder: Path, items: int = 40) -> Path:
    rng = random.Random(5)
    rows = [{"index": i, "seed": 0, "input": sentence(rng) + " " + sentence(rng), "target": sentence(rng),
             "prediction": sentence(rng), "scores": None} for i in range(items)]
    found = metrics("seq2seq-generation", "rougeL", 1, 0.412, {"bleu": 0.27, "exact_match": 0.08}, None, items)
    found["baselines"] = []
    return write(folder, found, rows)


def tokens(folder: Path, items: int = 60) -> Path:
    rng = random.Random(11)
    kinds = ["person", "place", "company"]
    rows = []
    for i in range(items):
        words = [rng.choice(WORDS) for _ in range(rng.randint(8, 22))]
        tags, said = ["O"] * len(words), ["O"] * len(words)
        at = rng.randint(0, 3)
        while at + 2 < len(words):
            kind = rng.choice(kinds)
            tags[at : at + 2] = [f"B-{kind}", f"I-{kind}"]
            heard = kind if rng.random() < 0.75 else rng.choice(kinds)
            said[at : at + 2] = [f"B-{heard}", f"I-{heard}"] if rng.random() < 0.9 else ["O", f"B-{heard}"]
            at += rng.randint(3, 7)
        rows.append({"index": i, "seed": 0, "input": words, "target": tags, "prediction": said, "scores": None})
    labels = ["O"] + [f"{mark}-{kind}" for kind in kinds for mark in "BI"]
    return write(folder, metrics("token-classification", "entity_f1", 1, 0.68, {"token_accuracy": 0.91}, labels, items), rows)


def choice(folder: Path, items: int = 120) -> Path:
    rng = random.Random(13)
    rows = []
    for i in range(items):
        target, sure = rng.randrange(4), rng.uniform(0.5, 0.95)
        guess = target if rng.random() < sure else (target + 1) % 4
        rows.append({"index": i, "seed": 0, "input": sentence(rng), "choices": [sentence(rng) for _ in range(4)],
                     "target": target, "prediction": guess, "scores": probabilities(rng, 4, guess, sure)})
    return write(folder, metrics("multiple-choice", "accuracy", 1, 0.61, {}, None, items, rival=-0.01), rows)
