"""A network put together from blocks of several models, as an edit on their zoo.

Deep Model Reassembly (Yang, Zhou, Liu, Ye, Wang; NeurIPS 2022, arXiv:2210.17409).
"""
from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..core import Edit, Site, register
from .stitching import Joint, Stem, Stitch, pool, run_nodes
from .zoo import Pooled


@register("assembled")
class Assembled(Edit):
    """A new stem, then for each of ``joints`` a stitch and the blocks whose paths ``nodes`` lists; the mean over places.

    The blocks stay where they are, in their models; nothing else of those runs. Unless they train (``whole``) they are always in
    evaluation mode.
    """

    port = "around"
    blocks: list[list[nn.Module]]

    def __init__(self, site: Site, channels: int, joints: list[dict[str, Any]], nodes: list[list[str]], whole: bool = False):
        super().__init__(site)
        self.nodes, self.whole = nodes, whole
        self.stem = Stem(channels)
        self.stitches = nn.ModuleList(Stitch(Joint(**joint)) for joint in joints)

    def join(self, context: Any) -> None:
        """Find the blocks."""
        super().join(context)
        self.__dict__["blocks"] = [[context.home.model.get_submodule(path) for path in part] for part in self.nodes]

    def forward(self, run: Any, pixel_values: Tensor) -> Pooled:
        """Pictures [B, 3, h, w] -> [B, width of the last block]; none of the models runs as a whole."""
        x = self.stem(pixel_values)
        for stitch, part in zip(self.stitches, self.blocks, strict=True):
            for node in part:
                if node.training and not self.whole:
                    node.eval()
            x = run_nodes(part, stitch(x))
        return Pooled(pool(x))
