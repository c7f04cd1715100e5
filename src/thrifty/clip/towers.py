"""The two towers of an image-text model, one class for each family: how to enter the text tower with vectors instead of tokens,
where its prompts go, and where the picture's tokens begin.

Families: transformers' CLIP and SigLIP, and open_clip's CLIP (G. Ilharco et al., OpenCLIP, 2021).
"""
from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from thrifty.core.errors import Unfit


class Towers(ABC):
    """What all families can be asked.

    Attributes:
        prefix: the name under which a classifier keeps the model. trims: whether nothing behind a
            sentence is looked at, so that padding may stop at the longest.
        text_blocks, image_blocks: paths of the two stacks. image_entry: path of the module that takes in the picture's tokens,
            class token and positions included; empty where a picture is no row of tokens.
        text_width, image_width: of the states; width: of the features. context: tokens that the text tower reads.
    """

    prefix: str
    trims: bool
    text_blocks: str
    image_blocks: str
    image_entry: str
    text_width: int
    image_width: int
    width: int
    context: int

    def __init__(self, trunk: Any) -> None:
        self.trunk = trunk

    @property
    @abstractmethod
    def embedding(self) -> nn.Module:
        """Token numbers -> vectors."""

    @abstractmethod
    def text_modules(self) -> list[nn.Module]:
        """The modules that the text tower consists of."""

    @abstractmethod
    def encode_image(self, pixels: Tensor) -> Tensor:
        """Pictures [B, C, H, W] -> projected features [B, d], of any length."""

    @abstractmethod
    def encode_text(self, x: Tensor, ends: Tensor) -> Tensor:
        """Vectors [n, T, width] without positions, and the place [n] that stands for each -> projected features [n, d]."""

    def scale(self) -> Tensor:
        """What cosines are multiplied by."""
        return self.trunk.logit_scale.exp()

    def shift(self) -> Tensor | None:
        """What is added then, where the family has it."""
        return getattr(self.trunk, "logit_bias", None)

    def text_tensors(self) -> Iterator[nn.Parameter]:
        """What class features depend on."""
        for module in self.text_modules():
            yield from module.parameters()


class CLIPTowers(Towers):
    """CLIPModel of transformers."""

    prefix, trims = "clip", True
    text_blocks, image_blocks = "text_model.encoder.layers", "vision_model.encoder.layers"
    image_entry = "vision_model.pre_layrnorm"

    def __init__(self, trunk: Any) -> None:
        super().__init__(trunk)
        text, image = trunk.config.text_config, trunk.config.vision_config
        self.text_width, self.image_width, self.context = text.hidden_size, image.hidden_size, text.max_position_embeddings
        self.width = trunk.projection_dim

    @property
    def embedding(self) -> nn.Module:
        return self.trunk.text_model.embeddings.token_embedding

    def text_modules(self) -> list[nn.Module]:
        return [self.trunk.text_model, self.trunk.text_projection]

    def encode_image(self, pixels: Tensor) -> Tensor:
        return self.trunk.get_image_features(pixel_values=pixels).pooler_output

    def encode_text(self, x: Tensor, ends: Tensor) -> Tensor:
        from transformers.masking_utils import create_causal_mask

        tower = self.trunk.text_model
        h = tower.embeddings(inputs_embeds=x)
        mask = create_causal_mask(config=tower.config, inputs_embeds=h, attention_mask=None, past_key_values=None)
        # The mask may be None, and causality then lies in the keyword alone: without it the tower would look ahead.
        h = tower.encoder(inputs_embeds=h, attention_mask=mask, is_causal=True).last_hidden_state
        h = tower.final_layer_norm(h)
        return self.trunk.text_projection(h[torch.arange(len(h), device=h.device), ends])


class SiglipTowers(Towers):
    """SiglipModel of transformers: text attends both ways over all positions, and its last one stands for it."""

    prefix, trims = "siglip", False
    text_blocks, image_blocks = "text_model.encoder.layers", "vision_model.encoder.layers"
    image_entry = "vision_model.encoder.layers.0"

    def __init__(self, trunk: Any) -> None:
        super().__init__(trunk)
        text, image = trunk.config.text_config, trunk.config.vision_config
        self.text_width, self.image_width, self.context = text.hidden_size, image.hidden_size, text.max_position_embeddings
        self.width = image.hidden_size

    @property
    def embedding(self) -> nn.Module:
        return self.trunk.text_model.embeddings.token_embedding

    def text_modules(self) -> list[nn.Module]:
        return [self.trunk.text_model]

    def encode_image(self, pixels: Tensor) -> Tensor:
        return self.trunk.get_image_features(pixel_values=pixels).pooler_output

    def encode_text(self, x: Tensor, ends: Tensor) -> Tensor:
        tower = self.trunk.text_model
        h = tower.encoder(inputs_embeds=tower.embeddings(inputs_embeds=x), attention_mask=None).last_hidden_state
        h = tower.final_layer_norm(h)
        return tower.head(h[torch.arange(len(h), device=h.device), ends])


