"""Soft targets: how far a student's answer is from a teacher's, as in

Distilling the Knowledge in a Neural Network (Hinton, Vinyals, Dean; NeurIPS 2014 workshop, arXiv:1503.02531).
"""
from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

REDUCTIONS = ("batchmean", "deit_legacy")


def divergence(student: Tensor, teacher: Tensor, temperature: float, squared: bool = True, reduction: str = "batchmean") -> Tensor:
    """T² KL(softmax(v / T) || softmax(z / T)), z = ``student`` and v = ``teacher`` [n, C]; without T² unless ``squared``.

    T² keeps gradients as large as they are at T = 1: those of z are T (q - p), and none reach v. "batchmean" is the mean over rows;
    "deit_legacy", as DeiT's code has it, divides by n C, so that the term is C times smaller.
    """
    z, v = (F.log_softmax((t if t.element_size() > 4 else t.float()) / temperature, -1) for t in (student, teacher.detach()))
    summed = (v.exp() * (v - z)).sum()
    return summed * (temperature**2 if squared else 1) / (len(z) if reduction == "batchmean" else z.numel())
