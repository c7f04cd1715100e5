"""P-tuning (v1): GPT Understands, Too (Liu, Zheng, Du, Ding, Qian, Yang, Tang; AI Open 2023, arXiv:2103.10385)."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..core import Method, Shared, Site, need, register
from ..core.errors import Unfit
from .full import FullFineTuning
from .prompts.layout import Template
from .prompts.widening import Widening, put_among, writes_on

if TYPE_CHECKING:
    from ..core import Attachment


@register("p-tuning-encoder")
class Encoder(Shared):
    """p = W_2 relu(W_1 BiLSTM(e)), with e [count, d] learned, two layers of LSTM in both directions, W_2 [d, d].

    "lama" runs with d / 2 hidden numbers in each direction, so W_1 is [d, d]; "few-shot" with d, so W_1 is [2 d, d].
    """

    def __init__(self, count: int, width: int, kind: str, dropout: float = 0.0):
        super().__init__()
        self.hidden, self.dropout = width // 2 if kind == "lama" else width, dropout
        self.table = nn.Embedding(count, width)
        # Its numbers without the module, which torch.compile does not take.
        lstm = nn.LSTM(width, self.hidden, num_layers=2, bidirectional=True, batch_first=True)
        self.lstm = nn.ParameterList(lstm.parameters())
        self.first, self.second = nn.Linear(2 * self.hidden, width), nn.Linear(width, width)

    def forward(self) -> Tensor:
        """p [count, d]."""
        start = self.table.weight.new_zeros(4, 1, self.hidden)
        h = torch.lstm(self.table.weight[None], (start, start), list(self.lstm), True, 2, self.dropout, self.training, True, True)
        p: Tensor = self.second(torch.relu(self.first(h[0][0])))
        return p


@register("template")
class Pseudo(Widening):
    """Pseudo tokens p [count, d] at the places that the template names; with ``made`` the shared encoder makes them."""

    def __init__(self, site: Site, template: Template, limit: int = 0, made: bool = False):
        count = sum(n for _, n in template)
        super().__init__(site, count, limit, template)
        self.made = made
        module: Any = site.module
        if not made:
            self.prompt = nn.Parameter(torch.randn(count, module.get_input_embeddings().weight.shape[1]))

    def vectors(self, embeds: Tensor, mask: Tensor | None) -> Tensor:
        """p, whatever the text."""
        return self.context.shared() if self.made else self.prompt

    def keep(self, prompt: Tensor) -> None:
        """Hold p from now on, instead of asking the encoder."""
        self.prompt, self.made = nn.Parameter(prompt), False


@dataclass
class PTuning(Method):
    """Pseudo tokens inside the text, made by a small recurrent network from learned embeddings.

    ``template`` lists [place, count]: so many pseudo tokens before the row's token of that number, counted from the end if
    it is negative. For "[CLS] [MASK] text [SEP]" the paper's lengths (3, 3, 3) are [[1, 3], [2, 3], [-1, 3]]: three before
    the mask, three between mask and text, three at the end. By default nine stand in front. Outside nothing is longer: their
    states are taken off again, so the answer is read at the token where it was.

    ``encoder``: "lama" (the paper's knowledge probing, the model frozen), "few-shot" (its SuperGLUE, where ``model=True``
    tunes the model too), or "none": each pseudo token is its own vector, which in front is prompt tuning. After training
    ``finish`` runs the encoder for the last time and keeps what it made. A model that writes on where its text ends (a
    decoder for generation) takes no negative places: while it trains, the end of the text is what it is to write.

    The paper trains with Adam at 1e-5, decayed by 0.98 every epoch, and a weight decay of 5e-4. HF PEFT's p-tuning is
    another encoder (one LSTM and a deeper network), always in front.
    """

    name = "p-tuning"
    aliases = ("p-tuning-v1",)
    presets = {"p-tuning-few-shot": {"encoder": "few-shot", "model": True}}
    route = "input and output"
    modalities = ("text",)
    paper = "Liu et al., GPT Understands, Too, AI Open 2023, arXiv:2103.10385"
    trains = "pseudo tokens in the text, through a small recurrent network"
    inference = "as many tokens more as the template has"
    Edit = Pseudo
    identity_at_start = False
    rate = 1e-5

    template: list[list[int]] = field(default_factory=lambda: [[0, 9]])
    encoder: str = "lama"
    dropout: float = 0.0
    model: bool = False

    def start_rate(self) -> float:
        """Where the whole model trains, the rate that it bears."""
        return FullFineTuning.rate if self.model else self.rate

    def check(self) -> None:
        """The template is a list of [place, count], the encoder is known, dropout is a probability."""
        holds = isinstance(self.template, list) and bool(self.template) and all(
            isinstance(run, (list, tuple)) and len(run) == 2 and all(type(n) is int for n in run) and run[1] >= 1
            for run in self.template)
        need(holds, self, "template", "a list of [place, count], both whole numbers and count at least 1")
        need(self.encoder in ("lama", "few-shot", "none"), self, "encoder", "'lama', 'few-shot' or 'none'")
        need(0 <= self.dropout < 1, self, "dropout", "in [0, 1)")

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """The encoder at the root, the pseudo tokens where ids become states.

        Raises:
            Unfit: no token embeddings, too few positions, an odd width for two directions, or a place at the end of a text
                that the model is to continue.
        """
        kind = type(at.model).__name__
        if any(place < 0 for place, _ in self.template) and writes_on(at):
            raise Unfit(f"the template {self.template} counts from the end of the text, and {kind} writes on there: while it "
                        "trains, the end is its target. Count from the front")
        count, made = sum(n for _, n in self.template), {} if self.encoder == "none" else {"made": True}
        edit = put_among(at, Pseudo, count, self.template, **made)
        if made:
            site: Any = edit.site.module
            width = site.get_input_embeddings().weight.shape[1]
            if self.encoder == "lama" and width % 2:
                raise Unfit(f"{kind} has an odd width, {width}, which two directions of an LSTM cannot share: use "
                            "encoder='few-shot'")
            at.share(Encoder, count=count, width=width, kind=self.encoder, dropout=self.dropout)
        if self.model:
            FullFineTuning.make().attach(at)

    def finish(self, at: Attachment) -> None:
        """Run the encoder once more and drop it: the outputs do not change, less is saved."""
        if not isinstance(at.context.shared, Encoder):
            return
        prompt = at.context.shared.eval()().detach()  # with gradients, as in training: without, LSTMs round differently
        for row in at.plan:
            edit = at.edits[row.key]
            if isinstance(edit, Pseudo):
                edit.keep(prompt)
                row.numbers = {k: n for k, n in row.numbers.items() if k != "made"}
        at.unshare()
