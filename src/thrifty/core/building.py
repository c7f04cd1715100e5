"""Building: what methods call to put their edits on a model, and to let parameters of the base train in place."""
from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from . import base
from . import ledger as ledgers
from .edit import Edit, Shared, build, plain
from .errors import HalfAdapted, NoSuchSite, ThriftyError, Unfit
from .finding import sites, survey
from .hooks import install, rehook, remove
from .merging import touched
from .method import Method
from .plan import Row
from .probe import Seen
from .site import Site
from .sparse import hold
from .watch import Watch

if TYPE_CHECKING:
    from .attachment import Attachment

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")


class Context:
    """What edits read besides their input: the task or the adapter rows of this batch, features tapped in this forward."""

    def __init__(self, home: Any) -> None:
        self.home = home  # the attachment that the edits belong to
        self.task: int | Tensor | None = None
        self.rows: Tensor | None = None
        self.taps: dict[Any, Any] = {}
        self.shared: Any = None
        self.views: dict[str, Any] = {}  # of the parts, where the attachment is a composition

    def which(self) -> int | Tensor:
        """The task of this batch, or those of its rows [B].

        Raises:
            ThriftyError: nobody said.
        """
        if self.task is None:
            raise ThriftyError("this adapter serves several tasks: say which the batch belongs to, with thrifty.task(model, name)")
        return self.task

    def __getstate__(self) -> dict[str, Any]:
        """Taps belong to the forward pass that is running; a copy of the model has none."""
        return {**self.__dict__, "taps": {}}


