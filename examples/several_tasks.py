"""One adapter for three tasks on one sentence encoder: a head for each, batches drawn at tempered rates, a score for each.

    python examples/several_tasks.py        (about a minute on two cores)
"""
from __future__ import annotations

import tempfile

import thrifty
from thrifty.data import read
from thrifty.train import predict

GREEN = {"trees_and_parks", "animals_and_pests", "water_and_drains", "waste_collection", "illegal_dumping"}


def tables() -> dict[str, object]:
    """Three questions about the shipped messages, each about messages of its own: topic, whether it is green, and how long."""
    data = read("cityline")
    assert data.labels is not None
    rows = [(text, data.labels[label]) for split in ("train", "validation")
            for text, label in zip(data.splits[split]["text"], data.splits[split]["label"], strict=True)]
    topic = [{"text": text, "label": name} for text, name in rows[0::3]]
    green = [{"text": text, "label": "green" if name in GREEN else "grey"} for text, name in rows[1::3]]
    words = [{"text": text, "label": len(text.split()) + 0.5} for text, _ in rows[2::3]]
    return {"topic": topic, "green": green, "words": words}


def main() -> None:
    """Train, print what each task came to, and ask each about one message."""
    with tempfile.TemporaryDirectory() as folder:
        run = thrifty.tune("minilm", tables(), "lora", f"{folder}/run", task={"words": "regression"}, temperature=2,
                           metric={"words": "spearman"}, epochs=5, rate=3e-3, max_length=64)
        print(run)
        message = "The lamp outside our door has been dark for a week"
        for name in run.metrics["tasks"]:
            print(f"{name}: {predict(run.folder, texts=[message], task_name=name)[0]['prediction']}")
        print(f"saved {run.metrics['adapter_bytes']:,} bytes for all of them")


if __name__ == "__main__":
    main()
