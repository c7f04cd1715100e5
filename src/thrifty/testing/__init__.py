"""The contract suite, shipped: hold any method, also one of your own, to every promise on tiny backbones of all families."""
from . import contract, tiny
from .contract import PROMISES, check

__all__ = ["PROMISES", "check", "contract", "tiny"]
