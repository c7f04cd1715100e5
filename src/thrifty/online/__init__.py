"""Adapting while a model is used: to batches without labels, one after the other, that may come from changing domains.

A room of its own, beside the methods: a method says what changes in a model and learns it from labels; what is here lets
anything that is attached learn from a stream, with a teacher in the place of labels.

    at = thrifty.attach(model, thrifty.VDP())                     # or any other method
    adapt = online.VDP(at, augment=online.Augment(mean, std))     # or online.CoTTA
    for batch in stream:
        logits = adapt(batch)

Nothing knows of batches to come; ``TPT`` learns from one picture at a time, and forgets it. ``at.detach()`` gives the
model back as it was, bit for bit.
"""
from __future__ import annotations

from .augment import Augment
from .cotta import CoTTA
from .tpt import TPT
from .vdp import VDP

__all__ = ["TPT", "VDP", "Augment", "CoTTA"]
