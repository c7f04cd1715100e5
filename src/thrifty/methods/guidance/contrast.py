"""Contrast with queues of keys, one queue for each class, as Bi-Tuning learns by it (Zhong et al., arXiv:2011.06182)."""
from __future__ import annotations

import math

import torch
from torch import Tensor


def contrast(own: Tensor, queued: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """KL(even over the K + 1 positives || softmax of all similarities / T), a mean over the batch.

    ``own`` [B] is the similarity of each example to its own key, ``queued`` [B, C, K] to the K keys in the queue of each class; its
    own key and those of its class ``labels`` [B] are its positives.
    """
    rows = torch.arange(len(labels), device=labels.device)
    every = torch.cat([own[:, None], queued.flatten(1)], 1) / temperature
    positives = torch.cat([own[:, None], queued[rows, labels]], 1) / temperature
    return (every.logsumexp(1) - positives.mean(1)).mean() - math.log(positives.shape[1])


def enqueue(queue: Tensor, places: Tensor, keys: Tensor, labels: Tensor) -> Tensor:
    """Write ``keys`` [B, d] over the oldest in the queues of their classes, ``queue`` [C, K, d], one after the other.

    ``places`` [C] are where the next key of each class goes; returns where they go then.
    """
    places = places.clone()
    for key, label in zip(keys, labels.tolist(), strict=True):
        queue[label, places[label]] = key
        places[label] = (places[label] + 1) % queue.shape[1]
    return places
