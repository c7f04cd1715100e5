"""From projections to a folder that `thrifty tune --model` takes, with its card."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from recipes.two_tower import asking, pretrain, sets
from recipes.two_tower.features import Towers, texts_of
from recipes.two_tower.recipe import ASKED, LEARNED, NAMES, PAIRS, UNSEEN, Recipe
from thrifty.core.errors import ThriftyError
from thrifty.data import images
from thrifty.evaluate.intervals import mean_interval
from thrifty.models import TwoTower, load
from thrifty.train.files import write_bytes, write_json

REPOSITORY = Path(__file__).resolve().parents[2]
LOOKED = 8      # pictures that go through the whole model, to compare


def publish(towers: Towers, assets: Path, recipe: Recipe, seeds: int, out: Path, home: Path) -> dict[str, Any]:
    """Join the towers by the projections of the first seed, ask all seeds, and write model, record and card into ``home``.

    Raises: ThriftyError for a folder inside the project, which the licences of the parts do not allow to ship.
    """
    if home.resolve().is_relative_to(REPOSITORY):
        raise ThriftyError(f"{home} lies inside the project: the parts are for research, so the model must not be shipped with it")
    trained = [pretrain.load(out / f"seed-{recipe.seed + i}") for i in range(seeds)]
    measured = [asking.ask(towers, assets, recipe, joint) for joint in trained]
    pooled = trained[0]["image.weight"].shape[1]
    model = TwoTower(towers.image, towers.text, pooled, recipe.width)
    with torch.no_grad():
        model.visual_projection.weight.copy_(trained[0]["image.weight"])
        model.text_projection.weight.copy_(trained[0]["text.weight"])
        model.logit_scale.copy_(trained[0]["logit_scale"])
    model.save_pretrained(home)
    towers.tokenizer.save_pretrained(home)
    towers.processor.save_pretrained(home)
    compare(towers, assets, recipe, trained[0], home)
    facts = {"recipe": recipe.plain(), "seeds": seeds, "measured": measured,
             "parameters": sum(p.numel() for p in model.parameters()), "trained": sum(t.numel() for t in trained[0].values())}
    write_json(home / "recipe.json", facts)
    write_bytes(home / "README.md", write_card(facts).encode())
    print(json.dumps(measured[0], indent=1))
    return facts


@torch.no_grad()
def compare(towers: Towers, assets: Path, recipe: Recipe, joint: dict[str, Any], home: Path) -> None:
    """Raises: ThriftyError unless the whole model, loaded from its folder, answers as the kept features do."""
    held = sets.read(assets, UNSEEN[0], "test", recipe.limit)
    backbone = load(str(home), "image-classification", held.names)
    pixels = backbone.preprocess(images=[images.open(one) for one in held.images[:LOOKED]], return_tensors="pt")["pixel_values"]
    found: Any = backbone.model(pixels)
    image = F.normalize(towers.see(held.images)[:LOOKED] @ joint["image.weight"].T, dim=-1)
    text = F.normalize(towers.say(texts_of(held))[: len(held.names)] @ joint["text.weight"].T, dim=-1)
    apart = max(float((found["image_embeds"] - image).abs().max()), float((found["text_embeds"] - text).abs().max()))
    if not apart < 1e-3:
        raise ThriftyError(f"the model in {home} gives features that differ by {apart:.2g} from those it was trained on")


def spread(values: list[float]) -> str:
    """Mean and interval over seeds, or the one value."""
    mean, low, high = mean_interval(values)
    return f"{mean:.1%}" if len(values) == 1 else f"{mean:.1%} ({low:.1%} to {high:.1%})"


def rows_of(measured: list[dict[str, Any]]) -> list[str]:
    """The table of zero-shot accuracy, one line for each set and kind of names."""
    lines = []
    for name in (*UNSEEN, *LEARNED, NAMES):
        first = measured[0][name]
        for part in (key for key in first if key != "classes"):
            counts = [one[name][part] for one in measured]
            if counts[0]["pictures"]:
                shares = [count["right"] / count["pictures"] for count in counts]
                lines.append(f"| {name} | {part} | {first['classes']} | {counts[0]['pictures']:,} | {spread(shares)} | "
                             f"{1 / first['classes']:.1%} |")
    return lines


def write_card(facts: dict[str, Any]) -> str:
    """What the model is, what it was made of, how good it is, and what it cannot do."""
    recipe, measured, newline = facts["recipe"], facts["measured"], "\n"
    recalls = {key: [one[PAIRS][key] for one in measured] for key in measured[0][PAIRS] if key != "pictures"}
    found = ", ".join(f"{key} {spread(values)}" for key, values in recalls.items())
    trial = f"\n**This is a trial on at most {recipe['limit']} pictures of each split.**\n" if recipe["limit"] else ""
    return f"""# {recipe['image']} and MiniLM as one model of pictures and texts
{trial}
{facts['parameters']:,} parameters, of which {facts['trained']:,} were trained: two projections into {recipe['width']} numbers.
Both encoders stayed as they were. Made by `recipes/two_tower` of this project; `recipe.json` holds every number of it.

It learned from 700 photographs with five captions each ({PAIRS}), from training pictures of {', '.join(LEARNED)} with their class
names in sentences, and from what MobileNetV2's classifier says of all these pictures over the names of ImageNet's classes. One name
in {recipe['held']} was held out of everything, wherever it occurs. Nothing was learned from {', '.join(UNSEEN)}.

Zero-shot accuracy on test pictures with the one sentence "{ASKED}", {facts['seeds']} training(s), mean and 95 % interval over them:

| set | names | classes | pictures | accuracy | chance |
|---|---|---|---|---|---|
{newline.join(rows_of(measured))}

On {measured[0][PAIRS]['pictures']} test photographs of {PAIRS}, recalls: {found}.

**How to read this.** Pictures of a held-out name are told apart among all names of their set. MobileNetV2 was trained on pictures
of all ImageNet classes, also of those whose names were held out here, and captions mention what they mention; synonyms of held-out
names may have been learned. No number was used to choose anything.

**What it cannot do.** It is no CLIP: 400 million pairs lie between them. Textures, satellite pictures and drawings are far from
what it learned. It is for trying methods on real towers, not for use.

**Licences.** Flickr8k, ImageNet and most of the sets are for research; the weights of MobileNetV2 are torchvision's (BSD-3-Clause),
those of MiniLM are Apache-2.0. The joined model is therefore not shipped with the project.
"""
