"""VPT: Visual Prompt Tuning (Jia, Tang, Chen, Cardie, Belongie, Hariharan, Lim; ECCV 2022, arXiv:2203.12119)."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..core import Method, need
from ..core.errors import Unfit
from .features.tower import choose, specials
from .prompts.still import keep_still
from .prompts.tokens import Projection, Tokens, TokensOff, span_of, tower
from .prompts.windows import put_in_windows, windowed

if TYPE_CHECKING:
    from ..core import Attachment


@dataclass
class VPT(Method):
    """Learned tokens between the class token and the patches, and a new head (attach with ``also_train="head"``).

        deep     [x_i, _, E_i] = B_i([x_{i-1}, P_{i-1}, E_{i-1}])   each block's tokens replace the last one's
        shallow  the tokens enter at the first block and flow on (``deep=False``)

    P ~ U(-v, v), v = sqrt(6 / (3 p p + d)) for patches of p × p. The backbone's own dropout is off while they train, as the
    authors have it; they choose the length from 1 to 200. ``where`` names blocks, all in one tower that reads images. With
    ``project`` tokens of that many features (which then are d in v) go through one linear layer that all blocks share.

    In a Swin transformer every window sees the tokens beside its patches, and the last pooling reads both: see ``windows``.
    There v is that of the first stage for all, and the authors choose the length from 1 to 50.
    """

    name = "vpt"
    aliases = ("vpt-deep",)
    presets = {"vpt-shallow": {"deep": False, "dropout": 0.0}}
    route = "input and output"
    modalities = ("image",)
    paper = "Jia et al., Visual Prompt Tuning, ECCV 2022, arXiv:2203.12119"
    trains = "tokens beside the patches, at every block"
    inference = "`length` tokens more"
    Edit = Tokens
    identity_at_start = False
    rate = 1e-3

    length: int = 10
    deep: bool = True
    dropout: float = 0.1
    project: int = 0
    where: str = "block"

    def check(self) -> None:
        """Lengths are positive, dropout is a probability."""
        need(self.length >= 1, self, "length", "at least 1")
        need(0 <= self.dropout < 1, self, "dropout", "in [0, 1)")
        need(self.project >= 0, self, "project", "a number of features, or 0 for those of the model")

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """Tokens in at the chosen blocks, and out after the last block of the tower.

        Raises:
            Unfit: the model has no patches, or its attention is tied to their grid in a way that tokens cannot pass (BEiT).
        """
        if windowed(at):
            if self.project:
                raise Unfit(f"project: the blocks of {type(at.model).__name__} have several widths, so they share no projection")
            put_in_windows(at, self.where, self.length, self.deep, self.dropout)
        else:
            patch, blocks = tower(at)
            chosen, special = choose(at, blocks, self.where), specials(at.model)
            span = span_of(patch, self.project or chosen[0].din)
            for i, block in enumerate(chosen if self.deep else chosen[:1]):
                at.put(block, Tokens, length=self.length, special=special, first=i == 0, span=span, dropout=self.dropout,
                       narrow=self.project)
            at.put(blocks[-1], TokensOff, length=self.length, special=special)
            if self.project:
                at.share(Projection, narrow=self.project, width=chosen[0].din)
        keep_still(at)
