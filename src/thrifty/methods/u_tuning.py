"""U-Tuning: Rethinking Efficient Tuning Methods from a Unified Perspective (Jiang, Mao, Huang, Lv, Zhao, Zhou; 2023,
arXiv:2303.00690). The authors published no code: this is a reconstruction from the paper's text, and what that leaves open
is said where it is decided."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..core import need
from .branches.mixture import Mixture, put_tuners
from .branches.tuners import AdapterTuner, AttentionTuner, FollowingTuner

if TYPE_CHECKING:
    from ..core import Attachment


@dataclass
class UTuning(Mixture):
    """x' = OP(x) + T(x) for the operations attention (``mha``), feed-forward network (``ffn``) and ``block``, in any mixture.

        adapter  T(x) = act(x W_d + b_d) W_u + b_u         reads="output" puts OP(x) in the place of x
        prefix   T(x) = softmax(x W_q K_pre^T) V_pre       per head, logits scaled; K_pre, V_pre [length, d] train
        prompt   T(x) = softmax(x W_q (x_pro W_k)^T) x_pro W_v      x_pro [length, d] trains; the W are the block's own

    Each operation takes the kinds named for it, joined by "+": ``UTuning(mha="prefix+adapter", block="prompt")``. Prefix and
    prompt tuning share the softmax between their keys and the text's; here that gate is left out, and T is simply added. At the
    attention it is added per head, before the output projection; beside the others it passes through that frozen
    projection too, or is added as it is with ``through=False``. W_u and V_pre start at zero, so the model starts as the base;
    prompts start near it, from N(0, 0.02), because equal rows would stay equal. ``bias`` gives prompts the biases of W_k and
    W_v, as real tokens get. Left open by the paper, and chosen here: the mixture by default, ``rank`` and ``length``.
    """

    name = "u-tuning"
    paper = "Jiang et al., Rethinking Efficient Tuning Methods from a Unified Perspective, 2023, arXiv:2303.00690"
    Edit = AttentionTuner

    mha: str = "prefix"
    act: str = "relu"
    reads: str = "input"

    def check(self) -> None:
        """The mixture and the activation are known, sizes are positive."""
        super().check()
        need(self.reads in ("input", "output"), self, "reads", "'input' or 'output'")

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """The tuners of every block."""
        put_tuners(at, self, lambda last: {"rank": self.rank, "act": self.act, "init": "linear", "zero": True},
                   FollowingTuner if self.reads == "output" else AdapterTuner)
