"""Prompt tuning: PEFT's prompt_embeddings, and our prompt in front of the embedded text.

Both give the same states to the text. PEFT also returns those of the prompt, which here are taken off: logits [batch, P +
tokens, ...] there are [batch, tokens, ...] here, equal from P on.
"""
from __future__ import annotations

from typing import Any

from torch import Tensor

from ...core import Attachment
from .config import Config
from .place import refuse_shape, take
from .refusal import CannotExpress
from .tasks import PROMPT_TASKS, task
from .weights import PROMPT


def read(at: Attachment, config: Config, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Put the prompt on the model; takes what it uses out of ``tensors`` and returns the attachment's state.

    For an encoder-decoder PEFT keeps a second half, for the decoder, which its forward pass never reads: it is left out.

    Raises:
        BrokenArtifact: the prompt has another shape than the config and the model ask for.
        CannotExpress: PEFT's head for this task would look at the prompt's states.
    """
    from ...methods.prompt import PromptTuning

    kind = task(at.model, config, PROMPT_TASKS)
    model: Any = at.model
    values, count = take(tensors, PROMPT), config["num_virtual_tokens"]
    times = 2 if kind == "SEQ_2_SEQ_LM" and config.get("num_transformer_submodules") != 1 else 1
    refuse_shape(PROMPT, values, (count * times, model.get_input_embeddings().weight.shape[1]))
    at.method = PromptTuning.make(length=count, init="uniform")
    at.method.check()
    at.method.attach(at)
    return {f"edit:{row.key}:prompt": values[:count] for row in at.plan if row.edit == "prompt"}


def write(at: Attachment, config: Config) -> dict[str, Tensor]:
    """Complete ``config`` and return the prompt.

    Raises:
        CannotExpress: PEFT's head for this task would look at the prompt's states, or there are several prompts.
    """
    prompts: list[Any] = [at.edits[row.key] for row in at.plan if row.edit == "prompt"]
    if len(prompts) != 1:
        raise CannotExpress(f"{len(prompts)} prompts in one adapter: PEFT has one")
    values: Tensor = prompts[0].prompt.detach()
    config |= {"num_virtual_tokens": len(values), "token_dim": values.shape[1], "num_transformer_submodules": 1}
    return {PROMPT: values}
