"""Vectors among the embedded tokens of a text: what puts them there, and what keeps them from showing outside.

The soft prompt of Lester, Al-Rfou, Constant, The Power of Scale for Parameter-Efficient Prompt Tuning, EMNLP 2021,
arXiv:2104.08691, and all that grew from it.
"""
from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ...core import Edit, Site, register
from ...core.errors import NoSuchSite, Unfit
from ...core.site import at_path
from .layout import Layout, Template, kept, layout

if TYPE_CHECKING:
    from ...core import Attachment


class Widening(Edit):
    """``count`` vectors among the embedded tokens [batch, tokens, d], and everything that runs along the tokens made as long.

    They stand in front, or where ``template`` says. The site is the module that turns token ids into states. When it
    continues a cache, the vectors are in there already: then only the mask and the positions are moved. ``limit`` is the
    number of positions the model has, 0 if they are relative. Subclasses say what the ``vectors`` are.
    """

    port = "call"

    def __init__(self, site: Site, count: int, limit: int, template: Template | None = None):
        super().__init__(site)
        module: Any = site.module
        self.names = list(inspect.signature(module.forward).parameters)
        self.count, self.limit, self.template = count, limit, template or []

    def vectors(self, embeds: Tensor, mask: Tensor | None) -> Tensor:
        """[count, d], or [batch, count, d] if they depend on the text: its embeddings, and its mask [batch, tokens]."""
        raise NotImplementedError

    def forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """All arguments of the site -> the same with the vectors.

        Raises:
            Unfit: vectors and text together are longer than the model's table of positions, the mask is not [batch,
                tokens], or a row lacks a place that the template names.
        """
        given = dict(zip(self.names, args, strict=False)) | kwargs
        mask, past = given.get("attention_mask"), given.get("past_key_values")
        if mask is not None and (not isinstance(mask, Tensor) or mask.dim() != 2):
            raise Unfit("prompt tuning takes an attention_mask of shape [batch, tokens]; a prepared mask (of a static cache, "
                        "say) cannot be widened")
        if past is not None and past.get_seq_length() > 0:
            self._go_on(given, mask)
            return (), given
        if given.get("inputs_embeds") is None:
            module: Any = self.site.module
            given["inputs_embeds"] = module.get_input_embeddings()(given.pop("input_ids"))
        embeds = given["inputs_embeds"]
        if self.limit and embeds.shape[1] + self.count > self.limit:
            raise Unfit(f"{embeds.shape[1]} tokens and a prompt of {self.count} are more than the {self.limit} positions that "
                        f"{type(self.site.module).__name__} knows: shorten the text or the prompt")
        where = layout(self.count, self.template, embeds.new_ones(embeds.shape[:2]) if mask is None else mask)
        self.context.taps["prompt"] = where.kept()
        given["inputs_embeds"] = where.lay(self.vectors(embeds, mask).to(embeds.dtype).expand(len(embeds), -1, -1), embeds)
        if mask is not None:
            given["attention_mask"] = widened(where, mask)
        if (types := given.get("token_type_ids")) is not None:
            given["token_type_ids"] = where.types(types)
        for name in ("position_ids", "cache_position"):
            if (positions := given.get(name)) is not None:
                given[name] = where.positions(positions)
        return (), given

    def _go_on(self, given: dict[str, Any], mask: Tensor | None) -> None:
        if any(place < 0 for place, _ in self.template):
            raise Unfit(f"the template {self.template} counts from the end of a text, and this one goes on after its cache")
        self.context.taps["prompt"] = 0
        if mask is not None:
            given["attention_mask"] = widened(layout(self.count, self.template, mask), mask)
        for name in ("position_ids", "cache_position"):
            if (positions := given.get(name)) is not None:
                given[name] = positions + self.count


@register("prompt-off")
class PromptOff(Edit):
    """Takes the vectors' places off the states [batch, count + tokens, d]: after the site, or before a pooler inside it."""

    def __init__(self, site: Site, port: str):
        super().__init__(site)
        self.port = port

    def forward(self, t: Tensor, x: Any = None) -> Tensor:
        """[batch, count + tokens, d] -> [batch, tokens, d]."""
        return kept(self.context.taps["prompt"], t)


