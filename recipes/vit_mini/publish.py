"""From the last checkpoint to the files that are shipped: weights in half precision, the processor, and the card."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recipes.vit_mini.pretrain import read_checkpoint
from recipes.vit_mini.pupil import Pupil
from recipes.vit_mini.recipe import SIDE, Recipe
from thrifty.core.errors import ThriftyError
from thrifty.data import images
from thrifty.evaluate import linear_head
from thrifty.evaluate.intervals import mean_interval, wilson
from thrifty.models.preprocessing import load_image_processor
from thrifty.train.files import write_bytes, write_json

TITLES = {"cifar10": "CIFAR-10", "mnist": "MNIST", "fashion_mnist": "Fashion-MNIST"}
LARGEST = 12_000_000    # bytes of all files together
DRAWS = 5               # splits of scikit-learn's digits
Pixels = np.ndarray[Any, Any]


def publish(folder: Path, out: Path, home: Path) -> dict[str, Any]:
    """Write ``config.json``, ``model.safetensors``, ``preprocessor_config.json``, ``recipe.json`` and ``README.md`` into ``home``.

    Raises: ThriftyError for a training that is not over, or files that are too large.
    """
    found = read_checkpoint(out)
    if found is None or found[0]["step"] < found[0]["recipe"]["steps"]:
        raise ThriftyError(f"the training in {out} is not over")
    about, recipe = found[0], Recipe(**found[0]["recipe"])
    pupil = rebuild(recipe, found[1])
    home.mkdir(parents=True, exist_ok=True)
    pupil.trunk.half().save_pretrained(home)
    pupil.trunk.float()
    save_processor(home)
    processor, _ = load_image_processor(home, "vit-mini")
    measured: dict[str, Any] = {name: test(pupil, name, folder / f"{name}.npz", processor) for name in recipe.batch}
    measured["digits"] = probe_digits(pupil, processor)
    parameters = sum(p.numel() for p in pupil.trunk.parameters())
    facts = {**about, "parameters": parameters, "measured": measured}
    write_json(home / "recipe.json", facts)
    write_bytes(home / "README.md", write_card(facts).encode())
    size = sum(path.stat().st_size for path in home.iterdir())
    if size > LARGEST:
        raise ThriftyError(f"{home} holds {size:,} bytes, more than {LARGEST:,}")
    print(json.dumps({"bytes": size, "parameters": parameters, **measured}, indent=1))
    return facts


def rebuild(recipe: Recipe, tensors: dict[str, Tensor]) -> Pupil:
    """The trained pupil, its trunk rounded as it is shipped."""
    state = {name.removeprefix("pupil:"): tensor for name, tensor in tensors.items() if name.startswith("pupil:")}
    classes = {name: len(state[f"answers.{name}.bias"]) for name in recipe.batch}
    pupil = Pupil(recipe, classes, len(state["hints.bias"]))
    pupil.load_state_dict({name: t.half().float() if name.startswith("trunk.") else t for name, t in state.items()})
    return pupil.eval()


def save_processor(home: Path) -> None:
    """How pictures are prepared: the whole of each, resized to the side that the trunk takes."""
    from transformers import ViTImageProcessorPil

    ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}, resample=3, image_mean=[0.5] * 3, image_std=[0.5] * 3
                         ).save_pretrained(home)


@torch.inference_mode()
def see(pupil: Pupil, pictures: Pixels, processor: Any) -> tuple[Tensor, Tensor]:
    """First tokens and means over tokens of uint8 pictures [n, h, w] or [n, h, w, 3], prepared as users' pictures are."""
    from PIL import Image

    found = []
    for start in range(0, len(pictures), 250):
        held = [images.open(Image.fromarray(one)) for one in pictures[start : start + 250]]
        found.append(pupil(processor(images=held, return_tensors="pt")["pixel_values"]))
    return torch.cat([first for first, _ in found]), torch.cat([mean for _, mean in found])


