"""The loss of pairs: A. Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021,
arXiv:2103.00020."""
from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def contrastive_loss(logits: Tensor) -> Tensor:
    """1/2 [CE(rows) + CE(columns)] of scaled cosines [n, n], in which picture i and text i belong together."""
    own = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
