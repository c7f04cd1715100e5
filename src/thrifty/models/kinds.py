"""Which class of `transformers` serves which task, and its configuration."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from thrifty.core.errors import BadData, BrokenArtifact, NoSuchSetting, nearest
from thrifty.models import two_tower

AUTO = {
    "text-classification": "AutoModelForSequenceClassification",
    "regression": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "multiple-choice": "AutoModelForMultipleChoice",
    "causal-generation": "AutoModelForCausalLM",
    "seq2seq-generation": "AutoModelForSeq2SeqLM",
    "masked-language": "AutoModelForMaskedLM",
    "image-classification": "AutoModelForImageClassification",
    "contrastive": "AutoModel",
}
OWN = ("navigation",)  # tasks whose models are not of transformers
WRITERS = ("AutoModelForSeq2SeqLM", "AutoModelForCausalLM")  # they rank choices without a form of their own for them
GENERATION = ("causal-generation", "seq2seq-generation")
LIKELIHOOD = (*GENERATION, "masked-language")  # judged by how likely the text is; the head is the pretrained one
TWO_TOWERS = ("clip", "siglip", two_tower.KIND)  # families that answer through the names of classes
COSINES = ("clip", two_tower.KIND)  # those that learn from pairs by comparing each with all others
PICTURES = ("image-classification", "contrastive")
LABELLED = ("text-classification", "token-classification", "image-classification")


def check_task(task: str, labels: Sequence[str] | None) -> None:
    """Refuse a task that does not exist, or labels that do not fit it.

    Raises: NoSuchSetting, BadData.
    """
    if task not in AUTO and task not in OWN:
        raise NoSuchSetting(f"task {task!r} is unknown.{nearest(task, [*AUTO, *OWN])}")
    if task in LABELLED:
        if labels is None or len(labels) < 2:
            raise BadData(f"{task} needs at least two labels, got {None if labels is None else list(labels)}.")
        twice = sorted({label for label in labels if list(labels).count(label) > 1})
        if twice:
            raise BadData(f"the labels of {task} repeat: {', '.join(map(repr, twice))}.")
    elif labels is not None:
        raise BadData(f"{task} has no label space, but {len(labels)} labels were given.")


def configure(folder: Path, name: str, task: str, labels: Sequence[str] | None) -> Any:
    """The configuration of the model in ``folder``, set for ``task``.

    Raises: NoSuchSetting for an architecture that `transformers` has no class for; BrokenArtifact for a damaged file.
    """
    import transformers

    try:
        joined = two_tower.configuration(folder)
        config = joined or transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except ValueError as error:  # an architecture unknown here, or one whose code would have to be run
        raise NoSuchSetting(f"model {name!r}: {_first(error)}") from error
    except (OSError, KeyError, TypeError) as error:
        raise BrokenArtifact(f"model {name!r}: {folder / 'config.json'} cannot be used: {_first(error)}") from error
    if form(task, config) is None:
        served = [other for other in AUTO if form(other, config) == AUTO[other]]
        raise NoSuchSetting(f"model {name!r} ({config.model_type}) has no form for {task}; "
                            f"it serves {', '.join(served) or 'no task'}.")
    if task in LABELLED and labels is not None:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: number for number, label in enumerate(labels)}
    if task == "regression":
        config.num_labels = 1
        config.problem_type = "regression"
    return config


def form(task: str, config: Any) -> str | None:
    """The name of the auto class that serves ``task`` with a model of this configuration; None if there is none."""
    import transformers

    if task == "contrastive" and (config.model_type not in COSINES or not has_two_towers(config)):
        return None
    if config.model_type == two_tower.KIND:
        return AUTO[task] if task in PICTURES else None
    wanted = (AUTO[task], *WRITERS) if task == "multiple-choice" else (AUTO[task],)
    return next((auto for auto in wanted if type(config) in getattr(transformers, auto)._model_mapping), None)


def has_two_towers(config: Any) -> bool:
    """Whether a model of this configuration was saved with the tower that reads texts, and so knows classes by their names."""
    saved = (getattr(config, "architectures", None) or [""])[0]
    return config.model_type in TWO_TOWERS and not saved.endswith("ForImageClassification")


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
