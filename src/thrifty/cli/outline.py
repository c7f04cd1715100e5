"""A model as a drawing: every module and shape, and no weights."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from thrifty.core.errors import BrokenArtifact, NoSuchSetting
from thrifty.models.finding import BUILT_IN, REMINDER, find
from thrifty.models.kinds import AUTO, LABELLED, configure
from thrifty.models.pooled import SentenceClassifier, pools_by_mean
from thrifty.zoo import gather
from thrifty.zoo.loading import brief, split_names


def outline(name: str, task: str | None = None, labels: int = 2) -> nn.Module:
    """The model called ``name`` on the meta device, in the form that ``task`` needs, or that its configuration names.

    Of a local folder or a hub id only config.json is needed.

    Raises:
        NoSuchSetting: there is no such model, or it has no form for the task.
        BrokenArtifact: its configuration cannot be used.
    """
    import transformers as _transformers

    transformers: Any = _transformers  # most of it is untyped
    if name.startswith("timm:"):
        return _timm(name.removeprefix("timm:"))
    if name.startswith("zoo:"):
        names = split_names(name)
        models = [outline(one, "image-classification", labels) for one in names]
        with torch.device("meta"):
            return gather(models, [brief(one) for one in names], labels)
    folder = find_config(name)
    with _quiet(), torch.device("meta"):
        if task is not None:
            config = configure(folder, name, task, [f"label {i}" for i in range(labels)] if task in LABELLED else None)
            if task in ("text-classification", "regression") and pools_by_mean(folder):
                return SentenceClassifier(transformers.AutoModel.from_config(config), config.num_labels)
            return _model(getattr(transformers, AUTO[task]).from_config(config))
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        named = getattr(transformers, (getattr(config, "architectures", None) or [""])[0] or "AutoModel", None)
        kind: Any = named if isinstance(named, type) and issubclass(named, nn.Module) else None
        return _model(kind(config) if kind is not None else transformers.AutoModel.from_config(config))


def find_config(name: str) -> Path:
    """A folder that holds the model's config.json.

    Raises:
        NoSuchSetting: there is no such model.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise BrokenArtifact(f"{name!r} holds no config.json")
        return path
    if name in BUILT_IN or "/" not in name:
        return find(name).folder
    from huggingface_hub import snapshot_download

    try:
        repository, _, revision = name.partition("@")
        wanted = ["config.json", "1_Pooling/config.json"]
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=wanted))
    except Exception as error:  # every way in which a network can fail has its own type
        raise NoSuchSetting(f"model {name!r} is no folder here, and the hub does not give its configuration "
                            f"({type(error).__name__}). {REMINDER}") from None


def _timm(name: str) -> nn.Module:
    try:
        import timm
    except ImportError:
        from thrifty.core.errors import Missing

        raise Missing('timm models need timm: pip install "thrifty[timm]"') from None
    with torch.device("meta"):
        made: nn.Module = timm.create_model(name, pretrained=False)
    return made.eval()


def _model(made: Any) -> nn.Module:
    model: nn.Module = made.eval()
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    from transformers.utils import logging as _logging

    logging: Any = _logging
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
