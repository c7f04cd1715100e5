"""Learned vectors in sentences about classes, which every kind of prompt learning for image-text models shares:
Learning to Prompt for Vision-Language Models (Zhou, Yang, Loy, Liu; IJCV 2022, arXiv:2109.01134)."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...core import Edit, Site, register
from ...core.errors import HalfAdapted, Unfit
from ...core.hooks import edits_on
from ...core.site import at_path

if TYPE_CHECKING:
    from ...core import Attachment

POSITIONS = ("end", "middle", "front")
SPREAD = 0.02  # standard deviation of vectors that start at random


def place(at: Attachment, name: str) -> Site:
    """The place called ``name`` in a classifier made of two towers: "image", "text", "classes" or "scores".

    Raises:
        Unfit: the model knows no classes by their names.
    """
    if not hasattr(at.model, "texts") or not hasattr(at.model, "towers"):
        kind, method = type(at.model).__name__, at.method.name if at.method else "this method"
        raise Unfit(f"{kind} does not know classes by their names, as {method} needs it: load an image-text model such as CLIP or "
                    "SigLIP with thrifty.models.load(folder, 'image-classification', labels)")
    return at_path(at.model, name, name, None, -1, "", at.seen)


def sentences(at: Attachment) -> Site:
    """The place where sentences go into the text tower, for a method that puts others in their place.

    Raises:
        Unfit: see ``place``.
        HalfAdapted: another attachment does so already, and of two only one would be read.
    """
    why = "puts sentences of its own into the text tower already, and only one of the two would be read"
    return alone(place(at, "text"), "call", why)


def alone(site: Site, port: str, why: str) -> Site:
    """``site``, if no attachment has an edit at its ``port``; ``why`` ends "another attachment ..." for the user.

    Raises: HalfAdapted.
    """
    if any(getattr(edit, "port", "") == port for edit in edits_on(site.module).values()):
        raise HalfAdapted(f"another attachment {why}: detach that first")
    return site


def blocks(at: Attachment, path: str) -> list[Site]:
    """The blocks of the stack that the model's towers call ``path``, in order."""
    model: Any = at.model
    return [site for site in at.sites("block") if site.stack == model.path(path)]


def arrange(texts: Any, length: int, position: str, kept: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Sentences with room for ``length`` vectors: ids [K, T], which vector stands where [K, T] (-1: none), and ends [K].

    ``kept`` are words that stay between vectors and name. The full stop is always last.

        end     [begin] v_1 .. v_M kept name . [end]
        middle  [begin] v_1 .. v_h name v_{h+1} .. v_M . [end]     h = M // 2
        front   [begin] name v_1 .. v_M . [end]
    """
    vectors = [-1 - i for i in range(length)]
    before = {"end": length, "middle": length // 2, "front": 0}[position]
    both = zip(texts.names, texts.stops, strict=True)
    rows = [[*vectors[:before], *kept, *name, *vectors[before:], *stop] for name, stop in both]
    ids, ends = texts.lay(rows)
    return ids.clamp(min=0), torch.where(ids < 0, -1 - ids, -1), ends


def write(sentences: Tensor, slots: Tensor, vectors: Tensor) -> Tensor:
    """Sentences [K, T, D] with ``vectors`` in the ``slots`` [K, T] that are not -1.

    [M, D] for all classes, or [K, M, D] for each, give [K, T, D]; [B, 1, M, D], for each picture, give [B, K, T, D].
    """
    at = slots.clamp(min=0)
    if vectors.dim() == 3:
        found = vectors.gather(1, at[..., None].expand(-1, -1, vectors.shape[-1]))
    else:
        found = vectors[..., at, :].squeeze(1) if vectors.dim() == 4 else vectors[at]
    return torch.where(slots[..., None] >= 0, found.to(sentences.dtype), sentences)


@register("context")
class Context(Edit):
    """Sentences of ``length`` vectors and a class name in the place of the model's own; v [M, width] ~ N(0, 0.02²).

    With ``names`` each of those classes has vectors of its own, v [K, M, width], which serve no others. Of ``words`` the tokens
    beyond the first ``taken`` stay in the sentence. Vectors that are not ``drawn`` begin at zero, for what they start from.
    """

    port = "call"
    constant = True
    arranged: Any

    def __init__(self, site: Site, length: int, position: str = "end", words: str = "", taken: int = 0,
                 names: list[str] | None = None, drawn: bool = True):
        super().__init__(site)
        self.length, self.position, self.words, self.taken = length, position, words, taken
        self.names, self.drawn, self.arranged = names or [], drawn, None
        width: Any = site.module.towers.text_width  # type: ignore[union-attr]
        self.make([len(self.names)] if self.names else [], width)

    def make(self, each: list[int], width: int) -> None:
        """The edit's own tensors."""
        shape = *each, self.length, width
        self.ctx = nn.Parameter(SPREAD * torch.randn(shape) if self.drawn else torch.zeros(shape))

    def vectors(self) -> Tensor:
        """What stands in the sentences [M, width], or see ``write``."""
        return self.ctx

    def arrangement(self) -> tuple[Tensor, Tensor, Tensor]:
        """See ``arrange``; made anew when the classes are others.

        Raises:
            Unfit: vectors of classes that are not those of the model.
        """
        tower: Any = self.site.module
        texts, device = tower.texts, tower.towers.embedding.weight.device
        if self.arranged is None or self.arranged[0] is not texts or self.arranged[1] != device:
            refuse_others(self, texts)
            kept = texts.reader.tokens(self.words)[self.taken :] if self.words else []
            self.arranged = texts, device, [t.to(device) for t in arrange(texts, self.length, self.position, kept)]
        return self.arranged[2]

    def forward(self, args: Any, kwargs: Any) -> Any:
        """The text tower's own sentences -> (x [G, 1, K, T, width], ends [1, 1, K])."""
        ids, slots, ends = self.arrangement()
        tower: Any = self.site.module
        x = write(tower.embed(ids), slots, self.vectors())
        return ((x if x.dim() == 4 else x[None])[:, None], ends[None, None]), {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "arranged": None}


def refuse_others(edit: Any, texts: Any) -> None:
    """Refuse classes other than those that an edit was made for.

    Raises:
        Unfit: they are; the message says what can serve new classes.
    """
    if edit.names and edit.names != texts.labels:
        new = [label for label in texts.labels if label not in edit.names] or texts.labels
        raise Unfit(f"{type(edit).__name__} was made for {len(edit.names)} classes ({', '.join(edit.names[:3])}, …) and has "
                    f"nothing for {new[0]!r}: only what all classes share serves new ones")


@torch.no_grad()
def embed(at: Attachment, tokens: list[int]) -> Tensor:
    """The model's own vectors of token numbers [n, width]."""
    tower: Any = place(at, "text").module
    found: Tensor = tower.embed(torch.tensor(tokens, dtype=torch.long))
    return found.detach().float()


@torch.no_grad()
def nearest_tokens(at: Attachment) -> list[list[int]]:
    """Numbers of the tokens whose vectors lie nearest to each learned one, by Euclidean distance; a list for each class, or one."""
    tower: Any = place(at, "text").module
    table = tower.towers.embedding.weight.float()
    edit = next(e for e in at.edits.values() if isinstance(e, Context))
    found = torch.cdist(edit.vectors().float().reshape(-1, edit.length, table.shape[1]), table).argmin(-1)
    return found.tolist()
