"""Two pretrained encoders joined by projections: X. Zhai, X. Wang, B. Mustafa, A. Steiner, D. Keysers, A. Kolesnikov, L. Beyer,
"LiT: Zero-Shot Transfer with Locked-image text Tuning", CVPR 2022, arXiv:2111.07991.

Any image encoder and any text encoder of transformers, as a model like CLIP. Its folder holds what such folders hold, with a
``config.json`` that no class of transformers reads.
"""
from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

KIND = "two-tower"
SCALE = 1 / 0.07    # of cosines, where CLIP begins
_ANSWERS = ("id2label", "label2id", "architectures", "transformers_version", "_name_or_path")  # of what the parts were before


class JoinedConfig:
    """The configurations of both encoders, how many numbers the first pools a picture to, and the size of the space they share."""

    model_type = KIND
    architectures = ("TwoTower",)

    def __init__(self, vision_config: Any, text_config: Any, pooled_dim: int, projection_dim: int) -> None:
        self.vision_config, self.text_config = vision_config, text_config
        self.pooled_dim, self.projection_dim = pooled_dim, projection_dim
        self.id2label: dict[int, str] = {}
        self.label2id: dict[str, int] = {}

    def to_dict(self) -> dict[str, Any]:
        """As ``config.json`` holds it."""
        parts = {name: {key: value for key, value in config.to_dict().items() if key not in _ANSWERS}
                 for name, config in (("vision_config", self.vision_config), ("text_config", self.text_config))}
        return {"model_type": KIND, "architectures": list(self.architectures), "pooled_dim": self.pooled_dim,
                "projection_dim": self.projection_dim, **parts}


class TwoTower(nn.Module):
    """f = W_image pool(picture), t = W_text mean over tokens, and exp(``logit_scale``) cos(f, t).

    Of a picture the encoder's own pooling is read: the mean over places of a convolutional one, the first token of a transformer.
    """

    main_input_name = "pixel_values"
    base_model_prefix = ""

    def __init__(self, vision_model: Any, text_model: Any, pooled_dim: int, projection_dim: int) -> None:
        super().__init__()
        self.vision_model, self.text_model = vision_model, text_model
        if hasattr(text_model, "pooler"):
            text_model.pooler = None  # the mean is read
        self.visual_projection = nn.Linear(pooled_dim, projection_dim, bias=False)
        self.text_projection = nn.Linear(text_model.config.hidden_size, projection_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(SCALE)))
        self.config = JoinedConfig(vision_model.config, text_model.config, pooled_dim, projection_dim)

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """Pictures [B, C, H, W] and texts [M, T] -> ``logits_per_image`` [B, M], and unit ``image_embeds``, ``text_embeds``."""
        image, text = self.image_features(pixel_values), self.text_features(attention_mask, input_ids=input_ids)
        image, text = (one / one.norm(dim=-1, keepdim=True) for one in (image, text))
        return {"logits_per_image": self.logit_scale.exp() * image @ text.T, "image_embeds": image, "text_embeds": text}

    def image_features(self, pixel_values: Tensor) -> Tensor:
        """f [B, d], of any length."""
        return self.visual_projection(self.vision_model(pixel_values).pooler_output.flatten(1))

    def text_features(self, attention_mask: Tensor, **given: Tensor) -> Tensor:
        """t [n, d], of any length; ``given`` are ``input_ids`` [n, T], or ``inputs_embeds`` [n, T, width]."""
        states = self.text_model(attention_mask=attention_mask, **given).last_hidden_state
        return self.text_projection(mean_of(states, attention_mask))

    def gradient_checkpointing_enable(self, **settings: Any) -> None:
        """Trade compute for memory, in those towers that can."""
        for tower in (self.vision_model, self.text_model):
            if tower.supports_gradient_checkpointing:
                tower.gradient_checkpointing_enable(**settings)

    def save_pretrained(self, folder: str | Path) -> None:
        """``config.json`` and ``model.safetensors``."""
        from safetensors.torch import save

        from thrifty.train.files import write_bytes, write_json

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "config.json", self.config.to_dict())
        write_bytes(folder / "model.safetensors", save({name: t.contiguous() for name, t in self.state_dict().items()}))


def mean_of(states: Tensor, mask: Tensor) -> Tensor:
    """The mean over tokens that are not padding: states [n, T, width], mask [n, T] -> [n, width]."""
    weights = mask.to(states.dtype)[..., None]
    return (states * weights).sum(1) / weights.sum(1)


def configuration(folder: Path) -> JoinedConfig | None:
    """The configuration in ``folder`` if it is of two joined encoders, else None.

    Raises:
        KeyError: it lacks something; ValueError: transformers does not know a part.
    """
    from transformers import AutoConfig

    try:
        said = json.loads((folder / "config.json").read_bytes())
    except ValueError:  # which transformers says better
        return None
    if not isinstance(said, dict) or said.get("model_type") != KIND:
        return None
    vision, text = (AutoConfig.for_model(**said[name]) for name in ("vision_config", "text_config"))
    return JoinedConfig(vision, text, said["pooled_dim"], said["projection_dim"])


def read(folder: Path, config: JoinedConfig, dtype: torch.dtype) -> tuple[TwoTower, dict[str, Any]]:
    """The model in ``folder``, and which tensors are missing or of another shape, as transformers reports them."""
    from transformers import AutoModel

    from thrifty.models.ragged import fill

    vision, text = (from_config(AutoModel, part) for part in (config.vision_config, config.text_config))
    model = TwoTower(vision, text, config.pooled_dim, config.projection_dim).to(dtype)
    model.config.id2label, model.config.label2id = config.id2label, config.label2id
    return model, fill(model, folder)


def from_config(auto: Any, config: Any) -> Any:
    """An encoder that computes attention through SDPA, which edits need, where it has any."""
    try:
        return auto.from_config(copy.deepcopy(config), attn_implementation="sdpa")  # which it writes down
    except ValueError as error:
        if "scaled_dot_product_attention" not in str(error):
            raise
        return auto.from_config(config)
