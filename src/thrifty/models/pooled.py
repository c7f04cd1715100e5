"""Sentence encoders with a linear head on the mean of their last hidden states.

A sentence encoder is trained through the mean over its tokens (N. Reimers and I. Gurevych, "Sentence-BERT: Sentence Embeddings
using Siamese BERT-Networks", EMNLP 2019, arXiv:1908.10084). The sequence classifiers of `transformers` read the first token
through a "pooler" instead, which such training never touches: in all-MiniLM-L6-v2 its bias is exactly zero, and a linear
probe on it reaches 62 % on TREC, where the mean reaches 84 %.
"""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from thrifty.core.errors import BrokenArtifact

_CONFIG = Path("1_Pooling") / "config.json"


def pools_by_mean(folder: Path) -> bool:
    """Whether the folder of a model says that it is a sentence encoder made for the mean over tokens, and nothing else.

    Raises: BrokenArtifact if the file that says so is not JSON.
    """
    if not (folder / _CONFIG).is_file():
        return False
    try:
        modes = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise BrokenArtifact(f"{folder / _CONFIG} is not JSON: {error}.") from error
    chosen = [key for key, value in modes.items() if key.startswith("pooling_mode") and value is True]
    return chosen == ["pooling_mode_mean_tokens"]


def masked_mean(states: Tensor, mask: Tensor | None) -> Tensor:
    """The mean of states [B, T, D] over the tokens that ``mask`` [B, T] keeps -> [B, D]."""
    if mask is None:
        return states.mean(dim=1)
    kept = mask.to(states.dtype).unsqueeze(-1)
    return (states * kept).sum(dim=1) / kept.sum(dim=1).clamp(min=1e-9)


class SentenceClassifier(nn.Module):
    """logits = classifier(dropout(mean over tokens of trunk(x))).

    The trunk stands under the name that its family uses (``bert``, ``mpnet``), so parameters are called as they are in
    the sequence classifiers of `transformers`. Like those, it takes labels and then gives a loss too.
    """

    def __init__(self, trunk: nn.Module, outputs: int) -> None:
        from transformers.modeling_outputs import SequenceClassifierOutput

        super().__init__()
        self._answer = SequenceClassifierOutput
        config = cast(Any, trunk.config)
        self.config = config
        self.base_model_prefix = cast(str, trunk.base_model_prefix)
        if getattr(trunk, "pooler", None) is not None:
            trunk.register_module("pooler", None)  # never read, but it would be counted and offered to methods
        self.add_module(self.base_model_prefix, trunk)
        dropout = next((p for p in (getattr(config, key, None) for key in
                                    ("classifier_dropout", "hidden_dropout_prob", "dropout")) if p is not None), 0.1)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(config.hidden_size, outputs)
        nn.init.normal_(self.classifier.weight, std=getattr(config, "initializer_range", 0.02))
        nn.init.zeros_(self.classifier.bias)

    def read_head(self, folder: Path) -> bool:
        """Take the classifier that the checkpoint in ``folder`` holds (a merged model does); False if it has none of this size."""
        from safetensors import safe_open

        own, found = self.classifier.state_dict(), {}
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, "pt") as file:
                held = set(file.keys())
                found |= {name: file.get_tensor(f"classifier.{name}") for name in own if f"classifier.{name}" in held}
        if {name: t.shape for name, t in found.items()} != {name: t.shape for name, t in own.items()}:
            return False
        self.classifier.load_state_dict(found)
        return True

    @property
    def base_model(self) -> nn.Module:
        """The trunk."""
        return cast(nn.Module, getattr(self, self.base_model_prefix))

    def get_input_embeddings(self) -> nn.Module:
        """The trunk's token embeddings."""
        return cast(nn.Module, cast(Any, self.base_model).get_input_embeddings())

    def gradient_checkpointing_enable(self, **settings: Any) -> None:
        """Trade compute for memory inside the trunk, as `transformers` does."""
        cast(Any, self.base_model).gradient_checkpointing_enable(**settings)

    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None,
                token_type_ids: Tensor | None = None, inputs_embeds: Tensor | None = None,
                labels: Tensor | None = None) -> Any:
        """Token ids [B, T], or embeddings [B, T, D] -> logits [B, outputs]; ids [B, C, T] of C choices -> logits [B, C]."""
        choices = input_ids.shape[1] if input_ids is not None and input_ids.dim() == 3 else None
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        if choices is not None:
            given = {key: None if value is None else value.flatten(0, 1) for key, value in given.items()}
        states = self.base_model(**{key: value for key, value in given.items() if value is not None},
                                 **({} if inputs_embeds is None else {"inputs_embeds": inputs_embeds}))[0]
        logits = self.classifier(self.dropout(masked_mean(states, given["attention_mask"])))
        if choices is not None:
            logits = logits.view(-1, choices)
        return self._answer(loss=None if labels is None else self._loss(logits, labels), logits=logits)

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.config.problem_type == "regression":
            return nn.functional.mse_loss(logits.squeeze(-1), labels)
        return nn.functional.cross_entropy(logits, labels)
