"""IP-Adapter: Text Compatible Image Prompt Adapter for Text-to-Image Diffusion Models (Ye, Zhang, Liu, Han, Yang; 2023,
arXiv:2308.06721)."""
from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import AttentionEdit, Edit, Method, Site, need, register
from ..core.errors import DeadEdit, NoSuchSite, Unfit
from .branches.tuners import Place, look_up, refer, resolve
from .prompts.perceiver import Resampler

if TYPE_CHECKING:
    from ..core import Attachment

TOKENS = "image tokens"
CONDITIONS, GIVEN = "added_cond_kwargs", "image_embeds"  # where diffusers' U-Nets take what else they are conditioned on


class Single(nn.Module):
    """T = LN(reshape(W e + b, [N, c])) of one embedding e [batch, C]; one LayerNorm over c serves all N tokens."""

    def __init__(self, features: int, tokens: int, width: int):
        super().__init__()
        self.tokens, self.project, self.norm = tokens, nn.Linear(features, tokens * width), nn.LayerNorm(width)

    def forward(self, e: Tensor) -> Tensor:
        """[batch, C] -> [batch, N, c]."""
        made: Tensor = self.norm(self.project(e).unflatten(-1, (self.tokens, -1)))
        return made


class Every(nn.Module):
    """LN(W_2 gelu(W_1 e + b_1) + b_2) of every token e of a picture: as many tokens as the image encoder gives out."""

    def __init__(self, features: int, width: int):
        super().__init__()
        self.first, self.second, self.norm = nn.Linear(features, features), nn.Linear(features, width), nn.LayerNorm(width)

    def forward(self, e: Tensor) -> Tensor:
        """[batch, tokens, C] -> [batch, tokens, c]."""
        made: Tensor = self.norm(self.second(F.gelu(self.first(e))))
        return made


@register("image-prompt")
class ImageTokens(Edit):
    """At the root: makes tokens [batch, N, width] of ``added_cond_kwargs["image_embeds"]``, and leaves them for the attentions.

    ``kind`` is "single" (an embedding [batch, C], not normalised), "plus" (all hidden states [batch, tokens, C], through a
    perceiver) or "full" (likewise, token by token).
    """

    port = "call"

    def __init__(self, site: Site, kind: str, features: int, tokens: int, width: int):
        super().__init__(site)
        self.features, self.rank = features, 2 if kind == "single" else 3
        self.project: nn.Module
        if kind == "single":
            self.project = Single(features, tokens, width)
        else:
            self.project = Resampler(features, width, tokens) if kind == "plus" else Every(features, width)
        self.names = list(inspect.signature(site.module.forward).parameters)

    def forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """All arguments of the U-Net, as they are.

        Raises:
            DeadEdit: there is no image among them.
            Unfit: what there is has another shape or width.
        """
        given = dict(zip(self.names, args, strict=False)) | kwargs
        e = (given.get(CONDITIONS) or {}).get(GIVEN)
        e = e[0].squeeze(1) if isinstance(e, (list, tuple)) and len(e) == 1 else e  # pipelines hand over one per adapter
        if e is None:
            raise DeadEdit(f"the U-Net was called without an image: pass {CONDITIONS}={{{GIVEN!r}: ...}} (zeros where there is "
                           "none), or disable() the adapter to draw from text alone")
        if not isinstance(e, Tensor) or e.dim() != self.rank or e.shape[-1] != self.features:
            shape = list(e.shape) if isinstance(e, Tensor) else type(e).__name__
            wanted = f"[batch, {self.features}]" if self.rank == 2 else f"[batch, tokens, {self.features}]"
            raise Unfit(f"{GIVEN} must be {wanted}, as the adapter was made for, not {shape}")
        self.context.taps[TOKENS] = self.project(e.to(next(self.parameters()).dtype))
        return args, kwargs


