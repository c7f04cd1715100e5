"""Convolutions of several models as one: Zoo-Tuning (Shu, Kou, Cao, Wang, Long; ICML 2021, arXiv:2106.15434)."""
from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Edit, Site, register

SHARE = 4  # a gate's hidden layer has a fourth of the input's channels, and one more


@register("aggregated-convolution")
class Aggregated(Edit):
    """A convolution whose weight is a mixture of those of E models, W_e [O, I, k, k], for each picture x [I, h, w]:

        g(x) = sigmoid(U_2 relu(U_1 mean(x)) + b_2)   in (0, 1)^E, each on its own
        W(x) = sum_e g_e(x) T_e W_e                   T_e [O, O] on the output channels, where there is an alignment
        y = x * W(x) + sum_e g_e(x) b_e               biases, where the convolutions have them

    ``models`` are the paths of the E convolutions. U_1 [I // 4 + 1, I] and U_2 [E, I // 4 + 1] are drawn Kaiming-normal (fan out),
    b_2 is zero and T_e the identity, so that gates begin near 1/2. ``lite`` takes the mean gate of the batch, and in evaluation a
    running mean G <- (1 - momentum) G + momentum g that starts at 0: then the convolution is one for all pictures.
    """

    port = "around"
    sources: list[Any]
    G: Tensor | None

    def __init__(self, site: Site, models: list[str], align: bool, lite: bool = False, momentum: float = 0.1):
        super().__init__(site)
        count, hidden = len(models), site.din // SHARE + 1
        self.models, self.momentum = models, momentum
        self.U1, self.U2 = (nn.Parameter(torch.empty(shape)) for shape in ((hidden, site.din), (count, hidden)))
        for gate in (self.U1, self.U2):
            nn.init.kaiming_normal_(gate, mode="fan_out", nonlinearity="relu")
        self.b2 = nn.Parameter(torch.zeros(count))
        self.T = nn.Parameter(torch.eye(site.dout).repeat(count, 1, 1)) if align else None
        self.register_buffer("G", torch.zeros(count) if lite else None)

    def join(self, context: Any) -> None:
        """Find the convolutions."""
        super().join(context)
        self.__dict__["sources"] = [context.home.model.get_submodule(path) for path in self.models]

    def gates(self, x: Tensor) -> Tensor:
        """x [B, I, h, w] -> g [B, E]."""
        pooled = x.mean((2, 3)).to(self.U1.dtype)
        return torch.sigmoid(F.linear(F.linear(pooled, self.U1).relu(), self.U2, self.b2))

    def aligned(self) -> Tensor:
        """T_e W_e, [E, O, I, k, k]."""
        weights = torch.stack([source.weight for source in self.sources]).to(self.U1.dtype)
        return weights if self.T is None else torch.einsum("eop,epikl->eoikl", self.T, weights)

    def mixed_bias(self, gates: Tensor) -> Tensor | None:
        """sum_e g_e b_e for gates [..., E], [..., O]; None where there are no biases."""
        if self.sources[0].bias is None:
            return None
        return gates @ torch.stack([source.bias for source in self.sources]).to(gates.dtype)

    def forward(self, run: Any, x: Tensor) -> Tensor:
        """x [B, I, h, w] -> [B, O, h', w']; the site's own convolution does not run."""
        if self.G is None:
            return self.mix_each(x)
        gates = self.G
        if self.training:
            gates = self.gates(x).mean(0)
            self.G.lerp_(gates.detach(), self.momentum)
        weight, bias = torch.tensordot(gates, self.aligned(), 1), self.mixed_bias(gates)
        return self.convolve(x, weight, 1, bias)

    def mix_each(self, x: Tensor) -> Tensor:
        """A weight for each picture, in one convolution whose groups are the pictures."""
        size, gates = len(x), self.gates(x)
        weight = torch.tensordot(gates, self.aligned(), 1).flatten(0, 1)
        y = self.convolve(x.reshape(1, -1, *x.shape[2:]), weight, size, None)
        y = y.reshape(size, -1, *y.shape[2:])
        bias = self.mixed_bias(gates)
        return y if bias is None else y + bias[:, :, None, None].to(y.dtype)

    def convolve(self, x: Tensor, weight: Tensor, pictures: int, bias: Tensor | None) -> Tensor:
        """As the site convolves, with ``pictures`` times its groups."""
        own: Any = self.site.module
        padding, weight = own.padding, weight.to(x.dtype)
        if own.padding_mode != "zeros":
            x, padding = F.pad(x, own._reversed_padding_repeated_twice, mode=own.padding_mode), 0
        bias = None if bias is None else bias.to(x.dtype)
        return F.conv2d(x, weight, bias, own.stride, padding, own.dilation, own.groups * pictures)

    @torch.no_grad()
    def collapsed(self) -> dict[str, Tensor]:
        """``weight`` (and ``bias``) of the plain convolution that a Lite one is in evaluation."""
        assert self.G is not None
        like, bias = self.sources[0].weight, self.mixed_bias(self.G)
        found = {"weight": torch.tensordot(self.G, self.aligned(), 1).to(like.dtype)}
        return found if bias is None else {**found, "bias": bias.to(like.dtype)}
