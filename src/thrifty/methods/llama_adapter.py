"""LLaMA-Adapter: Efficient Fine-tuning of Large Language Models with Zero-initialized Attention (Zhang, Han, Liu, Zhou, Lu, Qiao,
Li, Gao; ICLR 2024, arXiv:2303.16199)."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..core import AttentionEdit, Method, Site, need, register
from ..core.errors import NoSuchSite
from ..core.hooks import edits_on
from .branches.operations import Attention, attentions
from .branches.tuners import Place, look_up, project, refer, resolve
from .prompts.sight import Projected, seen_by

if TYPE_CHECKING:
    from ..core import Attachment


@register("gated-prompt")
class GatedPrompt(AttentionEdit):
    """softmax(q k^T / sqrt(d_h)) v + tanh(g_h) softmax(q k_P^T / sqrt(d_h)) v_P for each head h, before W_O.

    k_P = P W_k and v_P = P W_v with the layer's own projections, biases included, and whatever this adapter has put there; every
    query sees all of the prompt, at no position. P [length, d] ~ N(0, 1), g [heads, 1, 1] = 0. With ``sees`` the picture's tokens
    [batch, n, d] are added to P, n being 1 or ``length``; with ``length`` 0 they are the prompt, and text alone has none.
    """

    k: Site
    v: Site

    def __init__(self, site: Site, length: int, heads: int, k: Place, v: Place, sees: bool = False):
        super().__init__(site)
        self.sees = sees
        self.__dict__["k"], self.__dict__["v"] = resolve(k, site), resolve(v, site)  # not children: they belong to the base
        self.prompt = nn.Parameter(torch.randn(length, self.k.din)) if length else None
        self.gate = nn.Parameter(torch.zeros(heads, 1, 1))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v, as they are."""
        return q, k, v

    def attended(self, y: Tensor, q: Tensor, scale: float) -> Tensor:
        """y [batch, heads, tokens, d_h], with the gated answer of the prompt added."""
        prompt: Tensor | None = self.prompt
        seen = seen_by(self, len(q)) if self.sees else None
        if seen is not None:
            prompt = seen if prompt is None else prompt + seen
        if prompt is None:
            return y
        keys, values = (self._through(site, prompt).unflatten(-1, (-1, self.dim)).transpose(-2, -3) for site in (self.k, self.v))
        heads = q.reshape(len(q), len(self.gate), -1, self.dim)  # a single query may come with its groups laid along the tokens
        return y + (torch.tanh(self.gate) * look_up(heads, keys, values, scale)).reshape(y.shape).to(y.dtype)

    def _through(self, site: Site, prompt: Tensor) -> Tensor:
        own = [e for e in edits_on(site.module).values() if e.on and e.context is self.context and e.part == site.part]
        for edit in own:
            prompt = edit(prompt) if edit.port == "input" else prompt
        y = project(site, prompt)
        for edit in own:
            y = edit(y, prompt) if edit.port == "output" else y
        return y


def put_prompts(at: Attachment, found: Iterable[Attention], length: int, sees: bool = False) -> None:
    """A gated prompt in each of these attentions."""
    for attention in found:
        heads = attention.q.dout // attention.whole.heads[1]
        at.put(attention.whole, GatedPrompt, length=length, heads=heads, k=refer(attention.k), v=refer(attention.v), sees=sees)


def stacks_of(at: Attachment, where: str) -> list[list[Attention]]:
    """The self-attentions of the blocks ``where``, lowest first, one list for each stack of blocks.

    Raises:
        NoSuchSite: a block has no attention whose projections can be told apart.
    """
    blocks = at.sites(where)
    found = attentions(at, blocks)
    stacks: dict[str, list[Attention]] = {}
    for block in blocks:
        if block.path not in found:
            raise NoSuchSite(f"{block.path!r} ({type(block.module).__name__}) has no attention with a q, k and v that a prompt "
                             "could be projected by")
        stacks.setdefault(block.stack, []).append(found[block.path])
    return list(stacks.values())


@dataclass
class LLaMAAdapter(Method):
    """Prompts in the top layers that a gate lets in: two softmaxes, one over the text, one over the prompt.

        out = W_o [tanh(g) softmax(S_P), softmax(S_t)] [v_P; v],   S_P = q k_P^T / sqrt(d_h)

    with q as the layer has it (rotated), a prompt of ``length`` vectors for each of the top ``layers`` layers (all of a shallower
    model's), and one gate per head and layer. Gates start at zero, so the model starts as it was, and in the first step the gates
    alone have a gradient. The authors train on answers alone, at 9e-3 for 256 rows and decay 0.02. (Their stand-alone inference
    script leaves the tanh out; that is not offered.)

    With ``features`` > 0 the model also sees: ``image_features`` [batch, features], the global feature of a frozen image encoder,
    are projected to the width of the tokens and added to every vector of every prompt. Text alone stays possible.
    """

    name = "llama-adapter"
    aliases = ("llama-adapter-v1",)
    route = "input and output"
    modalities = ("text", "image")
    paper = ("Zhang et al., LLaMA-Adapter: Efficient Fine-tuning of Large Language Models with Zero-initialized Attention, "
             "ICLR 2024, arXiv:2303.16199")
    trains = "a prompt and a gate per head in each of the top layers"
    inference = "attention over `length` vectors more in those layers"
    rate = 9e-3
    intermittent = True  # a batch of texts without pictures does not reach what projects these

    length: int = 10
    layers: int = 30
    features: int = 0
    where: str = "block"

    def check(self) -> None:
        """Lengths are positive: no layers at all would leave nothing to train."""
        need(self.length >= 1, self, "length", "at least 1")
        need(self.layers >= 1, self, "layers", "at least 1")
        need(self.features >= 0, self, "features", "the width of the pictures' features, or 0 for text alone")

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """The prompts, and at the root what projects pictures.

        Raises:
            NoSuchSite: a block has no attention with q, k and v.
            Unfit: the attention is not computed by scaled_dot_product_attention.
        """
        stacks = stacks_of(at, self.where)
        if self.features:
            at.put(Site("", at.model, "model", seen=at.seen), Projected, features=self.features, width=stacks[0][0].k.din)
        for stack in stacks:
            put_prompts(at, stack[-self.layers:], self.length, bool(self.features))