@register("image-attention")
class ImageAttention(AttentionEdit):
    """Attn(q, W_k T, W_v T) + scale * Attn(q, W_k' T_i, W_v' T_i), before W_o: the same q, and a softmax for each.

    W_k', W_v' [c, width], without biases, start as copies of the layer's own, or with ``copy`` false as nn.Linear draws them. The
    mask of the text does not reach the image's tokens T_i [batch, N, width].
    """

    def __init__(self, site: Site, k: Place, v: Place, scale: float, copy: bool):
        super().__init__(site)
        self.scale = scale
        keys, values = resolve(k, site), resolve(v, site)
        self.to_k, self.to_v = (nn.Linear(s.din, s.dout, bias=False) for s in (keys, values))
        if copy:
            with torch.no_grad():
                self.to_k.weight.copy_(keys.weight)
                self.to_v.weight.copy_(values.weight)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v, as they are."""
        return q, k, v

    def attended(self, y: Tensor, q: Tensor, scale: float) -> Tensor:
        """y [batch, heads, places, d_h], with what is attended to in the image.

        Raises:
            DeadEdit: no image tokens were left in this forward pass.
        """
        if TOKENS not in self.context.taps:
            raise DeadEdit(f"the image attention at {self.site.path!r} waits for tokens, and what makes them is off: switch both "
                           "on or off together")
        tokens = self.context.taps[TOKENS]
        keys, values = (layer(tokens).unflatten(-1, (-1, self.dim)).transpose(-2, -3) for layer in (self.to_k, self.to_v))
        return y + self.scale * look_up(q, keys, values, scale).to(y.dtype)


@dataclass
class IPAdapter(Method):
    """A second cross-attention, to tokens of an image, beside every cross-attention of a text-to-image U-Net.

        O = Attn(q, W_k T, W_v T) + scale * Attn(q, W_k' T_i, W_v' T_i),   out = W_o O

    for the U-Nets of ``diffusers``, whose processors stay as they are. The image comes in where they take conditions,
    ``added_cond_kwargs={"image_embeds": e}``, e [batch, ``features``] of a frozen image encoder. ``kind``: "single" projects e to
    ``tokens`` tokens; "plus" reads all hidden states of the encoder through a perceiver (16 tokens in the authors' code, 1280
    features); "full" projects each of them. With ``copy`` W_k' and W_v' start as the layer's own, so the model does not start as
    it was. Train it on the noise, see ``thrifty.models.diffusion``; ``set_scale`` turns the image up or down afterwards, and at 0
    the U-Net is what it was.

    Attach it with ``example=``, a batch of the U-Net's arguments with an image among them.
    """

    name = "ip-adapter"
    presets = {"ip-adapter-plus": {"kind": "plus", "tokens": 16, "features": 1280},
               "ip-adapter-full": {"kind": "full", "features": 1280}}
    route = "add modules"
    modalities = ("image",)
    paper = ("Ye et al., IP-Adapter: Text Compatible Image Prompt Adapter for Text-to-Image Diffusion Models, 2023, "
             "arXiv:2308.06721")
    trains = "keys and values for image tokens in each cross-attention, and what makes those tokens"
    inference = "attention over a few tokens more per cross-attention"
    identity_at_start = False
    rate = 1e-4

    kind: str = "single"
    tokens: int = 4
    features: int = 1024
    scale: float = 1.0
    copy: bool = True

    def check(self) -> None:
        """There are tokens, and the kind is known."""
        need(self.kind in ("single", "plus", "full"), self, "kind", "'single', 'plus' or 'full'")
        need(self.tokens >= 1, self, "tokens", "at least 1")
        need(self.features >= 1, self, "features", "the width of the image encoder's features")

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """The tokens at the root, a second attention at every cross-attention.

        Raises:
            Unfit: the model is no U-Net that draws from text, or no example was given.
        """
        takes = inspect.signature(at.model.forward).parameters
        if not {"sample", "timestep", "encoder_hidden_states", CONDITIONS} <= set(takes):
            raise Unfit(f"{type(at.model).__name__} does not draw pictures from noise and text: IP-Adapter is for the U-Nets of "
                        "diffusers (UNet2DConditionModel)")
        if at.seen.example is None and not at.seen.shapes:
            raise Unfit("heads are only known by running the U-Net: pass example=dict(sample=..., timestep=..., "
                        f"encoder_hidden_states=..., {CONDITIONS}={{{GIVEN!r}: ...}})")
        found = crossings(at)
        at.put(Site("", at.model, "model", seen=at.seen), ImageTokens, kind=self.kind, features=self.features, tokens=self.tokens,
               width=found[0][1].din)
        for whole, k, v in found:
            at.put(whole, ImageAttention, k=refer(k), v=refer(v), scale=self.scale, copy=self.copy)


def crossings(at: Attachment) -> list[tuple[Site, Site, Site]]:
    """Every cross-attention of a U-Net, with the projections of its keys and values.

    Raises:
        Unfit: it has none.
    """
    try:
        wholes, keys, values = (at.sites(role) for role in ("cross", "attn.k", "attn.v"))
    except NoSuchSite:
        raise Unfit(f"this {type(at.model).__name__} has no cross-attention, so nothing in it reads a text") from None
    inside = {s.path.rpartition(".")[0]: s for s in keys}, {s.path.rpartition(".")[0]: s for s in values}
    return [(whole, inside[0][whole.path], inside[1][whole.path]) for whole in wholes]


def set_scale(at: Attachment, scale: float) -> None:
    """Give the image another weight in all cross-attentions: 1 for an image alone, about a half beside a text, 0 for none.

    Raises:
        Unfit: the attachment has no image attention.
    """
    rows = [row for row in at.plan if isinstance(at.edits[row.key], ImageAttention)]
    if not rows:
        raise Unfit(f"{at.name!r} has no image attention whose scale could be set")
    for row in rows:
        row.numbers = {**row.numbers, "scale": scale}
        edit: Any = at.edits[row.key]
        edit.scale = scale
