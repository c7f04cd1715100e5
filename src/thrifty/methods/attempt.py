"""ATTEMPT: Parameter-Efficient Multi-task Tuning via Attentional Mixtures of Soft Prompts (Asai, Salehi, Peters, Hajishirzi;
EMNLP 2022, arXiv:2205.11961)."""
from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Method, Row, Site, need, register
from ..core.errors import NoSuchSetting, ThriftyError, Unfit
from .prompts.widening import Widening, put_among, writes_on

if TYPE_CHECKING:
    from ..core import Attachment

MODES = ("sub", "linear", "token", "dot", "constant")


@register("attempt")
class Mixture(Widening):
    """[P_inst; E(ids)] with P_inst = P_n + sum_j a_j P_j over the frozen ``sources`` [t, P, d] and the target P_n [P, d] itself.

    x^ [batch, d] is the maximum over a text's tokens, P^_j [d] that over a prompt's positions, and

        sub       H = LN(W_up silu(W_down x^))    a = softmax_j(<P^_j, H> / T)
        linear    H = LN(W x^)                    likewise
        token     H as in sub                     a[j, l] = softmax_j(<P_j[l], H> / T): one weight per position
        dot       a = softmax_j <P^_j, x^>
        constant  a = 1 / (t + 1)

    W_down [d, hidden] and W_up [hidden, d] have no bias. With several ``tasks`` each has a target, and all share W and LN; the
    task of a batch, or those of its rows, say whose turn it is.
    """

    per_task = ("targets",)
    sources: Tensor

    def __init__(self, site: Site, length: int, sources: int, tasks: int = 1, mode: str = "sub", hidden: int = 100,
                 temperature: float = 0.0, norm: bool = True, pool: str = "masked", limit: int = 0):
        super().__init__(site, length, limit)
        module: Any = site.module
        width = module.get_input_embeddings().weight.shape[1]
        self.mode, self.pool, self.temperature = mode, pool, temperature or width * math.e
        self.register_buffer("sources", torch.zeros(sources, length, width))
        self.targets = nn.ParameterList(torch.zeros(length, width) for _ in range(tasks))
        if mode in ("sub", "token"):
            self.down, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(hidden, width, bias=False)
        if mode == "linear":
            self.linear = nn.Linear(width, width, bias=False)
        if mode in ("sub", "token", "linear"):
            self.norm: nn.Module = nn.LayerNorm(width).requires_grad_(norm)

    def vectors(self, embeds: Tensor, mask: Tensor | None) -> Tensor:
        """P_inst [batch, P, d], from the embedded text [batch, tokens, d] and its mask."""
        target = self.target(len(embeds))
        a = self.weights(embeds.to(target.dtype), mask, target)
        a = a[..., None] if a.dim() == 2 else a  # [batch, t + 1, 1 or P]
        mixed = torch.einsum("btl,tld->bld", a[:, :-1].expand(-1, -1, self.count), self.sources) + a[:, -1, :, None] * target
        return target + mixed

    def weights(self, embeds: Tensor, mask: Tensor | None, target: Tensor) -> Tensor:
        """a [batch, t + 1], or [batch, t + 1, P] in mode "token"; the target's comes last."""
        if self.mode == "constant":
            return embeds.new_full((len(embeds), len(self.sources) + 1), 1 / (len(self.sources) + 1))
        if self.pool == "masked" and mask is not None:
            embeds = embeds.masked_fill(mask[..., None] == 0, torch.finfo(embeds.dtype).min)
        H = self.look(embeds.max(1).values)
        if self.mode == "token":
            scores = torch.cat([torch.einsum("tld,bd->btl", self.sources, H), (target @ H[..., None]).transpose(1, 2)], 1)
        else:
            theirs, own = self.sources.max(1).values, target.max(1).values
            scores = torch.cat([H @ theirs.T, (own * H).sum(-1, keepdim=True)], 1)
        return (scores if self.mode == "dot" else scores / self.temperature).softmax(1)

    def look(self, x: Tensor) -> Tensor:
        """H [batch, d] from x^ [batch, d]."""
        if self.mode == "dot":
            return x
        read = self.linear(x) if self.mode == "linear" else self.up(F.silu(self.down(x)))
        h: Tensor = self.norm(read)
        return h

    def target(self, batch: int) -> Tensor:
        """The target prompts of this batch, [batch, P, d].

        Raises:
            NoSuchSetting: there are as many tasks as rows in another batch.
            ThriftyError: there are several targets, and nobody said which.
        """
        which = self.context.which() if len(self.targets) > 1 else 0
        if isinstance(which, int):
            return self.targets[which].expand(batch, -1, -1)
        if len(which) != batch:
            raise NoSuchSetting(f"{len(which)} tasks were told for the rows of a batch of {batch}")
        return torch.stack([self.targets[task] for task in which.tolist()])


