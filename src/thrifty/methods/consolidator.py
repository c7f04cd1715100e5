"""Consolidator: Mergeable Adapter with Grouped Connections for Visual Adaptation (Hao, Chen, Ding, et al.; ICLR 2023,
arXiv:2305.00603)."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..core import Branch, Method, Site, base, need, register
from ..core.errors import CannotMerge, NoSuchSetting, Unfit
from .bitfit import LEAVES
from .branches.drop_path import DropPath

if TYPE_CHECKING:
    from ..core import Attachment


@register("grouped")
class Grouped(Branch):
    """y + DP(sum over g of G_g shuffle_g(x) + b): linear layers of g groups, over channels dealt out to the groups in turn.

    shuffle_g views x [..., din] as [g, din / g], turns that and flattens it. Of the result, group i of G_g reads the i-th run of
    din / g channels and gives the i-th run of dout / g; its weights are [g, dout / g, din / g]. All start from U(-0.001, 0.001).
    """

    additive = True

    def __init__(self, site: Site, groups: list[int], rate: float, bias: bool):
        super().__init__(site)
        self.weights = nn.ParameterList(torch.empty(g, site.dout // g, site.din // g) for g in groups)
        self.bias = nn.Parameter(torch.empty(site.dout)) if bias else None
        self.drop_path = DropPath(rate)
        for p in self.parameters():
            nn.init.uniform_(p, -1e-3, 1e-3)

    def read(self, y: Tensor, x: Tensor) -> Tensor:
        """x [..., din]."""
        return x

    def branch(self, h: Tensor) -> Tensor:
        """DP(G shuffle(h) + b) [..., dout]."""
        h = h.to(self.weights[0].dtype)
        z = sum(torch.einsum("...gi,goi->...go", h[..., self.order(i)].unflatten(-1, (len(G), -1)), G).flatten(-2)
                for i, G in enumerate(self.weights))
        assert isinstance(z, Tensor)
        return self.drop_path(z if self.bias is None else z + self.bias)

    def order(self, i: int) -> Tensor:
        """Which channel of x stands at each place of the i-th shuffle [din]."""
        G = self.weights[i]
        return torch.arange(len(G) * G.shape[2], device=G.device).view(len(G), -1).T.flatten()

    def delta(self, weight: Tensor) -> Tensor:
        """The sum of blockdiag(G_g) P_g, where P_g is the shuffle as a matrix."""
        total = torch.zeros_like(weight)
        for i, G in enumerate(self.weights):
            columns = self.order(i).view(len(G), 1, -1).expand(G.shape)
            total += torch.zeros_like(total).view(len(G), -1, total.shape[1]).scatter(2, columns, G.to(total.dtype)).view_as(total)
        return total

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """W + delta and c + b.

        Raises:
            CannotMerge: the layer has no bias.
        """
        if bias is None and self.bias is not None:
            raise CannotMerge(f"{self.site.path!r} has no bias to fold the branch's into: tune with bias=False to merge")
        return weight + self.delta(weight), bias if bias is None or self.bias is None else bias + self.bias.to(bias.dtype)


@dataclass
class Consolidator(Method):
    """Sparse linear branches beside every linear layer of a block, with every bias there and every norm in place.

        y = W x + c + DP(G shuffle(x) + b)

    G is block-diagonal with g blocks, and the channel shuffle deals x out to them. ``g`` lists the numbers of several such
    branches, which are summed; each must divide both widths. DP drops the branch of whole images at the rate ``drop_path``, which
    the authors choose from 0 to 0.8. After training b goes into c, which trains too (``in_place``). Projections that the model
    has in one layer (the qkv of timm) get one branch together.
    """

    name = "consolidator"
    route = "inject parameters"
    paper = "Hao et al., Consolidator: Mergeable Adapter with Grouped Connections, ICLR 2023, arXiv:2305.00603"
    trains = "a sparse matrix beside each linear layer, the biases of the blocks, and every norm"
    mergeable = True
    inference = "none once merged"
    identity_at_start = False
    rate = 1e-3
    Edit = Grouped

    g: list[int] = field(default_factory=lambda: [384])
    drop_path: float = 0.0
    bias: bool = True
    in_place: bool = True
    where: str = "attn.?|mlp.*"

    def check(self) -> None:
        """Groups are positive numbers, the rate is a probability."""
        need(bool(self.g) and all(isinstance(g, int) and g >= 1 for g in self.g), self, "g", "a list of positive numbers")
        need(0 <= self.drop_path < 1, self, "drop_path", "in [0, 1)")

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """A branch per linear layer; biases and norms in place.

        Raises:
            NoSuchSetting: a number of groups does not divide both widths of a layer.
            Unfit: a layer is no linear one.
        """
        for site in {s.path: _whole(s) for s in at.sites(self.where)}.values():
            _refuse(site, self.g)
            at.put(site, Grouped, groups=self.g, rate=self.drop_path, bias=self.bias)
        if self.in_place:
            blocks = tuple(f"{s.path}." for s in at.sites("block"))
            for name, _ in list(base.parameters(at.model)):
                if name.rpartition(".")[2] in LEAVES and name.startswith(blocks):
                    at.train(name, wildcard=True)
            at.train_matching("norm*", wildcard=True)

    @torch.no_grad()
    def finish(self, at: Attachment) -> None:
        """Put each branch's bias into that of its layer, where that trains."""
        for key, edit in list(at.edits.items()):
            name = f"{edit.site.path}.bias"
            if isinstance(edit, Grouped) and edit.bias is not None and name in at.base:
                at.model.get_parameter(name).add_(edit.bias)
                with torch.random.fork_rng(devices=[]):  # initial values that what was learned takes the place of
                    made = at.replace(key, Grouped, groups=self.g, rate=self.drop_path, bias=False)
                made.load_state_dict({n: t for n, t in edit.state_dict().items() if n != "bias"})


def _whole(site: Site) -> Site:
    return site if site.part is None else replace(site, part=None, role="attn.qkv")


def _refuse(site: Site, groups: list[int]) -> None:
    if isinstance(site.module, (nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        raise Unfit(f"{site.path!r} ({type(site.module).__name__}) is no linear layer: leave it out of where=")
    for g in groups:
        if site.din % g or site.dout % g:
            fit = [n for n in range(1, site.din + 1) if site.din % n == site.dout % n == 0]
            raise NoSuchSetting(f"consolidator: {g} groups do not divide {site.path!r}, which maps {site.din} to {site.dout}; "
                                f"{', '.join(map(str, fit))} do")