class Building:
    """The half of an attachment that methods see. Its attributes say what was put where, and what was there before."""

    def __init__(self, model: nn.Module, name: str = "default", *, seen: Seen | None = None,
                 roles: Mapping[str, str] | None = None, tied: str = "refuse"):
        if not NAME.fullmatch(name):
            raise ThriftyError(f"an attachment's name is letters, digits, '_' and '-', starting with a letter; not {name!r}")
        if tied not in ("refuse", "leave"):
            raise ThriftyError(f"tied= is 'refuse' or 'leave', not {tied!r}")
        self.model, self.name, self.roles, self.tied = model, name, dict(roles or {}), tied
        self.method: Method | None = None
        self.plan: list[Row] = []
        self.edits: dict[str, Edit] = {}
        self.slots: dict[str, str] = {}
        self.base: dict[str, Tensor] = {}  # originals of base parameters and buffers that change in place
        self.masks: dict[str, Tensor] = {}  # which of their entries may
        self.wildcard: set[str] = set()
        self.stash: dict[str, Tensor] = {}  # what those hold while the attachment is disabled
        self.backup: dict[str, Tensor] = {}  # originals of merged weights
        self.replaced: list[tuple[str, nn.Module]] = []
        self.shared_as: tuple[str, dict[str, Any]] | None = None
        self.start: dict[str, str] = {}  # checksums of what trains, as it was when attached
        self.memory: dict[str, Tensor] = {}  # what the method remembers between steps: in checkpoints, not in the adapter
        self.source_head: dict[str, Tensor] = {}  # values that the head had in the base's checkpoint, in whatever shape
        self.guests: dict[str, Any] = {}  # other models that training asks, such as a teacher: no part of the adapter
        self.about: dict[str, Any] = {}  # plain data that travels with the adapter: task, labels, preprocessing
        self.seed: int | None = None
        self.watch: Watch | None = None
        self.context = Context(self)
        self.seen = seen or Seen(model)
        self.surveyed: tuple[list[int], list[Site]] | None = None  # the base's modules, and the sites found among them
        self.base_match = ""  # after loading: how the base was recognised
        self.revision = 0  # how often it changed what trains, after it was attached
        self.merged = self.closed = False
        ledgers.enter(cast("Attachment", self))

    @property
    def tasks(self) -> list[str]:
        """The names of the tasks that this attachment tells apart; empty if it serves one."""
        return list(self.about.get("tasks", ()))

    def sites(self, where: str) -> list[Site]:
        """The sites that ``where`` names; see ``thrifty.sites``."""
        there = [id(m) for _, m in base.modules(self.model)]
        if self.surveyed is None or self.surveyed[0] != there:
            self.surveyed = there, survey(self.model, self.seen, self.roles)
        return sites(self.model, where, every=self.surveyed[1])

    def put(self, site: Site, edit: type[Edit], **numbers: Any) -> Edit:
        """Make an ``edit`` for ``site`` and install it. ``numbers`` must be plain data.

        Raises:
            TypeError: a number is not plain data, or the edit does not take it.
        """
        if not edit.registered:
            raise TypeError(f"{edit.__name__} cannot be saved without a registered name: decorate it with @register('...')")
        numbers = {k: plain(v, f"{edit.__name__}({k}=)") for k, v in numbers.items()}
        widths: dict[str, int] = {}
        with contextlib.suppress(ThriftyError):  # before the edit is there: a half-attached model need not run
            widths = {"in": site.din, "out": site._width("out")}
        made: Edit = build(edit, site, numbers, site.device, site.dtype)
        key = f"{site.key}#{edit.registered}"
        while key in self.edits:
            key += "+"
        slot = self._slot(site)
        made.join(self.context)
        install(site.module, slot, made)
        self.edits[key], self.slots[key] = made, slot
        if made.replaces:
            for name in [n for n in self.base if n.startswith(f"{site.path}.")]:
                self.release(name)
        seen = {**self.seen.shapes.get(site.path, {}), **widths}
        self.plan.append(Row(key, site.path, site.role, site.depth, site.stack, site.part, edit.registered, numbers, seen))
        return made

    def take_away(self, key: str) -> Site:
        """The opposite of ``put``: for an edit that has done its work, or that a method must do without. Returns its site."""
        site = self.edits.pop(key).site
        remove(site.module, self.slots.pop(key))
        self.plan = [row for row in self.plan if row.key != key]
        self._changed()
        return site

    def replace(self, key: str, edit: type[Edit], **numbers: Any) -> Edit:
        """Put an ``edit`` where the edit ``key`` was, when less is needed than was to train it."""
        on = self.edits[key].on
        made = self.put(self.take_away(key), edit, **numbers)
        made.on = self.plan[-1].on = on
        rehook(made.site.module)
        self._changed()
        return made

    def release(self, name: str) -> None:
        """Let a base parameter that trained in place be frozen again, as it was."""
        parameter = self.model.get_parameter(name)
        parameter.data.copy_(self.base.pop(name))
        parameter.requires_grad_(False)
        parameter._backward_hooks = None
        self.masks.pop(name, None)
        self.wildcard.discard(name)
        self._changed()

    def share(self, module: type[Shared], **numbers: Any) -> Any:
        """Make one module that many edits use and keep it at the root; they read it as ``self.context.shared``."""
        numbers = {k: plain(v, f"{module.__name__}({k}=)") for k, v in numbers.items()}
        made = build(module, None, numbers, self.seen.device, Site("", self.model, "model", seen=self.seen).dtype)
        install(self.model, f"{self.name}_shared", made)
        self.context.shared, self.shared_as = made, (module.registered, numbers)
        return made

    def unshare(self) -> None:
        """Take the shared module away, when no edit reads it any more."""
        remove(self.model, f"{self.name}_shared")
        self.context.shared, self.shared_as = None, None
        self._changed()

    def train(self, name: str, mask: Tensor | None = None, wildcard: bool = False) -> None:
        """Let the base parameter ``name`` train in place, all of it or where ``mask`` is true. The original is kept.

        ``wildcard`` says that the parameter was one of many and need not be reached by every task.

        Raises:
            HalfAdapted: another attachment trains it already, or is merged into it.
            Unfit: it is quantised, and what stands for several numbers has no gradient.
        """
        name = ledgers.canonical(self.model, name)
        if name in self.base:
            return
        owner = next((a.name for a in ledgers.attachments(self.model).values() if name in a.base), None)
        if owner:
            raise HalfAdapted(f"{name!r} already trains in place in the attachment {owner!r}; two cannot own its values")
        merged = next((a.name for a in ledgers.merged(self.model) if name in touched(a)), None)
        if merged:
            raise HalfAdapted(f"{merged!r} is merged into {name!r} and keeps its original: unmerge it before this trains in place")
        parameter = self.model.get_parameter(name)
        if not parameter.is_floating_point():
            raise Unfit(f"{name!r} is quantised ({parameter.dtype}) and cannot train in place: choose a method that adds "
                        "parameters, or hold the weights in full")
        self.base[name] = parameter.detach().clone()
        parameter.requires_grad_(True)
        if wildcard:
            self.wildcard.add(name)
        if mask is not None:
            self.masks[name] = mask
            hold(parameter, mask)

    @torch.no_grad()
    def restrict(self, name: str, mask: Tensor) -> None:
        """Of a base parameter that trains already, let only the entries of ``mask`` go on; the others return to what they were."""
        if not mask.any():
            self.release(name)
            return
        parameter = self.model.get_parameter(name)
        parameter.copy_(torch.where(mask, parameter, self.base[name]))
        self.masks[name] = mask
        hold(parameter, mask)
        self._changed()

    def train_matching(self, where: str, wildcard: bool = False) -> list[str]:
        """``train`` every parameter of the sites, or with the names, that the ``|``-separated terms of ``where`` match.

        Raises:
            NoSuchSite: a term matches nothing that has parameters.
            HalfAdapted: a matched parameter is tied to one under a name that is not matched.
        """
        chosen: list[str] = []
        listed = [n for n, _ in base.parameters(self.model, remove_duplicate=False)]
        for term in (t.strip() for t in where.split("|")):
            hits = [n for n in listed if fnmatchcase(n, term)]
            try:  # "norm*" is a role, and in some models also the beginning of a parameter's name: both are meant
                found = self.sites(term)
            except NoSuchSite as error:
                if not hits:
                    raise NoSuchSite(f"{term!r} in {where!r} names no parameter to train: {error}") from None
                found = []
            hits += [f"{s.path}.{n}" if s.path else n for s in found for n, _ in base.parameters(s.module)]
            if not hits:
                raise NoSuchSite(f"{term!r} in {where!r} matches modules without parameters")
            chosen += [n for n in hits if n not in chosen]
        for name in chosen:
            parameter = self.model.get_parameter(name)
            rest = [n for n in ledgers.other_names(self.model, parameter) if n not in chosen]
            if rest and self.tied == "refuse":
                raise HalfAdapted(f"{name!r} is tied to {rest}: training it trains both. Name them all, or pass tied='leave'")
            self.train(name, wildcard=wildcard)
        return chosen

    def train_buffers(self, names: Iterable[str]) -> None:
        """Make buffers that move during training (batch-norm statistics) part of the adapter, and let them move."""
        book = ledgers.ledger(self.model)
        assert book is not None
        buffers = base.buffers(self.model)
        for name in names:
            self.base[name] = buffers[name].detach().clone()
        for path in {n.rpartition(".")[0] for n in self.base if n in buffers}:
            module = self.model.get_submodule(path)
            if path in book.modes:
                module._forward_pre_hooks = type(module._forward_pre_hooks)(
                    (k, h) for k, h in module._forward_pre_hooks.items() if h is not ledgers._hold_still)
                module.train(book.modes[path])

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What this attachment trains: (name in the file, parameter)."""
        for key, edit in self.edits.items():
            for name, p in edit.named_parameters():
                if p.requires_grad:
                    yield f"edit:{key}:{name}", p
        if self.context.shared is not None:
            for name, p in self.context.shared.named_parameters():
                if p.requires_grad:
                    yield f"shared:{name}", p
        for name in self.base:
            if isinstance(tensor := self._tensor(name), nn.Parameter):  # and no buffer
                yield f"base:{name}", tensor

    def parameters(self) -> list[nn.Parameter]:
        """What this attachment trains."""
        return [p for _, p in self.named_parameters()]

    def _changed(self) -> None:
        """What trains is not what it was: count the change, and watch the gradients anew."""
        self.revision += 1
        if self.watch is not None:
            self.watch.stop()
            self.watch, self.start = Watch(cast("Attachment", self)), {}

    def _slot(self, site: Site) -> str:
        taken = getattr(site.module, "edits", {})
        slot = self.name if site.part is None else f"{self.name}_{site.part.name.rpartition('.')[2]}"
        count = 2
        while slot in taken:
            slot, count = f"{slot.rstrip('0123456789')}{count}", count + 1
        return slot

    def _tensor(self, name: str) -> Tensor:
        holder, _, short = name.rpartition(".")
        return getattr(self.model.get_submodule(holder), short)
