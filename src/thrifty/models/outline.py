"""A model as a drawing: every module and shape, and no weights."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from thrifty.clip import ImageTextModel
from thrifty.core.errors import BrokenArtifact, NoSuchSetting
from thrifty.models.finding import BUILT_IN, REMINDER, find
from thrifty.models.kinds import LABELLED, configure, form, has_two_towers
from thrifty.models.loading import SENTENCES, quiet
from thrifty.models.pooled import SentenceClassifier, pools_by_mean
from thrifty.models.preprocessing import load_tokenizer
from thrifty.zoo import gather
from thrifty.zoo.loading import brief, split_names


def outline(name: str, task: str | None = None, labels: int | Sequence[str] = 2) -> nn.Module:
    """The model called ``name`` on the meta device, in the form that ``task`` needs, or that its configuration names.

    It is float32, as models are loaded. Of a local folder or a hub id only config.json is needed, but for a model of two towers,
    which reads the names of classes with its tokenizer. ``labels`` are these names, or how many there are.

    Raises:
        NoSuchSetting: there is no such model, or it has no form for the task.
        BrokenArtifact: its configuration cannot be used.
    """
    import transformers as _transformers

    transformers: Any = _transformers  # most of it is untyped
    whole = {"dtype": torch.float32}
    known = [f"label {i}" for i in range(labels)] if isinstance(labels, int) else list(labels)
    if name.startswith("timm:"):
        return _timm(name.removeprefix("timm:"), None if task is None else len(known))
    if name.startswith("zoo:"):
        names = split_names(name)
        models = [outline(one, "image-classification", labels) for one in names]
        with torch.device("meta"):
            return gather(models, [brief(one) for one in names], len(known))
    folder = find_config(name)
    with quiet(), torch.device("meta"):
        if task is not None:
            config = configure(folder, name, task, known if task in LABELLED else None)
            if task in SENTENCES and pools_by_mean(folder):
                outputs = 1 if task == "multiple-choice" else config.num_labels
                return _model(SentenceClassifier(transformers.AutoModel.from_config(config, **whole), outputs))
            if task == "image-classification" and has_two_towers(config):
                return _towers(transformers.AutoModel.from_config(config, **whole), folder, name, known)
            return _model(getattr(transformers, str(form(task, config))).from_config(config, **whole))
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        named = getattr(transformers, (getattr(config, "architectures", None) or [""])[0] or "AutoModel", None)
        kind: Any = named if isinstance(named, type) and issubclass(named, nn.Module) else None
        return _model(kind(config) if kind is not None else transformers.AutoModel.from_config(config, **whole))


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
        wanted = ["*.json", "1_Pooling/config.json", "*.txt", "*.model"]  # the tokenizer too, which is small
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=wanted))
    except Exception as error:  # every way in which a network can fail has its own type
        raise NoSuchSetting(f"model {name!r} is no folder here, and the hub does not give its configuration "
                            f"({type(error).__name__}). {REMINDER}") from None


def _towers(trunk: Any, folder: Path, name: str, labels: list[str]) -> nn.Module:
    tokenizer, _ = load_tokenizer(folder, name, trunk.text_model)
    with torch.device("cpu"):  # the sentences about classes have numbers
        return _model(ImageTextModel(trunk, tokenizer, labels))


def _timm(name: str, labels: int | None) -> nn.Module:
    try:
        import timm
    except ImportError:
        from thrifty.core.errors import Missing

        raise Missing('timm models need timm: pip install "thrifty[timm]"') from None
    with torch.device("meta"):
        made: nn.Module = timm.create_model(name, pretrained=False, **({} if labels is None else {"num_classes": labels}))
    return made.eval()


def _model(made: Any) -> nn.Module:
    model: nn.Module = made.eval()
    return model
