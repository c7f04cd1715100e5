"""LST: Ladder Side-Tuning for Parameter and Memory Efficient Transfer Learning (Sung, Cho, Bansal; NeurIPS 2022,
arXiv:2206.06522)."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Edit, Method, Site, need, register
from ..core.errors import Unfit
from ..core.hooks import edits_on, main
from .branches import pruned
from .branches.ladder import given, narrow, narrow_norm, tail
from .branches.side import SideTap, Stack, asked, hear, parameters, place, said, stacks

if TYPE_CHECKING:
    from ..core import Attachment

BELOW, LOGITS = "what the side encoder gave", "what teacher and student said"


@register("ladder")
class Ladder(Edit):
    """The side network of one stack. With h_i [batch, tokens, d] what block i gives out, and the kept blocks in order,

        s = Down_0(x_0);   s <- mu_i s + (1 - mu_i) Down_i(h_i),   s <- SideBlock_i(s),   mu_i = sigmoid(alpha_i / T)
        z = drop(Norm(s)),   u = Up(z)                      Down [d -> d / by], Up [d / by -> d]

    where x_0 enters block 0. On ``top`` u takes the place of the trunk's last state y: with ``mix`` mu u + (1 - mu) y, and
    while it learns from a ``teacher``, y follows u along the batch, for ``Teacher`` to take off behind the head. Below a
    decoder y goes on with z [batch, tokens, d / by] beside it.
    """

    def __init__(self, site: Site, blocks: str, width: int, kept: list[int], by: int, temperature: float, top: bool = True,
                 mix: bool = False, teacher: bool = False):
        super().__init__(site)
        trunk: Any = site.module.get_submodule(blocks)
        small, depth = width // by, len(trunk)
        if small * by != width:
            raise Unfit(f"states of {width} features at {site.path!r} do not divide by {by}")
        self.path = f"{site.path}.{blocks}".lstrip(".")
        self.kept, self.by, self.temperature, self.top, self.teacher = kept, by, temperature, top, teacher
        others: list[Any] = [edit for edit in edits_on(site.module).values() if isinstance(edit, Ladder)]
        self.memory: int = max([depth, *(edit.memory + len(edit.kept) for edit in others)])  # behind the trunk's own, in a cache
        self.start, self.down = nn.Linear(width, small), nn.ModuleList(nn.Linear(width, small) for _ in kept)
        self.alpha = nn.Parameter(torch.zeros(depth))  # those of left out blocks are never read
        self.rungs = nn.ModuleList(narrow(trunk[i], by, self.memory + j, j == 0) for j, i in enumerate(kept))
        norm, dropout = tail(site.module, blocks)
        self.norm = nn.Identity() if norm is None else narrow_norm(norm, by)
        self.dropout = nn.Dropout(dropout)
        if top:
            self.up = nn.Linear(small, width)
            self.beta = nn.Parameter(torch.zeros(())) if mix else None
        for layer in (self.start, *self.down, *([self.up] if top else [])):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """y [batch, tokens, d] -> u [batch, tokens, d] on top, [y; z] [batch, tokens, d + d / by] below."""
        kind, below = self.alpha.dtype, self.context.taps.pop(BELOW, None)
        call = first = hear(self, asked(f"{self.path}.0"))
        s, positions = self.start(next(iter(first.values())).to(kind)), None
        for j, i in enumerate(self.kept):
            call = first if i == 0 else hear(self, asked(f"{self.path}.{i}"))
            h = hear(self, said(f"{self.path}.{i}")).to(kind)
            mu = torch.sigmoid(self.alpha[i] / self.temperature)
            s = mu * s + (1 - mu) * self.down[j](h)
            # forward() and not a call: transformers records every call of a block of this class as a state of the model
            out = self.rungs[j].forward(**given(call, s, self.by, self.memory, len(self.kept), below, positions))
            s, positions = main(out), out[1] if "position_bias" in call else None
        z = self.dropout(self.norm(s))
        if not self.top:
            return torch.cat([y, z.to(y.dtype)], -1)
        u = self.up(z)
        if self.beta is not None:
            mu = torch.sigmoid(self.beta / self.temperature)
            u = mu * u + (1 - mu) * y.detach()
        u = u.to(y.dtype)
        return torch.cat([u, y.detach()]) if self.teacher and self.training else u


@register("ladder-between")
class Between(Edit):
    """Before a decoder: takes what the side encoder gave off the encoder's states [batch, tokens, d + ..], for the side decoder.

    The states carry it because they are what callers keep, repeat for beams and hand to the decoder again.
    """

    port = "call"

    def __init__(self, site: Site, width: int, small: int):
        super().__init__(site)
        self.names, self.width, self.small = parameters(site.module), width, small

    def forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """All arguments of the decoder -> the same with the trunk's own ``encoder_hidden_states``, outside the graph.

        Raises:
            Unfit: they were made without the side network.
        """
        told = dict(zip(self.names, args, strict=False)) | kwargs
        states = told.get("encoder_hidden_states")
        end = self.width + self.small
        if states is None or states.shape[-1] < end:
            raise Unfit(f"the side network of the decoder {self.site.path!r} needs what the encoder gave with the side network on")
        self.context.taps[BELOW] = states[..., self.width : end].to(self.site.dtype)
        own = states[..., : self.width].detach()
        told["encoder_hidden_states"] = torch.cat([own, states[..., end:]], -1) if states.shape[-1] > end else own
        return (), told


@register("ladder-teacher")
class Teacher(Edit):
    """Behind a head that read student and teacher along the batch: gives on the student's answer, and leaves both."""

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """y [2 batch, ...] -> [batch, ...] in training, else y."""
        if not self.training:
            return y
        student, teacher = y.chunk(2)
        self.context.taps[LOGITS] = student, teacher.detach()
        return student


