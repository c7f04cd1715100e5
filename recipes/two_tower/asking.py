"""Zero-shot answers, from kept features and the projections of one training."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from recipes.two_tower import sets
from recipes.two_tower.features import Towers, texts_of
from recipes.two_tower.recipe import LEARNED, NAMES, PAIRS, UNSEEN, Recipe
from thrifty.tasks.contrastive import ranks


def ask(towers: Towers, assets: Path, recipe: Recipe, joint: dict[str, Tensor]) -> dict[str, Any]:
    """Of every set the accuracy over its test pictures, among all of its classes; of sets whose classes were learned in part, of
    pictures of held-out classes and of the others apart. Of photographs with captions the recalls."""
    found: dict[str, Any] = {}
    for name in (*LEARNED, NAMES, *UNSEEN):
        held = sets.read(assets, name, "test", recipe.limit)
        image = F.normalize(towers.see(held.images) @ joint["image.weight"].T, dim=-1)
        text = F.normalize(towers.say(texts_of(held))[: len(held.names)] @ joint["text.weight"].T, dim=-1)
        once = [i for i, spoken in enumerate(held.names) if held.names.index(spoken) == i]  # two cranes cannot be told apart
        same = torch.tensor([held.names.index(spoken) for spoken in held.names])
        labels = same[torch.tensor(held.labels)]
        right = torch.tensor(once)[(image @ text[once].T).argmax(1)] == labels
        closed = torch.tensor([recipe.holds(held.names[label]) for label in labels.tolist()])
        parts = {"all": torch.ones_like(closed)} if name in UNSEEN else {"learned names": ~closed, "held-out names": closed}
        found[name] = {"classes": len(once), **{part: {"right": int(right[rows].sum()), "pictures": int(rows.sum())}
                                               for part, rows in parts.items()}}
    found[PAIRS] = recall(towers, assets, recipe, joint)
    return found


def recall(towers: Towers, assets: Path, recipe: Recipe, joint: dict[str, Tensor]) -> dict[str, float]:
    """Recall at 1, 5 and 10 on the test photographs, both ways (see `thrifty.tasks.contrastive`)."""
    held = sets.read(assets, PAIRS, "test", recipe.limit)
    image = F.normalize(towers.see(held.images) @ joint["image.weight"].T, dim=-1)
    text = F.normalize(towers.say(texts_of(held)) @ joint["text.weight"].T, dim=-1)
    left = iter(text.tolist())
    forth, back = ranks([{"image": one, "captions": [next(left) for _ in captions]} for one, captions
                         in zip(image.tolist(), held.captions, strict=True)])
    return {"pictures": len(held.images), **{f"image to text at {k}": float((forth <= k).mean()) for k in (1, 5, 10)},
            **{f"text to image at {k}": sum(float((own <= k).mean()) for own in back) / len(back) for k in (1, 5, 10)}}
