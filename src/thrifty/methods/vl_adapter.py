"""VL-Adapter: Parameter-Efficient Transfer Learning for Vision-and-Language Tasks (Sung, Cho, Bansal; CVPR 2022,
arXiv:2112.06825)."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..core import Method, Site, by_task, need, register
from ..core.errors import NoSuchSetting
from .branches.bottleneck import ACTS
from .compacter import HypercomplexAdapter, InSublayer

if TYPE_CHECKING:
    from ..core import Attachment

VISUAL = "visual_embedding"  # what makes vectors of pictures: it has no pretrained weights, so it trains with every method
SHARING = {"single": (False, False), "multiple": (True, True), "half-down": (False, True), "half-up": (True, False)}


@register("vl-bottleneck")
class SublayerAdapter(InSublayer):
    """h + U gelu(D h + b_1) + b_2 where a sub-layer ends, before its dropout; D [rank, d], U [d, rank], gelu by its tanh form.

    Both start as nn.Linear draws them, so that the branch starts as something.
    """

    def __init__(self, site: Site, rank: int):
        super().__init__(site)
        self.down, self.up = nn.Linear(site.dout, rank), nn.Linear(rank, site.dout)

    def branch(self, h: Tensor) -> Tensor:
        """h [..., d] -> the same shape, in the precision of the parameters."""
        return self.up(ACTS["gelu_tanh"](self.down(h.to(self.up.weight.dtype))))


@register("vl-bottleneck-by-task")
class TaskAdapter(InSublayer):
    """The same with a D, a U, or both of its own for each of several tasks; ``downs`` and ``ups`` say how many there are."""

    per_task = ("down", "up")

    def __init__(self, site: Site, rank: int, downs: int, ups: int):
        super().__init__(site)
        self.down = nn.ModuleList(nn.Linear(site.dout, rank) for _ in range(downs))
        self.up = nn.ModuleList(nn.Linear(rank, site.dout) for _ in range(ups))

    def branch(self, h: Tensor) -> Tensor:
        """h [batch, ..., d] -> the same shape, through the layers of the batch's task, or of each row's."""
        return by_task(self.context.which(), self._adapt, h.to(next(self.parameters()).dtype))

    def _adapt(self, task: int, h: Tensor) -> Tensor:
        down, up = (layers[task % len(layers)] for layers in (self.down, self.up))
        adapted: Tensor = up(ACTS["gelu_tanh"](down(h)))
        return adapted


@dataclass
class VLAdapter(Method):
    """A bottleneck where every sub-layer ends, one for all tasks; norms train too, and what pictures enter the model by.

        h + U gelu(D h + b_1) + b_2,   D [d / reduction, d]

    after self-attention, cross-attention and feed-forward network, before dropout, residual and normalisation. The parameters
    named ``visual_embedding`` train where the model has them (see ``thrifty.models.VisionLanguage``).

    ``sharing`` "single" (the authors' choice) is one adapter for all tasks; "multiple" has one for each, "half-down" one D for all
    and a U for each, "half-up" the opposite; those three take ``tasks=`` of ``thrifty.attach``. ``n`` > 0 makes D and U sums of n
    Kronecker products, every factor whole and none shared between layers ("vl-compacter": n = 2). The paper's other rows are
    ``hyperformer``, ``lora`` (rank 128, with all biases) and ``prompt`` on the same model.
    """

    name = "vl-adapter"
    presets = {"vl-compacter": {"n": 2}}
    route = "add modules"
    modalities = ("text", "image")
    paper = ("Sung et al., VL-Adapter: Parameter-Efficient Transfer Learning for Vision-and-Language Tasks, CVPR 2022, "
             "arXiv:2112.06825")
    trains = "a bottleneck after each sub-layer, every normalisation, the visual embedding"
    inference = "one small network more per sub-layer"
    identity_at_start = False
    rate = 1e-3

    reduction: int = 8
    sharing: str = "single"
    n: int = 0
    where: str = "after.*"

    def check(self) -> None:
        """Sizes are positive, the sharing is known."""
        need(self.reduction >= 1, self, "reduction", "at least 1")
        need(self.sharing in SHARING, self, "sharing", f"one of {', '.join(SHARING)}")
        need(self.n >= 0, self, "n", "positive, or 0 for whole matrices")
        need(not self.n or self.sharing == "single", self, "n", "0, as Kronecker products are offered for sharing='single' alone")

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """The adapters, and what trains in place.

        Raises:
            NoSuchSetting: adapters by task without tasks, or n does not divide a width.
        """
        own = SHARING[self.sharing]
        if any(own) and not at.tasks:
            raise NoSuchSetting(f"{self.name}: sharing={self.sharing!r} has adapters by task: name the tasks, "
                                "attach(model, method, tasks=['vqa', 'caption'])")
        for site in at.sites(self.where):
            rank = max(1, site.dout // self.reduction)
            if self.n:
                if site.dout % self.n or rank % self.n:
                    raise NoSuchSetting(f"{self.name}: n = {self.n} does not divide both {site.dout} and {rank}, the widths of the "
                                        f"adapter at {site.path!r}")
                at.put(site, HypercomplexAdapter, rank=rank, n=self.n, k=0, act="gelu_tanh", own=0.01)
            elif any(own):
                downs, ups = (len(at.tasks) if apart else 1 for apart in own)
                at.put(site, TaskAdapter, rank=rank, downs=downs, ups=ups)
            else:
                at.put(site, SublayerAdapter, rank=rank)
        at.train_matching("norm*", wildcard=True)
        train_visual(at)


def train_visual(at: Attachment) -> None:
    """Let what is called ``visual_embedding`` train in place, if the model has it; text alone does not reach it."""
    for name, _ in list(at.model.named_parameters()):
        if VISUAL in name.split("."):
            at.train(name, wildcard=True)
