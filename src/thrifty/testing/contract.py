"""The contract: what every method promises on every backbone it accepts.

    from thrifty.testing import check, contract, tiny
    check(MyMethod(rank=4), tiny.make("bert"))     # all of it
    contract.restores(MyMethod(), tiny.make("bert"))   # or one promise

Each promise is a function of (method, backbone) that raises AssertionError, saying what was promised and what was seen.
"""
from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..core import Method, attachments, base
from ..core.errors import CannotMerge, HalfAdapted
from ..core.routing import tell
from ..core.watch import occasional
from .measuring import TASKS, add, alike, descend, distance, equal, gradients, loss, own_loss, put, same, step, stir, weigh
from .tiny import Tiny

Promise = Callable[[Method, Tiny], None]


def check(method: Method, backbone: Tiny, skip: tuple[str, ...] = ()) -> None:
    """Hold ``method`` to every promise on ``backbone``, but for those named in ``skip``.

    Raises:
        AssertionError: of the first promise that is broken.
    """
    for promise in PROMISES:
        if promise.__name__ not in skip:
            promise(method, backbone)


def starts_as_promised(method: Method, backbone: Tiny) -> None:
    """A method whose ``identity_at_start`` is true leaves the output as it was; one where it is false moves it."""
    model, _ = put(method, backbone)
    moved = distance(backbone.output(model), backbone.output(backbone.fresh()))
    if method.identity_at_start:
        assert moved < 1e-5, f"{method.name} promises to start as the base, and moves {backbone.name} by {moved:.1e} (relative)"
    else:
        assert moved > 1e-6, f"{method.name} says that it does not start as the base, but on {backbone.name} it does"


def acts(method: Method, backbone: Tiny) -> None:
    """Other values of what trains give another output."""
    model, at = put(method, backbone)
    before = backbone.output(model)
    stir(at)
    moved = distance(backbone.output(model), before)
    assert moved > 1e-6, f"other values of {method.name}'s tensors move {backbone.name} by only {moved:.1e} (relative)"


def sends_gradients(method: Method, backbone: Tiny) -> None:
    """Every trainable tensor gets a gradient of what the method trains on, those of edits one that is not zero, and no frozen
    tensor gets any.

    A method that tells tasks apart sees a batch of each.
    """
    model, at = put(method, backbone)
    stir(at)
    for told in at.tasks or [None]:
        tell(model, told)
        descend(own_loss(backbone, model, at))
    for name, p in at.named_parameters():
        if name.removeprefix("base:") in at.wildcard:
            continue
        assert p.grad is not None, f"{name} trains, but got no gradient on {backbone.name}"
        assert name.startswith("base:") or bool(p.grad.any()), f"the gradient of {name} on {backbone.name} is zero everywhere"
    own = {id(p) for p in at.parameters()}
    wrong = [n for n, p in model.named_parameters() if id(p) not in own and (p.grad is not None or p.requires_grad)]
    assert not wrong, f"frozen tensors of {backbone.name} got gradients or still want them: {wrong[:5]}"


def keeps_the_base(method: Method, backbone: Tiny) -> None:
    """Three optimiser steps with weight decay in training mode move what trains, and not one bit of what is frozen."""
    model, at = put(method, backbone)
    if not at.parameters():  # no step can be taken
        return
    frozen: dict[str, Tensor] = {n: p for n, p in model.named_parameters() if not p.requires_grad}
    frozen |= {n: b for n, b in base.buffers(model).items() if n not in at.base}
    before = {n: t.clone() for n, t in (frozen | at.base).items()}
    start = at.state()
    step(method, at, backbone, model.train(), steps=3)
    for name, tensor in frozen.items():
        assert equal(before[name], tensor), f"{name} is frozen, and moved in training ({method.name} on {backbone.name})"
    for name, mask in at.masks.items():
        now, was = model.get_parameter(name), before[name]
        assert equal(now[~mask], was[~mask]), f"entries of {name} outside its mask moved in training"
    assert any(not equal(start[n], t) for n, t in at.state().items()), "nothing moved in three steps"


def keeps_the_keys(method: Method, backbone: Tiny) -> None:
    """The base's keys stay, in order; what is added lies under ``edits``."""
    model, _ = put(method, backbone)
    for kind in ("state_dict", "named_parameters"):
        wanted = list(dict(getattr(backbone.model, kind)()))
        found = [k for k in dict(getattr(model, kind)()) if not base.owned(k)]
        assert found == wanted, f"{kind} of {backbone.name} changed: {sorted(set(found) ^ set(wanted))[:5] or 'the order'}"


