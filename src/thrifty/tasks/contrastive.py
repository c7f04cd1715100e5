"""Pictures and the texts about them, brought together: A. Radford et al., "Learning Transferable Visual Models From Natural
Language Supervision", ICML 2021, arXiv:2103.00020."""
from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from thrifty.clip.contrast import contrastive_loss
from thrifty.core.errors import BadData, NoSuchSetting
from thrifty.data import images
from thrifty.evaluate.weighing import Array, Counts, Statistic, mean
from thrifty.models.backbone import Backbone
from thrifty.models.readers import Readers
from thrifty.tasks.encoding import Encoder, column
from thrifty.tasks.task import Batch, Prediction, Table, Task, predicting

CLOSEST = (1, 5, 10)


class Contrastive(Task):
    """Roles: ``image`` and ``captions``, a list of texts about it. Limits: ``max_length`` (tokens), ``metric``.

    The loss compares every picture of a batch with every text, so what a batch holds is part of it: gradients that are summed
    over several batches are not those of one large batch. In every step each picture comes with one of its captions, drawn.

    Recall at k is the share of pictures of which an own caption is among the k closest of all captions of the split, and of
    captions of whose k closest pictures one is theirs; ``recall_at_k`` is the mean of both. Ties count against the model.
    """

    name = "contrastive"
    scores = ("recall_at_1", "recall_at_5", "recall_at_10")
    defaults: ClassVar[dict[str, Any]] = {"max_length": None}
    has_head = False
    answers_untrained = True
    varies = True  # which caption

    def __init__(self, backbone: Backbone, labels: Sequence[str] | None = None, **limits: Any) -> None:
        super().__init__(backbone, labels, **limits)
        if not isinstance(backbone.preprocess, Readers):
            raise NoSuchSetting("this task reads pictures and texts, but the backbone has no processor for both: load the model "
                                "with thrifty.models.load, or give wrap() a thrifty.models.Readers.")
        self.encoder = Encoder(replace(backbone, preprocess=backbone.preprocess.texts), self.limits["max_length"])
        self.limits["max_length"] = self.encoder.max_length

    def encode(self, table: Table) -> list[dict[str, Any]]:
        """The picture as it is, its row, and its captions as token numbers.

        Raises: BadData for a picture without captions.
        """
        rows = column(table, "captions", self.name)
        for row, captions in enumerate(rows):
            if isinstance(captions, str) or not captions:
                raise BadData(f"row {row}: captions must be a list of at least one text, not {captions!r}.")
        encoded, cut = self.encoder.encode([text for captions in rows for text in captions])
        self.truncated += len(cut)
        left = iter(encoded)
        return [{"image": image, "row": row, "captions": [next(left) for _ in captions]} for row, (image, captions)
                in enumerate(zip(column(table, "image", self.name), rows, strict=True))]

    def vary(self, examples: Sequence[dict[str, Any]], seed: int, step: int, view: int = 0) -> list[dict[str, Any]]:
        """Every picture with one of its captions, and its place among them under ``said``."""
        drawn = [random.Random(f"{seed} {step} {one['row']} {view}").randrange(len(one["captions"])) for one in examples]
        return [{**one, "captions": [one["captions"][said]], "said": said} for one, said in zip(examples, drawn, strict=True)]

    def collate(self, examples: Sequence[dict[str, Any]]) -> Batch:
        """``pixel_values`` [B, C, H, W]; ``input_ids``, ``attention_mask`` [M, T] of all captions, ``owners`` [M] their pictures.

        Raises: BadData for a picture that cannot be decoded, with its row.
        """
        owners = [place for place, example in enumerate(examples) for _ in example["captions"]]
        texts = self.encoder.pad([caption for example in examples for caption in example["captions"]])
        return {"pixel_values": torch.stack([self._prepare(example) for example in examples]), **texts,
                "owners": torch.tensor(owners)}

    def inputs(self, model: nn.Module, batch: Batch) -> Batch:
        """Without ``owners``."""
        return {key: value for key, value in super().inputs(model, batch).items() if key != "owners"}

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        """Of pictures and their captions; of several of one picture the first."""
        logits = model(**self.inputs(model, batch))["logits_per_image"]
        first = torch.searchsorted(batch["owners"], torch.arange(len(logits), device=logits.device))
        return contrastive_loss(logits[:, first]), len(logits)

    def predict(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        """The cosine of the picture with each of its captions; and unit features, ``image`` [d] and ``captions`` [m, d], as what is
        closest is known once the whole split is."""
        with predicting(model):
            found = model(**self.inputs(model, batch))
        pictures, texts = found["image_embeds"].float().tolist(), found["text_embeds"].float().tolist()
        cosines = (found["image_embeds"][batch["owners"]] * found["text_embeds"]).sum(1).float().tolist()
        rows: list[Prediction] = [{"prediction": [], "scores": None, "image": picture, "captions": []} for picture in pictures]
        for owner, text, cosine in zip(batch["owners"].tolist(), texts, cosines, strict=True):
            rows[owner]["captions"].append(text)
            rows[owner]["prediction"].append(cosine)
        return rows

    def statistics(self, predictions: Sequence[Prediction], table: Table) -> dict[str, Statistic]:
        """Recall at 1, 5 and 10 from pictures to captions, from captions to pictures, and the mean of both.

        A resample draws pictures as those that ask; what there is to find stays.
        """
        texts, pictures = ranks(predictions)
        found: dict[str, Statistic] = {}
        for k in CLOSEST:
            forth = (texts <= k).astype(np.float64)
            back = np.array([(own <= k).mean() for own in pictures])
            both = {f"recall_at_{k}": (forth + back) / 2, f"image_to_text_at_{k}": forth, f"text_to_image_at_{k}": back}
            found |= {name: partial(_share, values) for name, values in both.items()}
        return found

    def majority(self, train_table: Table, table: Table) -> list[Prediction]:
        """The same feature for everything."""
        return [{"prediction": [1.0] * len(captions), "scores": None, "image": [1.0], "captions": [[1.0]] * len(captions)}
                for captions in column(table, "captions", self.name)]

    def _prepare(self, example: dict[str, Any]) -> Tensor:
        try:
            picture = images.open(example["image"])
        except BadData as error:
            raise BadData(f"row {example['row']}: {error}") from error
        readers = cast(Readers, self.backbone.preprocess)
        return cast(Tensor, readers.images(images=picture, return_tensors="pt")["pixel_values"][0])


def ranks(predictions: Sequence[Prediction]) -> tuple[Array, list[Array]]:
    """The place of each picture's best own caption among all captions [n], and for each picture the places [m] at which its
    captions find it among all pictures; counted from 1, behind all that are as close."""
    pictures = np.array([row["image"] for row in predictions])
    texts = np.array([text for row in predictions for text in row["captions"]])
    owners = np.repeat(np.arange(len(pictures)), [len(row["captions"]) for row in predictions])
    cosines = pictures @ texts.T
    own = owners == np.arange(len(pictures))[:, None]
    best = np.where(own, cosines, -np.inf).max(1, keepdims=True)
    forth = 1.0 + ((cosines >= best) & ~own).sum(1)
    back = (cosines >= cosines[owners, np.arange(len(texts))]).sum(0).astype(np.float64)
    return forth, [back[owners == place] for place in range(len(pictures))]


def _share(values: Array, counts: Counts) -> Array:
    return np.asarray(mean(values, counts))
