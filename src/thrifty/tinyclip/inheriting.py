"""Weights of a teacher in a smaller student, by hand: some of its layers, and the first of their rows and columns."""
from __future__ import annotations

import re
from typing import Any

import torch

from thrifty.core.errors import Unfit
from thrifty.models.ragged import is_ragged, reconfigure
from thrifty.tinyclip.shapes import TOWERS, Shape

LAYER = re.compile(r"(text|vision)_model\.encoder\.layers\.(\d+)\.(.+)")


def inherit(teacher: Any, shape: Shape) -> Any:
    """A CLIPModel of that shape, made of the teacher's weights.

    Layer i of D_s is the teacher's layer i floor(D_t / D_s): the first of each interval, so of 12 layers 6 are 0, 2, … 10, and 9
    are the first nine. Of every tensor the leading rows and columns are kept: heads are of the same width, so the first rows of a
    projection are the first heads. The space of features and the inner width in proportion to the outer stay as they are.

    Raises:
        Unfit: the teacher is no CLIPModel of equal layers, or a tower would be larger than the teacher's or cut a head.
    """
    check_teacher(teacher)
    if is_ragged(teacher.config):
        raise Unfit("the layers of this model were pruned one by one, so they have no leading part in common: inherit from the "
                    "model that it was made of")
    changed = {}
    for tower, config in (("image", teacher.config.vision_config), ("text", teacher.config.text_config)):
        wanted, head = getattr(shape, tower), config.hidden_size // config.num_attention_heads
        if not 1 <= wanted.layers <= config.num_hidden_layers or not 1 <= wanted.width <= config.hidden_size or wanted.width % head:
            raise Unfit(f"{tower} tower: {wanted.layers} layers of {wanted.width} do not fit into the teacher's "
                        f"{config.num_hidden_layers} layers of {config.hidden_size} whole heads of {head}")
        changed[tower] = {"num_hidden_layers": wanted.layers, "hidden_size": wanted.width,
                          "num_attention_heads": wanted.width // head,
                          "intermediate_size": config.intermediate_size * wanted.width // config.hidden_size}
    with torch.random.fork_rng(devices=[]):
        student = type(teacher)(reconfigure(teacher.config, **changed))
    step = {TOWERS[tower]: getattr(teacher.config, f"{TOWERS[tower]}_config").num_hidden_layers // getattr(shape, tower).layers
            for tower in TOWERS}
    given, first = teacher.state_dict(), next(teacher.parameters())
    student.to(first.device, first.dtype)
    with torch.no_grad():
        for name, tensor in student.state_dict().items():
            source = given[origin(name, step)]
            tensor.copy_(source[tuple(map(slice, tensor.shape))])
    return student.eval()


def origin(name: str, step: dict[str, int]) -> str:
    """The teacher's tensor that the student's tensor ``name`` is a part of."""
    found = LAYER.fullmatch(name)
    if found is None:
        return name
    tower, layer, rest = found.groups()
    return f"{tower}_model.encoder.layers.{int(layer) * step[tower]}.{rest}"


def check_teacher(teacher: Any) -> None:
    """Raises: Unfit unless it is a CLIPModel of transformers."""
    if not any(kind.__name__ == "CLIPModel" and kind.__module__.startswith("transformers") for kind in type(teacher).__mro__):
        raise Unfit(f"only CLIPModel of transformers can be made smaller here, not {type(teacher).__name__}: convert the model "
                    "first")
