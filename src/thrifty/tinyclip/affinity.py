"""What a student learns from a teacher's towers."""
from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def affinity_loss(image: Tensor, text: Tensor, scale: Tensor | float, teacher_image: Tensor, teacher_text: Tensor,
                  teacher_scale: Tensor | float) -> Tensor:
    """1/2 [CE(A', A) + CE(A'ᵀ, Aᵀ)], A = softmax over rows of s I Tᵀ, and A' the teacher's: affinity mimicking.

    ``image``, ``text`` [n, d] and ``teacher_image``, ``teacher_text`` [n, D] have length one; only [n, n] numbers are compared, so
    d and D may differ. A student that equals the teacher pays the entropy of the teacher's affinities, with gradient zero.
    """
    logits = scale * image @ text.T
    wanted = (teacher_scale * teacher_image @ teacher_text.T).detach()
    return (F.cross_entropy(logits, wanted.softmax(1)) + F.cross_entropy(logits.T, wanted.T.softmax(1))) / 2
