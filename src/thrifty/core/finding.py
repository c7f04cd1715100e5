"""Finding: which sites a pattern names, in any model."""
from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase

from torch import nn

from . import base, roles
from .errors import HalfAdapted, NoSuchSite, nearest
from .opening import close_attention, open_attention
from .part import parts
from .probe import Seen
from .site import Site

_TERM = re.compile(r"(!?)\s*([^\[\]]+?)(?:\[(-?\d*)(:?)(-?\d*)\])?")


def sites(model: nn.Module, where: str = "*", *, seen: Seen | None = None, own: Mapping[str, str] | None = None,
          every: list[Site] | None = None) -> list[Site]:
    """The sites that ``where`` names, in the model's order.

    ``where`` is a list of terms separated by ``|``. A term is a glob over roles (``attn.q``) or over paths
    (``encoder.layer.3.*``), perhaps with depths (``block[2:6]``, ``attn.q[-1]``); ``!term`` takes sites away, with all that
    lies inside them. ``every`` are the model's sites, where they are known already (`survey`).

    Raises:
        NoSuchSite: a term matches nothing; the message names it, what is near, and the roles there are.
        HalfAdapted: a term reaches only some of what it means: a mixture's shared expert but not its expert tensors, one of
            two paths of a shared module, a fused projection whose layout is unknown.
    """
    every = survey(model, seen or Seen(model), own or {}) if every is None else every
    last = {s.stack: s.depth + 1 for s in every if s.depth >= 0}
    chosen: list[Site] = []
    terms = [_parse(term, where) for term in where.split("|")]
    for minus, glob, keep in terms:
        hits = [s for s in every if _matches(s, glob) and (keep is None or s.depth in range(max(last.values(), default=0))[keep]
                                                            and s.depth < last[s.stack])]
        if minus:
            gone = [s for s in every if _matches(s, glob) or any(fnmatchcase(r, glob) for r in s.within)]
            chosen = [s for s in chosen if all(s is not g for g in gone)]
            continue
        if not hits:
            raise NoSuchSite(_nothing(model, every, glob, where))
        _refuse_halves(every, hits, glob, [g for m, g, _ in terms if not m], any(m and g == "experts" for m, g, _ in terms))
        known = {id(s) for s in chosen}
        chosen += [s for s in hits if id(s) not in known]
    if not chosen:
        raise NoSuchSite(f"{where!r} leaves no site of {type(model).__name__}")
    place = {id(s): i for i, s in enumerate(every)}
    return sorted(chosen, key=lambda s: place[id(s)])


def survey(model: nn.Module, seen: Seen, own: Mapping[str, str]) -> list[Site]:
    """Every site of the model, in its order."""
    if opened := "_thrifty" not in model.__dict__:
        open_attention(model)
    every = list(_all(model, seen, own))
    if opened:
        close_attention(model)
    return every


def _parse(term: str, where: str) -> tuple[bool, str, slice | None]:
    match = _TERM.fullmatch(term.strip())
    if not match:
        raise NoSuchSite(f"cannot read {term!r} in {where!r}: a term is a role or path glob, perhaps with [depth] or [from:to]")
    minus, glob, lo, colon, hi = match.groups()
    if lo is None:
        return bool(minus), glob.strip(), None
    if not colon and not lo:
        raise NoSuchSite(f"cannot read {term!r} in {where!r}: empty depth")
    start, stop = (int(lo) if lo else None), (int(hi) if hi else None)
    if not colon:
        assert start is not None
        return bool(minus), glob.strip(), slice(start, start + 1 if start != -1 else None)
    return bool(minus), glob.strip(), slice(start, stop)


def _matches(site: Site, glob: str) -> bool:
    return fnmatchcase(site.role, glob) or any(fnmatchcase(m, glob) for m in site.mounts) \
        or bool(site.part) and fnmatchcase(site.key, glob)


def _nothing(model: nn.Module, every: list[Site], glob: str, where: str) -> str:
    names = {s.role for s in every} | {s.path for s in every}
    said = f"{glob!r}" + (f" in {where!r}" if glob != where else "")
    fused = [s.path for s in every if s.role == "attn.qkv"]
    tensors = [s.path for s in every if s.role == "experts"]
    why = ""
    if fused and glob.startswith("attn."):
        why = f" Its q, k and v are fused in {fused[0]!r}, whose layout is not known: choose 'attn.qkv', the whole of it."
    if tensors and glob.startswith("mlp"):
        why = f" Its feed-forward weights are expert tensors ({tensors[0]!r}), which no linear edit reaches."
    close = nearest(glob, names, most=0).split(" Known")[0]
    return f"no site matches {said} in {type(model).__name__}.{why}{close} Its roles are {sorted({s.role for s in every})}"


