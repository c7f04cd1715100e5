"""Prompt tuning: The Power of Scale for Parameter-Efficient Prompt Tuning (Lester, Al-Rfou, Constant; EMNLP 2021,
arXiv:2104.08691)."""
from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Edit, Method, Site, need, register
from ..core.errors import NoSuchSite, Unfit
from ..core.site import at_path

if TYPE_CHECKING:
    from ..core import Attachment

COMMON = 5000  # rows of the vocabulary that a prompt may start from: the most frequent come first


@register("prompt")
class Prompt(Edit):
    """Embeddings [P; E(ids)], P [length, d], and everything that runs along the tokens made as long.

    The site is the module that turns token ids into states. When it continues a cache, the prompt is in there already: then
    only the mask and the positions are moved. ``limit`` is the number of positions the model has, 0 if they are relative.
    """

    port = "call"

    def __init__(self, site: Site, length: int, init: str, labels: list[list[int]] | None = None, limit: int = 0):
        super().__init__(site)
        module: Any = site.module
        self.names, self.limit = list(inspect.signature(module.forward).parameters), limit
        self.prompt = nn.Parameter(_start(module.get_input_embeddings().weight, length, init, labels or []))

    def forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """All arguments of the site -> the same with the prompt.

        Raises:
            Unfit: prompt and text together are longer than the model's table of positions, or the mask is not [batch, tokens].
        """
        given = dict(zip(self.names, args, strict=False)) | kwargs
        count = len(self.prompt)
        if (mask := given.get("attention_mask")) is not None:
            if not isinstance(mask, Tensor) or mask.dim() != 2:
                raise Unfit("prompt tuning takes an attention_mask of shape [batch, tokens]; a prepared mask (of a static "
                            "cache, say) cannot be widened")
            given["attention_mask"] = F.pad(mask, (count, 0), value=1)
        past = given.get("past_key_values")
        goes_on = past is not None and past.get_seq_length() > 0
        self.context.taps["prompt"] = 0 if goes_on else count
        for name in ("position_ids", "cache_position"):
            if (where := given.get(name)) is not None:
                given[name] = where + count if goes_on else torch.cat([_upto(count, where), where + count], -1)
        if goes_on:
            return (), given
        if given.get("inputs_embeds") is None:
            module: Any = self.site.module
            given["inputs_embeds"] = module.get_input_embeddings()(given.pop("input_ids"))
        embeds = given["inputs_embeds"]
        if self.limit and embeds.shape[1] + count > self.limit:
            raise Unfit(f"{embeds.shape[1]} tokens and a prompt of {count} are more than the {self.limit} positions that "
                        f"{type(self.site.module).__name__} knows: shorten the text or the prompt")
        given["inputs_embeds"] = torch.cat([self.prompt.to(embeds.dtype).expand(len(embeds), -1, -1), embeds], 1)
        if given.get("token_type_ids") is not None:
            given["token_type_ids"] = F.pad(given["token_type_ids"], (count, 0))
        return (), given


@register("prompt-off")
class PromptOff(Edit):
    """Takes the prompt's positions off the states [batch, P + tokens, d]: after the site, or before a pooler inside it."""

    def __init__(self, site: Site, port: str):
        super().__init__(site)
        self.port = port

    def forward(self, t: Tensor, x: Any = None) -> Tensor:
        """[batch, P + tokens, d] -> [batch, tokens, d]."""
        return t[:, self.context.taps["prompt"]:]


@register("prompt-seen")
class PromptSeen(Edit):
    """Widens the mask with which a decoder looks at the encoder's states, the prompt's among them."""

    port = "call"

    def __init__(self, site: Site, length: int):
        super().__init__(site)
        module: Any = site.module
        self.names, self.length = list(inspect.signature(module.forward).parameters), length

    def forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """All arguments of the decoder -> the same with ``length`` ones in front of ``encoder_attention_mask``."""
        given = dict(zip(self.names, args, strict=False)) | kwargs
        if (mask := given.get("encoder_attention_mask")) is not None:
            given["encoder_attention_mask"] = F.pad(mask, (self.length, 0), value=1)
        return (), given


