"""Load a pretrained model for a task, with every tensor accounted for."""
from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from thrifty.clip import ImageTextModel
from thrifty.core.errors import BrokenArtifact, NoSuchSetting, nearest
from thrifty.models import ragged, two_tower
from thrifty.models.backbone import Backbone, count
from thrifty.models.finding import Found, find
from thrifty.models.kinds import LABELLED, PICTURES, WRITERS, check_task, configure, form, has_two_towers
from thrifty.models.pooled import SentenceClassifier, pools_by_mean
from thrifty.models.preprocessing import load_image_processor, load_tokenizer
from thrifty.models.quantising import WEIGHTS, quantise
from thrifty.models.readers import Readers
from thrifty.models.source_head import read_head

SENTENCES = ("text-classification", "regression", "multiple-choice")  # one answer for one text or pair of texts
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(name: str, task: str, labels: Sequence[str] | None = None, *, dtype: str | torch.dtype | None = None,
         weights: str = "full", offline: bool = False, seed: int = 0) -> Backbone:
    """The model called ``name``, in evaluation mode on the CPU, in the form that ``task`` needs.

    ``name`` is `minilm`, `vit-mini`, the path of a folder in Hugging Face's layout, a hub id ("owner/name", with an optional
    "@revision"), "timm:" and the name of a timm model with local weights, or "zoo:" and the names of several
    models, separated by commas. Tensors that the checkpoint does not hold, such as a
    new head, are drawn under ``seed`` and listed in ``source["new_tensors"]``; a classifier that the checkpoint holds is kept
    in ``head``. ``dtype`` is float32 unless told otherwise, whatever the file was stored in. With ``weights`` "nf4" those of the
    linear layers are held in four bits, made from what the file holds, and all else in float32 (`thrifty.models.quantise`). No code
    that comes with a model is run, and only safetensors are read.

    Raises: NoSuchSetting for a model, task or dtype that does not exist, or a model without a form for the task;
        BadData for labels that do not fit; BrokenArtifact for a damaged folder or a checkpoint that lacks more than a head;
        Missing for a package that is not installed.
    """
    if weights not in WEIGHTS:
        raise NoSuchSetting(f"weights {weights!r} are not offered.{nearest(weights, WEIGHTS)}")
    check_task(task, labels)
    backbone = _load(name, task, labels, dtype, offline, seed, weights == "full")
    if weights != "full":
        turned = quantise(backbone.model, backbone.source["new_tensors"])
        backbone.source |= {"weights": weights, "dtype": "float32"}
        backbone.source["notes"].append(f"The weights of {len(turned)} linear layers are held in four bits (NF4).")
    return backbone


def _load(name: str, task: str, labels: Sequence[str] | None, dtype: str | torch.dtype | None, offline: bool, seed: int,
          full: bool) -> Backbone:
    number = _dtype(dtype)
    if task == "navigation":
        from thrifty.navigation.saving import load_agent

        return load_agent(Path(name).expanduser(), seed=seed, dtype=number)
    if name.startswith("timm:"):
        from thrifty.models.from_timm import load_timm

        return load_timm(name, task, labels, dtype=number, offline=offline, seed=seed)
    if name.startswith("zoo:"):
        from thrifty.zoo.loading import load_zoo

        return load_zoo(name, task, labels, dtype=number, offline=offline, seed=seed)
    found = find(name, offline=offline)
    with quiet():
        config = configure(found.folder, name, task, labels)
        if not full and dtype is None:
            number = config.dtype or number
        mean = task in SENTENCES and pools_by_mean(found.folder)
        towers = task == "image-classification" and has_two_towers(config)
        read = _read_pooled if mean else _read_towers if towers else _read
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model, new = read(found.folder, name, task, config, number)
        source = _describe(name, found, task, model, new, seed, mean)
        if towers:
            source["notes"] = ["Classes are told apart by their names: no head is new."]
        head: dict[str, torch.Tensor] = {}
        if task in LABELLED and not towers:
            trunk: Any = model.base_model_prefix
            head = read_head(found.folder.glob("*.safetensors"), model, trunk, new, outside=True)
        preprocess: Any = None
        if task in PICTURES:
            preprocess, source["image"] = load_image_processor(found.folder, name)
        if task != "image-classification":
            texts, notes = load_tokenizer(found.folder, name, getattr(model, "text_model", model))
            preprocess = texts if preprocess is None else Readers(preprocess, texts)
            source["notes"] += notes
    return Backbone(model.eval(), preprocess, source, head)


