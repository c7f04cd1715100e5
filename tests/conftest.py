"""Makes timm and open_clip importable where torchvision's operators are missing, as beside a torch of another build."""
from __future__ import annotations

import importlib
import importlib.util
import sys
from functools import cache

import pytest
import torch

_DECLARED: list[torch.library.Library] = []


def _declare_operators() -> None:
    """transformers and timm import torchvision if it is there: its operators' names are enough, no test calls one."""
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError:  # "operator torchvision::nms does not exist"
        for name in [m for m in sys.modules if m.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        _DECLARED.append(library)
        for name in ("nms", "qnms"):
            if not hasattr(torch.ops.torchvision, name):
                library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


_declare_operators()


@cache
def why_no_timm() -> str:
    """Why timm and open_clip cannot be imported; empty when they can."""
    try:
        importlib.import_module("timm")
        importlib.import_module("open_clip")
    except (ImportError, RuntimeError) as error:
        return f"timm or open_clip cannot be imported: {error}"
    return ""


@pytest.fixture(autouse=True)
def _timm_when_marked(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("timm") and why_no_timm():
        pytest.skip(why_no_timm())
