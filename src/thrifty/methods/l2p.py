"""L2P: Learning to Prompt for Continual Learning (Wang, Zhang, Lee, Zhang, Sun, Ren, Su, Perot, Dy, Pfister; CVPR 2022,
arXiv:2112.08654)."""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Edit, Method, Site, need, register
from ..core.errors import NoSuchSetting, NoSuchSite, Unfit
from .branches.side import place
from .features.tower import specials
from .prompts.still import keep_still
from .prompts.tokens import TokensRead, last_norm, tower

if TYPE_CHECKING:
    from ..core import Attachment

ASKING, QUERY, PULL = "the trunk is asked for its query", "query", "similarity of queries and chosen keys"


@register("l2p-ask")
class Ask(Edit):
    """Runs the frozen trunk on the images first, for the query q(x) [batch, d], its class token behind the last normalisation."""

    port = "call"

    def forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """All arguments of the trunk, as they are."""
        self.context.taps[ASKING] = True
        with torch.no_grad():  # forward() and not a call, which would ask again
            self.site.module.forward(*args, **kwargs)
        self.context.taps[ASKING] = False
        return args, kwargs


@register("l2p-pool")
class Pool(Edit):
    """The ``top`` of M prompts P_j [length, d] whose keys k_j [d] are most like the query, behind the special tokens:

        s_j = cos(q(x), k_j),   x <- [special, P_{j1}, .., P_{jK}, patches]        P, k ~ U[0, 0.01)

    Each image chooses for itself. In training with ``batchwise`` all images of a batch get the prompts that most of them would
    choose (the lower number where as many do). No prompt has a position, so that where they stand does not matter. The
    similarities of the chosen keys, summed, as the mean over images, are left for the loss; nothing else reaches the keys.
    """

    port = "input"

    def __init__(self, site: Site, size: int, length: int, top: int, special: int, batchwise: bool):
        super().__init__(site)
        self.top, self.special, self.batchwise = top, special, batchwise
        self.prompts = nn.Parameter(torch.empty(size, length, site.din).uniform_(0, 0.01))
        self.keys = nn.Parameter(torch.empty(size, site.din).uniform_(0, 0.01))

    def choose(self, similarity: Tensor) -> Tensor:
        """similarity [batch, M] -> numbers of the chosen prompts [batch, top]."""
        chosen = similarity.topk(self.top).indices
        if self.batchwise and self.training:
            votes = F.one_hot(chosen, similarity.shape[1]).sum((0, 1))
            chosen = votes.argsort(descending=True, stable=True)[: self.top].expand(len(similarity), -1)
        return chosen

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, tokens, d] -> with ``top`` * ``length`` tokens more, but while the trunk is asked for the query.

        Raises:
            Unfit: the images are not those that the trunk was asked about.
        """
        taps = self.context.taps
        if taps.get(ASKING) or QUERY not in taps:  # or another method asks the trunk, before this one could
            return x
        query = taps[QUERY].to(self.keys.dtype)
        if len(query) != len(x):
            raise Unfit(f"the trunk was asked about {len(query)} images, and {len(x)} enter {self.site.path!r}: two methods that "
                        "ask it cannot stand on one model")
        similarity = F.normalize(query, dim=-1, eps=1e-6) @ F.normalize(self.keys, dim=-1, eps=1e-6).T
        chosen = self.choose(similarity)
        taps[PULL] = similarity.gather(1, chosen).sum() / len(x)
        prompts = self.prompts[chosen].flatten(1, 2).to(x.dtype)
        return torch.cat([x[:, : self.special], prompts, x[:, self.special :]], 1)


@register("l2p-read")
class Read(TokensRead):
    """As ``TokensRead``; while the trunk is asked, it leaves the class token as the query instead."""

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """y [batch, tokens, d] -> [batch, tokens - length, d]."""
        taps = self.context.taps
        if taps.get(ASKING):
            taps[QUERY] = y[:, 0].detach()
        return y if taps.get(ASKING) or QUERY not in taps else super().forward(y, x)


@register("l2p-classes")
class Current(Edit):
    """In training, logits [.., classes] of those that are not ``mask``ed as current are minus infinity."""

    def __init__(self, site: Site):
        super().__init__(site)
        self.mask: Tensor
        self.register_buffer("mask", torch.ones(site.dout, dtype=torch.bool))

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """y [.., classes] -> the same."""
        return y.masked_fill(~self.mask, float("-inf")) if self.training else y


@dataclass
class L2P(Method):
    """A pool of prompts, of which each image gets those whose keys are like what the frozen trunk says of it; for tasks in a row.

        L = CE(y | classes of the task) - pull * (1/B) sum_b sum_{j chosen} cos(q_b, k_j)

    The head (attach with ``also_train="head"``) reads the mean over the prompts' tokens behind the last normalisation. It is one
    for the classes of all tasks; ``turn_to(at, classes)`` says which are the present task's, for training alone: nobody says at
    test which task an image belongs to. Begin each task with a new optimiser. The trunk runs twice.

    The authors: Adam at a constant 0.03, gradients clipped at 1, 5 epochs per task, batch 128, pixels in [0, 1], a head of zeros;
    their paper says ``pull`` 0.5 where their code has 1. In their code ``batchwise`` holds at test, too, whereby an answer depends
    on the other images of its batch; here it does not.
    """

    name = "l2p"
    aliases = ("learning-to-prompt",)
    route = "input and output"
    modalities = ("image",)
    paper = "Wang et al., Learning to Prompt for Continual Learning, CVPR 2022, arXiv:2112.08654"
    trains = "a pool of prompts, and keys by which images choose among them"
    inference = "the trunk twice, the second time with `top` * `length` tokens more"
    Edit = Pool
    identity_at_start = False
    rate = 3e-2

    size: int = 10
    length: int = 10
    top: int = 4
    pull: float = 1.0
    batchwise: bool = True

    def check(self) -> None:
        """Sizes are positive, and no more are chosen than there are."""
        need(self.size >= 1, self, "size", "at least 1")
        need(self.length >= 1, self, "length", "at least 1")
        need(1 <= self.top <= self.size, self, "top", f"from 1 to the size of the pool, {self.size}")
        need(self.pull >= 0, self, "pull", "at least 0")

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """The question where the trunk is entered, the pool at its first block, and the answer out of its last normalisation.

        Raises:
            Unfit: the model is no plain vision transformer with a class token.
        """
        patch, blocks = tower(at)
        norm, special = last_norm(at, blocks), specials(at.model)
        if not special:
            raise Unfit(f"{type(at.model).__name__} has no class token to ask for")
        trunk = [a for a, b in zip(patch.path.split("."), norm.path.split("."), strict=False) if a == b]
        at.put(place(at, ".".join(trunk)), Ask)
        at.put(blocks[0], Pool, size=self.size, length=self.length, top=self.top, special=special, batchwise=self.batchwise)
        at.put(norm, Read, length=self.top * self.length, special=special)
        for head in _heads(at):
            at.put(head, Current)
        keep_still(at)

    def loss(self, at: Attachment, task: Any, model: Any, batch: Any) -> tuple[Tensor, int]:
        """The task's loss, less ``pull`` times the similarity of the images to the keys that they chose."""
        mean, count = super().loss(at, task, model, batch)
        return mean - self.pull * at.context.taps.pop(PULL), count


def turn_to(at: Attachment, classes: Sequence[int]) -> None:
    """From now on training is about these classes of the head alone, by their numbers.

    Raises:
        NoSuchSetting: there is none, or no such class, or the model has no head.
    """
    masks = [edit.mask for edit in at.edits.values() if isinstance(edit, Current)]
    if not masks:
        raise NoSuchSetting(f"{at.name!r} on {type(at.model).__name__} has no head whose classes could be told apart")
    wrong = [c for c in classes if not 0 <= c < len(masks[0])]
    if wrong or not classes:
        raise NoSuchSetting(f"the classes of a task are some of 0 to {len(masks[0]) - 1}, not {wrong or list(classes)}")
    for mask in masks:
        mask.zero_()[list(classes)] = True


def _heads(at: Attachment) -> list[Site]:
    try:
        return at.sites("head")
    except NoSuchSite:
        return []
