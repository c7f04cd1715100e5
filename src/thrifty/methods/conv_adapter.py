"""Conv-Adapter: Exploring Parameter Efficient Transfer Learning for ConvNets (Chen, Tao, Zhang, Wang, Li, Ye, Wang, Hu, Savvides;
2022, arXiv:2208.07463)."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..core import Method, Site, base, need
from ..core.errors import NoSuchSite, Unfit
from .bitfit import LEAVES
from .branches.bottleneck import Tap
from .branches.conv_branch import ConvAside, ConvBranch, FinalNorm
from .branches.operations import by_block
from .branches.stream import Halves, Join, halves, join
from .features.tower import choose, image_tower, specials

if TYPE_CHECKING:
    from ..core import Attachment

DESIGNS = ("conv-par", "conv-seq", "res-par", "res-seq")
WINDOW = 7  # the kernel over Swin's tokens, as wide as its windows


@dataclass
class ConvAdapter(Method):
    """A small convolutional branch at every block: A(x) = alpha * (W_pw act(W_dw x + b_dw) + b_pw).

    W_dw has the kernel K of the convolution that it accompanies and C_in / ``reduction`` groups, one hidden channel each; W_pw is
    1 × 1. Of the four designs the authors published code for the first; the others follow the paper's formulas:

        conv-par  conv(x) + A(x)          conv-seq  h + A(h), h = conv(x)
        res-par   block(x) + A(x)         res-seq   y + A(y), y = block(x)

    In a ResNet bottleneck conv is the K × K one, and A(x) is added behind its norm and activation; in a basic block it is the
    first, and A(x) is added before the norm; in a ConvNeXt it is the depth-wise one, and with conv-par the convolutions between
    stages have an adapter, too. In a Swin it is the attention, over the map of tokens before they are shifted, and K is 7.

    alpha starts at one and the convolutions as the trunk's own do, so the model does not start as the base, unless ``zero``
    names "pointwise" (W_pw, b_pw) or "alpha". Beside the adapters: in a trunk with batch norms a new one behind the last block
    (``final_norm``), and running statistics that move and are saved (``statistics``); in others every layer norm. ``unfreeze``:
    "layernorm" says so, "none" does not, "norm" trains batch norms' scales and shifts as well, "bias" every bias. The paper's
    ``reduction`` is 4, its code's 8.
    """

    name = "conv-adapter"
    aliases = ("conv-par",)
    presets = {"conv-seq": {"design": "conv-seq"}, "res-par": {"design": "res-par"}, "res-seq": {"design": "res-seq"},
               "conv-adapter-norm": {"unfreeze": "norm"}, "conv-adapter-bias": {"unfreeze": "bias"}}
    route = "add modules"
    modalities = ("image",)
    paper = "Chen et al., Conv-Adapter: Exploring Parameter Efficient Transfer Learning for ConvNets, 2022, arXiv:2208.07463"
    trains = "a small convolutional branch at each block, and a norm before the head or the layer norms"
    inference = "a small convolutional network more per block"
    identity_at_start = False
    rate = 1e-3
    Edit = ConvBranch

    design: str = "conv-par"
    reduction: int = 4
    zero: str = "none"
    final_norm: bool = True
    statistics: bool = True
    unfreeze: str = "layernorm"
    where: str = "block"

    def check(self) -> None:
        """The design and what trains beside it are known, the reduction is positive."""
        need(self.design in DESIGNS, self, "design", f"one of {list(DESIGNS)}")
        need(self.reduction >= 1, self, "reduction", "at least 1")
        need(self.zero in ("none", "pointwise", "alpha"), self, "zero", "'none', 'pointwise' or 'alpha'")
        need(self.unfreeze in ("layernorm", "none", "norm", "bias"), self, "unfreeze", "'layernorm', 'none', 'norm' or 'bias'")

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """An adapter at every block, and what trains beside them.

        Raises:
            NoSuchSite: ``where`` names no blocks.
            Unfit: blocks are neither convolutional nor those of a Swin, or a width is no multiple of the reduction.
        """
        blocks = [s for s in at.sites(self.where) if s.role == "block"]
        if not blocks:
            raise NoSuchSite(f"{self.where!r} names no blocks of {type(at.model).__name__}")
        inner = {path: [c for c in found if _kernel(c) > 1] for path, found in by_block(at, blocks, "conv").items()}
        if not any(inner.values()):
            self._over_windows(at)
        elif not all(len(found) in (1, 2) for found in inner.values()):
            odd = next(path for path, found in inner.items() if len(found) not in (1, 2))
            raise Unfit(f"Conv-Adapter at {odd!r}: one or two convolutions over several places make a block that it knows, and "
                        f"{len(inner[odd])} were found")
        else:
            for block in blocks:
                self._beside_convolutions(at, block, inner[block.path])
            if self.design == "conv-par":
                self._between_stages(at, blocks)
        self._unfreeze(at)

    def _beside_convolutions(self, at: Attachment, block: Site, inner: list[Site]) -> None:
        """One block of a convolutional trunk: of its convolutions over several places the first is the one that counts."""
        conv, kernel = inner[0], _kernel(inner[0])
        next_to = by_block(at, [block], "mlp.in")[block.path]
        start: dict[str, Any] = {"act": "gelu", "init": "truncated"} if next_to else {"act": "relu", "init": "kaiming"}
        if self.design.startswith("res"):
            steps = [c.module.stride[0] for c in by_block(at, [block], "conv")[block.path]]  # type: ignore[index]
            self._put(at, block, kernel, stride=max(steps) if self.design == "res-par" else 1, **start)
            return
        behind = _behind(at, block, conv) if len(inner) == 1 and not next_to else None
        if self.design == "conv-seq" or behind is None:
            self._put(at, conv, kernel, **(_geometry(conv) if self.design == "conv-par" else {}), **start)
            return
        sizes = self._sizes(conv, conv.din, conv.dout, kernel, **_geometry(conv), **start)
        at.put(conv, ConvAside, key=conv.path, port="input", sizes=sizes)
        at.put(behind, Join, keys=[conv.path], port="input")

    def _between_stages(self, at: Attachment, blocks: list[Site]) -> None:
        """ConvNeXt: beside the convolutions that halve the image between two stages."""
        if not by_block(at, blocks[:1], "mlp.in")[blocks[0].path]:
            return
        for conv in at.sites("conv"):
            if conv.depth < 0 and any(conv.path.startswith(f"{b.stack}.") for b in blocks):
                self._put(at, conv, _kernel(conv), **_geometry(conv), act="gelu", init="truncated")

    def _over_windows(self, at: Attachment) -> None:
        """Swin: the tokens of a stage are a map."""
        blocks = choose(at, image_tower(at)[1], self.where)
        if special := specials(at.model):
            raise Unfit(f"{type(at.model).__name__} has {special} special tokens in front of its patches, which are no place "
                        "of an image: Conv-Adapter is for convolutional trunks and for Swin, Convpass for such transformers")
        start: dict[str, Any] = {"act": "gelu", "init": "default"}
        for half in halves(at, blocks):
            if self.design.startswith("res"):
                self._put(at, half.block, WINDOW, width=half.first.dout, tokens=True, **start)
            else:
                self._beside_attention(at, half, self._sizes(half.first, half.first.dout, half.first.dout, WINDOW, **start))

    def _beside_attention(self, at: Attachment, half: Halves, sizes: dict[str, Any]) -> None:
        if self.design == "conv-par":
            at.put(half.first, ConvAside, key=half.first.path, port="output", sizes=sizes, tokens=True)
            join(at, half, [half.first.path], [])
            return
        before = f"{half.first.path}<"
        at.put(half.first, Tap, key=before)  # what the attention gave is what the stream gained between the two norms
        at.put(half.second, ConvAside, key=half.second.path, port="input", sizes=sizes, tokens=True, since=before)
        join(at, half, [half.second.path], [])

    def _put(self, at: Attachment, site: Site, kernel: int, width: int = 0, tokens: bool = False, **more: Any) -> None:
        follows = self.design.endswith("seq")
        out = width or site.dout
        sizes = self._sizes(site, out if follows else width or site.din, out, kernel, **more)
        at.put(site, ConvBranch, follows=follows, sizes=sizes, tokens=tokens)

    def _sizes(self, site: Site, width: int, out: int, kernel: int, **more: Any) -> dict[str, Any]:
        """The numbers of one branch.

        Raises:
            Unfit: the width is no multiple of the reduction.
        """
        if width % self.reduction:
            fit = [n for n in range(1, 17) if width % n == 0]
            raise Unfit(f"Conv-Adapter at {site.path!r}: reduction {self.reduction} does not divide its {width} channels; "
                        f"{', '.join(map(str, fit))} do")
        return {"width": width, "out": out, "hidden": width // self.reduction, "kernel": kernel, "stride": 1,
                "padding": kernel // 2, "dilation": 1, "zero": self.zero, **more}

    def _unfreeze(self, at: Attachment) -> None:
        """What trains beside the adapters."""
        batch_norms = [p for p, m in base.modules(at.model) if isinstance(m, _BatchNorm)]
        if batch_norms and self.final_norm:
            at.put(at.sites("block")[-1], FinalNorm)
        if batch_norms and self.statistics:
            at.train_buffers([f"{p}.{n}" for p in batch_norms for n, _ in at.model.get_submodule(p).named_buffers(recurse=False)])
        if self.unfreeze == "norm" or not batch_norms and self.unfreeze != "none":
            at.train_matching("norm*", wildcard=True)
        if self.unfreeze == "bias":
            heads = tuple(f"{s.path}." for s in _heads(at))
            for name in [n for n, _ in base.parameters(at.model) if n.rpartition(".")[2] in LEAVES]:
                if not name.startswith(heads):
                    at.train(name, wildcard=True)


def _kernel(conv: Site) -> int:
    module = conv.module
    return int(module.kernel_size[0]) if isinstance(module, nn.Conv2d) else 1


def _geometry(conv: Site) -> dict[str, Any]:
    """What makes the branch's map as large as that of ``conv``.

    Raises:
        Unfit: it pads by other numbers than zeros, or by name.
    """
    module: Any = conv.module
    if module.padding_mode != "zeros" or isinstance(module.padding, str):
        raise Unfit(f"Conv-Adapter at {conv.path!r}: the convolution pads by {module.padding_mode!r}, {module.padding!r}, which a "
                    "branch beside it does not")
    return {"stride": list(module.stride), "padding": list(module.padding), "dilation": list(module.dilation)}


def _behind(at: Attachment, block: Site, conv: Site) -> Site | None:
    """The convolution that reads, behind norm and activation, what ``conv`` gives; None if there is none in the block."""
    every = by_block(at, [block], "conv")[block.path]
    place = next(i for i, c in enumerate(every) if c.path == conv.path)
    return next((c for c in every[place + 1 :] if c.din == conv.dout), None)


def _heads(at: Attachment) -> list[Site]:
    try:
        return at.sites("head")
    except NoSuchSite:
        return []
