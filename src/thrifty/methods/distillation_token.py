"""DeiT's distillation token: Training Data-Efficient Image Transformers and Distillation through Attention (Touvron, Cord, Douze,
Massa, Sablayrolles, Jégou; ICML 2021, arXiv:2012.12877)."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Edit, Site, need, register
from ..core.drawing import truncated_normal_
from ..core.errors import DeadEdit, NoSuchSite, Unfit
from ..core.probe import guess_example, run_once
from .distillation import TEACHERS, answered, ask_teacher, dismiss, name_teacher, refuse_tasks
from .features.reading import find_reader
from .full import FullFineTuning
from .guidance.outer import Around
from .guidance.soft_targets import REDUCTIONS, divergence

if TYPE_CHECKING:
    from ..core import Attachment

CLASS = ("cls_token", "class_token", "class_embedding")  # how models call the token that the head reads
TAKEN = ("distillation_token", "dist_token")
STATE, ANSWER = "the distillation token's last state", "what its head says"


@register("distillation-token")
class DistillationToken(Edit):
    """[CLS, DIST, patches] at the first block: DIST = token + position, both [d] and from a normal N(0, 0.02²) cut at ± 2."""

    port = "input"

    def __init__(self, site: Site):
        super().__init__(site)
        self.token, self.position = (nn.Parameter(truncated_normal_(torch.empty(site.din), 0.02, 2.0)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, tokens, d] -> [batch, tokens + 1, d]."""
        token = (self.token + self.position).to(x.dtype).expand(len(x), 1, -1)
        return torch.cat([x[:, :1], token, x[:, 1:]], 1)


@register("distillation-token-off")
class DistillationTokenOff(Edit):
    """Behind the last normalisation: takes the token away, for its own head to read."""

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """y [batch, tokens + 1, d] -> [batch, tokens, d]."""
        self.context.taps[STATE] = y[:, 1]
        return torch.cat([y[:, :1], y[:, 2:]], 1)


@register("distillation-head")
class DistillationHead(Edit):
    """y_d = W_d LN(x_L)_DIST + b_d, W_d [classes, width] from N(0, 0.02²), b_d from 0; the answer is (y_c + y_d) / 2.

    In training it is y_c alone. y_d is left for the loss.
    """

    def __init__(self, site: Site, width: int):
        super().__init__(site)
        self.head = nn.Linear(width, site.dout)
        truncated_normal_(self.head.weight, 0.02, 2.0)
        nn.init.zeros_(self.head.bias)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """y = y_c [batch, classes] -> the same shape.

        Raises:
            DeadEdit: the token was not heard.
        """
        if STATE not in self.context.taps:
            raise DeadEdit(f"the distillation head at {self.site.path!r} did not hear its token: switch all edits on or off "
                           "together")
        other = self.head(self.context.taps.pop(STATE).to(self.head.weight.dtype))
        self.context.taps[ANSWER] = other
        if not self.training:
            return ((y + other) / 2).to(y.dtype)
        return y + 0 * other.to(y.dtype)  # DDP looks in the graph of what the model returns for all that takes part in a step


