"""`compose`: saved adapters and new methods put on a model as one attachment."""
from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..core import Attachment, Row, Site, registered
from ..core.attaching import finish
from ..core.errors import CannotCombine, NoSuchSetting, nearest
from ..core.probe import Example, Seen
from ..core.site import at_path
from .algebra import Named, Node, Parallel, Rows, Split, Stack, above, named
from .composed import Composed
from .other import Other
from .parallel import copy_rows
from .parts import Part, gather
from .views import Branches, TapAfter
from .whole_text import WholeText

Place = tuple[str, str, str]  # path, name of the part of a fused projection, port


def compose(model: nn.Module, tree: Any, name: str = "composed", *, heads: str | None = None, example: Example | None = None,
            seed: int = 0) -> Attachment:
    """One attachment in which the adapters of ``tree`` act together, as its nodes say.

        at = thrifty.compose(model, Stack("runs/german", "runs/entities"))
        at = thrifty.compose(model, Fuse("runs/rte", "runs/mnli", "runs/mrpc"), heads="new")     # the fusion trains
        at = thrifty.compose(model, Stack("runs/english", thrifty.Pfeiffer()))                   # the new adapter trains

    It saves, loads, switches and detaches like any other. Where something in it is new, that trains and what was saved is
    frozen; else all of it may train on.

    Args:
        heads: base parameters that several parts trained in place (a classifier) can have one value only: the name of the
            part whose values count, or "new" to leave them all out. Not needed where each row has a part of its own.
        example: as for `thrifty.attach`.
        seed: of what is new.

    Raises:
        CannotCombine: naming what has no meaning together, and why.
        BrokenArtifact, WrongBase: a saved adapter is not whole, or was trained on another base.
    """
    at = Attachment(model, name, seen=Seen(model, example), tied="leave")
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            parts = put(at, tree, heads, example)
        finish(at, example, True)
    except BaseException:
        at.detach()
        raise
    at.seed = seed
    if not any(part.frozen or part.new for part in parts):
        at.start = {}  # what files held may be saved again as it is
    return at


def put(at: Attachment, tree: Any, heads: str | None = None, example: Example | None = None) -> list[Part]:
    """Put the composition on ``at``, for methods that are one; returns its parts."""
    shape, leaves = named(tree if isinstance(tree, Node) else Stack(tree))
    parts = gather(at.model, leaves, example, at.seen)
    nodes = list(_nodes(shape))
    new = any(part.new for part in parts) or any(node.op == "fuse" for node in nodes)
    for part in parts:
        part.frozen = new and not part.new
    routed = {leaf.name for leaf, way in above(shape) if any(isinstance(node, Rows) for node, _ in way)}
    _name_tasks(at, nodes, parts)
    for part in parts:
        for what in part.behind:
            at.about.setdefault("dropped", {}).setdefault(what, []).append(part.name)
    held = _place_values(at, parts, routed, heads)
    state = _share(at, parts)
    for (_, _, port), here in places(at, parts).items():
        state |= _put_place(at, shape, port, here, {part.name: part for part in parts})
    if any(isinstance(node, Split) for node in nodes):
        at.put(at.sites("model")[0], WholeText)
    for parallel in [node for node in nodes if isinstance(node, Parallel)]:
        copy_rows(at, len(parallel.parts), example)
    at.load_state(at.state() | state | held)
    return parts


def _nodes(shape: Any) -> Iterator[Any]:
    if not isinstance(shape, Named):
        yield shape[0]
        for part in shape[1]:
            yield from _nodes(part)


def _name_tasks(at: Attachment, nodes: list[Node], parts: list[Part]) -> None:
    """Rows are told apart by the names of their parts; one composition has one such list."""
    lists = [node.names for node in nodes if isinstance(node, Rows)] + [p.about["tasks"] for p in parts if p.about.get("tasks")]
    if any(names != lists[0] for names in lists):
        raise CannotCombine(f"rows are told apart in two ways, {lists[0]} and {next(n for n in lists if n != lists[0])}: give both "
                            "the same names, in the same order")
    if sum(isinstance(node, Parallel) for node in nodes) and len(lists) > 1:
        raise CannotCombine("Parallel gives every part the whole batch, so no rows are left to tell apart: use one of them")
    if lists:
        at.about["tasks"] = list(lists[0])


def _place_values(at: Attachment, parts: list[Part], routed: set[str], heads: str | None) -> dict[str, Tensor]:
    """Base parameters that parts trained: in place where one part that may train owns them, as edits where rows differ or the
    part is frozen. Returns the values in place."""
    names = [part.name for part in parts]
    if heads not in (None, "new", *names):
        raise NoSuchSetting(f"heads={heads!r} is no part of this composition, nor 'new'." + nearest(str(heads), names))
    held: dict[str, Tensor] = {}
    for name in dict.fromkeys(n for part in parts for n in part.trained):
        owners = [part for part in parts if name in part.trained]
        apart = [part for part in owners if part.name in routed]
        if heads is not None and not apart:
            dropped = [part.name for part in owners if part.name != heads]
            at.about.setdefault("dropped", {}).update({name: dropped} if dropped else {})
            owners = [part for part in owners if part.name == heads]
        if not apart and all(torch.equal(part.state[f"base:{name}"], owners[0].state[f"base:{name}"]) for part in owners):
            owners = owners[:1]
        if len(owners) > 1 and len(apart) < len(owners):
            raise CannotCombine(f"{' and '.join(repr(p.name) for p in owners)} each trained {name!r} in place, and it can have one "
                                f"value only: say whose with heads= (one of {names}), or heads='new' to leave them out")
        for part in owners:
            if part.name in routed or part.frozen:
                exchange(part, name)
            else:
                held[f"base:{name}"] = _train(at, part, name)
    return held


