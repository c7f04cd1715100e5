"""TinyTL: Reduce Memory, Not Parameters for Efficient On-Device Learning (Cai, Gan, Zhu, Han; NeurIPS 2020, arXiv:2007.11622)."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..core import Method, need
from .bitfit import BitFit
from .branches.bottleneck import Tap
from .branches.lite_residual import LiteResidual, MainBranch, main_branches
from .memory.sparing import Sparing

if TYPE_CHECKING:
    from ..core import Attachment

MODES = ("lite_residual+bias", "lite_residual", "bias")


@dataclass
class TinyTL(Method):
    """Trains biases, for which no activation must be kept, and small residual modules that read pooled ones.

        a' = W a + b:   dL/da = W' dL/da',   dL/db = sum dL/da',   and only dL/dW, which nobody asks for, would need a
        y = F(a) + b + up(GN(C_1x1(relu(GN(C_kxk(pool_2(a)))))))        beside every block of convolutions; see ``LiteResidual``

    C_kxk is in ``conv_groups`` groups, to ``expand`` times the channels (in ResNets choose ``expand`` far below 1), with the
    stride of the block. ``kernel`` is made smaller by 2 while it exceeds half the height of what the block reads; where that
    half is 1, the average is over all places and k = 1. ``standardised`` is the weight standardisation of the new
    convolutions. The batch normalisations of the frozen network stay: the authors replace them by group normalisations and
    pretrain the network with its lite modules anew, without which their accuracy is not to be expected.

    ``sparing`` makes torch keep for the backward pass what it needs and no more: not the inputs of frozen convolutions and
    normalisations, and of a ReLU one bit per number; see ``sparing`` and, to predict and to measure it, ``activation_memory``.
    The authors also hold frozen weights in 8 bits, by k-means; ``thrifty.methods.memory.kmeans.quantise`` does that to a model
    before this is attached.

    ``mode="bias"`` ("tinytl-bias") is the first half alone, which also serves transformers; ``mode="lite_residual"`` the second.
    """

    name = "tinytl"
    presets = {"tinytl-bias": {"mode": "bias"}, "tinytl-lite": {"mode": "lite_residual"}}
    route = "add modules"
    modalities = ("image",)
    paper = "Cai et al., TinyTL: Reduce Memory, Not Parameters for Efficient On-Device Learning, NeurIPS 2020, arXiv:2007.11622"
    trains = "biases, and a small residual module on pooled activations beside each block of convolutions"
    inference = "a small network more per block; none for the biases"
    rate = 1e-3

    mode: str = "lite_residual+bias"
    expand: float = 1.0
    kernel: int = 5
    conv_groups: int = 2
    standardised: bool = True
    sparing: bool = True

    def check(self) -> None:
        """The mode is known, kernels have a middle, numbers are positive."""
        need(self.mode in MODES, self, "mode", f"one of {', '.join(MODES)}")
        need(self.expand > 0, self, "expand", "positive")
        need(self.kernel >= 1 and self.kernel % 2 == 1, self, "kernel", "odd")
        need(self.conv_groups >= 1, self, "conv_groups", "at least 1")

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """A lite module for each block, the biases, and what saves memory around it all.

        Raises:
            Unfit: there are no blocks of convolutions, or no biases.
        """
        if "lite_residual" in self.mode:
            for branch in main_branches(at):
                at.put(branch.block, Tap, key=branch.block.path)
                at.put(branch.end, LiteResidual, key=branch.block.path, width=branch.width, **self.sizes(branch))
        if "bias" in self.mode:
            BitFit.make().attach(at)
        if self.sparing:
            at.put(at.sites("model")[0], Sparing)

    def sizes(self, branch: MainBranch) -> dict[str, Any]:
        """The numbers of the lite module beside a block, by how large pictures are there."""
        half, kernel = branch.height // 2, self.kernel
        while kernel > max(1, half):
            kernel -= 2
        return {"stride": branch.stride, "kernel": kernel if half > 1 else 1, "groups": self.conv_groups, "expand": self.expand,
                "pool": 2 if half > 1 else 0, "standardised": self.standardised}

    def finish(self, at: Attachment) -> None:
        """What saves memory in training has done its work."""
        for key in [key for key, edit in at.edits.items() if isinstance(edit, Sparing)]:
            at.take_away(key)
