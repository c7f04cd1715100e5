"""VL-BART and VL-T5: an encoder-decoder for text that reads pictures as further tokens.

Unifying Vision-and-Language Tasks via Text Generation (Cho, Lei, Tan, Bansal; ICML 2021, arXiv:2102.02779), with grid features of
CLIP in the place of a detector's (Sung, Cho, Bansal, VL-Adapter, CVPR 2022, arXiv:2112.06825).
"""
from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.errors import Unfit

SIDE = 6  # a picture is 6 × 6 tokens


def pool_grid(grid: Tensor) -> Tensor:
    """The last feature map of an image encoder [batch, C, height, width] -> tokens [batch, 36, C], by maxima over the grid."""
    return F.adaptive_max_pool2d(grid, SIDE).flatten(2).transpose(1, 2)


class VisualEmbedding(nn.Module):
    """LN(W_f f + b_f) + LN(W_p p + b_p) + e_image + e_object for every token f [C] of a picture, [width].

    p are four coordinates (x1, x2, y1, y2) and the area between them: zeros where there are no boxes, as with grid features.
    e_image [``images``, width] tells the pictures of one text apart; e_object are the last rows of the table of words, from its
    end.
    """

    def __init__(self, width: int, features: int = 2048, images: int = 2):
        super().__init__()
        self.feature, self.feature_norm = nn.Linear(features, width), nn.LayerNorm(width)
        self.position, self.position_norm = nn.Linear(5, width), nn.LayerNorm(width)
        self.order = nn.Embedding(images, width)

    def forward(self, features: Tensor, words: Tensor, boxes: Tensor | None = None) -> Tensor:
        """features [batch, images, tokens, C], words [vocabulary, width], boxes [batch, images, tokens, 4] -> [batch, all, width].

        Raises:
            Unfit: more pictures, or other features, than the embedding was made for.
        """
        count, tokens, wide = features.shape[1:]
        if count > self.order.num_embeddings or wide != self.feature.in_features:
            raise Unfit(f"a text comes with up to {self.order.num_embeddings} pictures whose tokens have "
                        f"{self.feature.in_features} features, not with {count} and {wide}")
        boxes = features.new_zeros(*features.shape[:-1], 4) if boxes is None else boxes
        area = (boxes[..., 1] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 2])
        place = torch.cat([boxes, area[..., None]], -1)
        seen = self.feature_norm(self.feature(features)) + self.position_norm(self.position(place))
        objects = words[len(words) - 1 - torch.arange(tokens, device=words.device)]
        seen = seen + self.order.weight[:count, None] + objects
        return seen.flatten(1, 2)


class VisionLanguage(nn.Module):
    """``language``, a BART or T5 of transformers, whose encoder reads [text ; pictures].

    The encoder treats both alike from there on. BART's positions are given to the text alone; T5's relative positions go on through
    the pictures. Without pictures it is the language model.
    """

    main_input_name = "input_ids"

    def __init__(self, language: Any, features: int = 2048, images: int = 2):
        super().__init__()
        if not getattr(language.config, "is_encoder_decoder", False):
            raise Unfit(f"{type(language).__name__} is no encoder-decoder that could read pictures before it writes: take a "
                        "BART or T5")
        self.language, self.config = language, language.config
        self.visual_embedding = VisualEmbedding(language.config.d_model, features, images)

    def read(self, input_ids: Tensor, attention_mask: Tensor | None, image_features: Tensor | None,
             boxes: Tensor | None) -> dict[str, Tensor | None]:
        """What the language model's encoder takes for a text [batch, tokens] and its pictures ([batch, images,] tokens, C]."""
        if image_features is None:
            return {"input_ids": input_ids, "attention_mask": attention_mask}
        if image_features.dim() == 3:
            image_features, boxes = image_features[:, None], None if boxes is None else boxes[:, None]
        table = self.language.get_input_embeddings()
        text = table(input_ids)
        seen = self.visual_embedding(image_features, table.weight, boxes)
        positions = getattr(self.language.get_encoder(), "embed_positions", None)
        if positions is not None:  # which the encoder adds to all that it reads
            where = text.shape[1] + torch.arange(seen.shape[1], device=text.device) + getattr(positions, "offset", 0)
            seen = seen - F.embedding(where, positions.weight)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return {"inputs_embeds": torch.cat([text, seen.to(text.dtype)], 1),
                "attention_mask": F.pad(mask, (0, seen.shape[1]), value=1)}

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, image_features: Tensor | None = None,
                boxes: Tensor | None = None, **rest: Any) -> Any:
        """What the language model answers; ``rest`` are its other arguments, such as ``labels`` or ``decoder_input_ids``."""
        return self.language(**self.read(input_ids, attention_mask, image_features, boxes), **rest)

    def generate(self, input_ids: Tensor, attention_mask: Tensor | None = None, image_features: Tensor | None = None,
                 boxes: Tensor | None = None, **rest: Any) -> Tensor:
        """Token ids that the language model writes; ``rest`` are options of its own ``generate``."""
        ids: Tensor = self.language.generate(**self.read(input_ids, attention_mask, image_features, boxes), **rest)
        return ids
