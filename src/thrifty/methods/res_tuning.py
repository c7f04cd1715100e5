"""Res-Tuning: A Flexible and Efficient Tuning Paradigm via Unbinding Tuner from Backbone (Jiang, Mao, Huang, Ma, Lv, Shen,
Zhao, Zhou; NeurIPS 2023, arXiv:2310.19859)."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..core import need
from .branches.mixture import Mixture, put_tuners
from .branches.tuners import AdapterTuner

if TYPE_CHECKING:
    from ..core import Attachment


@dataclass
class ResTuning(Mixture):
    """x' = OP(x) + RT(x): Res-Adapter, Res-Prefix and Res-Prompt beside attention (``mha``), network (``ffn``) and ``block``.

        adapter  RT(x) = W_2 gelu(W_1 x + b_1) + b_2, Xavier-uniform weights, biases N(0, 1e-6)

    Prefix and prompt are those of U-Tuning, the same algebra, and kinds are joined by "+" as there. Only the branch is added: the
    operation beside it brings the identity. Images [batch, channels, height, width] are taken as tokens and given back.

    ``zero``: which last projections start at zero: "none", that of the "last" block (the published code's option), or "all", and
    then adapters start as nothing. ``scaling`` learns a factor of each adapter, a "scalar" or one per "channel". The
    paper's tuners can also leave the backbone's path altogether: that is its bypass, another method.
    """

    name = "res-tuning"
    paper = "Jiang et al., Res-Tuning: Unbinding Tuner from Backbone, NeurIPS 2023, arXiv:2310.19859"
    Edit = AdapterTuner
    identity_at_start = False

    zero: str = "none"
    scaling: str = "none"

    def check(self) -> None:
        """The mixture and every choice are known, sizes are positive."""
        super().check()
        need(self.zero in ("none", "last", "all"), self, "zero", "'none', 'last' or 'all'")
        need(self.scaling in ("none", "scalar", "channel"), self, "scaling", "'none', 'scalar' or 'channel'")

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """The tuners of every block."""
        put_tuners(at, self, lambda last: {"rank": self.rank, "act": self.act, "init": "xavier",
                                           "zero": self.zero == "all" or self.zero == "last" and last, "scaling": self.scaling})
