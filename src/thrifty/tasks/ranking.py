"""How likely a model that writes finds each of several texts behind a prompt."""
from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn

from thrifty.core.errors import BadData
from thrifty.tasks.encoding import IGNORED
from thrifty.tasks.generation import Generation
from thrifty.tasks.seq2seq_generation import Seq2SeqGeneration
from thrifty.tasks.task import Batch, predicting

Example = dict[str, Any]    # a prompt joined with a target, as a `Generation` encodes it


def lay_out(writer: Generation, rows: Sequence[Sequence[Example]]) -> Batch:
    """What the model takes, one row a choice [B, C, ...]; ``targets``, the choices' tokens [B, C, T].

    A row with fewer choices than others is filled with its first choice again, of which no token is a target.
    """
    most = max(map(len, rows))
    flat = []
    for row in rows:
        empty = {**row[0], "labels": [IGNORED] * len(row[0]["labels"])}
        flat += [*row, *[empty] * (most - len(row))]
    batch = {key: value.unflatten(0, (-1, most)) for key, value in writer.collate(flat).items()}
    batch["targets"] = batch.pop("labels")
    return batch


def weigh(writer: Generation, model: nn.Module, batch: Batch, power: float) -> tuple[Tensor, Tensor, Tensor]:
    """Of a batch as `lay_out` makes it: -log p of every token of every choice, 0 elsewhere; which tokens those are; both [B, C, T];
    and beta [B, C], the sum of log p over a choice's T tokens, divided by T^power.

    beta is minus infinity where a choice is only filling. An encoder reads a prompt once if all choices of a row share it.
    """
    shape = batch["targets"].shape[:2]
    flat = {key: value.flatten(0, 1) for key, value in batch.items()}
    prompts = batch["input_ids"]
    once = isinstance(writer, Seq2SeqGeneration) and torch.equal(prompts, prompts[:, :1].expand_as(prompts))
    with reading_once(model, shape[1], shape.numel()) if once else nullcontext():
        losses, wanted = writer.token_losses(model, {**flat, "labels": flat.pop("targets")})
    losses, wanted = losses.unflatten(0, shape), wanted.unflatten(0, shape)
    length = wanted.sum(-1)
    beta = -losses.sum(-1) / length.clamp(min=1) ** power
    return losses, wanted, beta.masked_fill(length == 0, -torch.inf)


def rank(writer: Generation, model: nn.Module, rows: Sequence[Sequence[Example]], size: int, power: float) -> list[list[float]]:
    """beta of every choice of every row; about ``size`` choices go through the model at once, without gradients.

    Raises: BadData for a likelihood that is not finite.
    """
    device = next(model.parameters()).device
    step = max(1, size // max(map(len, rows)))
    found: list[list[float]] = []
    with predicting(model):
        for start in range(0, len(rows), step):
            chosen = rows[start:start + step]
            batch = {key: value.to(device) for key, value in lay_out(writer, chosen).items()}
            beta = weigh(writer, model, batch, power)[2].double().tolist()
            found += [scores[:len(row)] for scores, row in zip(beta, chosen, strict=True)]
    if not all(math.isfinite(score) for scores in found for score in scores):
        raise BadData("the likelihood of an answer is not finite; the model or its precision has overflowed.")
    return found


def shares(scores: Sequence[float]) -> list[float]:
    """Log-likelihoods as probabilities among the choices of one row."""
    return torch.tensor(scores, dtype=torch.float64).softmax(dim=0).tolist()


@contextmanager
def reading_once(model: nn.Module, times: int, rows: int) -> Iterator[None]:
    """While the context lasts, the encoder of ``model`` reads one of every ``times`` equal rows, and its answer is repeated.

    ``rows`` is the number of rows that the model is called with.
    """
    encoder = cast(Any, model).get_encoder()

    def spare(_: nn.Module, args: Any, kwargs: Any) -> Any:
        kept = [v[::times] if isinstance(v, Tensor) and v.dim() and len(v) == rows else v for v in (*args, *kwargs.values())]
        return tuple(kept[:len(args)]), dict(zip(kwargs, kept[len(args):], strict=True))

    def repeat(out: Any) -> Any:
        if isinstance(out, Tensor):
            return out.repeat_interleave(times, 0)
        if isinstance(out, Mapping):
            return cast(Any, type(out))(**{key: repeat(value) for key, value in out.items()})
        return type(out)(map(repeat, out)) if isinstance(out, (tuple, list)) else out

    handles = (encoder.register_forward_pre_hook(spare, with_kwargs=True),
               encoder.register_forward_hook(lambda _, args, out: repeat(out)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