def keeps_its_state(method: Method, backbone: Tiny) -> None:
    """``state`` loaded into a fresh model gives the same output, bit for bit."""
    model, at = put(method, backbone)
    stir(at)
    other, again = put(method, backbone, seed=7)
    again.load_state(at.state())
    same(backbone.output(other), backbone.output(model), f"state and load_state of {method.name} on {backbone.name}")


def copies(method: Method, backbone: Tiny) -> None:
    """A deep copy is independent, and its own handle works."""
    model, at = put(method, backbone)
    stir(at)
    before = backbone.output(model)
    twin = copy.deepcopy(model)
    handle = attachments(twin)[at.name]
    same(backbone.output(twin), before, f"a deep copy of {backbone.name} with {method.name}")
    stir(handle, seed=5)
    assert distance(backbone.output(twin), before) > 1e-6, "the copy's handle does not change the copy"
    same(backbone.output(model), before, "the original, after its copy was changed")
    handle.detach()
    same(backbone.output(twin), backbone.output(backbone.fresh()), "the copy, detached by its own handle")
    same(backbone.output(model), before, "the original, after its copy was detached")


def pickles(method: Method, backbone: Tiny) -> None:
    """A model with edits survives pickle, and its handle with it."""
    model, at = put(method, backbone)
    stir(at)
    back = pickle.loads(pickle.dumps(model))
    same(backbone.output(back), backbone.output(model), f"{backbone.name} with {method.name}, pickled and back")
    attachments(back)[at.name].detach()
    same(backbone.output(back), backbone.output(backbone.fresh()), "the unpickled model, detached by its own handle")


def compiles(method: Method, backbone: Tiny) -> None:
    """torch.compile makes one graph of it, with the same output and gradients."""
    model, at = put(method, backbone)
    stir(at)
    descend(loss(backbone, model))
    wanted = gradients(at)
    plain = backbone.logits(backbone.run(model)).detach()
    model.zero_grad()
    torch._dynamo.reset()
    compiled: Any = torch.compile(model, fullgraph=True, backend="aot_eager")
    out = backbone.logits(backbone.run(compiled))
    assert distance(out.detach(), plain) < 1e-5, f"compiled, {backbone.name} with {method.name} answers something else"
    descend(weigh(out))
    found = {n: g for n, g in gradients(at).items() if n in wanted or bool(g.any())}  # zero, where none would do, is none
    alike(found, wanted, f"{backbone.name} with {method.name} under torch.compile")
    torch._dynamo.reset()


def merges(method: Method, backbone: Tiny) -> None:
    """A mergeable method, or one without edits, folds into the base with its keys and output; any other refuses by name."""
    model, at = put(method, backbone)
    stir(at)
    before = backbone.output(model)
    if at.plan and not method.mergeable:
        try:
            at.merge()
        except CannotMerge:
            same(backbone.output(model), before, f"{method.name}, after it refused to merge")
            return
        raise AssertionError(f"{method.name} is not mergeable, yet merged into {backbone.name} without an error")
    at.merge()
    assert list(model.state_dict()) == list(backbone.model.state_dict()), "merged, the model has other keys than the base"
    assert distance(backbone.output(model), before) < 1e-4, f"merged, {backbone.name} with {method.name} answers something else"
    at.unmerge()
    same(backbone.output(model), before, f"{method.name} on {backbone.name}, merged and unmerged")
    restores(method, backbone, merge=True)


def restores(method: Method, backbone: Tiny, merge: bool = False) -> None:
    """Detaching gives the base back: every bit, key, flag and class."""
    model, at = put(method, backbone)
    stir(at)
    if merge:
        at.merge()
    at.detach()
    was, now = backbone.model.state_dict(), model.state_dict()
    assert list(now) == list(was), f"keys are not what they were: {sorted(set(now) ^ set(was))[:5] or 'the order'}"
    moved = [n for n in was if not equal(was[n], now[n])]
    assert not moved, f"not what they were before {method.name} was attached and detached: {moved[:5]}"
    flags = [(n, p.requires_grad) for n, p in backbone.model.named_parameters()]
    assert [(n, p.requires_grad) for n, p in model.named_parameters()] == flags, "requires_grad is not what it was"
    assert [type(m) for m in model.modules()] == [type(m) for m in backbone.model.modules()], "modules were left behind"
    assert not attachments(model), "the model still lists the attachment"
    same(backbone.output(model), backbone.output(backbone.fresh()), f"{backbone.name} after {method.name} was detached")


