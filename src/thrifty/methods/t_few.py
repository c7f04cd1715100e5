"""T-Few, (IA)³ with the losses of its recipe: Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context
Learning (Liu, Tam, Muqeeth, Mohta, Huang, Bansal, Raffel; NeurIPS 2022, arXiv:2205.05638)."""
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor

from ..core import need
from ..core.errors import Unfit
from .ia3 import IA3

if TYPE_CHECKING:
    from ..core import Attachment

EPSILON = 1e-2  # keeps log(1 - p) finite where p is one; so the best that unlikelihood can be is -log(1 + EPSILON)


@dataclass
class TFew(IA3):
    """(IA)³ trained on the choices of a question, of which one is right:

        L = L_LM + ``unlikelihood`` L_UL + ``ranking`` L_LN

    that is: write the right choice, do not write the wrong ones, and prefer the right one by its mean likelihood per token; see
    ``losses``. It trains on multiple choice with a model that writes, an encoder-decoder in the paper, and predicts the choice
    that is likeliest per token. The vectors are not decayed. The paper's recipe: 1000 steps of batch 8, rate 3e-3, 6 % of warm-up.
    """

    name = "t-few"
    aliases = ("tfew",)

    unlikelihood: float = 1.0
    ranking: float = 1.0

    def check(self) -> None:
        """Weights are not negative."""
        need(self.unlikelihood >= 0, self, "unlikelihood", "at least 0")
        need(self.ranking >= 0, self, "ranking", "at least 0")

    def loss(self, at: Attachment, task: Any, model: Any, batch: Any) -> tuple[Tensor, int]:
        """L on the rows of a batch, and their number.

        Raises:
            Unfit: the task does not weigh choices by what a model would write.
        """
        if not hasattr(task, "weigh"):
            raise Unfit(f"t-few trains on choices, right and wrong: it needs multiple choice and a model that writes (T5, say); "
                        f"{task.name} with {type(at.model).__name__} has none. (IA)³ without its losses is the method 'ia3'")
        nll, tokens, beta = task.weigh(model, batch)
        right = task.right(batch)
        lm, ul, ln = losses(nll, tokens, beta, right)
        return lm + self.unlikelihood * ul + self.ranking * ln, len(right)


def losses(nll: Tensor, tokens: Tensor, beta: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """L_LM, L_UL and L_LN of choices c with p = exp(-nll), where ``nll`` is -log p(c_t | x, c_<t) [B, C, T].

        L_LM = mean of nll over the tokens of the right choices of the batch
        L_UL = mean of -log(1 - p + 0.01) over the tokens of the wrong ones; 0 if there are none
        L_LN = mean over rows of -log( exp beta(right) / sum_c exp beta(c) )

    ``tokens`` [B, C, T] says which entries are tokens, ``beta`` [B, C] is what the choices are ranked by (minus infinity where a
    row has fewer), and ``labels`` [B] are the numbers of the right ones.
    """
    right = F.one_hot(labels, nll.shape[1]).bool()[..., None]
    lm = (nll * (right & tokens)).sum() / (right & tokens).sum()
    wrong = tokens & ~right
    ul = -((1 - (-nll).exp() + EPSILON).log() * wrong).sum() / wrong.sum().clamp(min=1)
    return lm, ul, F.cross_entropy(beta, labels)
