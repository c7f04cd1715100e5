"""Small CLIP models whose every weight shows."""
from __future__ import annotations

from typing import Any

import torch
import transformers as T


def make(image_layers: int = 3, text_layers: int = 2, width: int = 32, seed: int = 0, **text: Any) -> Any:
    """Heads of 8, inner width twice the outer; a text ends in token 3."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": width, "num_attention_heads": width // 8, "intermediate_size": 2 * width}
    config = T.CLIPConfig(text_config={**sizes, "num_hidden_layers": text_layers, "vocab_size": 50, "max_position_embeddings": 12,
                                       "eos_token_id": 3, "bos_token_id": 2, "pad_token_id": 0, **text},
                          vision_config={**sizes, "num_hidden_layers": image_layers, "image_size": 16, "patch_size": 8},
                          projection_dim=24)
    model = T.CLIPModel(config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.add_((0.1 if p.dim() < 2 or "norm" in name else 0.5 * p[0].numel() ** -0.5) * torch.randn_like(p))
    return model.eval()


def batch(count: int = 5) -> dict[str, torch.Tensor]:
    """Pictures and texts."""
    source = torch.Generator().manual_seed(4)
    ids = torch.randint(4, 50, (count, 8), generator=source)
    ids[:, -2:] = torch.tensor([3, 0])
    return {"pixel_values": torch.randn(count, 3, 16, 16, generator=source), "input_ids": ids,
            "attention_mask": (ids != 0).long()}


@torch.no_grad()
def features(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit features of the batch."""
    out = model(**batch())
    return out.image_embeds, out.text_embeds

