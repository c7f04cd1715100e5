"""Which blocks can follow which, and what each step costs: exactly, as every block is run without numbers at the size it will see.

Deep Model Reassembly (Yang, Zhou, Liu, Ye, Wang; NeurIPS 2022, arXiv:2210.17409).
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from .costs import Measure, Shape
from .nodes import Node
from .stitching import Joint, Stem, Stitch

Place = tuple[int, Shape]  # behind a block, with what it gave out


@dataclass(frozen=True)
class Block:
    """Nodes of one model that stay together: number ``stage`` of their model, and one of ``group`` across models.

    ``worth`` is what the search expects of it.
    """

    name: str
    stage: int
    group: int
    nodes: tuple[Node, ...]
    worth: float = 0.0


@dataclass(frozen=True)
class Step:
    """From a place (the block before, and what it gave out) by a stitch into ``block``, and through it.

    ``parameters`` and ``operations`` (multiplications with an addition, for one picture) are of both; of the first step with the
    stem, of the last one with the head.
    """

    origin: Place | None
    block: int
    joint: Joint
    parameters: int
    operations: int
    gives: Shape

    @property
    def place(self) -> Place:
        """Where it leads."""
        return self.block, self.gives


def lay_out(model: nn.Module, blocks: Sequence[Block], picture: Shape, outputs: int, rejoin: bool = False) -> list[Step]:
    """Every step that some assembly of one block for each stage can take, stage by stage.

    A convolutional block never follows one of tokens. A stitch has stride 2 where the map is at least twice as large as the block
    was used to. With ``rejoin`` blocks that followed each other in one model need no stitch.
    """
    last, measure = max(block.stage for block in blocks), Measure()
    steps: list[Step] = []
    places: list[Place | None] = [None]
    for stage in range(last + 1):
        tried = [try_step(model, measure, blocks, origin, number, picture, rejoin) for origin in places
                 for number, block in enumerate(blocks) if block.stage == stage]
        taken = [step for step in tried if step is not None]
        if stage == last:
            taken = [with_head(step, blocks[step.block].nodes[-1].out, outputs) for step in taken]
        steps += taken
        places = list(dict.fromkeys(step.place for step in taken))
    return steps


def with_head(step: Step, width: int, outputs: int) -> Step:
    """The last step, and the head behind it."""
    return replace(step, parameters=step.parameters + (width + 1) * outputs, operations=step.operations + width * outputs)


def try_step(model: nn.Module, measure: Measure, blocks: Sequence[Block], origin: Place | None, number: int, picture: Shape,
             rejoin: bool) -> Step | None:
    """The step from ``origin`` into a block; None where it cannot be taken."""
    entry, nodes = blocks[number].nodes[0], [model.get_submodule(node.path) for node in blocks[number].nodes]
    before = None if origin is None else blocks[origin[0]].nodes[-1]
    if before is not None and before.tokens and not entry.tokens:
        return None
    with torch.device("meta"):
        if origin is None or before is None:
            joint, shape = Joint("spread" if entry.tokens else "none", entry.width, entry.width), picture
            stem, front = 149 * entry.width, [Stem(entry.width).eval(), Stitch(joint).eval()]
        else:
            joint, shape = join_up(before, entry, origin[1], rejoin), origin[1]
            stem, front = 0, [Stitch(joint).eval()]
    operations, arrives = measure.run(front, shape)
    more, gives = measure.through(nodes, arrives)
    own = sum(p.numel() for node in nodes for p in node.parameters())
    return Step(origin, number, joint, stem + joint.parameters + own, operations + more, gives)


def join_up(before: Node, entry: Node, shape: Shape, rejoin: bool) -> Joint:
    """How what ``before`` gave out, of that ``shape``, is made into what ``entry`` takes."""
    if before.tokens:
        kind, stride = "tokens", 1
    else:
        kind, stride = "flat" if entry.tokens else "map", 2 if shape[1] >= 2 * entry.side else 1
    if rejoin and before.next == entry.path:  # which follows it in their model, too
        return Joint("none", before.out, entry.width)
    return Joint(kind, before.out, entry.width, stride)
