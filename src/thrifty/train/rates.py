"""Peak learning rates to start from, where the user names none.

What trains in place moves a pretrained weight and needs small steps; what starts at zero beside it needs large ones. A
method may state its own as a class attribute ``rate``; the table holds the others by name, then by route.
"""
from __future__ import annotations

from thrifty.core import Method

BY_NAME = {
    "full": 5e-5,       # every weight moves
    "bitfit": 1e-3,     # biases only
    "layernorm": 1e-3,
    "linear-probe": 1e-3,
    "ia3": 5e-3,        # one scale per channel
    "prompt": 3e-1,     # word vectors far from the data
    "prefix": 1e-2,
    "vpt": 1e-2,
}
BY_ROUTE = {
    "structure": 5e-5,
    "few weights": 1e-3,
    "input and output": 1e-2,
    "inject parameters": 1e-3,
    "add modules": 1e-3,
}


def default_rate(method: Method) -> float:
    """The peak rate for ``method``."""
    own = getattr(type(method), "rate", None)
    if isinstance(own, (int, float)):
        return float(own)
    named = next((rate for name, rate in BY_NAME.items() if method.name == name or method.name.startswith(name + "-")), None)
    return named if named is not None else BY_ROUTE.get(method.route, 1e-3)