@dataclass
class DistillationTokens(Around):
    """A token beside the class token learns, through a head of its own, what a teacher says of the same pictures:

        hard  L = (1 - alpha) CE(y_c, y) + alpha CE(y_d, argmax v)
        soft  L = (1 - alpha) CE(y_c, y) + alpha T² KL(softmax(v / T) || softmax(y_d / T))

    y_c, y_d and v [batch, classes] are the answers of the class token's head, of the token's, and of the ``teacher`` (the folder
    of a run, the name of a model, or a module; see ``distillation``). CE(y_c, y) is the loss of the task and of the method
    ``around``, which trains the rest: full fine-tuning by default, with ``settings_of``. The prediction is the mean of y_c and y_d.

    ``kind`` is "hard", the authors' choice, or "soft", for which their code has T = 1 and alpha = 0.5 and the paper T = 3 and 0.1.
    ``reduction="deit_legacy"`` is a slip of that code: it divides the divergence by the number of classes too. ``init="copy"``
    starts the token of a pretrained model as its class token with its position, instead of at random.
    """

    name = "distillation-token"
    aliases = ("deit",)
    route = "input and output"
    modalities = ("image",)
    paper = "Touvron et al., Training Data-Efficient Image Transformers, ICML 2021, arXiv:2012.12877"
    trains = "a token with its position and head, and what the method trains that it goes around, by default every weight"
    inference = "a token more, and a second head"
    identity_at_start = False
    rate = FullFineTuning.rate

    teacher: str | Any = ""
    kind: str = "hard"
    alpha: float = 0.5
    temperature: float = 1.0
    reduction: str = "batchmean"
    init: str = "normal"
    around: str = "full"
    settings_of: dict[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """There is a teacher and a method, choices are known, and numbers are in their bounds."""
        need(self.teacher is not None and self.teacher != "", self, "teacher", TEACHERS)
        need(self.kind in ("hard", "soft"), self, "kind", "'hard' or 'soft'")
        need(0 <= self.alpha <= 1, self, "alpha", "in [0, 1]")
        need(self.temperature > 0, self, "temperature", "positive")
        need(self.reduction in REDUCTIONS, self, "reduction", " or ".join(map(repr, REDUCTIONS)))
        need(self.init in ("normal", "copy"), self, "init", "'normal' or 'copy'")
        super().check()

    def settings(self) -> dict[str, Any]:
        """The fields as plain data; of a teacher that is a module its class."""
        return {**super().settings(), "teacher": name_teacher(self.teacher)}

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """The other method, then the token in at the first block, out behind the last normalisation, and its head.

        Raises:
            Unfit: the model is no plain vision transformer with a class token, has such a token, or serves several tasks.
        """
        refuse_tasks(at, self.name)
        first, norm = find_ends(at)
        super().attach(at, batches)
        reader = find_reader(at)
        start = class_token(at, first) if self.init == "copy" else None
        edit: Any = at.put(first, DistillationToken)
        at.put(norm, DistillationTokenOff)
        at.put(reader, DistillationHead, width=first.din)
        if start is not None:
            with torch.no_grad():
                edit.token.copy_(start)
                edit.position.zero_()

    def loss(self, at: Attachment, task: Any, model: Any, batch: Any) -> tuple[Tensor, int]:
        """The other method's loss on y_c and the distillation of y_d, mixed.

        Raises:
            Unfit: the task has no classes, or the teacher does not fit it.
        """
        hard, count = super().loss(at, task, model, batch)
        token = answered(at.context.taps.pop(ANSWER), batch["labels"])
        teacher = answered(ask_teacher(at, self.teacher, task, batch), batch["labels"])
        if self.kind == "hard":
            learnt = F.cross_entropy(token.float(), teacher.argmax(-1))
        else:
            learnt = divergence(token, teacher, self.temperature, reduction=self.reduction)
        return (1 - self.alpha) * hard + self.alpha * learnt, count

    def finish(self, at: Attachment) -> None:
        """The other method's; the teacher is no longer needed."""
        super().finish(at)
        dismiss(at)


def find_ends(at: Attachment) -> tuple[Site, Site]:
    """The first block of a plain vision transformer, and its last normalisation.

    Raises:
        Unfit: the model is none, or its tokens have no room for one more.
    """
    kind = type(at.model).__name__
    try:
        blocks, norms = at.sites("block"), at.sites("norm")
        at.sites("patch")
    except NoSuchSite:
        raise Unfit(f"{kind} does not cut pictures into patches for blocks of attention, so a token has no place in it") from None
    leaves = {name.rpartition(".")[2]: name for name, _ in at.model.named_parameters()}
    order = [path for path, _ in at.model.named_modules()]
    behind = [norm for norm in norms if norm.depth < 0 and order.index(norm.path) > order.index(blocks[-1].path)]
    if len({block.path.rpartition(".")[0] for block in blocks}) > 1 or not behind:
        raise Unfit(f"{kind} is not one list of blocks with a normalisation behind: a distillation token needs a plain vision "
                    "transformer (ViT, DeiT, DINOv2)")
    if grid := [name for leaf, name in leaves.items() if "relative_position_bias" in leaf]:
        raise Unfit(f"{kind} adds a bias for each pair of patches ({grid[0]!r}), which does not grow with tokens")
    if not any(leaf in leaves for leaf in CLASS):
        raise Unfit(f"{kind} has no class token for a distillation token to stand beside")
    if held := [leaves[leaf] for leaf in TAKEN if leaf in leaves]:
        raise Unfit(f"{kind} has a distillation token already ({held[0]!r}): load it without")
    return blocks[0], behind[0]


def class_token(at: Attachment, first: Site) -> Tensor:
    """The class token with its position [d], as it enters the first block.

    Raises:
        Unfit: the model has not been told what a batch looks like.
    """
    example = at.seen.example if at.seen.example is not None else guess_example(at.model)
    if example is None:
        raise Unfit(f"the class token of {type(at.model).__name__} is only seen by running it: pass example= (a batch)")
    seen: list[Tensor] = []
    handle = first.module.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        run_once(at.model, example)
    finally:
        handle.remove()
    return seen[0][0, 0]