class JoinedTowers(Towers):
    """`thrifty.models.two_tower.TwoTower`: text attends both ways over its own tokens, and their mean stands for it."""

    prefix, trims = "pair", True

    def __init__(self, trunk: Any) -> None:
        super().__init__(trunk)
        text, image = trunk.config.text_config, trunk.config.vision_config
        self.text_blocks, self.image_blocks = f"text_model.{stack(trunk.text_model)}", f"vision_model.{stack(trunk.vision_model)}"
        tokens = hasattr(image, "num_attention_heads")
        self.image_entry = f"{self.image_blocks}.0" if tokens else ""
        self.text_width, self.image_width = text.hidden_size, image.hidden_size if tokens else 0
        self.width, self.context = trunk.config.projection_dim, text.max_position_embeddings

    @property
    def embedding(self) -> nn.Module:
        return self.trunk.text_model.get_input_embeddings()

    def text_modules(self) -> list[nn.Module]:
        return [self.trunk.text_model, self.trunk.text_projection]

    def encode_image(self, pixels: Tensor) -> Tensor:
        return self.trunk.image_features(pixels)

    def encode_text(self, x: Tensor, ends: Tensor) -> Tensor:
        mask = torch.arange(x.shape[1], device=x.device) <= ends[:, None]
        return self.trunk.text_features(mask.long(), inputs_embeds=x)


class OpenCLIPTowers(Towers):
    """CLIP of open_clip with a vision transformer, batch first."""

    prefix, trims = "clip", True
    text_blocks, image_blocks, image_entry = "transformer.resblocks", "visual.transformer.resblocks", "visual.ln_pre"

    def __init__(self, trunk: Any) -> None:
        super().__init__(trunk)
        if not hasattr(trunk.visual, "ln_pre") or trunk.text_pool_type not in ("argmax", "eos"):
            raise Unfit(f"open_clip's CLIP with {type(trunk.visual).__name__} and text pooled by {trunk.text_pool_type!r} is not "
                        "known here: it needs a vision transformer, and text that ends in an end token")
        self.text_width, self.context = trunk.token_embedding.embedding_dim, trunk.context_length
        self.image_width, self.width = trunk.visual.class_embedding.shape[-1], trunk.visual.output_dim

    @property
    def embedding(self) -> nn.Module:
        return self.trunk.token_embedding

    def text_modules(self) -> list[nn.Module]:
        projection = self.trunk.text_projection
        modules = [self.trunk.token_embedding, self.trunk.transformer, self.trunk.ln_final]
        return modules + ([projection] if isinstance(projection, nn.Module) else [])

    def text_tensors(self) -> Iterator[nn.Parameter]:
        yield from super().text_tensors()
        yield from (p for p in (self.trunk.positional_embedding, self.trunk.text_projection) if isinstance(p, nn.Parameter))

    def encode_image(self, pixels: Tensor) -> Tensor:
        return self.trunk.encode_image(pixels)

    def encode_text(self, x: Tensor, ends: Tensor) -> Tensor:
        trunk, length = self.trunk, x.shape[1]
        mask = trunk.attn_mask[:length, :length].to(x.dtype)
        h = trunk.ln_final(trunk.transformer(x + trunk.positional_embedding[:length].to(x.dtype), attn_mask=mask))
        h, projection = h[torch.arange(len(h), device=h.device), ends], trunk.text_projection
        return projection(h) if isinstance(projection, nn.Module) else h if projection is None else h @ projection


FAMILIES: dict[tuple[str, str], type[Towers]] = {
    ("transformers", "CLIPModel"): CLIPTowers, ("transformers", "SiglipModel"): SiglipTowers, ("open_clip", "CLIP"): OpenCLIPTowers,
    ("thrifty", "TwoTower"): JoinedTowers,
}


def stack(tower: nn.Module) -> str:
    """The path of a tower's blocks: of its lists of modules the longest."""
    return max(((len(m), path) for path, m in tower.named_modules() if isinstance(m, nn.ModuleList)), default=(0, ""))[1]


def towers(trunk: nn.Module) -> Towers:
    """The towers of an image-text model.

    Raises:
        Unfit: it is of no family that is known here.
    """
    for kind in type(trunk).__mro__:
        if found := FAMILIES.get((kind.__module__.partition(".")[0], kind.__name__)):
            return found(trunk)
    known = ", ".join(f"{module}'s {kind}" for module, kind in FAMILIES)
    raise Unfit(f"{type(trunk).__name__} is no image-text model that is known here: they are {known}")