@dataclass
class Attempt(Method):
    """A prompt for each text, mixed from frozen prompts of other tasks and one that trains; the mixing is learned too.

    ``sources``: folders of saved prompt-tuning adapters (verified whole, and of this base), or tensors [P, d], all of one
    length. The target starts as a copy of the first. ``attention`` is the folder of a saved ATTEMPT whose H to start from.
    ``mode`` says how prompts are weighed, see ``Mixture``; ``temperature`` 0 stands for d e. ``norm=False`` freezes the LN of
    H, as the authors' code does (their paper counts it as trained). ``pool="official"`` takes the maximum over padding
    too, as their code does, so that answers depend on how far a batch is padded; "masked" over the text alone.
    Attached with ``tasks=[names]``, it has a target for each task and one H for all.
    """

    name = "attempt"
    route = "input and output"
    modalities = ("text",)
    paper = "Asai et al., ATTEMPT: Attentional Mixtures of Soft Prompts, EMNLP 2022, arXiv:2205.11961"
    trains = "a prompt, and a small network that mixes frozen prompts into it"
    inference = "one pooling and two small products per text, and the prompt's tokens more"
    Edit = Mixture
    identity_at_start = False
    needs = "saved prompts"
    rate = 0.3

    sources: list[Any] = field(default_factory=list)
    mode: str = "sub"
    hidden: int = 100
    temperature: float = 0.0
    norm: bool = True
    pool: str = "masked"
    attention: str = ""

    def check(self) -> None:
        """There are sources, and every choice is one of those there are."""
        need(isinstance(self.sources, (list, tuple)) and len(self.sources) >= 1, self, "sources",
             "a list of at least one saved prompt (a folder) or tensor [length, d]")
        need(self.mode in MODES, self, "mode", f"one of {list(MODES)}")
        need(self.hidden >= 1, self, "hidden", "at least 1")
        need(self.temperature >= 0, self, "temperature", "positive, or 0 for d e")
        need(self.pool in ("masked", "official"), self, "pool", "'masked' or 'official'")
        need(not self.attention or self.mode not in ("dot", "constant"), self, "attention", "empty in a mode without a network")

    def settings(self) -> dict[str, Any]:
        """As plain data; a tensor among the sources is described (its numbers are in the adapter's own file)."""
        plain = [f"tensor {list(s.shape)}" if isinstance(s, Tensor) else str(s) for s in self.sources]
        return {**super().settings(), "sources": plain}

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """Read and verify the sources, then one edit where ids become states.

        Raises:
            Unfit: a source of another width or length, or without a prompt; a model that writes on where its text ends.
            BrokenArtifact, WrongBase: a folder is not whole, or was trained on another base.
        """
        if writes_on(at):
            raise Unfit(f"ATTEMPT looks at the whole text to make its prompt, and {type(at.model).__name__} writes on where it "
                        "ends: in training it would see what it is to write. Use a model with an encoder")
        sources = [_prompt(at, source, f"source {i}") for i, source in enumerate(self.sources)]
        length = len(sources[0])
        edit: Any = put_among(at, Mixture, length, length=length, sources=len(sources), tasks=max(1, len(at.tasks)), mode=self.mode,
                              hidden=self.hidden, temperature=self.temperature, norm=self.norm, pool=self.pool)
        for i, source in enumerate(sources):
            if source.shape != edit.targets[0].shape:
                raise Unfit(f"{_name(self.sources[i], f'source {i}')} is a prompt of shape {list(source.shape)}, and beside the "
                            f"first one in {type(at.model).__name__} it should be {list(edit.targets[0].shape)} (length, width)")
        with torch.no_grad():
            edit.sources.copy_(torch.stack([s.to(edit.sources) for s in sources]))
            for target in edit.targets:
                target.copy_(edit.sources[0])
            if self.attention:
                _start_from(at, edit, self.attention)

    def more_tasks(self, at: Attachment, tasks: list[str]) -> None:
        """A target for each, which starts as the first source; the network is there already."""
        for row in at.plan:
            edit = at.edits[row.key]
            if isinstance(edit, Mixture):
                edit.targets.extend([edit.sources[0].clone() for _ in tasks])
                row.numbers["tasks"] = len(edit.targets)


def _prompt(at: Attachment, source: Any, place: str) -> Tensor:
    """The prompt [length, d] that is given, or that a folder holds."""
    if isinstance(source, Tensor):
        if source.dim() != 2 or not source.is_floating_point():
            raise Unfit(f"{place} is a tensor {list(source.shape)} of {source.dtype}: a prompt is [length, d], of real numbers")
        return source.detach()
    if not isinstance(source, (str, Path)):
        raise NoSuchSetting(f"{place} is a {type(source).__name__}: a source is a folder or a tensor [length, d]")
    state, rows = _held(at, source, place)
    found = [row for row in rows if row.edit == "prompt"]
    if len(found) != 1:
        kinds = sorted({row.edit for row in rows})
        raise Unfit(f"{_name(source, place)} holds {len(found)} prompts (its edits are {kinds}): a source is one adapter of "
                    "prompt tuning")
    return state[f"edit:{found[0].key}:prompt"]


def _start_from(at: Attachment, edit: Mixture, folder: str) -> None:
    """Take over the network of a saved ATTEMPT."""
    state, rows = _held(at, folder, "attention")
    own = {n: p for n, p in edit.named_parameters() if not n.startswith("targets.")}
    for row in rows:
        held = {n: state.get(f"edit:{row.key}:{n}") for n in own}
        if row.edit == "attempt" and all(t is not None and t.shape == own[n].shape for n, t in held.items()):
            for name, tensor in held.items():
                own[name].copy_(tensor.to(own[name]))  # type: ignore[union-attr]
            return
    raise Unfit(f"{folder!r} holds no ATTEMPT of mode {edit.mode!r} whose network has the shapes "
                f"{ {n: list(p.shape) for n, p in own.items()} }")


def _held(at: Attachment, folder: str | Path, place: str) -> tuple[dict[str, Tensor], list[Row]]:
    """Tensors and plan of a folder, verified, and trained on this model."""
    from ..artifact import read, refuse_base

    try:
        data, rows, state = read(folder)
        refuse_base(at.model, data)
    except ThriftyError as error:
        raise type(error)(f"{_name(folder, place)}: {error}") from None
    return state, rows


def _name(source: Any, place: str) -> str:
    return place if isinstance(source, Tensor) else f"{place} ({str(source)!r})"
