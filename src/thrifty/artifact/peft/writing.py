"""Write: an attachment as a folder that HF PEFT loads, with the same outputs on the same base."""
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from ...core import Attachment
from ...core.errors import ThriftyError
from ..files import whole_folder
from ..save import refuse_unfit
from . import full, lowrank, prefix, prompt, scales, vera
from .config import CONFIG, TENSORS, Config
from .refusal import CannotExpress
from .tasks import PREFIX_TASKS, PROMPT_TASKS, task
from .weights import PREFIX, PROMPT, PROMPT_PREFIX, SHARED

Writer = Callable[[Attachment, Config], dict[str, Tensor]]
WRITERS: dict[str, tuple[str, Writer]] = {  # registered name of an edit -> PEFT's type, what writes it
    "low-rank": ("LORA", lowrank.write), "low-rank-up": ("LORA", lowrank.write), "decomposed": ("LORA", lowrank.write),
    "random-vectors": ("VERA", vera.write), "scale": ("IA3", scales.write),
    "prefix": ("PREFIX_TUNING", prefix.write), "shift-positions": ("PREFIX_TUNING", prefix.write),
    "prompt": ("PROMPT_TUNING", prompt.write), "prompt-off": ("PROMPT_TUNING", prompt.write),
    "prompt-seen": ("PROMPT_TUNING", prompt.write),
}

SHARING = ("PREFIX_TUNING", "VERA")  # what PEFT keeps of these says enough of the module that their edits share
TASKS = {"PREFIX_TUNING": PREFIX_TASKS, "PROMPT_TUNING": PROMPT_TASKS}


def write(at: Attachment, folder: str | Path, *, base_name: str | None = None, unchanged: bool = False) -> Path:
    """Write ``at`` to ``folder`` in PEFT's layout, whole or not at all.

    ``base_name`` is the hub id or path that PEFT will say the adapter belongs to; without one, the model's own.

    Raises:
        CannotExpress: PEFT has no adapter that computes the same; the message names the edit or parameter and why.
        NothingTrains, BrokenArtifact, ThriftyError: as for ``thrifty.save``.
    """
    folder = Path(folder)
    if at.closed or at.merged:
        raise ThriftyError(f"the attachment {at.name!r} was {'detached' if at.closed else 'merged'}: there is nothing to write")
    refuse_unfit(at, at.state(), unchanged)
    kind, writer = _writer(at)
    named = base_name or getattr(getattr(at.model, "config", None), "_name_or_path", None) or None
    config: Config = {"peft_type": kind, "task_type": None, "base_model_name_or_path": named, "inference_mode": True}
    if kind in TASKS:
        config["task_type"] = task(at.model, config, TASKS[kind])
    kept = full.write(at, config)
    if kind == "VERA":
        config["bias"] = config["bias"].replace("lora", "vera")
    elif kind != "LORA" and (bias := config.pop("bias")) != "none":
        raise CannotExpress(f"PEFT's {kind} keeps no biases, here {bias.replace('lora_only', 'those of the targets')} train")
    tensors = {_named(n, kind): t for n, t in {**kept, **writer(at, config)}.items()}
    with whole_folder(folder, frozenset({CONFIG, TENSORS})) as fresh:
        _fill(fresh, config, tensors)
    return folder


def _named(name: str, kind: str) -> str:
    if name == PROMPT:
        return name
    return f"{PROMPT_PREFIX if kind in TASKS or name in SHARED else PREFIX}{name}"


def _writer(at: Attachment) -> tuple[str, Writer]:
    method = at.method.name if at.method else f"attachment {at.name!r}"
    has = "PEFT reads LoRA, DoRA, VeRA, (IA)³, prefix and prompt tuning from here"
    for row in at.plan:
        if row.edit not in WRITERS:
            raise CannotExpress(f"{method}: the edit {row.edit!r} at {row.key!r} has no form in PEFT. {has}")
        if not row.on:
            raise CannotExpress(f"{method}: the edit at {row.key!r} is off, and PEFT would load it on: enable it first")
    kinds = {WRITERS[row.edit] for row in at.plan}
    if at.masks or at.context.shared is not None and not {kind for kind, _ in kinds} <= {*SHARING}:
        said = "sparse masks" if at.masks else "a module shared between edits"
        raise CannotExpress(f"{method}: {said} cannot be said in PEFT. {has}")
    mixed = sorted({row.edit for row in at.plan})
    if len(kinds) != 1 or "decomposed" in mixed and len(mixed) > 1:
        said = f"{mixed} in one adapter" if kinds else "base parameters that train in place, and no edit,"
        raise CannotExpress(f"{method}: {said} cannot be said in PEFT. {has}")
    return kinds.pop()


def _fill(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    from safetensors.torch import save_file

    save_file({n: t.detach().cpu().contiguous().clone() for n, t in tensors.items()}, folder / TENSORS, {"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
