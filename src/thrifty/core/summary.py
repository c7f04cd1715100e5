"""Summary: what trains, where, and how much of it there is."""
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import base, weight

if TYPE_CHECKING:
    from .attachment import Attachment


@dataclass
class Summary:
    """Counts of parameters: the tuner's own, base parameters that train in place, and the frozen base.

    ``sites`` lists (role, edit, how many, parameters in all).
    """

    method: str
    tuner: int
    in_place: int
    base: int
    sites: list[tuple[str, str, int, int]]

    @property
    def trainable(self) -> int:
        """Everything that trains."""
        return self.tuner + self.in_place

    @property
    def share(self) -> float:
        """Trainable parameters over the base model's."""
        return self.trainable / max(1, self.base)

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {"method": self.method, "tuner": self.tuner, "in_place": self.in_place, "trainable": self.trainable,
                "base": self.base, "share": self.share, "sites": [list(s) for s in self.sites]}

    def __str__(self) -> str:
        lines = [f"{self.method}: {self.trainable:,} of {self.base:,} parameters train ({self.share:.3%})"]
        width = max((len(role) for role, *_ in self.sites), default=0)
        lines += [f"  {role:<{width}}  {count:>4} × {edit}  {numel:,}" for role, edit, count, numel in self.sites]
        if self.in_place:
            lines.append(f"  {'in place':<{width}}  {self.in_place:,} parameters of the base")
        return "\n".join(lines)


def summarise(at: Attachment) -> Summary:
    """Count what ``at`` trains."""
    rows: dict[tuple[str, str], tuple[int, int]] = {}
    for row in at.plan:
        numel = sum(p.numel() for p in at.edits[row.key].parameters() if p.requires_grad)
        count, total = rows.get((row.role, row.edit), (0, 0))
        rows[row.role, row.edit] = count + 1, total + numel
    shared = sum(p.numel() for p in at.context.shared.parameters()) if at.context.shared is not None else 0
    parameters = dict(at.model.named_parameters())
    in_place = sum(int(at.masks[n].sum()) if n in at.masks else parameters[n].numel() for n in at.base if n in parameters)
    whole = sum(weight.count(p) for _, p in base.parameters(at.model))
    sites = [(role, edit, count, total) for (role, edit), (count, total) in rows.items()]
    if shared:
        sites.append(("shared", at.shared_as[0] if at.shared_as else "", 1, shared))
    tuner = sum(total for *_, total in sites)
    return Summary(at.method.name if at.method else "loaded", tuner, in_place, whole, sites)
