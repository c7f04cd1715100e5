"""The frozen part of a model, run once per row: what it gave is stored, and read instead of being computed again.

`keep` finds how deep a model with an adapter can be cut such that nothing that trains or acts lies below (`cut`), proves on a few
rows that states can stand for what computes them (`proving`), computes and stores them where they are not there yet (`store`),
and gives a training what to ask for every batch (`kept`).
"""
from thrifty.trunk.feed import number
from thrifty.trunk.keeping import Terms, keep
from thrifty.trunk.kept import Direct, Kept
from thrifty.trunk.packing import PRECISIONS

__all__ = ["PRECISIONS", "Direct", "Kept", "Terms", "keep", "number"]
