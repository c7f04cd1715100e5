"""Edits: small modules that change what one site takes in or gives out. The base model is never rewritten.

A port is where an edit acts, and what its ``forward`` looks like there:

=========  =============================  ====================================================================
output     forward(y, x) -> y             after the site; x is its first input
input      forward(x) -> x                before the site
attention  forward(q, k, v) -> q, k, v    at the scaled_dot_product_attention calls inside the site
call       forward(args, kwargs) -> same  before the site, all of its arguments; the newest attachment first, so
                                          that what each takes away again at the output port nests like brackets
around     forward(run, *args, **kwargs)  in the place of the site, which runs if, and on what, the edit calls ``run``;
                                          between the ports above and the output
=========  =============================  ====================================================================

An edit is a child of its site (``site.edits.<attachment>``), run by one pair of hooks. So names say where it acts, base
keys do not change, and deepcopy, ``.to``, FSDP and torch.compile treat it like any submodule.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attending import Attending
from .errors import BrokenArtifact, CannotCombine, CannotMerge, nearest
from .part import Part
from .rowwise import map_rows
from .site import Site

PORTS = ("call", "input", "attention", "around", "output")
_REGISTRY: dict[str, type[Edit]] = {}
E = TypeVar("E", bound="type[Any]")  # an Edit or a Shared


def register(name: str) -> Callable[[E], E]:
    """Class decorator: give an edit the short ``name`` under which plans on disk speak of it.

    Raises:
        ValueError: the name is taken by another class.
    """

    def put(kind: E) -> E:
        taken: type[Any] = _REGISTRY.get(name, kind)
        if (taken.__module__, taken.__qualname__) != (kind.__module__, kind.__qualname__):  # the same one is read again on a reload
            raise ValueError(f"the edit name {name!r} is taken by {taken.__qualname__} of {taken.__module__}")
        kind.registered = name
        _REGISTRY[name] = kind
        return kind

    return put


def registered(name: str) -> type[Edit]:
    """The edit class of that short name.

    Raises:
        BrokenArtifact: there is none. Nothing is ever imported by a name found in a file.
    """
    if name not in _REGISTRY:
        raise BrokenArtifact(f"unknown edit {name!r}." + nearest(name, _REGISTRY, 100))
    return _REGISTRY[name]


class Product(NamedTuple):
    """scale (drop(x) A^T) B^T, which an edit adds to what a linear layer answers to x [..., din]: A [rank, din], B [dout, rank].

    ``drop`` is a dropout that is on, if there is one.
    """

    A: Tensor
    B: Tensor
    scale: float
    drop: Callable[[Tensor], Tensor] | None = None


class Edit(nn.Module):
    """One change at one site. The constructor takes the site, then plain data only, so that a plan can rebuild it.

    ``additive`` edits add something to y that depends on x alone, so several of them commute. ``passive`` ones change nothing
    and only remember what they see. Those that ``replaces`` marks give an answer of their own in the place of y, so that nobody
    reads the parameters of their site any more. ``constant`` ones do the same in every forward pass until their tensors change:
    they read no task, no tap and no chance, so that what comes after them may be computed once. What ``rowwise`` ones do to a row
    of a batch depends on that row and on their own tensors alone, so that every row may be given tensors of its own; that is not
    inherited.
    """

    port: str = "output"
    additive: ClassVar[bool] = False
    passive: ClassVar[bool] = False
    replaces: ClassVar[bool] = False
    constant: ClassVar[bool] = False
    rowwise: bool = False
    registered: ClassVar[str] = ""
    per_task: ClassVar[tuple[str, ...]] = ()  # children of which a batch reaches only those that are for its own task
    site: Site
    context: Any
    on: bool

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "rowwise" not in cls.__dict__:
            cls.rowwise = False  # what a subclass adds may depend on more

    def __init__(self, site: Site):
        super().__init__()
        self.on = True
        self.__dict__["site"] = site  # not a child: the site's module holds this edit, not the other way round
        self.__dict__["context"] = None

    @property
    def part(self) -> Part | None:
        """The columns of a fused projection that the edit is about, or None."""
        return self.site.part

    def join(self, context: Any) -> None:
        """Take part in an attachment, whose edits all read the same ``context``."""
        self.__dict__["context"] = context

    def delta(self, weight: Tensor) -> Tensor:
        """The change of ``weight`` [dout, din, ...] that has the same effect as the edit.

        Raises:
            CannotMerge: there is none.
        """
        raise CannotMerge(f"{type(self).__name__} at {self.site.path!r} is not a change of a weight, so it cannot be merged")

    def product(self) -> Product | None:
        """What ``forward`` adds to y where the site is a linear layer, if that is a thin product of its input; else None.

        The layer and all such edits on it are then one operation, with the same result up to rounding; see `core.fusing`.
        """
        return None

    def folds_into(self) -> tuple[str, ...]:
        """Paths of the modules that ``fold`` is for: the site itself, or for an edit of what these read, all of its readers."""
        return (self.site.path,)

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The weight and bias of a site that does by itself what the edit made it do."""
        return weight + self.delta(weight).to(weight.dtype), bias

    def by_row(self, own: dict[str, Tensor], *given: Tensor) -> Any:
        """What a ``rowwise`` edit does (``forward``, or the ``branch`` of a branch) to ``given`` ([B, ...] each) where each row
        meets tensors of its own, name -> [B, ...]. Right for all of them; those that write their products as batched ones are
        faster.
        """
        return map_rows(self, "forward", own, *given)

    @classmethod
    def combine(cls, edits: list[Edit], weights: list[float]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Numbers and tensors of the one edit that equals the weighted sum of ``edits``.

        Raises:
            CannotCombine: this kind of edit has no exact sum.
        """
        raise CannotCombine(f"a weighted sum of {cls.__name__} edits is not one of its kind: only one at weight 1 is exact")


class Branch(Edit):
    """An output edit in three steps, write(y, x, branch(read(y, x))), so that several can be composed before they are written.

    ``branch`` gives what is added, without what it is added to. ``kept`` is the role of the place, in the same block, whose
    output a stack of such edits keeps beside what they add; empty for the site's own output.
    """

    kept: ClassVar[str] = ""

    def read(self, y: Tensor, x: Tensor) -> Tensor:
        """What the branch takes in: by default what the site gave out."""
        return y

    def branch(self, h: Tensor) -> Tensor:
        """The addition, in the precision of the parameters."""
        raise NotImplementedError

    def by_row(self, own: dict[str, Tensor], *given: Tensor) -> Any:
        """As ``branch``, where each row meets tensors of its own."""
        return map_rows(self, "branch", own, *given)

    def write(self, y: Tensor, x: Tensor, z: Tensor) -> Tensor:
        """The site's output with the addition ``z``: by default y + z."""
        return y + z.to(y.dtype)

    def forward(self, y: Tensor, x: Tensor | None = None) -> Tensor:
        """y [..., dout], x [..., din] -> [..., dout]; at the input port there is only one tensor, which is both."""
        x = y if x is None else x
        return self.write(y, x, self.branch(self.read(y, x)))


class WeightEdit(Edit):
    """An edit given by its ``delta`` alone: layers are linear in their weight, so y moves by layer(x, delta)."""

    additive = True

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """y + layer(x, delta)."""
        return y + apply_weight(self.site.module, self.delta(self.site.weight), x).to(y.dtype)


def apply_weight(module: Any, weight: Tensor, x: Tensor) -> Tensor:
    """What ``module`` would answer to ``x`` with ``weight`` [dout, din, ...] and without a bias."""
    if isinstance(module, nn.Embedding):
        return F.embedding(x, weight.T) * getattr(module, "embed_scale", 1.0)  # Gemma's and BART's multiply what they look up
    x = x.to(weight.dtype)
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        convolve = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[weight.dim() - 2]
        if module.padding_mode != "zeros":
            x = F.pad(x, module._reversed_padding_repeated_twice, mode=module.padding_mode)
            return convolve(x, weight, None, module.stride, 0, module.dilation, module.groups)
        return convolve(x, weight, None, module.stride, module.padding, module.dilation, module.groups)
    return F.linear(x, weight)


class Shared(nn.Module):
    """Something that many edits of one attachment read, kept once at the root; registered like an edit."""

    registered: ClassVar[str] = ""
    per_task: ClassVar[tuple[str, ...]] = ()


class AttentionEdit(Edit):
    """An edit at the attention port; subclasses rewrite q, k, v [batch, heads, length, dim] in ``forward``.

    Or they leave those alone, and add to what the attention gives out in ``attended``.
    """

    port = "attention"

    def __init__(self, site: Site):
        super().__init__(site)
        self.heads, self.dim = site.heads  # raises now, not silently never, where no SDPA call can be rewritten
        self.__dict__["mode"] = Attending(self, self.attended)

    def attended(self, y: Tensor, q: Tensor, scale: float) -> Tensor:
        """What the attention gave out, y [batch, heads, length, dim], for q, whose logits it multiplied by ``scale``."""
        return y


def plain(value: Any, where: str) -> Any:
    """``value`` as JSON will give it back.

    Raises:
        TypeError: it is not plain data.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [plain(v, where) for v in value]
    if isinstance(value, dict) and all(isinstance(k, str) for k in value):
        return {k: plain(v, where) for k, v in value.items()}
    raise TypeError(f"{where}: {value!r} ({type(value).__name__}) is not plain data: an edit takes numbers, strings and lists")


def build(kind: type[Any], site: Site | None, numbers: dict[str, Any], device: torch.device, dtype: torch.dtype) -> Any:
    """Construct an edit or shared module; its numbers are drawn on the CPU, so that they are the same on every device."""
    with torch.device("meta" if device.type == "meta" else "cpu"):
        made = kind(site, **numbers) if site is not None else kind(**numbers)
    for p in made.parameters():
        p.data = p.data.to(device, dtype if p.is_floating_point() else p.dtype)
    for name, buffer in made.named_buffers():
        owner = made.get_submodule(name.rpartition(".")[0])
        owner._buffers[name.rpartition(".")[2]] = buffer.to(device, dtype if buffer.is_floating_point() else buffer.dtype)
    return made