def test(pupil: Pupil, name: str, path: Path, processor: Any) -> dict[str, Any]:
    """The share of a set's test pictures that its head answers rightly, with the 95 % interval over pictures."""
    with np.load(path) as held:
        pictures, labels = held["test"], held["test_labels"]
    with torch.inference_mode():
        said = pupil.answers[name](see(pupil, pictures, processor)[0]).argmax(1).numpy()
    right = int((said == labels).sum())
    low, high = wilson(right, len(labels))
    return {"accuracy": right / len(labels), "low": low, "high": high, "pictures": len(labels)}


def probe_digits(pupil: Pupil, processor: Any) -> dict[str, Any] | None:
    """A linear head on the frozen trunk for scikit-learn's digits, on splits 1000 / 297 / 500; None where it is not installed."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        return None
    held = load_digits()
    pictures, labels = np.rint(held.images * 255 / 16).astype(np.uint8), held.target
    features = see(pupil, pictures, processor)[1].numpy()
    found = []
    for seed in range(DRAWS):
        rows = np.random.default_rng(seed).permutation(len(labels))
        train, watch, asked = rows[:1000], rows[1000:-500], rows[-500:]
        fit = linear_head(features[train], labels[train], features[watch], labels[watch], features[asked], classes=10)
        found.append(float((fit.probabilities.argmax(1) == labels[asked]).mean()))
    centre, low, high = mean_interval(found)
    return {"accuracy": centre, "low": low, "high": high, "spread": float(np.std(found, ddof=1)), "splits": DRAWS}


def write_card(facts: dict[str, Any]) -> str:
    """What the model is, what it was made of, how good it is, and what it cannot do."""
    recipe, measured = facts["recipe"], facts["measured"]
    rows = [f"| {TITLES[name]} test | its own head | {value['accuracy']:.1%} | {value['low']:.1%} to {value['high']:.1%} over "
            f"{value['pictures']:,} pictures |" for name, value in measured.items() if name in TITLES]
    if measured["digits"] is not None:
        value = measured["digits"]
        rows.append(f"| scikit-learn's digits | frozen, a linear head on 1,000 rows | {value['accuracy']:.1%} | "
                    f"± {value['spread']:.1%} over {value['splits']} splits |")
    shares = ", ".join(f"{count} of {TITLES[name]}" for name, count in recipe["batch"].items())
    seen = recipe["steps"] * sum(recipe["batch"].values())
    return f"""# vit-mini

A Vision Transformer of {facts['parameters']:,} parameters for pictures of {SIDE} × {SIDE} pixels (patches of 4, width
{recipe['width']}, {recipe['depth']} layers), stored in half precision. It ships so that vision can be tried without a download.

Made by `recipes/vit_mini` of this project in {facts['seconds'] / 60:.0f} minutes on {facts['threads']} processor threads:
{recipe['steps']:,} steps of {shares}, {seen:,} pictures in all, from the official training sets without the last
{recipe['held']:,} pictures of each. It learned the labels, and on CIFAR-10 also the features of a MobileNetV2 that was trained on
ImageNet. `recipe.json` holds every number of it.

| pictures | read by | accuracy | spread |
|---|---|---|---|
{chr(10).join(rows)}

The test sets were read once, after training; nothing was chosen by them. There was one training, so nothing is known about
other seeds.

**What it can do.** Small pictures of one thing: digits, clothes, and the kinds of things in CIFAR-10; others after tuning, best
where {SIDE} × {SIDE} pixels are enough to tell the classes apart.

**What it cannot do.** It is no substitute for a model trained on millions of photographs. Fine detail is lost when a picture is
resized to {SIDE} pixels, long pictures are squashed, text in pictures and small things are not seen, and whatever CIFAR-10 lacks
(most animals, food, faces, scenes, medical pictures) it has met through the teacher's features at best.

**Where it comes from.** CIFAR-10 (Krizhevsky 2009) and MNIST state no licence and are used for research; Fashion-MNIST is MIT;
the teacher's weights are torchvision's (BSD-3-Clause), trained on ImageNet, whose pictures are for non-commercial research.
"""
