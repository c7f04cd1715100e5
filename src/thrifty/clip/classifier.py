"""An image-text model as a classifier of pictures by the names of their classes."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from thrifty.clip.keeping import Keeping
from thrifty.clip.texts import Reader, Texts
from thrifty.clip.towers import Towers, towers


class Place(nn.Module):
    """Gives back what it is given: a place with a name, where methods change what passes."""

    texts: Texts

    def forward(self, x: Tensor) -> Tensor:
        """x as it is."""
        return x


class TextTower(nn.Module):
    """Sentences of vectors -> their features. The modules belong to the model; here they have one place with a name."""

    texts: Texts

    def __init__(self, towers: Towers) -> None:
        super().__init__()
        self.towers = towers

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        """x [G, P, K, T, width] without positions, ends [G or 1, P, K] -> projected features [G, P, K, d].

        G is 1 where all pictures share the sentences, and the number of pictures where each has its own.
        """
        ends = ends.expand(x.shape[:-2])
        return self.towers.encode_text(x.flatten(0, -3), ends.flatten()).unflatten(0, x.shape[:-2])

    def embed(self, ids: Tensor) -> Tensor:
        """Token numbers [...] on any device -> the model's own vectors [..., width]."""
        embedding: Any = self.towers.embedding
        return embedding(ids.to(embedding.weight.device))


class Scores(nn.Module):
    """s cos(image, class) + b, from unit features, with the scale s and shift b that the model was trained with."""

    texts: Texts

    def __init__(self, towers: Towers) -> None:
        super().__init__()
        self.towers = towers

    def cosines(self, image: Tensor, classes: Tensor) -> Tensor:
        """image [B, d], classes [K, d], or [B, K, d] where each picture has its own -> [B, K]."""
        return image @ classes.T if classes.dim() == 2 else torch.einsum("bd,bkd->bk", image, classes)

    def forward(self, image: Tensor, classes: Tensor) -> Tensor:
        """The same two -> logits [B, K]."""
        logits, shift = self.towers.scale() * self.cosines(image, classes), self.towers.shift()
        return logits if shift is None else logits + shift


class ImageTextModel(nn.Module):
    """logits = s cos(f, t_k): f the picture's feature, t_k that of the sentence about class k (Radford et al., ICML 2021).

    With several templates t_k is the mean over them of unit features; with one it is the feature itself. Either has its length
    taken away before the cosine. The model stands under its family's prefix ("clip"); beside it are places where methods act:

    ===========  ==============================================================================================
    ``image``    f [B, d], projected, of any length
    ``text``     sentences [1, P, K, T, width] of vectors and the place that stands for each -> their features
    ``classes``  t [K, d] (or [B, K, d]) over templates, of any length
    ``scores``   unit f and unit t -> logits [B, K]
    ===========  ==============================================================================================

    Class features are computed once where nothing that trains or depends on the picture takes part in them.
    """

    main_input_name = "pixel_values"

    def __init__(self, trunk: nn.Module, tokenizer: Any, labels: Sequence[str], templates: Any = None) -> None:
        super().__init__()
        self.towers = towers(trunk)
        self.reader = Reader(tokenizer)
        self.base_model_prefix = self.towers.prefix
        self.add_module(self.towers.prefix, trunk)
        self.image, self.text, self.classes, self.scores = Place(), TextTower(self.towers), Place(), Scores(self.towers)
        self.keeping = Keeping()
        if (config := getattr(trunk, "config", None)) is not None:
            self.config = config.vision_config  # of what goes in
        self.classify(labels, templates)

    @property
    def texts(self) -> Texts:
        """What the model knows of its classes."""
        return self.text.texts

    def classify(self, labels: Sequence[str], templates: Any = None) -> None:
        """From now on tell these classes apart. What was trained on other ones stays as it is, where it can serve these.

        Raises:
            BadData: names that read alike, or that are longer than the text tower reads. NoSuchSetting: see ``resolve``.
        """
        texts = Texts(self.reader, labels, templates, self.towers.context, self.towers.trims)
        self.text.texts = self.classes.texts = self.scores.texts = texts

    def path(self, within: str) -> str:
        """The path, in this module, of what the towers call ``within``."""
        return f"{self.towers.prefix}.{within}"

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """Pictures [B, C, H, W] -> ``logits`` [B, K], and unit features ``image_embeds`` [B, d] and ``text_embeds`` [K, d]."""
        image = unit(self.image_features(pixel_values))
        classes = unit(self.classes(self.class_features()))
        return {"logits": self.scores(image, classes), "image_embeds": image, "text_embeds": classes}

    def image_features(self, pixel_values: Tensor) -> Tensor:
        """f [B, d], of any length."""
        return self.image(self.towers.encode_image(pixel_values))

    def class_features(self) -> Tensor:
        """t [K, d], or [B, K, d] where each picture has its own; of any length, and before anything acts on ``classes``."""
        return self.keeping.get(self, self._encode)

    @torch.no_grad()
    def sentence_features(self, templates: Any) -> Tensor:
        """Features [P, K, d], of any length, of the classes in other templates; see ``resolve``."""
        texts = Texts(self.reader, self.texts.labels, templates, self.towers.context, self.towers.trims)
        both = zip(texts.ids, texts.ends, strict=True)
        rows = [self.text(self.text.embed(ids)[None, None], ends[None, None]) for ids, ends in both]
        return torch.cat(rows, 1)[0]

    def gradient_checkpointing_enable(self, **settings: Any) -> None:
        """Trade compute for memory inside the towers, as `transformers` does."""
        trunk: Any = self.towers.trunk
        trunk.gradient_checkpointing_enable(**settings)

    def _encode(self) -> Tensor:
        ends = self.texts.ends.to(next(self.parameters()).device)
        found = self.text(self.text.embed(self.texts.ids)[None], ends[None])
        found = found[:, 0] if found.shape[1] == 1 else unit(found).mean(1)
        return found[0] if len(found) == 1 else found


def unit(x: Tensor) -> Tensor:
    """x [..., d] with the length taken away."""
    return x / x.norm(dim=-1, keepdim=True)
