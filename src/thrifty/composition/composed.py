"""One place of a model where several adapters act as one: their edits there, and the tree that says how."""
from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from ..core import Branch, Edit, Site, register, registered
from ..core.attending import Attending
from ..core.errors import CannotMerge, Unfit
from .fusion import Fusion
from .levelling import level
from .meaning import find_lead, refuse_meaningless
from .together import Groups, Together, deal, groups
from .tree import Tree, cut, leaves, mean, nodes
from .views import View

Given = tuple[Tensor, ...]


@register("composed")
class Composed(Edit):
    """The edits of several adapters at one site and port, as one.

    ``tree`` is {"op", "parts", and the node's numbers}, and at its leaves {"part": name, "frozen": bool, "edits": [{"edit",
    "numbers"}, ...]}, with no edits where the adapter does nothing here. ``residual`` is the key of the tap that holds what
    the adapters of a stack keep beside their additions, where the site itself does not see it.
    """

    lead: Any

    def __init__(self, site: Site, port: str, tree: Tree, residual: str = ""):
        super().__init__(site)
        self.port, self.tree, self.residual = port, tree, residual
        self.leaves = nn.ModuleDict()
        self.fusions = nn.ModuleDict()
        for leaf in leaves(tree):
            edits = [registered(e["edit"])(site, **e["numbers"]) for e in leaf["edits"]]
            self.leaves[leaf["part"]] = nn.ModuleList(edits).requires_grad_(not leaf["frozen"])
        self.__dict__["lead"] = find_lead(self)  # one of the leaves, not a child twice
        self.shares: dict[tuple[str, ...], Groups] = {}
        self.looks = all(edit.passive for part in self.leaves for edit in self.held(part))
        for way, node in nodes(tree):
            refuse_meaningless(self, node)
            if node["op"] == "fuse":
                settings = {name: node[name] for name in ("value", "dropout", "temperature")}
                self.fusions[way] = Fusion(site.dout, **settings)
        if port == "attention":
            self.__dict__["mode"] = Attending(self, self.attended)

    def drop(self, part: str) -> None:
        """Take one part out of the tree, here and in the plan that describes it."""
        for _, node in nodes(self.tree):
            node["parts"] = [inner for inner in node["parts"] if inner.get("part") != part]
        del self.leaves[part]
        self.shares.clear()

    def join(self, context: Any) -> None:
        """Give each part a view of the context."""
        super().join(context)
        for name in self.leaves:
            view = context.views.setdefault(name, View(context, name))  # one for all places, so that taps find each other
            for edit in self.held(name):
                edit.join(view)

    def says(self, part: str) -> list[dict[str, Any]]:
        """What the tree says of one part: its edits and their numbers."""
        return next(leaf["edits"] for leaf in leaves(self.tree) if leaf["part"] == part)

    def held(self, part: str) -> list[Any]:
        """The edits of one part."""
        return list(cast(nn.ModuleList, self.leaves[part]))

    def forward(self, *given: Tensor) -> Any:
        """As the edits of the site's port take it."""
        if self.looks:
            self._watch(self.tree, given)
            return given if self.port in ("attention", "call") else given[0]
        if self.lead is not None:
            y, x = given[0], given[-1]
            z = self._addition(self.tree, "", None, y, x, None)
            return y if z is None else self.lead.write(y, x, z)
        out = self._pass(self.tree, given[:1], given[1]) if self.port == "output" else self._pass(self.tree, given, None)
        return out if self.port in ("attention", "call") else out[0]

    def attended(self, y: Tensor, q: Tensor, scale: float) -> Tensor:
        """What the attention gave out for q, with what the parts add to it."""
        return self._after(self.tree, y, q, scale)

    def _after(self, node: Tree, y: Tensor, q: Tensor, scale: float) -> Tensor:
        if "part" in node:
            for edit in self._edits(node):
                y = edit.attended(y, q, scale)
            return y
        if node["op"] not in ("rows", "parallel"):
            for part in node["parts"]:
                y = self._after(part, y, q, scale)
            return y
        which = self.context.which()
        if isinstance(which, int):
            return self._after(node["parts"][which], y, q, scale)
        for i, part in enumerate(node["parts"]):
            rows = (which == i).nonzero().squeeze(1)
            y = y.index_copy(0, rows, self._after(part, y[rows], q[rows], scale))
        return y

    def _watch(self, node: Tree, given: Given) -> None:
        """Let every part that may act see the whole batch."""
        if "part" in node:
            for edit in self._edits(node):
                edit(*given)
        elif node["op"] in ("rows", "parallel") and isinstance(which := self.context.which(), int):
            self._watch(node["parts"][which], given)
        else:
            for part in node["parts"]:
                self._watch(part, given)

    # -- edits that only know how to act --------------------------------------------------------------------------------
    def _pass(self, node: Tree, given: Given, x: Tensor | None, rows: Tensor | None = None) -> Given:
        if "part" in node:
            for edit in self._edits(node):
                if rows is not None and x is not None and type(edit).forward is Branch.forward:
                    (y,) = given
                    h = edit.read(y, x)  # what a tap left is of the whole batch
                    out = edit.write(y, x, edit.branch(h if len(h) == len(y) else h[rows]))
                else:
                    out = edit(*given) if x is None else edit(*given, x)
                given = out if isinstance(out, tuple) else (out,)
            return given
        parts, op = node["parts"], node["op"]
        if op == "stack":
            for part in reversed(parts) if self.port == "call" else parts:  # as brackets nest, see thrifty.core.hooks
                if len(given) > 3:
                    raise Unfit(f"at {self.site.path!r} rows have different numbers of keys in front, and a stack would put more "
                                "before those: put the rows around the stack")
                given = self._pass(part, given, x, rows)
            return given
        if op in ("rows", "parallel"):
            return self._by_row(node, given, x)
        whole = [self._pass(part, given, x, rows)[0] for part in parts]
        return (mean(whole, node["weights"]) if op == "average" else cut(whole, node["at"]),)

    def _by_row(self, node: Tree, given: Given, x: Tensor | None) -> Given:
        which = self.context.which()
        if isinstance(which, int):
            return self._pass(node["parts"][which], given, x)
        self._refuse_rows(which, given[0])
        full = given if x is None else (*given, x)
        if (whole := self._whole(node)) is not None:
            return whole.all(which, *full)
        pieces, places = [], []
        for numbers, together, rows, own in deal(self._shares(node), which):
            mine = tuple(t[rows] for t in full)
            pieces.append(together.all(own, *mine) if together is not None else
                          self._pass(node["parts"][numbers[0]], mine[:len(given)], None if x is None else mine[-1], rows))
            places.append(rows)
        if self.port == "attention" and len({piece[1].shape[2] for piece in pieces}) > 1:
            pieces = level(pieces, given[1].shape[2])
        widths = {tuple(piece[-1].shape[1:]) for piece in pieces}
        if len(widths) > 1:
            raise Unfit(f"at {self.site.path!r} the parts give rows of different shapes, {sorted(widths)}, which make no one "
                        "batch: send their rows in batches of their own")
        order = torch.cat(places).argsort()
        return tuple(torch.cat(side)[order] for side in zip(*pieces, strict=True))

    def _shares(self, node: Tree) -> Groups:
        """Which parts of the node run at once. Branches that have no common lead are written where they are read, one by one."""
        key = tuple(leaf["part"] for leaf in leaves(node))
        single: Groups = [([i], None) for i in range(len(node["parts"]))]
        if torch.compiler.is_compiling():
            return single
        if key not in self.shares:
            apart = self.lead is None and any(isinstance(e, Branch) for part in key for e in self.held(part))
            flat = not apart and all("part" in part for part in node["parts"])
            self.shares[key] = groups([(self._edits(part), part["edits"]) for part in node["parts"]]) if flat else single
        return self.shares[key]

    def _whole(self, node: Tree) -> Together | None:
        """What runs all parts of the node at once, if they are alike."""
        (_, together), *rest = self._shares(node)
        return None if rest else together

    # -- edits that say what they add -----------------------------------------------------------------------------------
    def _addition(self, node: Tree, way: str, h: Tensor | None, y: Tensor, x: Tensor, rows: Tensor | None) -> Tensor | None:
        """What ``node`` adds, without the residual; None for nothing. ``h`` is what it reads, if not what its edit reads."""
        if "part" in node:
            edits = self._edits(node)
            if not edits:
                return None
            own = edits[0].read(y, x)  # also where h is given, as reading may empty a tap
            read = own if rows is None else own[rows]
            return edits[0].branch(read if h is None else h)
        parts, op = node["parts"], node["op"]
        if op == "stack":
            return self._stacked(node, way, h, y, x, rows)
        if op in ("rows", "parallel"):
            return self._chosen(node, way, h, y, x, rows)
        found = [self._addition(part, f"{way}_{i}", h, y, x, rows) for i, part in enumerate(parts)]
        some = next((z for z in found if z is not None), None)
        if some is None:
            return None
        whole = [torch.zeros_like(some) if z is None else z for z in found]
        if op == "average":
            return mean(whole, node["weights"])
        if op == "split":
            return cut(whole, node["at"])
        read = (y if rows is None else y[rows]) if h is None else h
        return self.fusions[way or "_"](read, torch.stack(whole, -2))

    def _stacked(self, node: Tree, way: str, h: Tensor | None, y: Tensor, x: Tensor, rows: Tensor | None) -> Tensor | None:
        last: Tensor | None = None
        for i, part in enumerate(node["parts"]):
            z = self._addition(part, f"{way}_{i}", h, y, x, rows)
            if z is None:
                continue
            if self._sums:
                last = z if last is None else last + z
            else:
                kept = self._kept(y)
                h = z + (kept if rows is None else kept[rows]).to(z.dtype)
                last = z
        return last

    def _chosen(self, node: Tree, way: str, h: Tensor | None, y: Tensor, x: Tensor, rows: Tensor | None) -> Tensor | None:
        which = self.context.which()
        if isinstance(which, int):
            return self._addition(node["parts"][which], f"{way}_{which}", h, y, x, rows)
        self._refuse_rows(which, y)
        which = which if rows is None else which[rows]
        if (whole := self._whole(node)) is not None and rows is None:
            read = whole.read(y, x)
            return whole(which, read if h is None else h)
        total: Tensor | None = None
        for numbers, together, here, own in deal(self._shares(node), which):
            among = here if rows is None else rows[here]
            if together is None:
                i = numbers[0]
                z = self._addition(node["parts"][i], f"{way}_{i}", None if h is None else h[here], y, x, among)
            else:
                read = together.read(y, x)
                z = together(own, read[among] if h is None else h[here])
            if z is not None:
                total = torch.zeros(len(which), *z.shape[1:], dtype=z.dtype, device=z.device) if total is None else total
                total = total.index_copy(0, here, z)
        return total

    def _kept(self, y: Tensor) -> Tensor:
        """What the adapters of a stack keep beside their additions."""
        found: Tensor = self.context.taps[self.residual] if self.residual else y
        return found

    @property
    def _sums(self) -> bool:
        return all(edit.additive for part in self.leaves for edit in self.held(part))

    def _edits(self, leaf: Tree) -> list[Any]:
        return self.held(leaf["part"])

    def _refuse_rows(self, which: Tensor, t: Tensor) -> None:
        if len(which) != len(t):
            raise Unfit(f"{len(which)} rows were told their task, but at {self.site.path!r} the batch has {len(t)} rows: rows can "
                        "be told apart only where the batch is the first dimension and keeps its length")

    def folds_into(self) -> tuple[str, ...]:
        """Where its parts do, which all act at one place.

        Raises:
            CannotMerge: they fold into different layers.
        """
        ways = {edit.folds_into() for part in self.leaves for edit in self.held(part)}
        if len(ways) > 1:
            raise CannotMerge(f"the parts at {self.site.path!r} fold into different layers: {sorted(ways)}")
        return ways.pop()

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """A stack folds part by part, an average into the average; what depends on the row or the token cannot fold."""
        return self._fold(self.tree, weight, bias)

    def _fold(self, node: Tree, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if "part" in node:
            for edit in self._edits(node):
                weight, bias = edit.fold(weight, bias)
            return weight, bias
        if node["op"] == "stack":
            before = self.port == "input" or self.site.path not in self.folds_into()
            for part in reversed(node["parts"]) if before else node["parts"]:  # the last change of an input meets the weight first
                weight, bias = self._fold(part, weight, bias)
            return weight, bias
        if node["op"] != "average":
            raise CannotMerge(f"{node['op']} at {self.site.path!r} depends on more than the weight, so it cannot be merged")
        every = [self._fold(part, weight, bias) for part in node["parts"]]
        biases = [b for _, b in every if b is not None]
        return mean([w for w, _ in every], node["weights"]), mean(biases, node["weights"]) if biases else None
