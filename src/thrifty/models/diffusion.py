"""Pictures out of noise: the loss that a text-to-image U-Net of ``diffusers`` trains on, and drawing with it.

Denoising Diffusion Probabilistic Models (Ho, Jain, Abbeel; NeurIPS 2020, arXiv:2006.11239); Denoising Diffusion Implicit Models
(Song, Meng, Ermon; ICLR 2021, arXiv:2010.02502); Classifier-Free Diffusion Guidance (Ho, Salimans; 2022, arXiv:2207.12598).
"""
from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.errors import BadData, Missing

STEPS = 1000  # of the noise that is added in training


def small_unet(channels: int = 3, side: int = 16, width: int = 16, text: int = 32, seed: int = 0) -> Any:
    """A random U-Net for pictures [channels, side, side] and texts [tokens, text], with cross-attentions at widths w, 2 w, w, w.

    Raises:
        Missing: diffusers is not installed.
    """
    try:
        from diffusers import UNet2DConditionModel
    except ImportError as error:
        raise Missing('a diffusion U-Net needs diffusers: pip install "thrifty[diffusion]"') from error
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return UNet2DConditionModel(
            sample_size=side, in_channels=channels, out_channels=channels, block_out_channels=(width, 2 * width),
            layers_per_block=1, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=text, attention_head_dim=2, norm_num_groups=4)


def kept(device: Any = None) -> Tensor:
    """How much of a picture's variance is left at each step [1000]: products of 1 - beta, where sqrt(beta) rises evenly from
    sqrt(0.00085) to sqrt(0.012)."""
    beta = torch.linspace(0.00085**0.5, 0.012**0.5, STEPS, dtype=torch.float64) ** 2
    return (1 - beta).cumprod(0).float().to(device)


def drop(text: Tensor, image: Tensor, empty: Tensor, generator: torch.Generator | None = None, rate: float = 0.05
         ) -> tuple[Tensor, Tensor]:
    """Take the image (zeros in its place), the text (``empty`` in its place) or both away from a row, each at ``rate``.

    text [batch, tokens, d], image [batch, ...], empty [tokens, d] or [1, tokens, d].
    """
    drawn = torch.rand(len(text), generator=generator).to(text.device)
    no_image = (drawn < rate) | (drawn >= 2 * rate) & (drawn < 3 * rate)
    no_text = (drawn >= rate) & (drawn < 3 * rate)
    image = torch.where(no_image.view(-1, *[1] * (image.dim() - 1)), torch.zeros_like(image), image)
    return torch.where(no_text[:, None, None], empty.expand_as(text), text), image


def noise_loss(unet: Any, pictures: Tensor, text: Tensor, image: Tensor | None = None,
               generator: torch.Generator | None = None) -> Tensor:
    """Mean squared error between the noise mixed into ``pictures`` [batch, C, h, w], at a random step, and the U-Net's guess."""
    steps = torch.randint(STEPS, (len(pictures),), generator=generator).to(pictures.device)
    noise = torch.randn(pictures.shape, generator=generator).to(pictures)
    left = kept(pictures.device)[steps].view(-1, 1, 1, 1).to(pictures.dtype)
    mixed = left.sqrt() * pictures + (1 - left).sqrt() * noise
    return F.mse_loss(_guess(unet, mixed, steps, text, image), noise)


def guide(without: Tensor, within: Tensor, weight: float) -> Tensor:
    """eps_u + w (eps_c - eps_u)."""
    return without + weight * (within - without)


@torch.no_grad()
def draw(unet: Any, noise: Tensor, text: Tensor, image: Tensor | None = None, *, empty: Tensor, nothing: Tensor | None = None,
         steps: int = 30, guidance: float = 7.5) -> Tensor:
    """Pictures [batch, C, h, w] out of ``noise`` of that shape, in ``steps`` deterministic steps (DDIM).

    Each step asks twice: with text and image, and with ``empty`` [batch, tokens, d] and ``nothing``, by default zeros of the
    image's shape (which the adapter projects like any embedding). "plus" wants the hidden states of a picture of zeros instead.

    Raises:
        BadData: there are no steps, or more than were trained on.
    """
    if not 1 <= steps <= STEPS:
        raise BadData(f"pictures are drawn in 1 to {STEPS} steps, not {steps}")
    left = kept(noise.device)
    times = torch.arange(steps - 1, -1, -1, device=noise.device) * (STEPS // steps)
    if image is not None and nothing is None:
        nothing = torch.zeros_like(image)
    x = noise
    for i, t in enumerate(times):
        at = t.expand(len(x))
        eps = guide(_guess(unet, x, at, empty, nothing), _guess(unet, x, at, text, image), guidance)
        clean = (x - (1 - left[t]).sqrt() * eps) / left[t].sqrt()
        then = left[times[i + 1]] if i + 1 < steps else torch.ones_like(left[t])
        x = then.sqrt() * clean + (1 - then).sqrt() * eps
    return x


def _guess(unet: Any, x: Tensor, steps: Tensor, text: Tensor, image: Tensor | None) -> Tensor:
    more = {} if image is None else {"added_cond_kwargs": {"image_embeds": image}}
    guess: Tensor = unet(x, steps, encoder_hidden_states=text, **more).sample
    return guess
