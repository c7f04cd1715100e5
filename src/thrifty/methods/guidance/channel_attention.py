"""Channel attention, as DELTA weighs feature maps: how much worse the task becomes without a channel.

DELTA: DEep Learning Transfer using Feature Map with Attention (Li, Xiong, Wang, Rao, Liu, Huan; ICLR 2019, arXiv:1901.09229).
"""
from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...core import Site
from ...core.errors import ThriftyError
from ...core.hooks import main, with_main
from ...core.probe import run_once
from ..features.reading import find_reader, inputs_of

if TYPE_CHECKING:
    from ...core import Attachment

SHARPNESS = 5  # what standardised importances are divided by
Batch = dict[str, Tensor]


def measure_attention(at: Attachment, places: list[Site], batches: Iterable[Any], epochs: int,
                      iterations: int) -> dict[str, Tensor]:
    """Path of each place -> a [channels], the weights of its channels: ``weigh`` of the mean increase of the loss.

    First a head for the task is fitted to the frozen features, for ``epochs`` passes; the model gets its own head back. Then each
    channel is silenced on ``iterations`` batches of rows that are drawn from all. That is one forward pass for each channel and
    batch: 3,840 channels of a ResNet-50.

    Raises:
        ThriftyError: there is no row of data.
    """
    reader = find_reader(at)
    head: Any = reader.module
    features: list[Tensor] = []
    labels: list[Tensor] = []
    rows: list[Batch] = []
    size = 1
    with _noting(head, features):
        for batch in batches:
            size = max(size, len(batch["labels"]))
            run_once(at.model, inputs_of(batch))
            labels.append(batch["labels"])
            rows = _draw(rows, batch, len(torch.cat(labels)), iterations * size)
    if not labels:
        raise ThriftyError("there is no row of data by which DELTA could weigh channels: set attention=False")
    sample = [{key: torch.cat([row[key] for row in rows[i : i + size]]) for key in rows[0]} for i in range(0, len(rows), size)]
    own = {name: p.detach().clone() for name, p in head.named_parameters(recurse=False)}
    try:
        _fit(head, torch.cat(features).float(), torch.cat(labels), epochs, size)
        return {place.path: weigh(_importance(at, place, sample)) for place in places}
    finally:
        for name, value in own.items():
            head.get_parameter(name).data.copy_(value)


def weigh(delta: Tensor) -> Tensor:
    """softmax(z / 5) of the standardised importances z of ``delta`` [channels]; alike where none differs from another."""
    spread = delta.std(correction=0)
    z = (delta - delta.mean()) / spread if spread > 0 else torch.zeros_like(delta)
    return (z / SHARPNESS).softmax(0)


def channel_axis(map: Tensor, channels: int) -> int:
    """Along which axis the channels of a feature map lie: the second of pictures [B, C, h, w], the last of tokens [B, N, d]."""
    return 1 if map.dim() == 4 and map.shape[1] == channels else -1


@torch.no_grad()
def _importance(at: Attachment, place: Site, sample: list[Batch]) -> Tensor:
    """The mean over the batches of how much the loss increases without each channel."""
    whole = torch.stack([_error(at, batch) for batch in sample])
    found = []
    for channel in range(place.dout):
        with silenced(place, channel):
            found.append((torch.stack([_error(at, batch) for batch in sample]) - whole).mean())
    return torch.stack(found)


@contextmanager
def silenced(place: Site, channel: int) -> Iterator[None]:
    """While the context lasts one channel gives out what it would with a filter of zeros: the bias, or nothing."""
    bias = place.bias if isinstance(getattr(place.module, "bias", None), Tensor) else None

    def silence(_: Any, __: Any, out: Any) -> Any:
        y = main(out).clone()
        y.select(channel_axis(y, place.dout), channel).copy_(torch.zeros(()) if bias is None else bias[channel])
        return with_main(out, y)

    handle = place.module.register_forward_hook(silence)
    try:
        yield
    finally:
        handle.remove()


def _error(at: Attachment, batch: Batch) -> Tensor:
    return F.cross_entropy(main(run_once(at.model, inputs_of(batch))).float(), batch["labels"])


@contextmanager
def _noting(head: Any, features: list[Tensor]) -> Iterator[None]:
    handle = head.register_forward_pre_hook(lambda _, given: features.append(given[0]))
    try:
        yield
    finally:
        handle.remove()


def _draw(rows: list[Batch], batch: Batch, seen: int, most: int) -> list[Batch]:
    """``rows``, each a batch of one, with those of ``batch`` among them; of all ``seen`` so far each is kept with one chance."""
    first = seen - len(batch["labels"])
    for i in range(len(batch["labels"])):
        row = {key: value[i : i + 1] for key, value in batch.items()}
        if len(rows) < most:
            rows.append(row)
        elif (place := int(torch.randint(first + i + 1, ()))) < most:
            rows[place] = row
    return rows


def _fit(head: Any, features: Tensor, labels: Tensor, epochs: int, size: int) -> None:
    """Train a linear head on features that stand still."""
    weight = head.weight.detach().float().clone().requires_grad_()
    bias = None if head.bias is None else head.bias.detach().float().clone().requires_grad_()
    optimiser = torch.optim.AdamW([p for p in (weight, bias) if p is not None], lr=1e-2, weight_decay=0.0)
    for _ in range(epochs):
        for chosen in torch.randperm(len(labels)).to(labels.device).split(size):
            optimiser.zero_grad()
            F.cross_entropy(F.linear(features[chosen], weight, bias), labels[chosen]).backward()
            optimiser.step()
    head.weight.data.copy_(weight.detach())
    if bias is not None:
        head.bias.data.copy_(bias.detach())
