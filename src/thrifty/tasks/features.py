"""One vector per example from a frozen backbone."""
from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from thrifty.core.errors import Unfit
from thrifty.models.pooled import masked_mean
from thrifty.tasks.task import Batch, predicting


def trunk_of(model: nn.Module) -> nn.Module | None:
    """The model below its head, as models of `transformers` name it; None where a model does not say."""
    prefix = getattr(model, "base_model_prefix", "")
    trunk = getattr(model, prefix, None) if prefix else None
    return trunk if isinstance(trunk, nn.Module) else None


def text_features(model: nn.Module, inputs: Batch) -> Tensor:
    """The mean of the last hidden states over the tokens [B, D]; of an encoder and decoder, of the encoder's.

    Raises: Unfit for a model without a trunk of its own.
    """
    trunk = trunk_of(model)
    if trunk is None:
        return features_before_last_linear(model, inputs)
    encoder = getattr(trunk, "encoder", None)
    if getattr(getattr(trunk, "config", None), "is_encoder_decoder", False) and encoder is not None:
        trunk = encoder
    with predicting(model):
        states = trunk(**inputs)[0]
        return masked_mean(states.float(), inputs.get("attention_mask"))


def image_features(model: nn.Module, inputs: Batch) -> Tensor:
    """What the trunk pooled, or the mean over its tokens or places [B, D]."""
    trunk = trunk_of(model)
    if trunk is None:
        return features_before_last_linear(model, inputs)
    with predicting(model):
        output = trunk(**inputs)
        pooled = getattr(output, "pooler_output", None)
        states: Tensor = output[0] if pooled is None else pooled
        if states.dim() == 3:
            return states.float().mean(dim=1)
        return states.float().flatten(2).mean(dim=2) if states.dim() == 4 else states.float()


def features_before_last_linear(model: nn.Module, inputs: Batch) -> Tensor:
    """What enters the linear layer that was called last, which in a classifier is its head [B, D].

    Raises: Unfit if no linear layer sees one vector per example.
    """
    seen: list[Tensor] = []

    def watch(_: nn.Module, given: tuple[Any, ...]) -> None:
        seen[:] = [given[0]]

    hooks = [module.register_forward_pre_hook(watch) for module in model.modules() if isinstance(module, nn.Linear)]
    try:
        with predicting(model):
            model(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    if not seen or seen[0].dim() != 2:
        raise Unfit(f"{type(model).__name__} ends in no linear layer over one vector per example; it has no features to take.")
    return seen[0].float()