def disables(method: Method, backbone: Tiny) -> None:
    """Disabled is the base, bit for bit; enabled again is what it was."""
    model, at = put(method, backbone)
    stir(at)
    before = backbone.output(model)
    with at.disabled():
        same(backbone.output(model), backbone.output(backbone.fresh()), f"{backbone.name} with {method.name} disabled")
    same(backbone.output(model), before, f"{method.name} on {backbone.name}, enabled again")


def stacks(method: Method, backbone: Tiny) -> None:
    """Two attachments come off in either order; the one that stays acts as if it had been alone."""
    for first in ("one", "two"):
        model, at = put(method, backbone, "one")
        stir(at)
        try:
            other = add(method, backbone, model, "two", seed=2)
        except HalfAdapted:  # both would train the same base parameters in place, which is rightly refused
            return
        stir(other, seed=2)
        both = {"one": at, "two": other}
        last = both["two" if first == "one" else "one"]
        both[first].detach()
        alone, again = put(method, backbone, last.name, seed=9)
        again.load_state(last.state())
        same(backbone.output(model), backbone.output(alone), f"{method.name}: {last.name!r} after {first!r} was detached")
        last.detach()
        same(backbone.output(model), backbone.output(backbone.fresh()), f"{backbone.name} after both were detached")


def checkpoints(method: Method, backbone: Tiny) -> None:
    """Non-reentrant checkpointing, which runs every hook twice, gives the same gradients."""
    model, at = put(method, backbone)
    stir(at)
    descend(loss(backbone, model))
    wanted = gradients(at)
    model.zero_grad()
    descend(weigh(checkpoint(lambda: backbone.logits(backbone.run(model)), use_reentrant=False)))
    alike(gradients(at), wanted, f"{backbone.name} with {method.name}, checkpointed")


def takes_bfloat16(method: Method, backbone: Tiny) -> None:
    """On a base in bfloat16 the edits train in float32, act, and pass their gradients."""
    half = backbone.to(torch.bfloat16)
    model, at = put(method, half)
    before = half.output(model)
    stir(at)
    out = half.output(model)
    assert out.dtype == half.output(half.fresh()).dtype, f"{method.name} changes the output's precision to {out.dtype}"
    assert bool(out.isfinite().all()), f"{method.name} on {backbone.name} in bfloat16 is not finite"
    assert distance(out, before) > 1e-6, f"{method.name} does nothing on {backbone.name} in bfloat16"
    descend(own_loss(half, model, at))
    for name, p in at.named_parameters():
        in_place = name.startswith("base:")
        assert in_place or p.dtype == torch.float32, f"{name} trains in {p.dtype}"
        if p.grad is not None or name not in occasional(at):
            assert in_place or (p.grad is not None and bool(p.grad.isfinite().all())), f"{name} has no finite gradient in bfloat16"


def draws_from_its_seed(method: Method, backbone: Tiny) -> None:
    """One seed gives the same numbers and leaves the global state alone; another gives others, where any are drawn."""
    torch.manual_seed(11)
    state = torch.get_rng_state()
    a, b, c = (put(method, backbone, seed=seed)[1].state() for seed in (3, 3, 4))
    assert equal(torch.get_rng_state(), state), f"attaching {method.name} with a seed moves the global random state"
    assert all(equal(a[n], b[n]) for n in a), f"{method.name} with one seed twice: other numbers"
    put(method, backbone, seed=None)
    if not equal(torch.get_rng_state(), state):
        assert any(not equal(a[n], c[n]) for n in a), f"{method.name} draws numbers, but another seed gives the same ones"


def routes_rows(method: Method, backbone: Tiny) -> None:
    """A method that tells tasks apart answers differently to each, and to rows of different tasks as to a batch of each."""
    if not method.multitask:
        return
    model, at = put(method, backbone)
    stir(at)
    alone = []
    for told in TASKS:
        tell(model, told)
        alone.append(backbone.output(model))
    assert distance(*alone) > 1e-6, f"{method.name} answers on {backbone.name} as if all tasks were one"
    tell(model, TASKS)
    mixed = backbone.output(model)
    for row, (name, wanted) in enumerate(zip(TASKS, alone, strict=True)):
        moved = distance(mixed[row], wanted[row])
        assert moved < 1e-5, f"{method.name} on {backbone.name}: a row of {name!r} among others is off by {moved:.1e} (relative)"


PROMISES: tuple[Promise, ...] = (
    starts_as_promised, acts, sends_gradients, keeps_the_base, keeps_the_keys, keeps_its_state, copies, pickles, compiles,
    merges, restores, disables, stacks, checkpoints, takes_bfloat16, draws_from_its_seed, routes_rows)