def _train(at: Attachment, part: Part, name: str) -> Tensor:
    value, there = part.state[f"base:{name}"], at.model.get_parameter(name)
    if value.shape != there.shape:
        raise CannotCombine(f"{part.name!r} holds {name!r} of shape {list(value.shape)}, the model has {list(there.shape)}: load "
                            "the model with the labels of that part, or leave its head out with heads='new'")
    at.train(name)
    return value


def exchange(part: Part, name: str) -> None:
    """Make of a trained base parameter an edit at its module, the first there."""
    path, _, short = name.rpartition(".")
    key = f"{path}#{Other.registered}"
    row = next((row for row in part.rows if row.key == key), None)
    if row is None:
        row = Row(key, path, "module", -1, "", None, Other.registered, {"shapes": {}})
        part.rows.insert(0, row)
    value = part.state[f"base:{name}"]
    row.numbers["shapes"][short] = list(value.shape)
    part.state[f"edit:{key}:own.{short}"] = value


def _share(at: Attachment, parts: list[Part]) -> dict[str, Tensor]:
    sharing = {part.name: [*part.shared, part.frozen] for part in parts if part.shared}
    if sharing:
        at.share(Branches, parts=sharing)
    return {f"shared:branches.{part.name}.{n.removeprefix('shared:')}": t
            for part in parts for n, t in part.state.items() if n.startswith("shared:")}


def places(at: Attachment, parts: list[Part]) -> dict[Place, dict[str, list[Row]]]:
    """Where the parts act: place -> part -> its edits there, in order."""
    found: dict[Place, dict[str, list[Row]]] = {}
    for part in parts:
        for row in part.rows:
            place = (row.path, row.part.name if row.part else "", _port(at, row))
            found.setdefault(place, {}).setdefault(part.name, []).append(row)
    return found


def _port(at: Attachment, row: Row) -> str:
    """Where the edit of a row acts; some decide by their site or their numbers."""
    kind = registered(row.edit)
    if "port" in row.numbers:
        return str(row.numbers["port"])
    with torch.device("meta"), contextlib.suppress(RuntimeError, NotImplementedError):  # edits that read the base's numbers
        return kind(_site(at, row), **row.numbers).port
    return kind.port


def _site(at: Attachment, row: Row) -> Site:
    return at_path(at.model, row.path, row.role, row.part, row.depth, row.stack, at.seen)


def _put_place(at: Attachment, shape: Any, port: str, here: dict[str, list[Row]], parts: dict[str, Part]) -> dict[str, Tensor]:
    """Put the edit that composes those of all parts at one place; returns their tensors by the names that they have in it."""
    first = next(iter(here.values()))[0]
    site = _site(at, first)
    if port == "around":
        raise CannotCombine(f"{first.edit!r} decides whether {first.path!r} runs at all, and on what: that cannot be composed")
    tree = _plain(shape, here, parts)
    kept = {getattr(registered(row.edit), "kept", "") for rows in here.values() for row in rows} - {""}
    residual = ""
    if kept and _chains(shape, here):
        source = _inside_block(at, site, kept.pop())
        residual = source.key
        at.put(source, TapAfter, key=residual)
    at.put(site, Composed, port=port, tree=tree, residual=residual)
    key = at.plan[-1].key
    return {f"edit:{key}:leaves.{name}.{i}.{n.removeprefix(f'edit:{row.key}:')}": t
            for name, rows in here.items() for i, row in enumerate(rows)
            for n, t in parts[name].state.items() if n.startswith(f"edit:{row.key}:")}


def _plain(shape: Any, here: dict[str, list[Row]], parts: dict[str, Part]) -> dict[str, Any]:
    if isinstance(shape, Named):
        edits = [{"edit": row.edit, "numbers": row.numbers} for row in here.get(shape.name, [])]
        return {"part": shape.name, "frozen": parts[shape.name].frozen, "edits": edits}
    node, inner = shape
    return {"op": node.op, "parts": [_plain(part, here, parts) for part in inner], **node.numbers()}


def _chains(shape: Any, here: dict[str, list[Row]]) -> bool:
    """Whether some stack has more than one part that acts here."""
    if isinstance(shape, Named):
        return False
    node, inner = shape
    acting = sum(any(leaf.name in here for leaf, _ in above(part)) for part in inner)
    return (node.op == "stack" and acting > 1) or any(_chains(part, here) for part in inner)


def _inside_block(at: Attachment, site: Site, role: str) -> Site:
    """The place of that role in the same block as ``site``."""
    blocks = [block.path for block in at.sites("block") if site.path.startswith(block.path + ".")]
    found = [other for other in at.sites(role) if blocks and other.path.startswith(blocks[-1] + ".")]
    if not found:
        raise CannotCombine(f"adapters at {site.path!r} keep what comes out of {role!r}, which their block does not have: they "
                            "cannot be stacked here")
    return found[-1]
