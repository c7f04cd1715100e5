"""What PEFT calls the task of a model, which decides how it runs a prompt or prefix through it."""
from __future__ import annotations

from typing import Any

from .config import Config
from .refusal import CannotExpress

ENDINGS = {"ForCausalLM": "CAUSAL_LM", "LMHeadModel": "CAUSAL_LM", "ForTokenClassification": "TOKEN_CLS",
           "ForSequenceClassification": "SEQ_CLS", "ForConditionalGeneration": "SEQ_2_SEQ_LM"}
PROMPT_TASKS = {"CAUSAL_LM": "", "TOKEN_CLS": "", "SEQ_2_SEQ_LM": "",
                "SEQ_CLS": "PEFT classifies by a position counted from the prompt's beginning, here from the text's"}
PREFIX_TASKS = {"CAUSAL_LM": "", "SEQ_CLS": ""}


def task(model: Any, config: Config, known: dict[str, str]) -> str:
    """PEFT's name for the task of ``model``, one of those in ``known`` that have no reason against them.

    Raises:
        CannotExpress: the model's task is another one, or not the one in ``config``.
    """
    name = type(model).__name__
    found = next((t for ending, t in ENDINGS.items() if name.endswith(ending)), None)
    said = config.get("task_type")
    if found is None or found not in known or known[found]:
        why = known.get(found or "") or f"what can be told of it are {', '.join(t for t, no in known.items() if not no)}"
        raise CannotExpress(f"how PEFT runs {config['peft_type']} through {name} has no equal here: {why}")
    if said is not None and said != found:
        raise CannotExpress(f"the adapter is for the task {said}, {name} is for {found}")
    return found
