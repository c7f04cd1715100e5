"""LoRA, rsLoRA and DoRA: PEFT's lora_A, lora_B and lora_magnitude_vector, and our low-rank edits."""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...core import Attachment, Row, Site
from .config import Config
from .naming import commonest, target_names
from .place import place, refuse_shape, take
from .refusal import CannotExpress
from .targets import pattern_value, refuse_unused, targets

NAMES = {"embedding": ("lora_embedding_A", "lora_embedding_B"), "other": ("lora_A.weight", "lora_B.weight")}
MAGNITUDE = "lora_magnitude_vector"


def read(at: Attachment, config: Config, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Put a low-rank edit on every target; takes what it uses out of ``tensors`` and returns the attachment's state.

    Raises:
        BrokenArtifact: a tensor is missing or of the wrong shape, or PEFT computes there what this edit does not.
    """
    from ...methods.dora import Decomposed
    from ...methods.lora import LowRank

    dora = bool(config.get("use_dora"))
    found = targets(at.model, config)
    refuse_unused(config.get("rank_pattern"), "rank_pattern", found)
    refuse_unused(config.get("alpha_pattern"), "alpha_pattern", found)
    state: dict[str, Tensor] = {}
    for path in found:
        site = place(at, path)
        kind = "embedding" if isinstance(site.module, nn.Embedding) else "other"
        refuse_layer(site)
        rank = int(pattern_value(config.get("rank_pattern"), path, config["r"]))
        alpha = float(pattern_value(config.get("alpha_pattern"), path, config["lora_alpha"]))
        a, b = (take(tensors, f"{path}.{n}") for n in NAMES[kind])
        kernel = tuple(getattr(site.module, "kernel_size", ()))
        refuse_shape(f"{path}.{NAMES[kind][0]}", a, (rank, site.din, *kernel))
        refuse_shape(f"{path}.{NAMES[kind][1]}", b, (site.dout, rank, *(1 for _ in kernel)))
        numbers = {"rank": rank, "alpha": alpha, "dropout": float(config.get("lora_dropout", 0.0)),
                   "stable": bool(config.get("use_rslora"))}
        edit: type[Any] = LowRank
        own = {"A": a, "B": b.flatten(1)}
        if dora:
            edit, own["m"] = Decomposed, take(tensors, f"{path}.{MAGNITUDE}").flatten()
            refuse_shape(f"{path}.{MAGNITUDE}", own["m"], (site.din if kind == "embedding" else site.dout,))
        at.put(site, edit, **numbers)
        state |= {f"edit:{at.plan[-1].key}:{n}": t for n, t in own.items()}
    return state


def refuse_layer(site: Site) -> None:
    """Refuse modules for which PEFT's low-rank update is not the one that is a change of the weight.

    Raises:
        CannotExpress: naming the module and what about it differs.
    """
    module: Any = site.module
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        wide = max(module.kernel_size) > 1
        if module.groups != 1 or wide and (max(module.dilation) > 1 or module.padding_mode != "zeros"):
            raise CannotExpress(f"{site.path!r}: PEFT's convolution beside it has no groups, dilation or {module.padding_mode} "
                                 "padding, so its answer is not that of a change of this weight")
    elif not (isinstance(module, (nn.Linear, nn.Embedding)) or hasattr(module, "nf")):
        raise CannotExpress(f"{site.path!r} is a {type(module).__name__}: what is known here is PEFT's LoRA of linear layers, "
                            "embeddings and convolutions")


def write(at: Attachment, config: Config) -> dict[str, Tensor]:
    """Complete ``config`` and return the tensors. Edits on parts of a fused projection become one on the whole of it, whose
    rank is the sum of theirs and whose B is zero elsewhere: the same function.

    Raises:
        CannotExpress: dropouts differ, two DoRA edits act on one module, or the module is of a kind that PEFT does not adapt.
    """
    rows: dict[str, list[tuple[Row, Any]]] = {}
    for row in at.plan:
        rows.setdefault(row.path, []).append((row, at.edits[row.key]))
    edits = [e for own in rows.values() for _, e in own]
    dropouts = {e.dropout.p for e in edits}
    if len(dropouts) > 1:
        raise CannotExpress(f"dropouts of {sorted(dropouts)} in one adapter: PEFT has one lora_dropout")
    stable = all(row.numbers.get("stable") for row in at.plan)
    tensors: dict[str, Tensor] = {}
    ranks, alphas = {}, {}
    for path, own in rows.items():
        site = place(at, path)
        refuse_layer(site)
        a, b, scale = _joined(site, own)
        ranks[path], alphas[path] = len(a), _whole_number(scale * (len(a) ** 0.5 if stable else len(a)))
        kind = "embedding" if isinstance(site.module, nn.Embedding) else "other"
        ones = (1 for _ in a.shape[2:])
        tensors |= {f"{path}.{NAMES[kind][0]}": a, f"{path}.{NAMES[kind][1]}": b.reshape(*b.shape, *ones)}
        if own[0][0].edit == "decomposed":
            m = _magnitude(site, own)
            tensors[f"{path}.{MAGNITUDE}"] = m.view(1, -1, *(1 for _ in a.shape[2:])) if a.dim() > 2 else m
    config["r"], config["rank_pattern"] = commonest(ranks)
    config["lora_alpha"], config["alpha_pattern"] = commonest(alphas)
    config |= {"lora_dropout": dropouts.pop(), "use_rslora": stable, "use_dora": at.plan[0].edit == "decomposed",
               "init_lora_weights": True, "fan_in_fan_out": all(hasattr(at.model.get_submodule(p), "nf") for p in rows)}
    config["target_modules"] = target_names(at.model, list(rows), config)
    return tensors


def _joined(site: Site, own: list[tuple[Row, Any]]) -> tuple[Tensor, Tensor, float]:
    """A, B and the scale of one edit on the whole module that does what ``own`` do on their parts."""
    (row, first), *others = own
    if not others and row.part is None:
        return first.A.detach(), first.B.detach(), float(first.scale)
    whole = any(r.part is None for r, _ in own)
    if row.edit == "decomposed" and (others and whole or len({r.part for r, _ in own}) < len(own)):
        raise CannotExpress(f"{len(own)} DoRA edits on {row.path!r}: PEFT has one per module")
    same = all(e.scale == first.scale for _, e in own)
    columns = []
    for row, edit in own:
        b = edit.B.detach() * (1.0 if same else edit.scale)
        columns.append(b if row.part is None else row.part.put(b.new_zeros(site.dout, b.shape[1]), b, 0))
    return torch.cat([e.A.detach() for _, e in own]), torch.cat(columns, 1), float(first.scale) if same else 1.0


def _magnitude(site: Site, own: list[tuple[Row, Any]]) -> Tensor:
    """m of the whole module: rows that no edit is about keep the norm they have."""
    m = site.weight.detach().float().flatten(1).norm(dim=1)
    for row, edit in own:
        m = edit.m.detach() if row.part is None else row.part.put(m, edit.m.detach(), 0)
    return m


def _whole_number(value: float) -> float | int:
    near = round(value)
    return near if abs(value - near) < 1e-9 * max(1.0, abs(value)) else value
