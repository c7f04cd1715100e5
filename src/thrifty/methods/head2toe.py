"""Head2Toe: Utilizing Intermediate Representations for Better Transfer Learning (Evci, Dumoulin, Larochelle, Mozer; ICML 2022,
arXiv:2201.03529)."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..core import Edit, Method, Site, need, register
from ..core.errors import CannotMerge, DeadEdit, ThriftyError, Unfit
from ..core.probe import guess_example, run_once
from ..core.site import at_path
from .features.group_lasso import Recipe, choose_fraction, divide, fit, join, score, select, unit
from .features.pooled_taps import TOKENS, BatchRows, Place, PooledTap, find_places
from .features.tower import SPECIAL
from .heads import last_linear

if TYPE_CHECKING:
    from ..core import Attachment


@register("selected-head")
class SelectedHead(Edit):
    """W [n(v_1); ...; n(v_T)] + b in the place of the model's last layer, n(v) = v / ||v||, W [classes, all chosen features].

    v_t are the ``kept[t]`` chosen features, at ``columns``, of what a tap left under ``pieces[t]``. W starts Glorot-uniform, b at
    zero.
    """

    replaces = True
    columns: Tensor

    def __init__(self, site: Site, pieces: list[str], kept: list[int]):
        super().__init__(site)
        self.pieces, self.kept = pieces, kept
        self.linear = nn.Linear(sum(kept), site.dout)
        nn.init.xavier_uniform_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.register_buffer("columns", torch.cat([torch.arange(count) for count in kept]))

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """y [batch, classes] -> [batch, classes].

        Raises:
            DeadEdit: a tap is off, or was not reached.
        """
        found = self.context.taps
        if missing := [piece for piece in self.pieces if piece not in found]:
            raise DeadEdit(f"the head at {self.site.path!r} reads the {missing[0]}, whose tap is off or is never reached: switch "
                           "all edits on or off together")
        h = join([found.pop(piece) for piece in self.pieces], list(self.columns.split(self.kept)))
        answer: Tensor = self.linear(h.to(self.linear.weight.dtype))
        return answer.to(y.dtype)

    def delta(self, weight: Tensor) -> Tensor:
        """There is none.

        Raises:
            CannotMerge: always.
        """
        raise CannotMerge(f"the head at {self.site.path!r} reads features from all over the model: it is no change of one weight")


@dataclass
class Head2Toe(Method):
    """A linear head on the best of all features that a frozen network computes for a picture, whatever layer they come from.

        x = [n(v_1); ...; n(v_T)]                 every intermediate result, pooled to about ``size`` features, at unit length
        min CE(W x + b) + lasso sum_i ||W_i||_2   a first head, trained on the spot; s_i = ||W_i||² scores feature i
        keep the fraction with the highest scores, bring what is left of each v_t to unit length, train a new head by CE

    The features of the first ``examples`` training rows are computed once, and the fraction is the best of ``fractions`` in
    ``folds``-fold cross-validation on them (with one fraction nothing is validated); the adapter's ``about`` says which it
    was. What then trains in the loop is the new head. ``size`` 0 takes one average per layer. Of tokens, "normal" pools all,
    "only_cls" takes the class token, "nopool_cls" both. ``steps``, ``score_rate`` and ``batch`` are those of the heads that are
    trained on the spot.

    Where the taps are is told by ``pooled_taps.find_places``: 52 in ViT-B/16 and 50 in ResNet-50 (the authors' networks have 53
    and 52, with the class token before the encoder, and with the logits of the old head). In Swin what the attentions read
    and give out lies in windows, which are pooled as a picture's tokens; this is a reconstruction.
    """

    name = "head2toe"
    route = "input and output"
    modalities = ("image",)
    paper = ("Evci et al., Head2Toe: Utilizing Intermediate Representations for Better Transfer Learning, ICML 2022, "
             "arXiv:2201.03529")
    trains = "a head on the chosen features of all layers"
    inference = "pooling, and a wider head"
    identity_at_start = False
    rate = 1e-2

    size: int = 512
    tokens: str = "normal"
    fractions: list[float] = field(default_factory=lambda: [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2])
    folds: int = 5
    lasso: float = 1e-4
    steps: int = 500
    score_rate: float = 0.01
    batch: int = 128
    examples: int = 1000

    def check(self) -> None:
        """Fractions are fractions, numbers are positive where they must be."""
        need(self.size >= 0, self, "size", "positive, or 0 for one average per layer")
        need(self.tokens in TOKENS, self, "tokens", f"one of {', '.join(TOKENS)}")
        fair = isinstance(self.fractions, list) and len(self.fractions) > 0
        need(fair and all(0 < f <= 1 for f in self.fractions), self, "fractions", "a list of shares above 0, and 1 at most")
        need(self.folds >= 2, self, "folds", "at least 2")
        need(self.lasso >= 0, self, "lasso", "at least 0")
        need(self.steps >= 1, self, "steps", "at least 1")
        need(self.score_rate > 0, self, "score_rate", "positive")
        need(self.batch >= 1, self, "batch", "at least 1")
        need(self.examples >= 1, self, "examples", "at least 1")

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """Taps everywhere; a first head on what they give for the data; the best features for a new one, and taps for those only.

        Raises:
            ThriftyError: there is no data with labels. Unfit: the model does not read pictures, or end in a linear layer.
        """
        if batches is None:
            raise ThriftyError(f"{self.name} chooses features on the task's own data: attach with batches= (dicts of tensors, with "
                               "labels)")
        example = at.seen.example if at.seen.example is not None else guess_example(at.model)
        if example is None:
            raise Unfit(f"where the features of {type(at.model).__name__} are is only known by running it: pass example= (a batch)")
        head = at_path(at.model, last_linear(at.model, example), "head", None, -1, "", at.seen)
        places = find_places(at, head, example)
        if self.tokens != "normal" and not any(n.rpartition(".")[2] in SPECIAL for n, _ in at.model.named_parameters()):
            raise Unfit(f"{type(at.model).__name__} has no class token: set tokens='normal'")
        at.put(at.sites("model")[0], BatchRows)
        taps = {place.key: self._tap(at, place) for place in places}
        pieces, labels = gather(at, list(taps), batches, self.examples)
        fraction, accuracy = self.fractions[0], dict[float, float]()
        recipe = Recipe(self.steps, self.score_rate, self.batch)
        if len(self.fractions) > 1:
            fraction, accuracy = choose_fraction(pieces, labels, head.dout, recipe, self.lasso, self.fractions, self.folds)
        W, _ = fit(torch.cat([unit(piece) for piece in pieces], 1), labels, head.dout, recipe, self.lasso)
        columns = divide(select(score(W), fraction), [piece.shape[1] for piece in pieces])
        kept = {key: own for key, own in zip(taps, columns, strict=True) if len(own)}
        for key in set(taps) - set(kept):
            at.take_away(taps[key])
        made: Any = at.put(head, SelectedHead, pieces=list(kept), kept=[len(own) for own in kept.values()])
        made.columns.copy_(torch.cat(list(kept.values())))
        at.about["chosen"] = {"fraction": fraction, "features": sum(made.kept), "of": len(W),
                              "validation accuracy": {str(tried): right for tried, right in accuracy.items()}}

    def _tap(self, at: Attachment, place: Place) -> str:
        """The plan's key of a new tap."""
        at.put(place.site, PooledTap, key=place.key, port=place.port, first=place.first, size=self.size, tokens=self.tokens)
        return at.plan[-1].key


def gather(at: Attachment, keys: list[str], batches: Iterable[Any], most: int) -> tuple[list[Tensor], Tensor]:
    """What the taps leave under ``keys`` for up to ``most`` rows, each [N, width], and the rows' labels [N].

    Raises:
        ThriftyError: a batch has no class numbers, or there is no row.
    """
    rows: list[list[Tensor]] = []
    labels: list[Tensor] = []
    for batch in batches:
        told = batch.get("labels")
        if told is None or told.dim() != 1 or told.is_floating_point():
            raise ThriftyError(f"features are chosen by class numbers, one a row, and a batch of {sorted(batch)} has none under "
                               "'labels'")
        run_once(at.model, {name: value for name, value in batch.items() if name != "labels"})
        rows.append([at.context.taps.pop(key).float() for key in keys])
        labels.append(told)
        if sum(map(len, labels)) >= most:
            break
    if not rows:
        raise ThriftyError("there is no row of data by which features could be chosen: attach with batches=, dicts of tensors with "
                           "labels")
    return [torch.cat(piece)[:most] for piece in zip(*rows, strict=True)], torch.cat(labels)[:most]
