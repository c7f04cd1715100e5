"""timm models: the head is new, everything else is read, or refused."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from thrifty.core.errors import BrokenArtifact, NoSuchSetting
from thrifty.models import load

LABELS = ["no", "yes", "perhaps"]
NAME = "test_vit.r160_in1k"

pytestmark = pytest.mark.timm


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    import timm

    from thrifty.models import hub

    torch.manual_seed(0)
    tensors: dict[str, torch.Tensor] = timm.create_model(NAME, pretrained=False, num_classes=11).state_dict()
    save_file(tensors, tmp_path / "model.safetensors")

    def fetch(repository: str, revision: Any = None, *, offline: bool = False) -> tuple[Path, str]:
        assert repository == "timm/" + NAME
        return tmp_path, "c" * 40

    monkeypatch.setattr(hub, "fetch", fetch)
    return tensors


def test_all_but_the_head_is_read(stored: dict[str, torch.Tensor]) -> None:
    backbone = load("timm:" + NAME, "image-classification", LABELS)
    assert backbone.source["new_tensors"] == ["head.weight", "head.bias"] and backbone.source["kind"] == "timm"
    state = backbone.model.state_dict()
    assert all(torch.equal(state[key], value) for key, value in stored.items() if not key.startswith("head."))
    assert state["head.weight"].shape[0] == 3 and callable(backbone.preprocess)


def test_a_body_tensor_is_missing(stored: dict[str, torch.Tensor], tmp_path: Path) -> None:
    del stored["blocks.0.attn.qkv.weight"]
    save_file(stored, tmp_path / "model.safetensors")
    with pytest.raises(BrokenArtifact, match="blocks.0.attn.qkv.weight"):
        load("timm:" + NAME, "image-classification", LABELS)


def test_unknown_names_and_other_tasks() -> None:
    with pytest.raises(NoSuchSetting, match="Did you mean"):
        load("timm:resnet5O", "image-classification", LABELS)
    with pytest.raises(NoSuchSetting, match="image-classification, not text-classification"):
        load("timm:resnet50", "text-classification", LABELS)