@dataclass
class PromptTuning(Method):
    """Learned vectors in front of the embedded text; in an encoder-decoder in front of the encoder's.

    Outside, nothing is longer: the prompt's own states are taken off again before a head, a pooler or a loss sees them, so
    labels, logits and pooling by position mean what they meant. (The decoder of an encoder-decoder attends to them.) The
    text's positions move by ``length`` in models with absolute or rotary positions.

    ``init``: "vocab" (rows of the 5,000 most common tokens, none twice), "uniform" (on [0, 0.5)), or "labels": the
    embeddings of the class labels, given as token ids in ``labels`` (those of one label are averaged), then "vocab".
    The paper's length is 100; it reports little gain above 20.
    """

    name = "prompt"
    aliases = ("prompt-tuning",)
    route = "input and output"
    modalities = ("text",)
    paper = "Lester et al., The Power of Scale for Parameter-Efficient Prompt Tuning, EMNLP 2021, arXiv:2104.08691"
    trains = "vectors in front of the embedded text"
    inference = "`length` tokens more"
    Edit = Prompt
    identity_at_start = False
    rate = 0.3

    length: int = 20
    init: str = "vocab"
    labels: list[list[int]] = field(default_factory=list)

    def check(self) -> None:
        """Labels are given if, and only if, the prompt starts from them."""
        need(self.length >= 1, self, "length", "at least 1")
        need(self.init in ("vocab", "uniform", "labels"), self, "init", "'vocab', 'uniform' or 'labels'")
        need(bool(self.labels) == (self.init == "labels"), self, "labels",
             "the token ids of each label with init='labels', and empty otherwise")
        need(all(self.labels) and len(self.labels) <= self.length, self, "labels", "at most `length` lists, none empty")

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """The prompt where ids become states, and what keeps it from showing outside.

        Raises:
            Unfit: the model has no token embeddings that it would take vectors for, or too few positions.
        """
        stack, decoder = _stacks(at)
        limit = _positions(at, stack)
        if limit and self.length >= limit:
            raise Unfit(f"a prompt of {self.length} leaves no room in the {limit} positions of {type(at.model).__name__}")
        numbers: dict[str, Any] = {"length": self.length, "init": self.init, "limit": limit}
        at.put(stack, Prompt, **numbers, **({"labels": self.labels} if self.labels else {}))
        if decoder is not None:
            at.put(decoder, PromptSeen, length=self.length)
            return
        for name, _ in stack.module.named_children():
            if name == "pooler":
                at.put(_site(at, f"{stack.path}.{name}".lstrip(".")), PromptOff, port="input")
        at.put(stack, PromptOff, port="output")


def _start(table: Tensor, length: int, init: str, labels: list[list[int]]) -> Tensor:
    """The prompt's first values [length, d]."""
    table = table.detach()
    if init == "uniform":
        return 0.5 * torch.rand(length, table.shape[1])
    rows = [table[torch.tensor(ids, device=table.device)].mean(0) for ids in labels]
    most = min(COMMON, len(table))
    if length - len(rows) > most:
        raise Unfit(f"a vocabulary of {len(table)} has no {length} different rows to start a prompt from: use init='uniform'")
    drawn = table[torch.randperm(most)[: length - len(rows)].to(table.device)]
    return torch.cat([torch.stack(rows), drawn]) if rows else drawn.clone()


def _stacks(at: Attachment) -> tuple[Site, Site | None]:
    """Where token ids become states, and the decoder that looks at them, if there is one."""
    owner: Any = next((m for m in at.model.modules() if callable(getattr(m, "get_input_embeddings", None))), None)
    if owner is None:
        raise Unfit(f"{type(at.model).__name__} has no get_input_embeddings(), so there is no text to put a prompt in front of")
    base = getattr(owner, "base_model", owner)
    decoder = None
    if _crosses(at) and base.get_encoder() is not base:
        base, decoder = base.get_encoder(), base.get_decoder()
    takes = inspect.signature(base.forward).parameters
    if "inputs_embeds" not in takes or "pixel_values" in takes:
        raise Unfit(f"{type(base).__name__} does not take embedded text alone, as prompt tuning needs; images have VPT")
    paths = {id(m): p for p, m in at.model.named_modules()}
    return _site(at, paths[id(base)]), None if decoder is None else _site(at, paths[id(decoder)])


def _site(at: Attachment, path: str) -> Site:
    return at_path(at.model, path, "model", None, -1, "", at.seen)


def _crosses(at: Attachment) -> bool:
    try:
        return bool(at.sites("cross"))
    except NoSuchSite:
        return False


def _positions(at: Attachment, stack: Site) -> int:
    """How many positions the stack has a vector for; 0 if it has no table of them."""
    try:
        tables = [s.module for s in at.sites("position") if s.path.startswith(stack.path)]
    except NoSuchSite:
        return 0
    sizes = [t.num_embeddings - getattr(t, "offset", 0 if t.padding_idx is None else t.padding_idx + 1)
             for t in tables if isinstance(t, nn.Embedding)]
    return min(sizes, default=0)


def _upto(count: int, like: Tensor) -> Tensor:
    """0 .. count - 1, in the shape that the leading dimensions of ``like`` ask for."""
    return torch.arange(count, device=like.device, dtype=like.dtype).expand(*like.shape[:-1], count)
