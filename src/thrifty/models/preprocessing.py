"""What stands before a model: its tokenizer, or its image processor."""
from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from thrifty.core.errors import BrokenArtifact, Missing, WrongBase

NUMBERS = ("do_resize", "size", "resample", "do_center_crop", "crop_size", "crop_pct", "do_rescale", "rescale_factor",
           "do_normalize", "image_mean", "image_std")  # what decides the pixels that a model sees


def load_tokenizer(folder: Path, name: str, model: nn.Module) -> tuple[Any, list[str]]:
    """The tokenizer of ``folder`` with a padding token that ``model`` knows too, and notes on what was decided.

    Raises: BrokenArtifact for a folder without a tokenizer, or one with more tokens than the model has embeddings.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a damaged vocabulary fails in as many ways as there are tokenizers
        raise BrokenArtifact(f"model {name!r}: its tokenizer cannot be read from {folder}: {error}") from error
    notes = []
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise BrokenArtifact(f"model {name!r}: its tokenizer has neither a padding nor an end token; no batch can be made.")
        tokenizer.pad_token = tokenizer.eos_token
        notes.append(f"The tokenizer has no padding token; its end token {tokenizer.eos_token!r} pads, and is masked.")
    embeddings: Any = model.get_input_embeddings()  # type: ignore[operator]
    if len(tokenizer) > embeddings.num_embeddings:
        raise BrokenArtifact(f"model {name!r}: its tokenizer has {len(tokenizer)} tokens, "
                             f"but the model has {embeddings.num_embeddings} embeddings.")
    config: Any = model.config
    if getattr(config, "pad_token_id", None) != tokenizer.pad_token_id:  # classifiers on decoders find the last token by it
        config.pad_token_id = tokenizer.pad_token_id
    generation: Any = getattr(model, "generation_config", None)
    if generation is not None:
        generation.pad_token_id = tokenizer.pad_token_id
    return tokenizer, notes


def load_image_processor(folder: Path, name: str) -> tuple[Any, dict[str, Any]]:
    """The image processor of ``folder``, always the one that runs on PIL, and the numbers that it prepares pictures by.

    Two backends resize differently; with one of them, numbers do not depend on whether torchvision is installed.

    Raises: BrokenArtifact for a folder without one; Missing without pillow.
    """
    if not (folder / "preprocessor_config.json").is_file():
        raise BrokenArtifact(f"model {name!r}: {folder} holds no preprocessor_config.json, so it is unknown how to "
                             "resize and normalise pictures for it.")
    try:
        import PIL  # noqa: F401
    except ImportError as error:
        raise Missing('pictures need pillow: pip install "thrifty[images]"') from error
    import transformers

    auto: Any = transformers.AutoImageProcessor
    try:
        processor = auto.from_pretrained(folder, backend="pil", local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise BrokenArtifact(f"model {name!r}: its preprocessor_config.json cannot be used: {error}") from error
    return processor, describe(processor) or {}


def describe(preprocess: Any) -> dict[str, Any] | None:
    """How pictures are prepared, as plain JSON: of an image processor its numbers, of any other callable its name.

    None for a tokenizer, or nothing.
    """
    if preprocess is None or hasattr(preprocess, "pad_token_id"):
        return None
    settings = preprocess.to_dict() if hasattr(preprocess, "to_dict") else {}
    return {"processor": getattr(preprocess, "__qualname__", type(preprocess).__qualname__),
            **{key: _plain(settings[key]) for key in NUMBERS if settings.get(key) is not None}}


def differences(there: dict[str, Any] | None, here: dict[str, Any] | None) -> list[str]:
    """How two ways to prepare pictures differ, in words.

    Nothing where one of them gives no numbers: a callable of one's own cannot be compared. The name of the class is no difference.
    """
    first, other = ({key: value for key, value in (side or {}).items() if key != "processor"} for side in (there, here))
    if not first or not other:
        return []
    return [f"{key} was {first.get(key)} and is {other.get(key)} here" for key in {**first, **other}
            if first.get(key) != other.get(key)]


def refuse_other(there: dict[str, Any] | None, here: dict[str, Any] | None, adapter: str) -> None:
    """Refuse pictures that are prepared otherwise than in the training of ``adapter``.

    Raises: WrongBase, saying how.
    """
    if unlike := differences(there, here):
        raise WrongBase(f"{adapter} was trained on pictures that were prepared otherwise than this model prepares them: "
                        f"{'; '.join(unlike)}. Use the model and the image processor that it was trained with")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items() if part is not None}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return int(value) if isinstance(value, int) and not isinstance(value, bool) else value
