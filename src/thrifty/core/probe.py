"""What is seen when the model runs once: widths at every module, heads at every attention, and which edits were called."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .attending import Attending

Example = Tensor | Mapping[str, Any] | tuple[Any, ...]


class Seen:
    """Widths and heads, found by running ``model`` on ``example`` the first time that one is asked for.

    ``known`` holds what a saved plan already recorded; with it nothing is run.
    """

    def __init__(self, model: nn.Module | None = None, example: Example | None = None,
                 known: Mapping[str, Mapping[str, int]] | None = None):
        self.model, self.example = model, example
        self.shapes: dict[str, dict[str, int]] = {k: dict(v) for k, v in (known or {}).items()}
        self.ran = model is None

    @property
    def device(self) -> torch.device:
        """Where the model's first parameter lives."""
        first = next(self.model.parameters(), None) if self.model is not None else None
        return first.device if first is not None else torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the model's first parameter."""
        first = next(self.model.parameters(), None) if self.model is not None else None
        return first.dtype if first is not None else torch.float32

    def width(self, path: str, side: str) -> int | None:
        """The ``side`` ("in" or "out") width seen at ``path``: channels of images, the last axis of all else."""
        if side not in self.shapes.get(path, {}):
            self._run()
        return self.shapes.get(path, {}).get(side)

    def heads(self, path: str) -> tuple[int, int] | None:
        """(heads of the keys, width of one) at the attention that ran inside ``path``; None if none did."""
        if "heads" not in self.shapes.get(path, {}):
            self._run()
        seen = self.shapes.get(path, {})
        return (seen["heads"], seen["dim"]) if "heads" in seen else None

    def _run(self) -> None:
        if self.ran or self.model is None:
            return
        self.ran = True
        example = self.example if self.example is not None else guess_example(self.model)
        if example is None:
            return
        for path, seen in _look(self.model, example).items():
            self.shapes.setdefault(path, {}).update(seen)


def run_once(model: nn.Module, example: Example) -> Any:
    """One forward pass in eval mode without gradients; modes and random state are as before afterwards."""
    modes = {m: m.training for m in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            if isinstance(example, Mapping):
                return model(**example)
            return model(*example) if isinstance(example, tuple) else model(example)
    finally:
        for module, mode in modes.items():
            module.training = mode


def guess_example(model: nn.Module) -> dict[str, Tensor] | Tensor | None:
    """A tiny batch that the model's own configuration says it takes; None if it says nothing (pass ``example=``)."""
    first = next(model.parameters(), None)
    if first is None:
        return None
    make: dict[str, Any] = {"device": first.device}
    dtype = first.dtype if first.is_floating_point() else torch.float32
    config = getattr(model, "config", None)
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)  # timm
    size = size or (getattr(model, "default_cfg", None) or {}).get("input_size")
    if config is None and size is not None:
        return torch.zeros(1, 3, *size[-2:], dtype=dtype, **make)
    name = getattr(model, "main_input_name", None)
    if config is None or name is None:
        return None
    ids = torch.ones(1, 4, dtype=torch.long, **make)
    vision = getattr(config, "vision_config", None)
    if name == "pixel_values" or vision is not None:
        side = getattr(vision or config, "image_size", None) or 224
        shape = tuple(side) if isinstance(side, (list, tuple)) else (side, side)
        pixels = torch.zeros(1, getattr(vision or config, "num_channels", 3), *shape, dtype=dtype, **make)
        return {"pixel_values": pixels} if vision is None else {"input_ids": ids, "pixel_values": pixels}
    batch: dict[str, Tensor] = {}
    if name == "input_features":
        batch[name] = torch.zeros(1, config.num_mel_bins, 2 * config.max_source_positions, dtype=dtype, **make)
    elif name == "input_ids":
        batch[name] = ids
    else:
        return None
    if getattr(config, "is_encoder_decoder", False):
        batch["decoder_input_ids"] = ids
    return batch


def uncalled(model: nn.Module, example: Example, edits: Iterable[tuple[str, nn.Module]]) -> list[str]:
    """Names of the ``edits`` that one forward pass on ``example`` never reaches."""
    missing = dict(edits)
    reached: set[str] = set()

    def note(name: str) -> Callable[..., None]:
        return lambda *_: reached.add(name)

    handles = [edit.register_forward_pre_hook(note(name)) for name, edit in missing.items()]
    try:
        run_once(model, example)
    finally:
        for handle in handles:
            handle.remove()
    return [name for name in missing if name not in reached]


def _look(model: nn.Module, example: Example) -> dict[str, dict[str, int]]:
    shapes: dict[str, dict[str, int]] = {}
    running: list[str] = []

    def leave(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
            running.pop()
            x, y = _first((*args, *kwargs.values())), _first(_flat(out))
            if x is not None and y is not None and x.dim() and y.dim():
                shapes.setdefault(path, {}).update({"in": _channels(x), "out": _channels(y)})
        return hook

    def heads(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        for path in running:
            shapes.setdefault(path, {}).update(heads=k.shape[-3], dim=k.shape[-1])
        return q, k, v

    handles = []
    for path, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda m, a, path=path: running.append(path)))
        handles.append(module.register_forward_hook(leave(path), with_kwargs=True))
    try:
        with Attending(heads):
            run_once(model, example)
    finally:
        for handle in handles:
            handle.remove()
    return shapes


def _channels(t: Tensor) -> int:
    return t.shape[1] if t.dim() == 4 else t.shape[-1]


def _first(values: Iterable[Any]) -> Tensor | None:
    return next((v for v in values if isinstance(v, Tensor)), None)


def _flat(out: Any) -> tuple[Any, ...]:
    if isinstance(out, Tensor):
        return (out,)
    return tuple(out) if isinstance(out, (tuple, list)) else tuple(out.values()) if hasattr(out, "values") else ()
