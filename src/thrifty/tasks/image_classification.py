"""One class for a picture."""
from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from thrifty.core.errors import BadData, NoSuchSetting
from thrifty.data.augmenting import find
from thrifty.models.backbone import Backbone
from thrifty.tasks.classes import Classification, label_tensor, labelled
from thrifty.tasks.encoding import column
from thrifty.tasks.features import image_features
from thrifty.tasks.task import Batch, Table, accepts


class ImageClassification(Classification):
    """Roles: ``image`` (bytes, a path or a PIL picture) and ``label`` (class numbers). Limits: ``metric``, and ``augment``, the
    recipe by which pictures are changed while training (`thrifty.data.augmenting.find`).

    Pictures are decoded, resized and normalised when a batch is made, by the backbone's own processor: prepared, a thousand
    of them would fill more than half a gigabyte.
    """

    name = "image-classification"
    defaults: ClassVar[dict[str, Any]] = {"augment": "none"}

    def __init__(self, backbone: Backbone, labels: Sequence[str] | None = None, **limits: Any) -> None:
        super().__init__(backbone, labels, **limits)
        if not callable(backbone.preprocess) or hasattr(backbone.preprocess, "pad_token_id"):
            raise NoSuchSetting("this task reads pictures, but the backbone has no image processor: load the model with "
                                "thrifty.models.load, or give wrap() one.")
        self.recipe = find(self.limits["augment"])
        self.resizes = hasattr(backbone.preprocess, "preprocess")  # an image processor of Hugging Face
        if self.recipe.squashed == "always" and not self.resizes:
            raise NoSuchSetting(f"the augmentation {self.recipe.name!r} resizes all pictures otherwise than the model does, which "
                                "needs an image processor of transformers: this backbone has a callable of its own.")
        taken = accepts(backbone.model)
        self.key = "pixel_values" if "pixel_values" in taken else taken[0]

    def encode(self, table: Table) -> list[dict[str, Any]]:
        """The picture as it is, its row, and the class."""
        examples: list[dict[str, Any]] = [{"image": image, "row": row}
                                          for row, image in enumerate(column(table, "image", self.name))]
        return labelled(examples, table, self.targets)

    def collate(self, examples: Sequence[dict[str, Any]]) -> Batch:
        """Pictures [B, C, H, W] under the name of the model's first argument (``pixel_values``), and labels [B].

        Raises: BadData for a picture that cannot be decoded, with its row.
        """
        return {self.key: torch.stack([self._prepare(example) for example in examples]), **label_tensor(examples)}

    @property
    def varies(self) -> bool:
        """Whether the recipe leaves anything to chance."""
        return bool(self.recipe.changes)

    def vary(self, examples: Sequence[dict[str, Any]], seed: int, step: int, view: int = 0) -> list[dict[str, Any]]:
        """Every picture with what chance is drawn from when it is prepared."""
        if not self.varies:
            return list(examples)
        more = (view,) if view else ()
        return [{**example, "drawn": (seed, step, example["row"], *more)} for example in examples]

    def features(self, model: nn.Module, batch: Batch) -> Tensor:
        """What the trunk pooled, or the mean over its tokens or places [B, D]."""
        return image_features(model, self.inputs(model, batch))

    def _prepare(self, example: dict[str, Any]) -> Tensor:
        from thrifty.data import images

        if "pixels" in example:  # prepared already
            return cast(Tensor, example["pixels"])
        try:
            picture = images.open(example["image"])
        except BadData as error:
            raise BadData(f"row {example['row']}: {error}") from error
        drawn, prepare, how = example.get("drawn"), self.backbone.preprocess, {}
        if drawn is not None:
            picture = self.recipe.apply(picture, *drawn)
        if not self.resizes:
            return cast(Tensor, prepare(picture))
        if self.recipe.squashed == "always" or (drawn is not None and self.recipe.squashed == "training"):
            picture, how = picture.resize(self._sides, prepare.resample), {"do_resize": False, "do_center_crop": False}
        return cast(Tensor, prepare(images=picture, return_tensors="pt", **how)["pixel_values"][0])

    @cached_property
    def _sides(self) -> tuple[int, int]:
        """Width and height of the pictures that the model sees."""
        from PIL import Image

        seen = self.backbone.preprocess(images=Image.new("RGB", (64, 64)), return_tensors="pt")["pixel_values"]
        return int(seen.shape[-1]), int(seen.shape[-2])
