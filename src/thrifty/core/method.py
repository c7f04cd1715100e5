"""Method: which edits go where, with which numbers. One dataclass per paper."""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

from .errors import NoSuchSetting, Unfit, nearest
from .site import Site

if TYPE_CHECKING:
    from torch import Tensor

    from .attachment import Attachment
    from .edit import Edit

ROUTES = ("structure", "few weights", "input and output", "inject parameters", "add modules")


@dataclass
class Method:
    """Most methods name an ``Edit`` class, which gets the method's fields as its numbers. Others override ``attach``.

    The class variables are the method's entry in the catalogue.
    """

    name: ClassVar[str] = ""
    aliases: ClassVar[tuple[str, ...]] = ()
    route: ClassVar[str] = ""
    modalities: ClassVar[tuple[str, ...]] = ("text", "image")
    paper: ClassVar[str] = ""
    trains: ClassVar[str] = ""
    mergeable: ClassVar[bool] = False
    inference: ClassVar[str] = ""
    identity_at_start: ClassVar[bool] = True  # whether the model answers as before until the first step
    multitask: ClassVar[bool] = False  # whether it tells tasks apart, and so wants their names when it is attached
    Edit: ClassVar[type[Edit]]
    elsewhere: ClassVar[tuple[str, ...]] = ("where",)  # fields that are not numbers of the edit
    needs: ClassVar[str] = ""  # what it cannot do without: "saved adapters"
    solved: ClassVar[bool] = False  # whether ``attach`` and ``calibrate`` settle everything, so that no step is taken
    intermittent: ClassVar[bool] = False  # whether some of what trains may sit out any step, and so gets no gradient in it
    second_view: ClassVar[bool] = False  # whether its loss compares two views of each training example, where augmentation has two
    rate: ClassVar[float] = 1e-3  # a learning rate of AdamW to start from
    presets: ClassVar[dict[str, dict[str, Any]]] = {}  # aliases that stand for settings of the method -> those settings
    if TYPE_CHECKING:
        where: str

    def numbers(self, site: Site) -> dict[str, Any]:
        """What the edit at ``site`` is built with: the method's fields, but for ``elsewhere``."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in self.elsewhere}

    def check(self) -> None:
        """Refuse settings that have no meaning.

        Raises:
            NoSuchSetting: naming the setting, its value and what it may be.
        """

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """Put the method's edits on ``at.model``. ``batches`` is data for methods that look before they decide."""
        for site in at.sites(self.where):
            at.put(site, self.Edit, **self.numbers(site))

    def looks_at(self) -> str:
        """A folder of pictures by class that ``attach`` is to be shown in the place of training rows; empty for those."""
        return ""

    def loss(self, at: Attachment, task: Any, model: Any, batch: Any) -> tuple[Tensor, int]:
        """The loss on a batch, and how many items it is the mean of: the task's, unless the method trains on another.

        ``task`` is a ``thrifty.tasks.Task``; ``model`` is what to call, ``at.model`` or a wrapper around it.
        """
        loss: tuple[Tensor, int] = task.loss(model, batch)
        return loss

    def more_tasks(self, at: Attachment, tasks: list[str]) -> None:
        """Make room in ``at`` for further ``tasks``, which come after those that it tells apart; see ``thrifty.add_tasks``.

        Raises:
            Unfit: the method cannot, as most cannot; nothing has been changed then.
        """
        raise Unfit(f"{self.name} serves the tasks that it was attached with, and no others: it cannot take in {', '.join(tasks)}")

    def penalty(self, at: Attachment) -> Tensor | float:
        """Term added to the task loss at every step, of what trains alone."""
        return 0.0

    def step(self, at: Attachment, step: int, total: int) -> None:
        """Called after each optimiser step, the first of which is 1 and the last ``total``; its gradients are still there.

        It may change what trains. The search for the best state then begins anew, as older states no longer fit. What it must
        remember until the next step it keeps in ``at.memory``, so that a resumed training knows it.
        """

    def settled(self, at: Attachment) -> bool:
        """Whether the adapter has become what the method promises. No evaluation before that chooses it or ends the training."""
        return True

    def resume(self, at: Attachment, state: Mapping[str, Tensor]) -> None:
        """Called before the ``state`` of an interrupted training is put back, to change ``at`` as ``step`` had changed it."""

    def calibrate(self, at: Attachment, task: Any, batches: Iterable[Any]) -> None:
        """Called once after training, before ``finish``, to set or measure what data that did not train must decide.

        ``batches`` are those of the validation split, with labels; the model is in evaluation mode and keeps no graph. What was
        measured is left as plain data in ``at.about["measured"]``, and so travels with the adapter.
        """

    def finish(self, at: Attachment) -> None:
        """Called once after training: throw away what only training needed."""

    def groups(self, at: Attachment, rate: float, decay: float) -> list[dict[str, Any]]:
        """Optimiser parameter groups. One-dimensional tensors (scales, biases, magnitudes) are not decayed.

        The schedule scales the rate of every group, but for those with ``"constant": True``.
        """
        every = [p for _, p in at.named_parameters()]
        return [{"params": kind, "lr": rate, "weight_decay": wd} for kind, wd in
                (([p for p in every if p.dim() > 1], decay), ([p for p in every if p.dim() <= 1], 0.0)) if kind]

    def start_rate(self) -> float:
        """``rate``, unless these settings ask for another."""
        return self.rate

    def settings(self) -> dict[str, Any]:
        """The method's fields as plain data."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def make(cls, **settings: Any) -> Method:
        """The method with these settings.

        Raises:
            NoSuchSetting: a setting that the method does not have, with the nearest ones, or a value of the wrong type.
        """
        known = {f.name: f for f in fields(cls)}
        for key, value in settings.items():
            if key not in known:
                raise NoSuchSetting(f"{cls.name} has no setting {key!r}." + nearest(key, known))
            settings[key] = _as(cls.name, key, value, str(known[key].type))
        return cls(**settings)


def set_apart(groups: list[dict[str, Any]], chosen: Iterable[Tensor], rate: float) -> list[dict[str, Any]]:
    """Optimiser ``groups`` whose ``chosen`` parameters have groups of their own behind the others, at that peak ``rate``."""
    theirs = {id(p) for p in chosen}
    parted = [{**group, **own, "params": [p for p in group["params"] if (id(p) in theirs) == apart]}
              for apart, own in ((False, {}), (True, {"lr": rate})) for group in groups]
    return [group for group in parted if group["params"]]


def _as(method: str, key: str, value: Any, kind: str) -> Any:
    """``value`` as the type that the field is annotated with; ints may stand for floats, nothing else is converted."""
    if kind == "float" and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    wanted = {"int": int, "float": float, "str": str, "bool": bool}.get(kind)
    if wanted is not None and (not isinstance(value, wanted) or wanted is int and isinstance(value, bool)):
        said = "true or false" if wanted is bool else f"of type {kind}"
        raise NoSuchSetting(f"{method}: {key} must be {said}, not {value!r}")
    return value


def need(holds: bool, method: Method, setting: str, wanted: str) -> None:
    """Refuse a setting's value.

    Raises:
        NoSuchSetting: unless ``holds``; the message says what was ``wanted``.
    """
    if not holds:
        raise NoSuchSetting(f"{method.name}: {setting} must be {wanted}, not {getattr(method, setting)!r}")
