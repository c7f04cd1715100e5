"""BlockDrop: Dynamic Inference Paths in Residual Networks (Wu, Nagarajan, Kumar, Rennie, Davis, Grauman, Feris; CVPR 2018,
arXiv:1711.08393)."""
from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..core import Method, need
from ..core.errors import Unfit
from ..core.hooks import main
from ..core.ledger import unfrozen
from ..core.probe import guess_example
from .depth.block_policy import NETWORKS, Policy, bounded, log_likelihood, reward
from .depth.dropping import Drop, droppable
from .depth.flops import flops
from .depth.said import Said
from .depth.slow_trunk import slow_down
from .features import pictures

if TYPE_CHECKING:
    from ..core import Attachment

EDGE = 1e-6  # of a step: shares such as 0.2 are not exact

@dataclass
class BlockDrop(Method):
    """A small network that looks at a picture first, and leaves out blocks of the large one that this picture does not need.

        s' = alpha s + (1 - alpha) (1 - s),   u_k ~ Bernoulli(s'_k),   block k: x + u_k F_k(x)
        R(u) = 1 - (|u| / K)² where the answer is right, else gamma;   A = R(u) - R(s > 1/2)
        loss = -A sum_k log Bernoulli(u_k; s'_k) - beta sum_k -s'_k log s'_k        over blocks that may be left out, and all

    The training has three parts, by shares of its steps. ``warm_up``: every block runs, and the network learns the task; the
    paper begins with one that knows it, which is ``warm_up=0``. ``curriculum``: the policy alone learns, at first for the last
    block and then for one more at a time. The rest: policy and network together (``joint``), by the policy's loss without the
    entropy, with ``gamma_joint`` in the place of gamma (-5 on ImageNet, -10 on CIFAR-10), and cross-entropy on the drawn path;
    the network at a tenth of the rate. Batch-norm statistics stay. ``policy`` is "resnet8" for small pictures, or "resnet10".
    Its start values are our own: every block runs at first. The paper's begin from a trained ResNet-18.

    Without gradients, in evaluation mode, what is left out is not computed.
    """

    name = "block-drop"
    aliases = ("blockdrop",)
    route = "structure"
    modalities = ("image",)
    paper = "Wu et al., BlockDrop: Dynamic Inference Paths in Residual Networks, CVPR 2018, arXiv:1711.08393"
    trains = "a small network that chooses blocks, and the large one"
    inference = "less: the small network, and the blocks that it chose for the picture"
    intermittent = True  # the policy sits out the warm-up, the network the curriculum
    rate = 1e-3

    policy: str = "resnet10"
    alpha: float = 0.8
    beta: float = 0.1
    gamma: float = -1.0
    gamma_joint: float = -5.0
    warm_up: float = 0.3
    curriculum: float = 0.4
    joint: bool = True
    where: str = "block"

    def check(self) -> None:
        """The policy is known, probabilities are some, wrong answers are not rewarded, shares add up to 1 at most."""
        need(self.policy in NETWORKS, self, "policy", " or ".join(map(repr, NETWORKS)))
        need(0.5 < self.alpha < 1, self, "alpha", "between 0.5 and 1")
        need(self.beta >= 0, self, "beta", "at least 0")
        need(self.gamma < 0, self, "gamma", "below 0")
        need(self.gamma_joint < 0, self, "gamma_joint", "below 0")
        need(0 <= self.warm_up < 1, self, "warm_up", "at least 0 and below 1: a share of the training")
        need(0 <= self.curriculum <= 1 - self.warm_up, self, "curriculum", f"from 0 to {1 - self.warm_up:g}, what warm_up leaves")

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """The policy where the model is entered, and a switch around each block.

        Raises:
            Unfit: the model reads no pictures, or has blocks that cannot be left out.
        """
        channels = pictures.example(at).shape[1]
        held = at.seen.example if at.seen.example is not None else guess_example(at.model)
        assert held is not None  # or there were no pictures
        blocks = droppable(at, self.where, held)
        at.put(at.sites("model")[0], Policy, blocks=len(blocks), network=self.policy, channels=channels,
               free=self.free(0, 1, len(blocks)))
        for number, site in enumerate(blocks):
            at.put(site, Drop, number=number)
        for name in unfrozen(at.model) if self.joint else ():
            at.train(name, wildcard=True)

    def free(self, step: int, total: int, blocks: int) -> int:
        """How many of the last blocks may be left out after ``step`` steps of ``total``."""
        begun, length = step - self.warm_up * total + EDGE, self.curriculum * total
        if begun < 0:
            return 0
        return min(blocks, 1 + int(begun * blocks / length)) if length else blocks

    def part(self, at: Attachment) -> str:
        """"warm-up", "curriculum" or "joint": what the training of ``at`` has come to."""
        free = int(policy_of(at).free)
        over = bool(at.memory["over"]) if "over" in at.memory else not (self.warm_up or self.curriculum)
        return "joint" if over else "curriculum" if free else "warm-up"

    def loss(self, at: Attachment, task: Any, model: Any, batch: Any) -> tuple[Tensor, int]:
        """The task's loss while all blocks run, then the policy's, then both.

        Raises:
            Unfit: the task has no right class for each picture.
        """
        part, policy = self.part(at), policy_of(at)
        if part == "warm-up":
            return super().loss(at, task, model, batch)
        labels = batch.get("labels") if isinstance(batch, dict) else None
        if not isinstance(labels, Tensor) or labels.dim() != 1 or labels.is_floating_point():
            raise Unfit(f"{self.name} rewards right classes, one for each picture: {getattr(task, 'name', 'this task')} has none")
        inputs, joint = task.inputs(model, batch), part == "joint"
        with policy.drawing(self.alpha):
            logits = main(model(**inputs))
        assert policy.said is not None
        (s, path), policy.said = policy.said, None
        gamma, calm = self.gamma_joint if joint else self.gamma, policy.greedy(s.detach())
        with torch.no_grad(), policy.following(calm):
            rival = main(model(**inputs))
        advantage = reward(path, logits.argmax(-1) == labels, gamma) - reward(calm, rival.argmax(-1) == labels, gamma)
        chance = bounded(s, self.alpha)
        loss = -(advantage[:, None] * log_likelihood(path, chance) * policy.unlocked()).sum(1).mean()
        if not joint:
            return loss - self.beta * (-chance * chance.log()).sum(1).mean(), len(labels)
        return (loss + task.loss(Said(logits), batch)[0] if self.joint else loss), len(labels)

    def step(self, at: Attachment, step: int, total: int) -> None:
        """Free further blocks, or begin with the last part, when it is time."""
        policy = policy_of(at)
        policy.free.fill_(self.free(step, total, policy.blocks))
        at.memory["over"] = torch.tensor(step + EDGE >= (self.warm_up + self.curriculum) * total)

    def settled(self, at: Attachment) -> bool:
        """Once every block may be left out."""
        return self.part(at) == "joint"

    def calibrate(self, at: Attachment, task: Any, batches: Iterable[Any]) -> None:
        """Leave in ``at.about["measured"]`` how many blocks are used, and how many operations that takes for a picture."""
        policy = policy_of(at)
        given = (task.inputs(at.model, batch) for batch in batches)
        one = next(given)
        paths = [policy.greedy(policy.scores(pictures.find((), inputs)[1])) for inputs in itertools.chain([one], given)]
        used = torch.cat(paths).double().mean(0)
        each = block_flops(at, one)
        at.about["measured"] = {
            "blocks": policy.blocks, "blocks_used": float(used.sum()), "used": used.tolist(), **each,
            "expected_flops": each["rest_flops"] + each["policy_flops"] + float(used @ torch.tensor(each["block_flops"]).to(used))}

    def groups(self, at: Attachment, rate: float, decay: float) -> list[dict[str, Any]]:
        """The network at a tenth of the rate of the policy and of a head."""
        return slow_down(at, super().groups(at, rate, decay))


def policy_of(at: Attachment) -> Policy:
    """The policy of an attachment."""
    return next(edit for edit in at.edits.values() if isinstance(edit, Policy))


def block_flops(at: Attachment, batch: dict[str, Any]) -> dict[str, Any]:
    """Operations for one picture, counted while it runs: of the policy, of each block, and of all that always runs."""
    policy = policy_of(at)
    one = {name: value[:1] for name, value in batch.items()}
    every = torch.ones(1, policy.blocks, dtype=torch.bool, device=policy.free.device)

    def without(*left_out: int) -> int:
        path = every.clone()
        path[:, list(left_out)] = False
        with policy.following(path):
            return flops(at.model, one)

    blocks = [without() - without(k) for k in range(policy.blocks)]
    alone = flops(policy.network, {"input": pictures.find((), one)[1].to(policy.logit.weight.dtype)})
    return {"rest_flops": without(*range(policy.blocks)), "block_flops": blocks,
            "policy_flops": alone + 2 * policy.logit.weight.numel()}
