"""One class for a picture, from a model that knows classes by their names."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, cast

from torch import Tensor, nn

from thrifty.clip import ImageTextModel, resolve
from thrifty.models.backbone import Backbone
from thrifty.tasks.image_classification import ImageClassification
from thrifty.tasks.task import Batch, predicting


class ImageTextClassification(ImageClassification):
    """As any classification of pictures, but no head is new, and answers mean something before anything has trained.

    Limits: ``templates``, the sentences that class names are put into (see `thrifty.clip.resolve`), and ``metric``.
    """

    answers_untrained = True
    defaults: ClassVar[dict[str, Any]] = {**ImageClassification.defaults, "templates": None}

    def __init__(self, backbone: Backbone, labels: Sequence[str] | None = None, **limits: Any) -> None:
        super().__init__(backbone, labels, **limits)
        self.limits["templates"] = list(resolve(self.limits["templates"]))
        cast(ImageTextModel, backbone.model).classify(self.labels or (), self.limits["templates"])

    def features(self, model: nn.Module, batch: Batch) -> Tensor:
        """The projected feature of the picture, of any length [B, d]."""
        with predicting(model):
            return cast(ImageTextModel, model).image_features(batch[self.key]).float()
