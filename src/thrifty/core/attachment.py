"""Attachment: the live handle on one method attached to one model."""
from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from . import ledger as ledgers
from .digest import digest
from .edit import Edit, Shared, build, install, plain, rehook, remove
from .errors import BrokenArtifact, DeadEdit, HalfAdapted, NoSuchSite, NothingTrains, ThriftyError, nearest
from .merging import MergeReport, fold_all, restore
from .method import Method
from .plan import Row
from .probe import Example, Seen, guess_example, uncalled
from .site import Site, _owned, sites
from .summary import Summary, summarise
from .watch import Watch, refuse_reentrant

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")


class Context:
    """What edits read besides their input: the task or the adapter rows of this batch, features tapped in this forward."""

    def __init__(self) -> None:
        self.task: Tensor | None = None
        self.rows: Tensor | None = None
        self.taps: dict[Any, Any] = {}
        self.shared: Any = None


class Attachment:
    """What one method put on ``model`` under ``name``: edits, a shared module, base parameters that train in place.

    All tensors live in the model's own module tree; this object knows where, and keeps the plan that can rebuild it.
    """

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
        self.about: dict[str, Any] = {}  # plain data that travels with the adapter: task, labels, preprocessing
        self.seed: int | None = None
        self.watch: Watch | None = None
        self.context = Context()
        self.seen = seen or Seen(model)
        self.base_match = ""  # after loading: how the base was recognised
        self.merged = self.closed = False
        ledgers.enter(self)

    # -- building: what methods call --------------------------------------------------------------------------------------
    def sites(self, where: str) -> list[Site]:
        """The sites that ``where`` names; see ``thrifty.sites``."""
        return sites(self.model, where, seen=self.seen, own=self.roles)

    def put(self, site: Site, edit: type[Edit], **numbers: Any) -> Edit:
        """Make an ``edit`` for ``site`` and install it. ``numbers`` must be plain data.

        Raises:
            TypeError: a number is not plain data, or the edit does not take it.
        """
        if not edit.registered:
            raise TypeError(f"{edit.__name__} has no registered name: decorate it with @register('...') so that it can be saved")
        numbers = {k: plain(v, f"{edit.__name__}({k}=)") for k, v in numbers.items()}
        made: Edit = build(edit, site, numbers, site.device, site.dtype)
        key = f"{site.key}#{edit.registered}"
        while key in self.edits:
            key += "+"
        slot = self._slot(site)
        made.__dict__["context"] = self.context
        install(site.module, slot, made)
        self.edits[key], self.slots[key] = made, slot
        seen = dict(self.seen.shapes.get(site.path, {}))
        with contextlib.suppress(ThriftyError):
            seen |= {"in": site.din, "out": site._width("out")}
        self.plan.append(Row(key, site.path, site.role, site.depth, site.stack, site.part, edit.registered, numbers, seen))
        return made

    def share(self, module: type[Shared], **numbers: Any) -> Any:
        """Make one module that many edits use and keep it at the root; they read it as ``self.context.shared``."""
        numbers = {k: plain(v, f"{module.__name__}({k}=)") for k, v in numbers.items()}
        made = build(module, None, numbers, self.seen.device, Site("", self.model, "model", seen=self.seen).dtype)
        install(self.model, f"{self.name}_shared", made)
        self.context.shared, self.shared_as = made, (module.registered, numbers)
        return made

    def train(self, name: str, mask: Tensor | None = None, wildcard: bool = False) -> None:
        """Let the base parameter ``name`` train in place, all of it or where ``mask`` is true. The original is kept.

        ``wildcard`` says that the parameter was one of many and need not be reached by every task.

        Raises:
            HalfAdapted: another attachment trains it already.
        """
        name = ledgers.canonical(self.model, name)
        if name in self.base:
            return
        owner = next((a.name for a in ledgers.attachments(self.model).values() if name in a.base), None)
        if owner:
            raise HalfAdapted(f"{name!r} already trains in place in the attachment {owner!r}; two cannot own its values")
        parameter = self.model.get_parameter(name)
        self.base[name] = parameter.detach().clone()
        parameter.requires_grad_(True)
        if wildcard:
            self.wildcard.add(name)
        if mask is not None:
            self.masks[name] = mask
            parameter.register_hook(_Masked(mask))

    def train_matching(self, where: str, wildcard: bool = False) -> list[str]:
        """``train`` every parameter of the sites, or with the names, that the ``|``-separated terms of ``where`` match.

        Raises:
            NoSuchSite: a term matches nothing that has parameters.
            HalfAdapted: a matched parameter is tied to one under a name that is not matched.
        """
        chosen: list[str] = []
        listed = [n for n, _ in self.model.named_parameters(remove_duplicate=False) if not _owned(n)]
        for term in (t.strip() for t in where.split("|")):
            hits = [n for n in listed if fnmatchcase(n, term)]
            if not hits:
                try:
                    found = self.sites(term)
                except NoSuchSite as error:
                    raise NoSuchSite(f"{term!r} in {where!r} names no parameter to train: {error}") from None
                hits = [f"{s.path}.{n}" if s.path else n for s in found for n, _ in s.module.named_parameters() if not _owned(n)]
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
        buffers = dict(self.model.named_buffers())
        for name in names:
            self.base[name] = buffers[name].detach().clone()
        for path in {n.rpartition(".")[0] for n in self.base if n in buffers}:
            module = self.model.get_submodule(path)
            if path in book.modes:
                module._forward_pre_hooks = type(module._forward_pre_hooks)(
                    (k, h) for k, h in module._forward_pre_hooks.items() if h is not ledgers._hold_still)
                module.train(book.modes[path])

    def finish(self, example: Example | None, check: bool) -> None:
        """End of building: refuse what is half done, dead or empty, and start to watch the gradients."""
        if self.tied == "refuse":
            ledgers.refuse_tied(self.model, {r.path: self.model.get_submodule(r.path) for r in self.plan if r.path})
        if not self.parameters():
            raise NothingTrains(f"nothing trains: {type(self.method).__name__} put no edit with parameters on {type(self.model).__name__} "
                                "and named no parameter of it")
        refuse_reentrant(self.model)
        if check and next(self.model.parameters()).device.type != "meta":
            if example is not None:
                self.check(example)
            elif (guess := guess_example(self.model)) is not None:
                with contextlib.suppress(TypeError, ValueError, RuntimeError, IndexError):  # a guess proves nothing when it fails to run
                    self.check(guess)
        self.start = {n: digest(p) for n, p in self.named_parameters()}
        self.watch = Watch(self)

    # -- using ------------------------------------------------------------------------------------------------------------
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
            if (found := dict(self.model.named_parameters()).get(name)) is not None:
                yield f"base:{name}", found

    def parameters(self) -> list[nn.Parameter]:
        """What this attachment trains."""
        return [p for _, p in self.named_parameters()]

    def active(self) -> list[str]:
        """Names of the trainable tensors whose edit is on."""
        off = {f"edit:{key}:" for key, edit in self.edits.items() if not edit.on}
        return [n for n, _ in self.named_parameters() if not any(n.startswith(o) for o in off)]

    def check(self, example: Example) -> None:
        """Run the model once and look whether every edit is reached.

        Raises:
            DeadEdit: naming the edits that the forward pass never calls.
        """
        acting = [(key, e) for key, e in self.edits.items() if e.on]
        dead = uncalled(self.model, example, acting)
        if dead:
            raise DeadEdit(f"{len(dead)} of {len(acting)} edits are never reached by the model's forward pass: {dead[:5]}. The module there "
                           "is not called (its weights are read directly, or this input takes another path): choose other sites")

    def enable(self, on: bool = True, where: Callable[[Row], bool] = lambda row: True) -> None:
        """Switch edits on or off, all or those whose plan row ``where`` accepts. Off for all is the base model, bit for bit."""
        self._alive()
        every = all(where(row) for row in self.plan)
        for row in self.plan:
            if where(row):
                row.on = self.edits[row.key].on = on
                if not self.merged:
                    rehook(self.edits[row.key].site.module)
        if every:
            self._swap_base(on)

    def disable(self, where: Callable[[Row], bool] = lambda row: True) -> None:
        """``enable(False)``."""
        self.enable(False, where)

    @contextlib.contextmanager
    def disabled(self) -> Iterator[None]:
        """The base model, as long as the context lasts."""
        before = {row.key for row in self.plan if row.on}
        stashed = bool(self.stash)
        self.disable()
        try:
            yield
        finally:
            self.enable(where=lambda row: row.key in before)
            self._swap_base(not stashed)

    def merge(self, limit: float = 0.05, quantised: str = "refuse", keep_base: bool = True) -> MergeReport:
        """Fold every edit into the base weights (in float32) and take the edits off the tree.

        ``limit`` bounds what rounding to the base's precision may lose, relative to the adapter's own effect. With
        ``keep_base`` the originals stay in memory, so that ``unmerge`` and ``detach`` restore the base exactly; without, the
        merge is final and the handle is closed.

        Raises:
            CannotMerge: before anything is touched, naming the edit that is no change of a weight, the quantised layer, or the
                site where more than ``limit`` would be lost.
        """
        self._alive()
        if self.merged:
            raise ThriftyError(f"the attachment {self.name!r} is merged already")
        report, self.backup, self.replaced = fold_all(self, limit, quantised)
        self._uninstall()
        self.merged = True
        if not keep_base:
            self.backup, self.replaced, self.base = {}, [], {}
            self._close()
        return report

    def unmerge(self) -> None:
        """Undo ``merge``, bit for bit."""
        if not self.merged:
            raise ThriftyError(f"the attachment {self.name!r} is not merged")
        restore(self.model, self.backup, self.replaced)
        self.backup, self.replaced, self.merged = {}, [], False
        for key, edit in self.edits.items():
            install(edit.site.module, self.slots[key], edit)
        if self.context.shared is not None:
            install(self.model, f"{self.name}_shared", self.context.shared)

    @torch.no_grad()
    def detach(self) -> None:
        """Take everything away. The base is what it was before, bit for bit."""
        if self.closed:
            return
        if self.merged:
            self.unmerge()
        self._uninstall()
        if not self.stash:
            tensors = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
            for name, original in self.base.items():
                tensors[name].copy_(original)
        for name in self.base:
            if (p := dict(self.model.named_parameters()).get(name)) is not None:
                p.requires_grad_(False)
                p._backward_hooks = None
        self._close()

    def summary(self) -> Summary:
        """What trains, where, and how much of it there is."""
        return summarise(self)

    # -- state ------------------------------------------------------------------------------------------------------------
    def state(self) -> dict[str, Tensor]:
        """All tensors that the adapter needs, by name, whole (on every rank when sharded) and on the CPU."""
        found: dict[str, Tensor] = {}
        for key, edit in self.edits.items():
            found |= {f"edit:{key}:{n}": t for n, t in edit.state_dict().items()}
        if self.context.shared is not None:
            found |= {f"shared:{n}": t for n, t in self.context.shared.state_dict().items()}
        tensors = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        for name in self.base:
            now = self.stash.get(name, tensors[name])
            if name in self.masks:
                found[f"mask:{name}"] = self.masks[name]
                found[f"base:{name}"] = _whole(now)[self.masks[name]]
            else:
                found[f"base:{name}"] = now
        return {n: _whole(t).detach().to("cpu", copy=True).contiguous() for n, t in found.items()}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put tensors back.

        Raises:
            BrokenArtifact: a tensor is missing, unknown, or of another shape; nothing has been changed then.
        """
        targets = self._targets()
        for name in state:
            if name not in targets:
                raise BrokenArtifact(f"unexpected tensor {name!r}." + nearest(name, targets))
        for name, target in targets.items():
            if name not in state:
                raise BrokenArtifact(f"the tensor {name!r} is missing")
            if tuple(state[name].shape) != tuple(target.shape):
                raise BrokenArtifact(f"{name!r} has shape {tuple(state[name].shape)}, the model wants {tuple(target.shape)}")
        for name, target in targets.items():
            if name.startswith("base:") and (base := name[5:]) in self.masks:
                whole = self.base[base].clone()
                whole[self.masks[base]] = state[name].to(whole)
                self._tensor(base).copy_(whole)
            elif not name.startswith("mask:"):
                target.copy_(state[name])

    def save(self, path: Any, **about: Any) -> Any:
        """Write the adapter folder; see ``thrifty.artifact.save``."""
        from ..artifact import save

        return save(self, path, **about)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "watch": None}

    def __repr__(self) -> str:
        kind = self.method.name if self.method else "loaded"
        return f"<Attachment {self.name!r}: {kind}, {len(self.edits)} edits, {sum(p.numel() for p in self.parameters()):,} parameters>"

    # -- inside -----------------------------------------------------------------------------------------------------------
    def _slot(self, site: Site) -> str:
        taken = getattr(site.module, "edits", {})
        slot = self.name if site.part is None else f"{self.name}_{site.part.name.rpartition('.')[2]}"
        count = 2
        while slot in taken:
            slot, count = f"{slot.rstrip('0123456789')}{count}", count + 1
        return slot

    def _targets(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for key, edit in self.edits.items():
            found |= {f"edit:{key}:{n}": t for n, t in edit.state_dict(keep_vars=True).items()}
        if self.context.shared is not None:
            found |= {f"shared:{n}": t for n, t in self.context.shared.state_dict(keep_vars=True).items()}
        for name in self.base:
            if name in self.masks:
                found[f"mask:{name}"] = self.masks[name]
                found[f"base:{name}"] = self.base[name][self.masks[name]]
            else:
                found[f"base:{name}"] = self._tensor(name)
        return found

    def _tensor(self, name: str) -> Tensor:
        holder, _, short = name.rpartition(".")
        return getattr(self.model.get_submodule(holder), short)

    @torch.no_grad()
    def _swap_base(self, on: bool) -> None:
        if on == (not self.stash):
            return
        for name, original in self.base.items():
            tensor = self._tensor(name)
            if on:
                tensor.copy_(self.stash[name])
            else:
                self.stash[name] = tensor.detach().clone()
                tensor.copy_(original)
        if on:
            self.stash = {}

    def _uninstall(self) -> None:
        for key, edit in self.edits.items():
            holder = edit.site.module
            if self.slots[key] in getattr(holder, "edits", {}):
                remove(holder, self.slots[key])
        slot = f"{self.name}_shared"
        if slot in getattr(self.model, "edits", {}):
            remove(self.model, slot)

    def _close(self) -> None:
        if self.watch is not None:
            self.watch.stop()
        ledgers.leave(self)
        self.closed = True

    def _alive(self) -> None:
        if self.closed:
            raise ThriftyError(f"the attachment {self.name!r} was detached, or merged for good")


class _Masked:
    """Keeps the gradient of masked entries only; an object, so that a model that holds it can be pickled."""

    def __init__(self, mask: Tensor):
        self.mask = mask

    def __call__(self, grad: Tensor) -> Tensor:
        return grad * self.mask


def _whole(t: Tensor) -> Tensor:
    return t.full_tensor() if hasattr(t, "full_tensor") else t


def attach(model: nn.Module, method: Method, name: str = "default", *, also_train: str | None = None, example: Example | None = None,
           batches: Iterable[Any] | None = None, seed: int | None = 0, roles: Mapping[str, str] | None = None,
           tied: str = "refuse", check: bool = True) -> Attachment:
    """Freeze ``model``, put ``method`` on it and return the handle. The model keeps its class and its keys.

    Args:
        also_train: roles, module paths or parameter names that train in full beside the method and are saved with it
            (``"head"``, ``"classifier.*"``).
        example: a batch, to run once: widths of whole blocks are seen on it, and every edit must be reached by it. Without
            one, models that describe their own input (transformers, timm) are run on a tiny made-up batch.
        batches: data for methods that look at it before they decide where to act.
        seed: of the edits' initial values; the global random state is left alone. None draws from the global state.
        roles: {path pattern: role} for models whose names the table does not know.
        tied: "refuse" edits on one use of a tied weight, or "leave" the other uses as they are.
        check: whether to run the model once in search of dead edits.

    Raises:
        NoSuchSite, HalfAdapted, Unfit, NothingTrains, DeadEdit, NoSuchSetting: see each; the model is left as it was.
    """
    if not isinstance(method, Method):
        raise TypeError(f"attach takes a method such as thrifty.LoRA(), not {type(method).__name__}")
    method.check()
    at = Attachment(model, name, seen=Seen(model, example), roles=roles, tied=tied)
    at.method, at.seed = method, seed
    try:
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.default_generator.manual_seed(seed)
            method.attach(at, batches)
        if also_train:
            at.train_matching(also_train)
        at.finish(example, check)
    except BaseException:
        at.detach()
        raise
    return at
