"""The projections: both towers are locked, so a step is two small matrix products, and a training takes seconds."""
from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recipes.two_tower import sets
from recipes.two_tower.features import Towers, texts_of
from recipes.two_tower.recipe import LEARNED, NAMES, PAIRS, TEMPLATES, Recipe
from thrifty.models.two_tower import SCALE
from thrifty.train.files import write_bytes, write_json
from thrifty.train.schedule import share

HOTTEST = math.log(100)
LOGGED = 100    # steps


@dataclass(frozen=True)
class Lessons:
    """What is learned from: features of photographs [n, D] with their captions [n, 5, T]; of pictures [m, D] whose class is among
    ``classes`` [templates, K, T]; and the names of ImageNet [N, T] that are not held out, with what MobileNetV2 says of both kinds
    of pictures over them [n + m, N] (None for other image towers)."""

    photographs: Tensor
    captions: Tensor
    pictures: Tensor
    labels: Tensor
    classes: Tensor
    names: Tensor
    answers: Tensor | None


class Joint(nn.Module):
    """The two projections and the scale of cosines."""

    def __init__(self, image: int, text: int, width: int) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(image, width, bias=False), nn.Linear(text, width, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(SCALE)))

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        """Scaled cosines [n, m] of features [n, D] and [m, T]."""
        return self.logit_scale.exp() * F.normalize(self.image(image), dim=-1) @ F.normalize(self.text(text), dim=-1).T


def gather(towers: Towers, assets: Path, recipe: Recipe) -> Lessons:
    """The features of all that may be learned from."""
    flickr = sets.read(assets, PAIRS, "train", recipe.limit)
    said = towers.say(texts_of(flickr))
    pictures, labels, classes, before = [], [], [], 0
    for name in LEARNED:
        held = sets.read(assets, name, "train", recipe.limit)
        open_rows = [row for row, label in enumerate(held.labels) if not recipe.holds(held.names[label])]
        pictures.append(towers.see(held.images)[open_rows])
        labels += [before + held.labels[row] for row in open_rows]
        classes.append(towers.say(texts_of(held)).view(len(TEMPLATES), len(held.names), -1))
        before += len(held.names)
    names = sets.read(assets, NAMES, "test", recipe.limit)
    free = [i for i, name in enumerate(names.names) if not recipe.holds(name)]
    photographs, seen = towers.see(flickr.images), torch.cat(pictures)
    answers = None
    if towers.classifier is not None:
        with torch.no_grad():
            answers = towers.classifier(torch.cat([photographs, seen]))[:, free].softmax(1)
    return Lessons(photographs, said.view(len(flickr.images), -1, said.shape[1]), seen, torch.tensor(labels),
                   torch.cat(classes, 1), towers.say(texts_of(names))[: len(names.names)][free], answers)


def paired_loss(logits: Tensor, keys: Tensor) -> Tensor:
    """Contrastive loss of logits [n, n] in which all with the same ``keys`` [n] belong together, in equal shares: UniCL (J. Yang et
    al., CVPR 2022, arXiv:2204.03610). Where all keys differ it is CLIP's."""
    own = (keys[:, None] == keys).to(logits.dtype)
    own = own / own.sum(1, keepdim=True)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def train(lessons: Lessons, recipe: Recipe, seed: int, out: Path) -> Joint:
    """One training, a pure function of its seed; ``projections.safetensors`` and ``log.json`` in ``out``."""
    from safetensors.torch import save

    torch.manual_seed(seed)
    joint = Joint(lessons.photographs.shape[1], lessons.captions.shape[2], recipe.width)
    optimizer = torch.optim.AdamW([{"params": [joint.image.weight, joint.text.weight], "weight_decay": recipe.decay},
                                   {"params": [joint.logit_scale], "weight_decay": 0.0}], lr=recipe.rate, betas=(0.9, 0.98))
    log: list[dict[str, Any]] = []
    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate * share(step, recipe.steps, recipe.warmup, "cosine")
        pairs, names = losses(joint, lessons, recipe)
        loss = pairs + recipe.names * names
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            joint.logit_scale.clamp_(0, HOTTEST)
        if (step + 1) % LOGGED == 0 or step + 1 == recipe.steps:
            log.append({"step": step + 1, "pairs": round(float(pairs.detach()), 4), "names": round(float(names.detach()), 4)})
            print(f"seed {seed}: {log[-1]}", flush=True)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "log.json", log)
    write_bytes(out / "projections.safetensors", save({name: t.contiguous() for name, t in joint.state_dict().items()}))
    return joint


def losses(joint: Joint, lessons: Lessons, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Of one drawn batch: of its pairs, and of the answers over names."""
    n, m = len(lessons.photographs), len(lessons.pictures)
    rows = torch.randperm(n)[: recipe.pairs]
    which = torch.randint(lessons.captions.shape[1], (len(rows),))
    named = torch.randperm(m)[: recipe.named]
    labels = lessons.labels[named]
    template = torch.randint(len(lessons.classes), (len(named),))
    image = torch.cat([lessons.photographs[rows], lessons.pictures[named]])
    text = torch.cat([lessons.captions[rows, which], lessons.classes[template, labels]])
    pairs = paired_loss(joint(image, text), torch.cat([rows, n + labels]))
    if lessons.answers is None or not recipe.names:
        return pairs, torch.zeros(())
    return pairs, F.cross_entropy(joint(image, lessons.names), lessons.answers[torch.cat([rows, n + named])])


def load(folder: Path) -> dict[str, Tensor]:
    """What a training left in ``folder``.

    Raises: FileNotFoundError where there was none.
    """
    from safetensors.torch import load_file

    file = folder / "projections.safetensors"
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: run the training first")
    return load_file(file)
