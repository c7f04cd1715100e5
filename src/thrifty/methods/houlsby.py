"""Adapters: Parameter-Efficient Transfer Learning for NLP (Houlsby, Giurgiu, Jastrzebski, Morrone, de Laroussilhe, Gesmundo,
Attariyan, Gelly; ICML 2019, arXiv:1902.00751)."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..core import Method, Site, need
from .branches.bottleneck import Bottleneck

if TYPE_CHECKING:
    from ..core import Attachment


@dataclass
class Houlsby(Method):
    """h + A(h) after the attention and after the feed-forward network of every layer; every normalisation trains too.

        a = LN(x + Adapter(drop(SA(x) W_O))),  y = LN(a + Adapter(drop(FFN(a))))

    The adapter stands between the sub-layer's dropout and the residual sum (where a model drops by a function call and not
    by a module: just before the dropout). Cross-attention gets none; ``where="after.*"`` gives it one too.

    ``preset="official"`` is the authors' code: rank 64, the tanh form of GELU, both weights drawn from a normal truncated
    at two deviations of 1e-3, so that the model starts near, but not at, the base. ``"adapterhub"`` is what AdapterHub calls
    houlsby: rank d / 16, swish, N(0, 0.02), normalisations frozen.
    """

    name = "houlsby"
    aliases = ("adapter",)
    presets = {"double_seq_bn": {"preset": "adapterhub"}}
    route = "add modules"
    paper = "Houlsby et al., Parameter-Efficient Transfer Learning for NLP, ICML 2019, arXiv:1902.00751"
    trains = "two bottlenecks per layer, and every normalisation"
    inference = "two small networks more per layer"
    Edit = Bottleneck
    identity_at_start = False
    rate = 3e-4

    rank: int = 0
    preset: str = "official"
    where: str = "after.attn|after.mlp"

    def check(self) -> None:
        """The preset is known; a rank of 0 stands for the preset's."""
        need(self.preset in ("official", "adapterhub"), self, "preset", "'official' or 'adapterhub'")
        need(self.rank >= 0, self, "rank", "positive, or 0 for the preset's own")

    def numbers(self, site: Site) -> dict[str, Any]:
        """The preset's activation and start."""
        if self.preset == "official":
            return {"rank": self.rank or 64, "act": "gelu_tanh", "init": "truncated", "std": 1e-3}
        return {"rank": self.rank or max(1, site.dout // 16), "act": "swish", "init": "normal", "std": 0.02}

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """Put the adapters, and claim the normalisations (that of the embeddings included) if the preset trains them."""
        super().attach(at, batches)
        if self.preset == "official":
            at.train_matching("norm*", wildcard=True)
