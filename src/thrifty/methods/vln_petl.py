"""VLN-PETL: Parameter-Efficient Transfer Learning for Vision-and-Language Navigation (Qiao, Yu, Wu; ICCV 2023,
arXiv:2308.10172)."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..core import Method, Site, need
from ..core.errors import Unfit
from ..core.site import at_path
from .branches.boosters import CrossBooster, HistoryBooster, LetThrough, WalkSteps
from .branches.bottleneck import ACTS, Bottleneck
from .lora import LowRank

if TYPE_CHECKING:
    from ..core import Attachment

PARTS = ("language", "language_out", "history", "history_out", "cross", "head")  # of an agent
MOST_HEADS = 12  # those of the agent's own attention
LANGUAGE, CROSS = "language.layer", "cross.layer"


@dataclass
class VLNPETL(Method):
    """Adapters and LoRA in a navigator, a booster of its history, and boosters between what it hears and what it sees.

        history   x_t + U act(MHA(D x_t, [D x_<t; D x_t]))                             of the token of each step (HIB)
        cross     v + U_v act(MHA(D_v v, D_l l)),  l + U_l act(MHA(D_l l, D_v v))      in every cross-modal layer (CIB)
        language  h + U act(D h)                                                       after each feed-forward network
        LoRA      of queries and values in the language encoder and the cross-modal layers

    All of ``rank`` dimensions but LoRA; every U starts at zero, so that the agent starts as it was. The head and the normalisations
    train too. The agent's own gradient stops in front of its language and its history encoder are opened, as what is in there would
    never train otherwise. It is for `thrifty.navigation.Agent`.

    The authors published no code: this is a reconstruction. What the paper says is which parts there are, and that the base is
    frozen; rank, placement, activation and start are ours, so that the count is not theirs (2.82 %). ``history="layers"`` puts a
    booster behind each layer that encodes panoramas, where each view looks back at itself; "none" leaves it out. ``adapters``
    "both" adds those after attention. ``heads`` 0 is the largest divisor of the rank that is not above 12. The bias of a booster's
    keys never changes what its softmax gives.
    """

    name = "vln-petl"
    route = "add modules"
    modalities = ("text", "image")
    paper = ("Qiao et al., VLN-PETL: Parameter-Efficient Transfer Learning for Vision-and-Language Navigation, ICCV 2023, "
             "arXiv:2308.10172")
    trains = "adapters, LoRA, small attentions to the history and between streams, normalisations, the head"
    inference = "small networks and attentions in a navigator's layers"
    needs = "an agent that navigates"
    rate = 1e-3

    rank: int = 64
    heads: int = 0
    act: str = "gelu"
    adapters: str = "mlp"
    lora_rank: int = 8
    lora_alpha: float = 16.0
    history: str = "token"
    cross: bool = True
    norms: bool = True
    head: bool = True

    def check(self) -> None:
        """Sizes are positive and fit each other, words are known."""
        need(self.rank >= 1, self, "rank", "at least 1")
        fits = self.heads == 0 or (self.heads > 0 and self.rank % self.heads == 0)
        need(fits, self, "heads", f"a divisor of the rank {self.rank}, or 0")
        need(self.act in ACTS, self, "act", f"one of {', '.join(ACTS)}")
        need(self.adapters in ("mlp", "both", "none"), self, "adapters", "'mlp', 'both' or 'none'")
        need(self.history in ("token", "layers", "none"), self, "history", "'token', 'layers' or 'none'")
        need(self.lora_rank >= 0, self, "lora_rank", "positive, or 0 for no LoRA")

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """Edits in the language encoder, at the history, and in the cross-modal layers; what trains in place.

        Raises:
            Unfit: the model is no agent.
        """
        missing = [part for part in PARTS if not hasattr(at.model, part)]
        if missing:
            raise Unfit(f"{type(at.model).__name__} does not navigate: it has no {missing[0]!r}. VLN-PETL is for "
                        "thrifty.navigation.Agent")
        config: Any = at.model.config
        numbers = {"width": config.width, "rank": self.rank, "act": self.act, "heads": self.heads or max(
            heads for heads in range(1, MOST_HEADS + 1) if self.rank % heads == 0)}
        self._adapt(at, [f"{CROSS}.{i}.language." for i, heard in enumerate(config.heard) if not heard])
        self._boost_history(at, numbers)
        if self.cross:
            for block, heard in zip(_in(at, "block", CROSS), config.heard, strict=True):
                at.put(block, CrossBooster, **numbers, both=heard and config.language_attends)
        if self.norms:
            at.train_matching("norm*", wildcard=True)
        if self.head:
            at.train_matching("head")
        if self.adapters != "none" or self.lora_rank or self.norms:
            _open(at, "language_out", config.fixed_language)
        if self.history != "none" or self.norms:
            _open(at, "history_out", config.fixed_history)

    def _adapt(self, at: Attachment, deaf: list[str]) -> None:
        """Adapters in the language encoder, LoRA there and in the cross-modal layers, but for what nothing reads (``deaf``)."""
        for role in {"mlp": ("after.mlp",), "both": ("after.attn", "after.mlp"), "none": ()}[self.adapters]:
            for site in _in(at, role, LANGUAGE):
                at.put(site, Bottleneck, rank=self.rank, act=self.act, init="zero", std=0.0)
        if not self.lora_rank:
            return
        for site in [*_in(at, "attn.q|attn.v", LANGUAGE), *_in(at, "attn.q|attn.v", CROSS)]:
            if not site.path.startswith(tuple(deaf)):
                at.put(site, LowRank, rank=self.lora_rank, alpha=self.lora_alpha)

    def _boost_history(self, at: Attachment, numbers: dict[str, Any]) -> None:
        if self.history == "token":
            at.put(_place(at, "history"), HistoryBooster, **numbers)
        elif self.history == "layers":
            at.put(_place(at, "history"), WalkSteps)
            for block in _in(at, "block", "history.panorama.layer"):
                at.put(block, HistoryBooster, **numbers, views=True)


def _in(at: Attachment, where: str, stack: str) -> list[Site]:
    """The sites that ``where`` names in one stack of blocks."""
    return [site for site in at.sites(where) if site.stack == stack]


def _place(at: Attachment, path: str) -> Site:
    """A place by its name."""
    return at_path(at.model, path, path, None, -1, "", at.seen)


def _open(at: Attachment, path: str, fixed: bool) -> None:
    if fixed:
        at.put(_place(at, path), LetThrough)
