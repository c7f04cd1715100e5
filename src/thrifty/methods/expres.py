"""EXPRES: Learning Expressive Prompting With Residuals for Vision Transformers (Das, Dukler, Ravichandran, Swaminathan; CVPR 2023,
arXiv:2303.15591)."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..core import Edit, Method, Site, need, register
from ..core.errors import Unfit
from ..core.probe import guess_example, run_once
from .features.feature_head import put_head
from .features.tower import choose, specials
from .prompts.still import keep_still
from .prompts.tokens import GATHERED, Tokens, TokensRead, last_norm, tower

if TYPE_CHECKING:
    from ..core import Attachment

PLACES = {"ln1": "norm", "q": "attn.q", "k": "attn.k", "v": "attn.v", "o": "attn.o",
          "ln2": "norm", "fc1": "mlp.in", "fc2": "mlp.out"}


@register("token-residual")
class TokenResidual(Edit):
    """y_P + Delta for the learned tokens P, and for no other: Delta [length, dout], zero at the start."""

    def __init__(self, site: Site, length: int, special: int):
        super().__init__(site)
        self.special = special
        self.residual = nn.Parameter(torch.zeros(length, site.dout))

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """y [batch, tokens, dout] -> the same, changed in ``length`` rows behind ``special`` others."""
        end = self.special + len(self.residual)
        learned = y[:, self.special : end]
        return torch.cat([y[:, : self.special], learned + self.residual.to(y.dtype), y[:, end:]], 1)


@dataclass
class EXPRES(Method):
    """Tokens that enter as copies of the class token, are corrected everywhere in the blocks, and answer in its place:

        z = [CLS, P, patches];  u = LN(z), u_P += D_ln;  q = W_q u, q_P += D_q;  k, v alike;  a = W_o Attn(q, k, v), a_P += D_o
        y = Head( mean_i LN(z_L)_{P_i} )

    P [length, d] is the class token with its position, as it enters the first block, plus U(-noise, noise); each D [length, ..] is
    zero at the start. ``sites`` names where residuals are added, of ln1, q, k, v, o, ln2, fc1, fc2, in the blocks of ``where``.
    ``keep_cls`` leaves the class token in the sequence, where the head does not read it; ``pool`` is "mean" or "concat", with
    which a head on all tokens side by side takes the place of the model's own.

    A reconstruction: no code of the authors was at hand, so that ``sites``, ``noise`` and the length (1, 5, 10 or 20) are one
    consistent reading of the paper's text.
    """

    name = "expres"
    route = "input and output"
    modalities = ("image",)
    paper = "Das et al., Learning Expressive Prompting With Residuals for Vision Transformers, CVPR 2023, arXiv:2303.15591"
    trains = "tokens like the class token, and what is added to them in every block"
    inference = "`length` tokens more"
    Edit = TokenResidual
    identity_at_start = False
    rate = 1e-3

    length: int = 10
    sites: str = "ln1|q|k|v|o"
    noise: float = 0.01
    dropout: float = 0.0
    keep_cls: bool = True
    pool: str = "mean"
    where: str = "block"

    def check(self) -> None:
        """Lengths are positive, sites and the pooling are known."""
        need(self.length >= 1, self, "length", "at least 1")
        named = self.sites.split("|")
        need(set(named) <= set(PLACES) and len(set(named)) == len(named), self, "sites", f"some of {'|'.join(PLACES)}, each once")
        need(self.noise >= 0, self, "noise", "at least 0")
        need(0 <= self.dropout < 1, self, "dropout", "in [0, 1)")
        need(self.pool in ("mean", "concat"), self, "pool", "'mean' or 'concat'")

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """Tokens in at the first block, residuals in the chosen blocks, and the answer out of the last normalisation.

        Raises:
            Unfit: the model is no plain vision transformer with a class token, or a block lacks one of the sites.
        """
        _, blocks = tower(at)
        chosen, norm, special = choose(at, blocks, self.where), last_norm(at, blocks), specials(at.model)
        if not special:
            raise Unfit(f"{type(at.model).__name__} has no class token for learned tokens to start from and to stand for")
        start = _class_token(at, blocks[0])
        front = special if self.keep_cls else 0
        made: Any = at.put(blocks[0], Tokens, length=self.length, special=front, first=True, span=self.noise, dropout=self.dropout,
                           drop=0 if self.keep_cls else 1)
        if start is not None:
            with torch.no_grad():
                made.prompt.add_(start.to(made.prompt))
        named = {name: at.sites(PLACES[name]) for name in self.sites.split("|")}
        for block in chosen:
            for name, sites in named.items():
                at.put(_place(block, name, sites), TokenResidual, length=self.length, special=front)
        at.put(norm, TokensRead, length=self.length, special=front)
        if self.pool == "concat":
            put_head(at, self.length * blocks[-1].dout, own=False, unit=False, pieces=[GATHERED])
        keep_still(at)


def _place(block: Site, name: str, sites: list[Site]) -> Site:
    """The site that EXPRES calls ``name`` in a block, out of all ``sites`` of its role.

    Raises:
        Unfit: there is none, or several could be meant.
    """
    inside = [s for s in sites if s.path.startswith(block.path + ".")]
    if PLACES[name] == "norm":
        inside = [s for s in inside if not {"attn", "mlp"} & set(s.within)]
        inside = [inside[name == "ln2"]] if len(inside) == 2 else inside[:0]
    if len(inside) != 1:
        raise Unfit(f"sites: {block.path!r} ({type(block.module).__name__}) has no single place {name!r}")
    return inside[0]


def _class_token(at: Attachment, block: Site) -> Tensor | None:
    """The class token [d] as it enters the first block, whatever the picture; None for a model without numbers.

    Raises:
        Unfit: what the model takes in is not known.
    """
    if at.seen.device.type == "meta":
        return None
    example = at.seen.example if at.seen.example is not None else guess_example(at.model)
    if example is None:
        raise Unfit(f"what enters the blocks of {type(at.model).__name__} is only known by running it: pass example= (a batch)")
    seen: list[Tensor] = []
    handle = block.module.register_forward_pre_hook(lambda module, args, kwargs: seen.append(args[0] if args else
                                                    next(v for v in kwargs.values() if isinstance(v, Tensor))), with_kwargs=True)
    try:
        run_once(at.model, example)
    finally:
        handle.remove()
    return seen[0][0, 0]
