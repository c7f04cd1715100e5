"""adapter_config.json: every key known, every value one whose meaning is certain, or refused by name."""
from __future__ import annotations

from pathlib import Path
from typing import Any

from ...core.errors import BrokenArtifact, nearest
from ..files import read_json
from .refusal import CannotExpress

CONFIG, TENSORS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
Config = dict[str, Any]

_LISTED = (list, str, type(None))
_ABOUT: dict[str, Any] = {  # key -> the types it may have; none of these changes what the adapter computes
    "peft_type": str, "task_type": (str, type(None)), "auto_mapping": (dict, type(None)), "peft_version": (str, type(None)),
    "base_model_name_or_path": (str, type(None)), "revision": (str, type(None)), "inference_mode": bool,
}
_TARGETS: dict[str, Any] = {"target_modules": _LISTED, "exclude_modules": _LISTED, "modules_to_save": (list, type(None)),
                            "fan_in_fan_out": bool}
_PROMPTS: dict[str, Any] = {
    "num_virtual_tokens": int, "token_dim": (int, type(None)), "num_transformer_submodules": (int, type(None)),
    "num_attention_heads": (int, type(None)), "num_layers": (int, type(None)), "modules_to_save": (list, type(None)),
}
KNOWN: dict[str, dict[str, Any]] = {
    "LORA": {
        **_ABOUT, **_TARGETS, "r": int, "lora_alpha": (int, float), "lora_dropout": (int, float), "bias": str,
        "use_rslora": bool, "use_dora": bool, "init_lora_weights": (bool, str, type(None)),
        "layers_to_transform": (list, int, type(None)), "layers_pattern": _LISTED, "rank_pattern": (dict, type(None)),
        "alpha_pattern": (dict, type(None)),
    },
    "VERA": {
        **_ABOUT, "target_modules": _LISTED, "modules_to_save": (list, type(None)), "fan_in_fan_out": bool, "r": int, "bias": str,
        "vera_dropout": (int, float), "d_initial": (int, float), "projection_prng_key": int, "save_projection": bool,
        "init_weights": bool, "layers_to_transform": (list, int, type(None)), "layers_pattern": _LISTED,
    },
    "IA3": {**_ABOUT, **_TARGETS, "feedforward_modules": _LISTED, "init_ia3_weights": bool},
    "PREFIX_TUNING": {**_ABOUT, **_PROMPTS, "prefix_projection": bool, "encoder_hidden_size": (int, type(None)),
                      "init_weights": (str, type(None))},
    "PROMPT_TUNING": {
        **_ABOUT, **_PROMPTS, "prompt_tuning_init": (str, type(None)), "prompt_tuning_init_text": (str, type(None)),
        "tokenizer_name_or_path": (str, type(None)), "tokenizer_kwargs": (dict, type(None)),
    },
}
IDLE: dict[str, tuple[Any, ...]] = {  # LoRA's options that have no counterpart here -> the values that leave them unused
    "megatron_config": (None,), "megatron_core": (None, "megatron.core"), "trainable_token_indices": (None,),
    "velora_config": (None,), "alora_invocation_tokens": (None,), "use_qalora": (False,), "monteclora_config": (None,),
    "layer_replication": (None,), "lora_bias": (False,), "target_parameters": (None,), "use_bdlora": (None, False),
    "arrow_config": (None,), "kasa_config": (None,), "ensure_weight_tying": (False,), "modules_to_tie": (None,),
}
_STARTS = ("loftq_config", "eva_config", "corda_config", "lora_ga_config", "qalora_group_size", "runtime_config")
_MOVES_BASE = ("pissa", "corda", "olora", "loftq", "lora_ga", "mica")  # initial values that are taken out of the base weights


def read_config(folder: Path) -> Config:
    """The checked contents of ``folder``/adapter_config.json.

    Raises:
        BrokenArtifact: not JSON, or a key that is unknown, missing or of the wrong type.
        CannotExpress: an adapter type or an option that has no counterpart here; the message names it.
    """
    where = folder / CONFIG
    data = read_json(where)
    kind = data.get("peft_type")
    if kind not in KNOWN:
        raise CannotExpress(f"{where}: adapters of type {kind!r} cannot be expressed here. Those that can: {', '.join(KNOWN)}")
    known = KNOWN[kind]
    also = (*IDLE, *_STARTS) if kind == "LORA" else ()
    for key, value in data.items():
        if key not in known and key not in also:
            raise BrokenArtifact(f"{where}: unknown key {key!r}." + nearest(key, [*known, *also]))
        if key in known and (not isinstance(value, known[key]) or known[key] is int and isinstance(value, bool)):
            raise BrokenArtifact(f"{where}: {key!r} is of the wrong type ({type(value).__name__})")
        if key in IDLE and kind == "LORA" and value not in IDLE[key]:
            raise CannotExpress(f"{where}: {key} = {value!r} cannot be expressed here")
    if kind == "LORA":
        _refuse_lora(where, data)
    if kind in ("LORA", "VERA"):
        _refuse_numbers(where, data)
    if kind.endswith("_TUNING") and not (isinstance(data.get("num_virtual_tokens"), int) and data["num_virtual_tokens"] > 0):
        raise BrokenArtifact(f"{where}: num_virtual_tokens = {data.get('num_virtual_tokens')!r} is no length")
    return data


def _refuse_numbers(where: Path, data: Config) -> None:
    only = f"{data['peft_type'].lower()}_only"
    if data.get("bias", "none") not in ("none", "all", only):
        raise BrokenArtifact(f"{where}: bias = {data['bias']!r} is neither 'none', 'all' nor {only!r}")
    if not isinstance(data.get("r"), int) or data["r"] < 1:
        raise BrokenArtifact(f"{where}: r = {data.get('r')!r} is not a rank")


def _refuse_lora(where: Path, data: Config) -> None:
    start = data.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower().startswith(_MOVES_BASE):
        raise CannotExpress(f"{where}: init_lora_weights = {start!r} also changed the base weights, which the file does not "
                            "hold. Save it again as a plain LoRA: save_pretrained(..., "
                            "path_initial_model_for_weight_conversion=...)")
    if "lora_alpha" not in data:
        raise BrokenArtifact(f"{where}: 'lora_alpha' is missing")
    for name in ("rank_pattern", "alpha_pattern"):
        for pattern, value in (data.get(name) or {}).items():
            if not isinstance(value, (int, float)) or isinstance(value, bool) or name == "rank_pattern" and not (
                    isinstance(value, int) and value > 0):
                raise BrokenArtifact(f"{where}: {name}[{pattern!r}] = {value!r} is not a number that can be meant")