def _refuse_halves(every: list[Site], hits: list[Site], glob: str, named: list[str], waived: bool) -> None:
    tensors = [s for s in every if s.role == "experts"]
    by_role = any(fnmatchcase(s.role, glob) and not fnmatchcase(s.path, glob) for s in hits)
    if tensors and by_role and not waived and any(s.role.startswith("mlp.") for s in hits):
        held = roles.expert_tensors(tensors[0].module)
        raise HalfAdapted(f"{glob!r} would adapt {hits[-1].path!r} but not the {len(tensors)} expert tensors beside it "
                          f"({tensors[0].path!r}: {held}); add '|!experts' to leave those as they are")
    for site in hits:
        missed = [m for m in site.mounts if not any(fnmatchcase(m, g) for g in named)]
        if missed and not fnmatchcase(site.role, glob) and not (site.part and fnmatchcase(site.key, glob)):
            raise HalfAdapted(f"{glob!r} names {site.path!r}, which is the same module as {missed}: an edit would act at "
                              "both; name both")


def _all(model: nn.Module, seen: Seen, own: Mapping[str, str]) -> Iterator[Site]:
    mounts: dict[int, list[str]] = {}
    for path, module in base.modules(model, remove_duplicate=False):
        mounts.setdefault(id(module), []).append(path)
    where = roles.blocks(model)
    inner = {path: _inside(model.get_submodule(path)) for path in where}
    named: dict[str, str] = {}
    yield Site("", model, "model", mounts=("",), seen=seen)
    for path, module in base.modules(model):
        if not path:
            continue
        home = next((b for b in (path, *_above(path)) if b in where), None)
        stack, depth = where.get(home or "", ("", -1))
        own_role = next((r for pattern, r in own.items() if re.search(pattern, path)), None)
        block = model.get_submodule(home) if home else None
        below = path[len(home) + 1 :] if home else path
        here = inner[home] if home else {}
        guess = "block" if path == home else here[below] if home else roles.role(path, module, None, below, {})
        name = guess if own_role is None else own_role
        if not name:
            continue
        named[path] = name
        around = tuple(named[a] for a in reversed(_above(path)) if a in named)
        about = {"depth": depth, "stack": stack, "within": around, "mounts": tuple(mounts[id(module)]), "seen": seen}
        fused = name in ("attn.qkv", "mlp.gate_in")
        owner = model.get_submodule(path.rpartition(".")[0])
        split = parts(name, module, owner, Site(path, module, name)._width("out")) if fused else None
        if split:
            yield from (Site(path, module, p.name, part=p, **about) for p in split)  # type: ignore[arg-type]
        elif name.startswith("after."):
            like = _projection(block, here, name)
            yield Site(path, module, name, like=like, **about)  # type: ignore[arg-type]
        else:  # a block is as wide as the projection that its feed-forward network ends with
            like = _projection(block, here, "after.mlp") if name == "block" else None
            yield Site(path, module, name, like=like, **about)  # type: ignore[arg-type]
        if path == home:
            yield from _without_dropout(path, module, inner[path], about)


def _inside(block: nn.Module) -> dict[str, str | None]:
    """Path in the block -> role, of everything in it."""
    return {path: roles.role(path, module, block, path, {}) for path, module in base.modules(block) if path}


def _without_dropout(path: str, block: nn.Module, inner: Mapping[str, str | None], about: dict[str, object]) -> Iterator[Site]:
    """Blocks without a dropout module after a sub-layer: the place is the projection itself, or the mixture of experts."""
    for after in ("attn", "cross", "mlp"):
        found = _projection_path(inner, f"after.{after}")
        if f"after.{after}" not in inner.values() and found is not None:
            at = f"{path}.{found}"
            around = (*about["within"], "block")  # type: ignore[misc]
            yield Site(at, block.get_submodule(found), f"after.{after}", **{**about, "within": around, "mounts": (at,)})  # type: ignore


def _projection(block: nn.Module | None, inner: Mapping[str, str | None], after: str) -> nn.Module | None:
    path = _projection_path(inner, after)
    return block.get_submodule(path) if block is not None and path is not None else None


def _projection_path(inner: Mapping[str, str | None], after: str) -> str | None:
    """Path, in a block with these roles, of the projection that ends the sub-layer which ``after`` follows."""
    kind = after.partition(".")[2]
    crossing = [path for path, role in inner.items() if role == "cross"]
    found = None
    for path, role in inner.items():
        across = any(path.startswith(c + ".") for c in crossing)
        if role == ("mlp.out" if kind == "mlp" else "attn.o") and (across == (kind == "cross") or kind == "mlp"):
            found = path if found is None or kind == "mlp" else found
        if role == "experts" and kind == "mlp":
            return path.rpartition(".")[0] or None
    return found


def _above(path: str) -> list[str]:
    bits = path.split(".")
    return [".".join(bits[:i]) for i in range(len(bits) - 1, 0, -1)]