def _read(folder: Path, name: str, task: str, config: Any, dtype: torch.dtype) -> tuple[nn.Module, list[str]]:
    import transformers

    auto = form(task, config)
    assert auto is not None, "configure has refused what has no form"
    model, info = _from_pretrained(getattr(transformers, auto), folder, name, config, dtype)
    new = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    trunk = model.base_model_prefix + "."
    whole = auto in WRITERS or task == "contrastive"
    lost = sorted(key for key in new if whole or (key.startswith(trunk) and "pooler" not in key))
    if lost:
        raise BrokenArtifact(f"model {name!r}: the checkpoint lacks {len(lost)} tensors of {type(model).__name__} that are "
                             f"no new head, or holds them in another shape: {_some(lost)}."
                             + (" Writing needs a model that was saved with its language-model head." if auto in WRITERS else ""))
    return model, [path for path, _ in model.named_parameters() if path in new]


def _read_pooled(folder: Path, name: str, task: str, config: Any, dtype: torch.dtype) -> tuple[nn.Module, list[str]]:
    import transformers

    trunk, info = _from_pretrained(transformers.AutoModel, folder, name, config, dtype)
    lost = sorted(key for key in (*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])) if "pooler" not in key)
    if lost:
        raise BrokenArtifact(f"model {name!r}: the checkpoint lacks {_some(lost)}, or holds them in another shape.")
    model = SentenceClassifier(trunk, 1 if task == "multiple-choice" else config.num_labels).to(dtype)
    return model, [] if model.read_head(folder) else ["classifier.weight", "classifier.bias"]


def _read_towers(folder: Path, name: str, task: str, config: Any, dtype: torch.dtype) -> tuple[nn.Module, list[str]]:
    import transformers

    trunk, info = _from_pretrained(transformers.AutoModel, folder, name, config, dtype)
    if lost := sorted([*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])]):
        raise BrokenArtifact(f"model {name!r}: the checkpoint lacks {_some(lost)}, or holds them in another shape.")
    tokenizer, _ = load_tokenizer(folder, name, trunk.text_model)
    return ImageTextModel(trunk, tokenizer, list(config.id2label.values())), []


def _from_pretrained(auto: Any, folder: Path, name: str, config: Any, dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
    """Read with SDPA, which attention edits need, where the architecture has it."""
    fixed = {"config": config, "dtype": dtype, "use_safetensors": True, "local_files_only": True, "trust_remote_code": False,
             "ignore_mismatched_sizes": True, "output_loading_info": True}
    try:
        if ragged.is_ragged(config):
            return ragged.read(folder, config, dtype)
        if config.model_type == two_tower.KIND:
            return two_tower.read(folder, config, dtype)
        try:
            model, info = auto.from_pretrained(folder, attn_implementation="sdpa", **fixed)
        except ValueError as error:
            if "scaled_dot_product_attention" not in str(error):
                raise
            model, info = auto.from_pretrained(folder, **fixed)
    except Exception as error:  # safetensors, json and torch each have their own way to say that a file is damaged
        raise BrokenArtifact(f"model {name!r} cannot be read from {folder}: {type(error).__name__}: {error}") from error
    return model, info


def _describe(name: str, found: Found, task: str, model: nn.Module, new: list[str], seed: int, mean: bool) -> dict[str, Any]:
    config: Any = model.config
    files = sorted(path.name for path in found.folder.iterdir() if path.suffix in (".json", ".safetensors", ".txt", ".model"))
    notes = []
    if mean:
        notes.append("A sentence encoder: the head reads the mean over tokens, as the encoder was trained to be read.")
    if task in LABELLED and not new:
        notes.append("The checkpoint has a head of this size already; training starts from it.")
    return {
        "id": name, "kind": found.kind, "revision": found.revision, "task": task, "class": type(model).__name__, "files": files,
        "config_sha256": hashlib.sha256((found.folder / "config.json").read_bytes()).hexdigest(),
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "attention": getattr(config, "_attn_implementation", None), "pooling": "mean" if mean else None, "seed": seed,
        "new_tensors": new, "parameters": count(model), "notes": notes,
    }


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype:
    if dtype is None:
        return torch.float32
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise NoSuchSetting(f"dtype {name!r} is not offered.{nearest(name, DTYPES)}")
    return DTYPES[name]


@contextmanager
def quiet() -> Iterator[None]:
    """`transformers` reports new heads on the screen; here ``source["new_tensors"]`` does."""
    from transformers import utils

    logging: Any = utils.logging
    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
