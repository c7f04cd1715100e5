"""PromptSRC: Self-regulating Prompts: Foundational Model Adaptation without Forgetting (Khattak, Wasim, Naseer, Khan, Yang, Khan;
ICCV 2023, arXiv:2307.06948)."""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core import need
from .ivlp import IVLP

if TYPE_CHECKING:
    from ..core import Attachment

TEACHER = "unit features of the classes, the mean over many sentences"
SUM, DONE = "sum of snapshots: ", "the snapshots are averaged"


@dataclass
class PromptSRC(IVLP):
    """IVLP that agrees with the untrained model, and ends as a weighted mean of its own states.

        L = CE(z, y) + ``text`` mean |t - t0| + ``image`` mean |f - f0| + ``logits`` mean_{b,k} p0 (log p0 - log p)

    z = s f t, p = softmax(z); f0 and z0 = s f0 t0 are the untrained model's on the same view, t0 the unit feature of the mean over
    ``templates`` of features whose length was left. All means are over every entry. The state after each of ``snapshots`` equal
    parts of the training (the authors' epochs) counts with N(part; ``centre``, ``spread``²), all weights summing to one.

    The authors train with batch 4 and SGD at 2.5e-3: 20 epochs with centre 15 and spread 1 for new classes; 20 with 6 and 10 and
    depth 3 for other data sets; 50 with 30 and 30, or 45 and 5, chosen by data set, for few shots.
    """

    name = "promptsrc"
    paper = "Khattak et al., Self-regulating Prompts: Foundational Model Adaptation without Forgetting, ICCV 2023, arXiv:2307.06948"
    trains = "tokens in both towers, held to what the untrained model says"

    text: float = 25.0
    image: float = 10.0
    logits: float = 1.0
    templates: str = "clip-60"
    snapshots: int = 20
    centre: float = 15.0
    spread: float = 1.0

    def check(self) -> None:
        """Weights are not negative, and there is a snapshot."""
        super().check()
        for name in ("text", "image", "logits"):
            need(getattr(self, name) >= 0, self, name, "at least 0")
        need(self.snapshots >= 1, self, "snapshots", "at least 1")
        need(self.spread > 0, self, "spread", "positive")

    def loss(self, at: Attachment, task: Any, model: Any, batch: Any) -> tuple[Tensor, int]:
        """Cross-entropy, and three distances to the untrained model."""
        inputs, labels = task.inputs(model, batch), batch["labels"]
        out = model(**inputs)
        own: Any = at.model
        with at.disabled(), torch.no_grad():
            if TEACHER not in at.memory:
                at.memory[TEACHER] = F.normalize(own.sentence_features(self.templates).float().mean(0), dim=-1)
            classes = at.memory[TEACHER].to(labels.device)
            picture = F.normalize(own.image_features(**inputs).float(), dim=-1)
            guess = own.scores(picture, classes).float()
        z = out["logits"].float()
        apart = F.kl_div(z.log_softmax(-1), guess.log_softmax(-1), log_target=True, reduction="mean")
        found = F.cross_entropy(z, labels) + self.text * F.l1_loss(out["text_embeds"].float(), classes) \
            + self.image * F.l1_loss(out["image_embeds"].float(), picture) + self.logits * apart
        return found, len(labels)

    @torch.no_grad()
    def step(self, at: Attachment, step: int, total: int) -> None:
        """At the end of each part add the state to the sum; at the last put the sum in its place."""
        parts = min(self.snapshots, total)
        part = next((e for e in range(1, parts + 1) if round(e * total / parts) == step), None)
        if part is None:
            return
        weight = self.weights(parts)[part - 1]
        for name, p in at.named_parameters():
            before = at.memory.get(SUM + name)
            now = weight * p.detach().float()
            at.memory[SUM + name] = now if before is None else before.to(now.device) + now
        if part == parts:
            for name, p in at.named_parameters():
                p.copy_(at.memory[SUM + name])
            at.memory[DONE] = torch.ones(())

    def weights(self, parts: int) -> list[float]:
        """What each of so many states counts."""
        logs = [-((part - self.centre) ** 2) / (2 * self.spread**2) for part in range(1, parts + 1)]
        sizes = [math.exp(log - max(logs)) for log in logs]  # the largest is one, however far the centre lies
        return [size / sum(sizes) for size in sizes]

    def settled(self, at: Attachment) -> bool:
        """Whether the states were averaged."""
        return DONE in at.memory
