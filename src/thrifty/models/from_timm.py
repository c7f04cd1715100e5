"""Image models of timm, by the name that timm gives them.

R. Wightman, "PyTorch Image Models", 2019. Weights come from the hub, as safetensors; what is cached needs no network.
"""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from thrifty.core.errors import BrokenArtifact, Missing, NoSuchSetting, nearest
from thrifty.models.backbone import Backbone, count
from thrifty.models.finding import REMINDER
from thrifty.models.source_head import read_head


def load_timm(name: str, task: str, labels: Sequence[str] | None, *, dtype: torch.dtype, offline: bool, seed: int) -> Backbone:
    """The timm model called ``name`` ("timm:resnet50.a1_in1k") with a new head for ``labels``, and timm's own preparation.

    Raises: Missing without timm; NoSuchSetting for another task, an unknown name, or weights that cannot be reached;
        BrokenArtifact for a checkpoint that lacks more than a head.
    """
    if task != "image-classification" or labels is None:
        raise NoSuchSetting(f"model {name!r} is an image model; it serves image-classification, not {task}.")
    try:
        import timm
    except ImportError as error:
        raise Missing(f'{name!r} needs timm: pip install "thrifty[timm]"') from error
    short = name.removeprefix("timm:")
    known = timm.list_models() + timm.list_pretrained()
    if short not in known:
        raise NoSuchSetting(f"timm has no model {short!r}.{nearest(short, known)}")
    file, commit = _fetch(timm, name, short, offline)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = timm.create_model(short, pretrained=False, num_classes=len(labels))
    new = fill(model, file, name)
    data: Any = timm.data
    settings = data.resolve_model_data_config(model)
    prepare = data.create_transform(**settings, is_training=False)
    return Backbone(model.to(dtype).eval(), prepare, {
        "id": name, "kind": "timm", "revision": commit, "task": task, "class": type(model).__name__, "files": [file.name],
        "config_sha256": None, "dtype": str(dtype).removeprefix("torch."), "attention": None, "pooling": None, "seed": seed,
        "new_tensors": new, "parameters": count(model), "notes": [],
        "image": {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()},
    }, read_head([file], model, head_path(model), new))


def fill(model: nn.Module, file: Path, name: str) -> list[str]:
    """Read a checkpoint into ``model``, all but a head of another size; the names of the tensors that stay new.

    Raises: BrokenArtifact if anything but the head is missing or has another shape.
    """
    from safetensors.torch import load_file

    try:
        stored = load_file(file)
    except Exception as error:
        raise BrokenArtifact(f"model {name!r}: {file} cannot be read: {error}") from error
    head = head_path(model)
    ours = model.state_dict()
    new = [key for key, value in ours.items() if key not in stored or stored[key].shape != value.shape]
    lost = [key for key in new if not key.startswith(head + ".") and not key.endswith("num_batches_tracked")]
    if lost:
        raise BrokenArtifact(f"model {name!r}: {file.name} lacks {', '.join(lost[:5])}, or holds them in another shape.")
    model.load_state_dict({key: value for key, value in stored.items() if key in ours and key not in new}, strict=False)
    return [key for key, _ in model.named_parameters() if key in new]


def head_path(model: Any) -> str:
    """Path of the classifier of a timm model."""
    head = model.get_classifier()
    return next(path for path, module in model.named_modules() if module is head)


def _fetch(timm: Any, name: str, short: str, offline: bool) -> tuple[Path, str]:
    from thrifty.models.hub import fetch

    config = timm.models.get_pretrained_cfg(short)
    if config is None or not config.hf_hub_id:
        raise NoSuchSetting(f"timm has no pretrained weights on the hub for {short!r}. {REMINDER}")
    repository = config.hf_hub_id + ("" if "/" in config.hf_hub_id and not config.hf_hub_id.endswith("/") else short)
    folder, commit = fetch(repository, offline=offline)
    return folder / "model.safetensors", commit
