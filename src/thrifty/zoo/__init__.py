"""Several pretrained models of pictures as one module: it is attached to, trained, saved and loaded like any other."""
from .zoo import Pooled, Trunk, Zoo, gather

__all__ = ["Pooled", "Trunk", "Zoo", "gather"]
