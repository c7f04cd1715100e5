"""The operations of a block that something can stand beside: where its attention, and its feed-forward network, begin and end.

The names are those of Towards a Unified View of Parameter-Efficient Transfer Learning (He, Zhou, Ma, Berg-Kirkpatrick, Neubig;
ICLR 2022, arXiv:2110.04366).
"""
from __future__ import annotations

from dataclasses import dataclass
from os.path import commonprefix
from typing import TYPE_CHECKING

from ...core import Site
from ...core.errors import NoSuchSite

if TYPE_CHECKING:
    from ...core import Attachment


@dataclass(frozen=True)
class Attention:
    """The self-attention of a block: the module that computes it, and its projections."""

    whole: Site
    q: Site
    k: Site
    v: Site
    o: Site


def attentions(at: Attachment, blocks: list[Site]) -> dict[str, Attention]:
    """Path of a block -> its self-attention; blocks without one, or with projections that cannot be told apart, are left out."""
    wholes, outputs = by_block(at, blocks, "attn"), by_block(at, blocks, "attn.o")
    parts = [by_block(at, blocks, f"attn.{role}") for role in "qkv"]
    found: dict[str, Attention] = {}
    for path, (whole, *_) in ((path, sites) for path, sites in wholes.items() if sites):
        q, k, v = ([s for s in part[path] if s.path.startswith(f"{whole.path}.")] for part in parts)
        o = sorted(outputs[path], key=lambda s: -len(commonprefix([s.path, whole.path])))
        if q and k and v and o:
            found[path] = Attention(whole, q[0], k[0], v[0], o[0])
    return found


def feed_forwards(at: Attachment, blocks: list[Site]) -> dict[str, tuple[Site, Site]]:
    """Path of a block -> (the site whose input its feed-forward network reads, the site whose output it gives).

    Where the network is not two projections (a mixture of experts), both are the whole of it; blocks without one are left out.
    """
    first, last, whole, experts = (by_block(at, blocks, role) for role in ("mlp.in", "mlp.out", "mlp", "experts"))
    found: dict[str, tuple[Site, Site]] = {}
    for path in whole:
        if len(first[path]) == len(last[path]) == 1 and not experts[path]:
            found[path] = first[path][0], last[path][0]
        elif len(whole[path]) == 1:
            found[path] = whole[path][0], whole[path][0]
    return found


def by_block(at: Attachment, blocks: list[Site], role: str) -> dict[str, list[Site]]:
    """Path of each block -> its sites of that role; a mixture's expert tensors do not stand in the way of the others."""
    try:
        sites = at.sites(role if role == "experts" else f"{role}|!experts")
    except NoSuchSite:
        sites = []
    return {b.path: [s for s in sites if s.path.startswith(b.path + ".")] for b in blocks}
