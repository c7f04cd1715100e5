"""Tip-Adapter and Tip-Adapter-F: Training-free Adaption of CLIP for Few-shot Classification (Zhang, Fang, Zhang, Gao, Li, Dai,
Qiao, Li; ECCV 2022, arXiv:2207.09519)."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from ..core import Method, need
from .few_shot.grid_search import best, grid, record
from .few_shot.key_cache import KeyCache
from .few_shot.support import Seen, keep, look, own_scores

if TYPE_CHECKING:
    from ..core import Attachment


def _recipe(top_beta: float, top_alpha: float, alpha: float) -> dict[str, float]:
    return {"top_beta": top_beta, "top_alpha": top_alpha, "alpha": alpha}


# By data set, as the authors publish them; the method's defaults are ImageNet's.
RECIPES: dict[str, dict[str, float]] = {
    "caltech101": _recipe(12, 5, 3), "dtd": _recipe(13, 13, 2), "eurosat": _recipe(12, 10, 2), "fgvc-aircraft": _recipe(30, 30, 5),
    "food101": _recipe(10, 10, 1.17), "imagenet": _recipe(7, 3, 1.17), "oxford-flowers": _recipe(50, 50, 10),
    "oxford-pets": _recipe(7, 3, 1.17), "stanford-cars": _recipe(20, 10, 3), "sun397": _recipe(12, 10, 1.17),
    "ucf101": _recipe(7, 3, 3),
}


@dataclass
class TipAdapter(Method):
    """The training pictures are kept as they are, and answer for those that lie near them; nothing trains.

        logits = scale f W + alpha exp(-beta (1 - f F^T)) L        F [M, d] the kept features, L [M, K] their classes

    Each key is the mean of the picture's raw features over ``views`` (chance crops of at least half of the area, mirrored or not),
    then brought to length one; with 0 views, or batches that cannot show any, it is the feature of the picture as it is.
    ``scale`` is 100 as in the authors' code, with 0 the model's own. With alpha = 0 it is zero-shot, and with beta = 0 too.

    alpha and beta are searched (``search``) on the validation split, over ``steps_*`` values from 0.1 towards ``top_*``; what was
    found is in the adapter's ``about``. The authors search on the whole validation split, on ImageNet on the test set, over grids
    of the data set (``RECIPES``). They also add (1 - alpha) nowhere, unlike what is written of them elsewhere.
    """

    name = "tip-adapter"
    aliases: ClassVar[tuple[str, ...]] = ("tip",)
    route = "add modules"
    modalities = ("image", "text")
    paper = "Zhang et al., Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification, ECCV 2022, arXiv:2207.09519"
    trains = "nothing: features of the training pictures are kept"
    inference = "a product with the kept features"
    needs = "an image-text model"
    identity_at_start = False
    solved = True
    Cache: ClassVar[type[KeyCache]] = KeyCache

    alpha: float = 1.17
    beta: float = 1.0
    top_alpha: float = 3.0
    top_beta: float = 7.0
    steps_alpha: int = 20
    steps_beta: int = 200
    views: int = 10
    search: bool = True
    scale: float = 100.0

    def check(self) -> None:
        """Nothing is negative, and a search has something to try."""
        for name in ("alpha", "beta", "scale", "views"):
            need(getattr(self, name) >= 0, self, name, "at least 0")
        for name in ("steps_alpha", "steps_beta"):
            need(getattr(self, name) >= 1, self, name, "at least 1")
        for name in ("top_alpha", "top_beta"):
            need(getattr(self, name) > 0.1, self, name, "above 0.1, where the search begins")

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """Keep the pictures of ``batches``, beside the scores.

        Raises:
            Unfit, HalfAdapted: see ``own_scores``. ThriftyError, BadData: see ``keep``.
        """
        site, support = own_scores(at), keep(at, batches, self.views)
        scores: Any = site.module
        made: Any = at.put(site, self.Cache, names=scores.texts.labels, rows=len(support.raw), width=support.raw.shape[1],
                           **self.more(support), **{name: getattr(self, name) for name in self.shown()})
        self.fill(made, support)

    def fill(self, made: Any, support: Seen) -> None:
        """Keep the support set in the edit."""
        made.fill(support)

    def shown(self) -> tuple[str, ...]:
        """The fields that are numbers of the edit."""
        return ("alpha", "beta", "scale")

    def more(self, support: Seen) -> dict[str, Any]:
        """Further numbers of the edit."""
        return {}

    def grids(self) -> dict[str, list[float]]:
        """What the search tries of each number."""
        return {"beta": grid(0.1, self.top_beta, self.steps_beta), "alpha": grid(0.1, self.top_alpha, self.steps_alpha)}

    @torch.no_grad()
    def calibrate(self, at: Attachment, task: Any, batches: Iterable[Any]) -> None:
        """Search on the validation split, and leave what was found in ``at.about``; nothing without ``search``."""
        if not self.search:
            return
        seen = look(at, batches)
        f, cosines, labels = seen.unit, seen.cosines, seen.labels
        edit = next(e for e in at.edits.values() if isinstance(e, KeyCache))
        edit.look(f, cosines)
        now = (edit.start(f, cosines) + edit.addition(f, cosines)).argmax(-1) == labels
        found = best(edit.tried(f, cosines, self.grids()), labels)
        edit.settle(found.setting)
        record(at, found, len(labels), float(now.float().mean()))


@dataclass
class TipAdapterF(TipAdapter):
    """Tip-Adapter whose keys F [M, d] train, from the kept features on, and are not brought to length one again:

        logits = scale f W + alpha exp(-beta (1 - f F^T)) L,   CE,   then alpha and beta are searched as there

    The authors train by AdamW (rate 1e-3, epsilon 1e-4, decay 0.01, batch 256, a cosine to zero over 20 epochs, on EuroSAT 100) on
    chance crops (``--augment crop-flip:0.5``), choose the epoch on the test set, and report the better of that and the search. Here
    the validation split chooses both.
    """

    name = "tip-adapter-f"
    aliases = ("tip-f",)
    trains = "the kept features of the training pictures"
    solved = False
    rate = 1e-3

    def more(self, support: Seen) -> dict[str, Any]:
        """The keys train."""
        return {"trained": True}
