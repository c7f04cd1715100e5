"""CoTTA: Continual Test-Time Domain Adaptation (Wang, Fink, Van Gool, Dai; CVPR 2022, arXiv:2203.13591)."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ..core import Attachment
from ..core.errors import NoSuchSetting
from ..core.hooks import main
from ..methods.features import pictures
from .statistics import by_batch

Values = dict[str, Tensor]


class CoTTA:
    """What ``at`` trains learns from batches without labels, with an average of itself as the teacher:

        z = f_theta(x);   a = mean over the batch of the largest probability of f_theta_0(x)
        z' = f_theta'(x), or if a < ``confidence`` the mean of f_theta'(aug(x)) over ``views`` augmentations
        loss = mean of - sum_c softmax(z')_c log softmax(z)_c, one step of Adam
        theta' <- ``momentum`` theta' + (1 - ``momentum``) theta
        each entry of theta returns to theta_0 with probability ``restore``

    theta_0 is what ``at`` holds when this begins. A batch is answered with z'. In the paper all weights are theta
    (``attach(model, thrifty.FullFineTuning())``); confidence is 0.92 for CIFAR-10-C, 0.72 for CIFAR-100-C and 0.1, with a
    restore of 0.001, for ImageNet-C. Batch norms normalise by the batch, or with ``norms="source"`` as they were trained; dropout
    is off, and no running statistic moves.

    ``augment`` makes a random view of pictures; ``rate`` and ``betas`` are Adam's.

    Raises:
        NoSuchSetting: a number that has no meaning.
    """

    def __init__(self, at: Attachment, augment: Callable[[Tensor], Tensor], *, rate: float = 1e-3,
                 betas: tuple[float, float] = (0.9, 0.999), momentum: float = 0.999, restore: float = 0.01,
                 confidence: float = 0.92, views: int = 32, norms: str = "batch", seed: int = 0) -> None:
        for name, holds, wanted in (("rate", rate >= 0, "at least 0"), ("momentum", 0 <= momentum <= 1, "in [0, 1]"),
                                    ("restore", 0 <= restore <= 1, "in [0, 1]"), ("views", views >= 1, "at least 1"),
                                    ("norms", norms in ("batch", "source"), "'batch' or 'source'")):
            if not holds:
                raise NoSuchSetting(f"{type(self).__name__}: {name} must be {wanted}, not {locals()[name]!r}")
        self.at, self.augment, self.momentum, self.restore = at, augment, momentum, restore
        self.confidence, self.views, self.norms = confidence, views, norms
        self.theta = dict(at.named_parameters())
        self.source: Values = {name: p.detach().clone() for name, p in self.theta.items()}
        self.teacher: Values = {name: p.detach().clone() for name, p in self.theta.items()}
        self.optimiser = torch.optim.Adam(self.theta.values(), lr=rate, betas=betas)
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, batch: Mapping[str, Any]) -> Tensor:
        """Learn from ``batch``, what the model takes as ``model(**batch)``, and answer it: logits [B, classes].

        Labels, if there are any, are not read.
        """
        given = {name: value for name, value in batch.items() if name != "labels"}
        training = self.at.model.training
        self.at.model.eval()
        try:
            with by_batch(self.at.model) if self.norms == "batch" else nullcontext():
                said = self.teach(given)
                with torch.enable_grad():
                    z = self.ask(given)
                    loss = -(said.softmax(-1) * z.log_softmax(-1)).sum(-1).mean()
                    self.learn(loss)
                self.follow()
                return self.answer(given, said)
        finally:
            self.at.model.train(training)

    def over(self, batches: Iterable[Mapping[str, Any]]) -> Iterator[Tensor]:
        """The answers to a stream of batches; each batch is learnt from when its answer is asked for."""
        return map(self, batches)

    def ask(self, given: dict[str, Any]) -> Tensor:
        """f(x) [B, classes], at least in single precision."""
        z = main(self.at.model(**given))
        return z.float() if z.dtype in (torch.float16, torch.bfloat16) else z

    @torch.no_grad()
    def teach(self, given: dict[str, Any]) -> Tensor:
        """z' [B, classes]: what the teacher says of the batch, or of views of it where the source model is not sure."""
        with self.holding(self.source):
            sure = float(self.ask(given).softmax(-1).amax(-1).mean())
        with self.holding(self.teacher):
            if sure >= self.confidence:
                return self.ask(given)
            place, x = pictures.find((), given)
            return torch.stack([self.ask({**given, str(place): self.augment(x)}) for _ in range(self.views)]).mean(0)

    def learn(self, loss: Tensor) -> None:
        """One step against the loss."""
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()

    @torch.no_grad()
    def follow(self) -> None:
        """The teacher follows the student; some entries of the student go back to where they began."""
        for name, p in self.theta.items():
            self.teacher[name].mul_(self.momentum).add_(p, alpha=1 - self.momentum)
            if self.restore:
                back = torch.rand(p.shape, generator=self.generator).to(p.device) < self.restore
                p.copy_(torch.where(back, self.source[name], p))

    def answer(self, given: dict[str, Any], said: Tensor) -> Tensor:
        """What the batch is answered with: what the teacher had said of it."""
        return said

    @contextmanager
    def holding(self, values: Values) -> Iterator[None]:
        """While it lasts, the model has these ``values`` in the place of those that learn."""
        own = {name: p.data for name, p in self.theta.items()}
        for name, p in self.theta.items():
            p.data = values[name]
        try:
            yield
        finally:
            for name, p in self.theta.items():
                p.data = own[name]

    @torch.no_grad()
    def keep_teacher(self) -> None:
        """Write the teacher's values into the attachment, to save them, say: they are steadier than the student's."""
        for name, p in self.theta.items():
            p.copy_(self.teacher[name])
