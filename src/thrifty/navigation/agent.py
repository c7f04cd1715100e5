"""A navigator that remembers: History Aware Multimodal Transformer for Vision-and-Language Navigation (HAMT; Chen, Guhur, Schmid,
Laptev; NeurIPS 2021, arXiv:2110.13309)."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from thrifty.core.errors import Unfit
from thrifty.navigation.config import AgentConfig
from thrifty.navigation.layers import EPSILON, CrossEncoder, Encoder, Fixed, hide
from thrifty.navigation.senses import History, Options, Words
from thrifty.navigation.world import CONTEXT


class Agent(nn.Module):
    """Weighs the options of each step by the instruction, by what is seen, and by all steps before.

    The modules have names by which methods find them: ``language.layer``, ``history.panorama.layer`` and ``cross.layer`` are stacks
    of blocks, ``head`` is the head. ``example()`` is a batch for ``thrifty.attach(..., example=agent.example())``.
    """

    def __init__(self, config: AgentConfig | None = None) -> None:
        super().__init__()
        self.config = c = config or AgentConfig()
        self.embeddings = Words(c)
        self.language = Encoder(c.language_layers, c.width, c.heads, c.hidden, c.dropout)
        self.language_out = Fixed() if c.fixed_language else nn.Identity()
        self.options = Options(c)
        self.history = History(c)
        self.history_out = Fixed() if c.fixed_history else nn.Identity()
        self.feature_dropout = nn.Dropout(c.feature_dropout)
        self.cross = CrossEncoder([c.language_attends and heard for heard in c.heard], c.width, c.heads, c.hidden, c.dropout)
        self.head = nn.Sequential(nn.Linear(c.width, c.width), nn.ReLU(), nn.LayerNorm(c.width, eps=EPSILON),
                                  nn.Dropout(c.dropout), nn.Linear(c.width, 1))
        self.apply(_begin)

    def read(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        """The language [B, L, width] that enters the cross-modal layers, which is the same in all steps of an episode.

        It is one tensor, or one for each layer where language is not changed by what is seen: the layers' own language parts,
        each of the same states.
        """
        if input_ids.shape[1] > self.config.positions:
            raise Unfit(f"an instruction has {input_ids.shape[1]} tokens, and the agent has {self.config.positions} positions")
        mask = hide(attention_mask)
        states: Tensor = self.language_out(self.language(self.embeddings(input_ids), mask))
        if self.config.language_attends:
            return (states,)
        layers: Any = self.cross.layer
        return states, *(layer.language(states, mask) for layer in layers[:-1])

    def remember(self, images: Tensor, angles: Tensor, views: Tensor, view_angles: Tensor) -> Tensor:
        """The tokens [B, 1 + H, width] of the H steps that were taken, behind the learned first."""
        if images.shape[1] > self.config.steps:
            raise Unfit(f"a walk has {images.shape[1]} steps, and the agent has positions for {self.config.steps}")
        tokens = self.history.first(len(images))
        if images.shape[1]:
            taken = self.history(self.feature_dropout(images), angles, self.feature_dropout(views), view_angles)
            tokens = torch.cat([tokens, taken], 1)
        out: Tensor = self.history_out(tokens)
        return out

    def forward(self, input_ids: Tensor, attention_mask: Tensor, past_images: Tensor, past_angles: Tensor, past_views: Tensor,
                past_view_angles: Tensor, images: Tensor, angles: Tensor, kinds: Tensor,
                language: Sequence[Tensor] | None = None) -> Tensor:
        """Logits [B, S, C] of the C options in each of S decisions, minus infinity where an option cannot be taken.

        The decisions are the last S of a walk of H steps and one more: the last sees all H steps, the one before it H - 1, and so
        on. So a walk may be learnt as a whole (S = H + 1) or decided step by step (S = 1).

        Args:
            input_ids, attention_mask: the instruction [B, L].
            past_images, past_angles: the view looked along at each step [B, H, features], and the turn then taken [B, H, 4].
            past_views, past_view_angles: the whole panoramas [B, H, 36, features] and [B, H, 36, 4].
            images, angles: the options [B, S, C, features] and [B, S, C, 4].
            kinds: 1 for an option that leads somewhere, 2 for stopping, 0 for context, -1 for padding [B, S, C].
            language: what ``read`` gave for the same instructions, so that they are not read again.

        Raises:
            Unfit: there are more decisions than steps, or what was given is too long or too wide.
        """
        rows, decisions, steps = *kinds.shape[:2], past_images.shape[1]
        if decisions > steps + 1:
            raise Unfit(f"{decisions} decisions cannot be the last of a walk of {steps} steps")
        if images.shape[-1] != self.config.features:
            raise Unfit(f"what is seen has {images.shape[-1]} features, and the agent was made for {self.config.features}")
        texts = [t.repeat_interleave(decisions, 0) for t in language or self.read(input_ids, attention_mask)]
        past = self.remember(past_images, past_angles, past_views, past_view_angles).repeat_interleave(decisions, 0)
        flat = kinds.flatten(0, 1)
        types = self.embeddings.token_type_embeddings(torch.ones_like(flat))
        seen = self.options(self.feature_dropout(images).flatten(0, 1), angles.flatten(0, 1), flat, types)
        ends = torch.arange(steps - decisions + 1, steps + 1, device=kinds.device).repeat(rows)
        known = torch.arange(steps + 1, device=kinds.device) <= ends[:, None]
        vision, words = self.cross(torch.cat([past, seen], 1), hide(torch.cat([known, flat >= 0], 1)), texts,
                                   hide(attention_mask).repeat_interleave(decisions, 0))
        weighed = self.head(vision[:, steps + 1 :] * self._beside(vision, words)).squeeze(-1)
        logits: Tensor = weighed.masked_fill(flat <= CONTEXT, -torch.inf).unflatten(0, (rows, decisions))
        return logits

    def _beside(self, vision: Tensor, words: Tensor) -> Tensor | float:
        """What each option is multiplied by: the first token of the language, of the history, or both."""
        found: dict[str, Tensor | float] = {"alone": 1.0, "text": words[:, :1], "history": vision[:, :1],
                                            "both": words[:, :1] + vision[:, :1]}
        return found[self.config.action]

    def example(self, rows: int = 2, steps: int = 3, seed: int = 0) -> dict[str, Tensor]:
        """Made-up walks, as ``forward`` takes them, all decisions at once."""
        c, drawn = self.config, torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=drawn)

        kinds = torch.tensor([1, 1, 2, 0]).repeat(rows, steps + 1, 1)
        return {"input_ids": torch.randint(1, c.vocabulary, (rows, 5), generator=drawn),
                "attention_mask": torch.tensor([[1] * 5] + [[1] * 3 + [0] * 2] * (rows - 1)),
                "past_images": draw(rows, steps, c.features), "past_angles": draw(rows, steps, c.angles),
                "past_views": draw(rows, steps, 36, c.features), "past_view_angles": draw(rows, steps, 36, c.angles),
                "images": draw(rows, steps + 1, 4, c.features), "angles": draw(rows, steps + 1, 4, c.angles), "kinds": kinds}


@torch.no_grad()
def _begin(module: nn.Module) -> None:
    """As BERT: weights from N(0, 0.02), biases zero."""
    if isinstance(module, nn.Linear):
        module.weight.normal_(std=0.02)
        module.bias.zero_()
    elif isinstance(module, nn.Embedding):
        module.weight.normal_(std=0.02)
        if module.padding_idx is not None:
            module.weight[module.padding_idx].zero_()
