"""Several adapters as one: stacked, averaged, fused, split over tokens, side by side, row by row; and exact weighted sums."""
from .algebra import Average, Fuse, Named, Parallel, Rows, Split, Stack
from .building import compose
from .swapping import swap
from .weighted_sum import combine

__all__ = ["Average", "Fuse", "Named", "Parallel", "Rows", "Split", "Stack", "combine", "compose", "swap"]
