"""What the locked towers see and read, computed once and kept in stores of `thrifty.trunk`."""
from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recipes.two_tower import sets
from recipes.two_tower.recipe import LEARNED, NAMES, PAIRS, TEMPLATES, UNSEEN, Recipe
from thrifty.artifact.files import canonical, sha256
from thrifty.models.finding import find
from thrifty.models.preprocessing import load_image_processor
from thrifty.models.two_tower import mean_of
from thrifty.trunk import key
from thrifty.trunk.store import Store, Writer

CHUNK = 32
TAUGHT = "mobilenetv2"    # the image encoder whose classifier knows the names of ImageNet's classes


class Towers:
    """Both encoders, and the classifier of MobileNetV2 if it is that (else None). ``weights`` holds the image encoders, each a
    folder by its name; ``cache`` the stores."""

    def __init__(self, weights: Path, cache: Path, image: str = "mobilenetv2") -> None:
        from transformers import AutoModel, AutoModelForImageClassification, AutoTokenizer

        self.cache, folder, text = cache, weights / image, find("minilm").folder
        self.image: Any = AutoModel.from_pretrained(folder, local_files_only=True).float().eval()
        self.image.to(memory_format=torch.channels_last)  # MobileNetV2 takes two thirds of the time on a CPU
        self.processor, self.prepared = load_image_processor(folder, image)
        self.text: Any = AutoModel.from_pretrained(text, local_files_only=True).float().eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(text, local_files_only=True)
        self.sums = [sha256((one / "model.safetensors").read_bytes()) for one in (folder, text)]
        self.classifier: Any = None
        if image == TAUGHT:
            judge: Any = AutoModelForImageClassification.from_pretrained(folder, local_files_only=True)
            self.classifier = judge.classifier.float().eval()

    def see(self, images: Sequence[bytes]) -> Tensor:
        """Pooled features [n, D] of pictures."""
        about = {"version": 1, "tower": self.sums[0], "prepared": self.prepared,
                 "rows": key.digest_pictures([{"image": image} for image in images])}

        def look(start: int) -> Tensor:
            from thrifty.data import images as pictures

            opened = [pictures.open(image) for image in images[start : start + CHUNK]]
            pixels = self.processor(images=opened, return_tensors="pt")["pixel_values"]
            return self.image(pixels.contiguous(memory_format=torch.channels_last)).pooler_output.flatten(1)

        return self._kept(about, len(images), look)

    def say(self, texts: Sequence[str]) -> Tensor:
        """The mean over tokens [n, width] of texts."""
        about = {"version": 1, "tower": self.sums[1],
                 "rows": sha256(canonical(list(texts)))}

        def read(start: int) -> Tensor:
            held = self.tokenizer(list(texts[start : start + CHUNK]), return_tensors="pt", padding=True, truncation=True)
            mask = held["attention_mask"]
            return mean_of(self.text(input_ids=held["input_ids"], attention_mask=mask).last_hidden_state, mask)

        return self._kept(about, len(texts), read)

    @torch.no_grad()
    def _kept(self, about: dict[str, Any], rows: int, compute: Callable[[int], Tensor]) -> Tensor:
        path = self.cache / key.name(about)
        if not path.is_file():
            began, writer = time.monotonic(), Writer(path, about, rows, "exact")
            try:
                for start in range(0, rows, CHUNK):
                    found = compute(start)
                    writer.add(range(start, start + len(found)), list(found[:, None]))
                writer.close()
            except BaseException:
                writer.discard()
                raise
            seconds = time.monotonic() - began
            print(f"{rows:,} rows in {seconds:.0f} s, {1000 * seconds / max(1, rows):.1f} ms each", flush=True)
        return Store(path, about).take(range(rows))[0].clone()


def compute(towers: Towers, assets: Path, recipe: Recipe) -> None:
    """Everything that training and asking read."""
    for name, splits in {**dict.fromkeys(LEARNED, ("train", "test")), **dict.fromkeys(UNSEEN, ("test",)), NAMES: ("test",),
                         PAIRS: ("train", "validation", "test")}.items():
        for split in splits:
            print(f"{name} {split}: ", end="", flush=True)
            held = sets.read(assets, name, split, recipe.limit)
            towers.see(held.images)
            towers.say(texts_of(held))
    print(f"all of it is in {towers.cache}")


def texts_of(held: sets.Pictures) -> list[str]:
    """All captions in their order; or each class in each template, template by template."""
    if held.captions:
        return [text for captions in held.captions for text in captions]
    return [template.replace("{}", name) for template in TEMPLATES for name in held.names]