@register("prompt-seen")
class PromptSeen(Edit):
    """Widens the mask with which a decoder looks at the encoder's states, those of the vectors among them."""

    port = "call"

    def __init__(self, site: Site, length: int, template: Template | None = None):
        super().__init__(site)
        module: Any = site.module
        self.names, self.length, self.template = list(inspect.signature(module.forward).parameters), length, template or []

    def forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """All arguments of the decoder -> the same with ``length`` ones more in ``encoder_attention_mask``."""
        given = dict(zip(self.names, args, strict=False)) | kwargs
        if (mask := given.get("encoder_attention_mask")) is not None:
            given["encoder_attention_mask"] = widened(layout(self.length, self.template, mask), mask)
        return (), given


def widened(where: Layout, mask: Tensor) -> Tensor:
    """The mask [batch, tokens] with ones where the vectors stand."""
    return where.lay(mask.new_ones(len(mask), where.count), mask)


def put_among(at: Attachment, kind: type[Widening], count: int, template: Template | None = None, **numbers: Any) -> Edit:
    """Put ``kind`` (of ``count`` vectors) where ids become states, and beside it what keeps it from showing outside.

    Raises:
        Unfit: the model has no token embeddings that it would take vectors for, or too few positions.
    """
    stack, decoder = stacks(at)
    limit = position_limit(at, stack)
    if limit and count >= limit:
        raise Unfit(f"a prompt of {count} leaves no room in the {limit} positions of {type(at.model).__name__}")
    placed = {"template": template} if template else {}
    made = at.put(stack, kind, limit=limit, **placed, **numbers)
    if decoder is not None:
        at.put(decoder, PromptSeen, length=count, **placed)
        return made
    for name, _ in stack.module.named_children():
        if name == "pooler":
            at.put(_site(at, f"{stack.path}.{name}".lstrip(".")), PromptOff, port="input")
    at.put(stack, PromptOff, port="output")
    return made


def stacks(at: Attachment) -> tuple[Site, Site | None]:
    """Where token ids become states, and the decoder that looks at them, if there is one.

    Raises:
        Unfit: there are no token embeddings, or the model does not take vectors in their place.
    """
    owner: Any = next((m for m in at.model.modules() if callable(getattr(m, "get_input_embeddings", None))), None)
    if owner is None:
        raise Unfit(f"{type(at.model).__name__} has no get_input_embeddings(), so there is no text to put a prompt in front of")
    base = getattr(owner, "base_model", owner)
    decoder = None
    if crosses(at) and base.get_encoder() is not base:
        base, decoder = base.get_encoder(), base.get_decoder()
    takes = inspect.signature(base.forward).parameters
    if "inputs_embeds" not in takes or "pixel_values" in takes:
        raise Unfit(f"{type(base).__name__} does not take embedded text alone, as prompt tuning needs; images have VPT")
    paths = {id(m): p for p, m in at.model.named_modules()}
    return _site(at, paths[id(base)]), None if decoder is None else _site(at, paths[id(decoder)])


def position_limit(at: Attachment, stack: Site) -> int:
    """How many positions the stack has a vector for; 0 if it has no table of them."""
    try:
        tables = [s.module for s in at.sites("position") if s.path.startswith(stack.path)]
    except NoSuchSite:
        return 0
    sizes = [t.num_embeddings - getattr(t, "offset", 0 if t.padding_idx is None else t.padding_idx + 1)
             for t in tables if isinstance(t, nn.Embedding)]
    return min(sizes, default=0)


def crosses(at: Attachment) -> bool:
    """Whether a part of the model attends to another sequence than its own."""
    try:
        return bool(at.sites("cross"))
    except NoSuchSite:
        return False


def writes_on(at: Attachment) -> bool:
    """Whether the model is a decoder that writes on where its own input ends, so that training shows it what comes next."""
    writes = getattr(at.model, "can_generate", None)
    return callable(writes) and bool(writes()) and not crosses(at)


def _site(at: Attachment, path: str) -> Site:
    return at_path(at.model, path, "model", None, -1, "", at.seen)