@dataclass
class LST(Method):
    """A narrow copy of the trunk beside it, which reads its states through a ladder and answers for it; the trunk keeps no graph.

    The copy's blocks are ``reduction`` times narrower, with as many heads, and every ``drop_every``-th, from the first, is left
    out (T5-base: 0, 4 and 8 of 12; 2 is the authors' choice for T5-large); ``keep`` names those that stay instead. They start
    from the trunk's own weights, pruned by importance (see ``pruned``): "fisher" asks for data, ``examples`` rows of it,
    "magnitude" does not, "random" starts anew. The trunk is in the model's mode, so that its dropout acts in training.

    In an encoder-decoder each stack has its copy, and the side decoder attends to the side encoder, whose states travel beside
    the encoder's own: its last hidden state comes out ``d / reduction`` wider.

    Off by default: ``mix``, a gate between the answer and the trunk's last state; ``distil``, the weight of the divergence of
    a language model's answer from the one that its head gives to the trunk, with ``teacher_temperature``, a mean over positions.
    """

    name = "lst"
    aliases = ("ladder-side-tuning",)
    route = "add modules"
    paper = "Sung et al., LST: Ladder Side-Tuning, NeurIPS 2022, arXiv:2206.06522"
    trains = "a narrow copy of the trunk, with gates and projections that lead into it and out of it"
    inference = "the narrow copy, beside the trunk, with a key-value cache of its own"
    identity_at_start = False
    rate = 3e-3

    reduction: int = 8
    drop_every: int = 4
    keep: list[int] = field(default_factory=list)
    init: str = "fisher"
    examples: int = 1024
    temperature: float = 0.1
    mix: bool = False
    distil: float = 0.0
    teacher_temperature: float = 0.1
    where: str = "block"

    def check(self) -> None:
        """Numbers are positive, kept blocks are listed once and in order, the start is known."""
        need(self.reduction >= 1, self, "reduction", "at least 1")
        need(self.drop_every == 0 or self.drop_every >= 2, self, "drop_every", "at least 2, or 0 to keep every block")
        need(self.keep == sorted({i for i in self.keep if i >= 0}), self, "keep", "rising indices of blocks")
        need(self.init in ("fisher", "magnitude", "random"), self, "init", "'fisher', 'magnitude' or 'random'")
        need(self.examples >= 1, self, "examples", "at least 1")
        need(self.temperature > 0, self, "temperature", "positive")
        need(self.distil >= 0, self, "distil", "at least 0")
        need(self.teacher_temperature > 0, self, "teacher_temperature", "positive")

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """Taps on the kept blocks and a ladder where each stack ends; then the side blocks get their first values.

        Raises:
            NoSuchSite, Unfit: see ``stacks`` and ``ladder.narrow``; a kept block does not exist.
            ThriftyError: "fisher" without data, or with data that has no loss.
        """
        found = stacks(at, self.where)
        importance = pruned.weigh(at, self.init, batches, self.examples)
        ladders = [self._climb(at, stack, stack is found[-1]) for stack in found]
        if len(found) == 2:
            at.put(place(at, found[1].holder), Between, width=found[1].width, small=found[0].width // self.reduction)
        if self.distil:
            at.tied = "leave"  # what listens to a head changes nothing in what its weight does elsewhere
            at.put(place(at, _words(at)), Teacher)
        if importance is not None:
            pruned.fill(at, found, ladders, importance, self.reduction)

    def loss(self, at: Attachment, task: Any, model: Any, batch: Any) -> tuple[Tensor, int]:
        """The task's loss, and distil · KL(softmax(teacher / T) || softmax(student)) where that is asked for."""
        mean, count = super().loss(at, task, model, batch)
        if self.distil:
            student, teacher = at.context.taps.pop(LOGITS)
            target = F.log_softmax(teacher.float() / self.teacher_temperature, -1)
            mean = mean + self.distil * (target.exp() * (target - F.log_softmax(student.float(), -1))).sum(-1).mean()
        return mean, count

    def _climb(self, at: Attachment, stack: Stack, top: bool) -> Any:
        depth = len(stack.blocks)
        kept = self.keep or [i for i in range(depth) if not self.drop_every or i % self.drop_every]
        if not kept or kept[-1] >= depth:
            raise Unfit(f"LST keeps blocks {kept} of the {depth} in {stack.path!r}: set keep or drop_every so that some are left")
        for i in sorted({0, *kept}):
            at.put(stack.blocks[i], SideTap, port="call")
        for i in kept:
            at.put(stack.blocks[i], SideTap, port="output")
        more: dict[str, Any] = {"mix": self.mix, "teacher": bool(self.distil)} if top else {}
        return at.put(place(at, stack.holder), Ladder, blocks=stack.list, width=stack.width, kept=kept, by=self.reduction,
                      temperature=self.temperature, top=top, **more)


def _words(at: Attachment) -> str:
    """Path of the head that gives the words' logits.

    Raises:
        Unfit: the model has none, so that nothing can be learnt from what the trunk would say.
    """
    head = getattr(at.model, "get_output_embeddings", lambda: None)()
    if head is None:
        raise Unfit(f"distil follows what a language model's head says of the trunk; {type(at.model).__name__} has no such head")
    return next(path for path, module in at.model.named_modules() if module is head)
