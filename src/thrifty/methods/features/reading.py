"""Reading: where a classifier's head reads one vector per example, the penultimate features that several methods look at."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ...core import Site
from ...core.errors import Unfit
from ...core.probe import guess_example, run_once
from ...core.site import at_path
from ..branches.side import SideTap, asked
from ..heads import last_linear

if TYPE_CHECKING:
    from ...core import Attachment


def find_reader(at: Attachment) -> Site:
    """The linear layer that makes logits [batch, classes] of one vector [batch, d] per example.

    Raises:
        Unfit: the model does not end in such a layer, as models that answer at every token do not.
    """
    example = at.seen.example if at.seen.example is not None else guess_example(at.model)
    kind, name = type(at.model).__name__, at.method.name if at.method else "this method"
    if example is None:
        raise Unfit(f"where {kind} ends is only known by running it: pass example= (a batch)")
    path = last_linear(at.model, example)
    module: Any = at.model.get_submodule(path)
    given: list[Tensor] = []

    def note(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        given.append(args[0])

    handle = module.register_forward_pre_hook(note)
    try:
        run_once(at.model, example)
    finally:
        handle.remove()
    if given[-1].dim() != 2:
        raise Unfit(f"{name} looks at one vector per example, but {path!r} of {kind} reads {list(given[-1].shape)}: it needs a "
                    "model that classifies whole inputs")
    return at_path(at.model, path, "head", None, -1, "", at.seen)


def inputs_of(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The part of a batch that a classifier takes."""
    return {key: value for key, value in batch.items() if key != "labels"}


def listen(at: Attachment) -> None:
    """Put a tap where the head reads, for ``heard``; the graph stays whole.

    Raises:
        Unfit: see ``find_reader``.
    """
    at.put(find_reader(at), SideTap, port="call", cut=False)


def heard(at: Attachment) -> Tensor:
    """What the head read in the forward pass that has just run [batch, d], where ``listen`` put a tap."""
    features: Tensor = next(iter(at.context.taps.pop(asked(_tap(at).path)).values()))
    return features


def stop_listening(at: Attachment) -> None:
    """Take the tap away."""
    at.take_away(_tap(at).key)


def _tap(at: Attachment) -> Any:
    """The plan's row of the tap, which was put last."""
    return next(row for row in reversed(at.plan) if row.edit == SideTap.registered and row.role == "head")
