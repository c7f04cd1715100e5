"""Opens what torch.nn keeps closed to edits.

nn.MultiheadAttention reads its projections' weights without calling them. nn.TransformerEncoder packs padded batches into
nested tensors, on which few operations are defined. Opened, both keep their keys and outputs, and every edit meets a call
on plain tensors.
"""
from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import Unfit


class Rows(nn.Module):
    """One of the q, k, v projections of an attention. It owns no parameters, so no key of the model changes."""

    owner: Any

    def __init__(self, owner: nn.MultiheadAttention, index: int):
        super().__init__()
        self.__dict__["owner"] = owner
        self.index = index
        self.in_features = (owner.embed_dim, owner.kdim, owner.vdim)[index]
        self.out_features = owner.embed_dim

    @property
    def weight(self) -> Tensor:
        """[embed_dim, in_features], a view of the owner's parameter."""
        if self.owner._qkv_same_embed_dim:
            return self.owner.in_proj_weight[self._rows()]
        return (self.owner.q_proj_weight, self.owner.k_proj_weight, self.owner.v_proj_weight)[self.index]

    @property
    def bias(self) -> Tensor | None:
        """[embed_dim], a view of the owner's parameter, or None."""
        return None if self.owner.in_proj_bias is None else self.owner.in_proj_bias[self._rows()]

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] -> [..., embed_dim]."""
        return F.linear(x, self.weight, self.bias)

    def _rows(self) -> slice:
        return slice(self.index * self.out_features, (self.index + 1) * self.out_features)


class OpenAttention(nn.MultiheadAttention):
    """Same parameters and output; q, k, v and out_proj are module calls and the attention is one SDPA call.

    Where no edit acts, the stock forward runs, bit for bit.
    """

    q: Rows
    k: Rows
    v: Rows
    wanted: bool

    def forward(self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None,
                need_weights: bool = True, attn_mask: Tensor | None = None, average_attn_weights: bool = True,
                is_causal: bool = False) -> tuple[Tensor, Tensor | None]:
        """As nn.MultiheadAttention.forward.

        Raises:
            Unfit: weights are asked for while an edit changes the attention (pass need_weights=False), the input is nested,
                or is_causal is given without the mask that it hints at.
        """
        acting: list[Any] = [e for m in (self, self.q, self.k, self.v, self.out_proj) for e in getattr(m, "edits", {}).values()
                             if getattr(e, "on", False)]
        if not acting:
            with self._as_found():
                return super().forward(query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights,
                                       is_causal)
        if query.is_nested:
            raise Unfit("nested tensors cannot pass an edited nn.MultiheadAttention: pad them and pass key_padding_mask")
        if is_causal and attn_mask is None:
            raise Unfit("nn.MultiheadAttention takes is_causal as a hint about attn_mask: pass the mask too")
        if need_weights and any(e.port == "attention" for e in acting):
            raise Unfit("attention weights are not defined while an edit changes the attention: call with need_weights=False")
        alone = query.dim() == 2
        if alone:
            query, key, value = (t.unsqueeze(0) for t in (query, key, value))
        elif not self.batch_first:
            query, key, value = (t.transpose(0, 1) for t in (query, key, value))
        q, k, v, extra = self._project(query, key, value)
        mask = self._mask(q, key_padding_mask, attn_mask, extra, alone)
        y, weights = self._attend(q, k, v, mask, need_weights)
        y = self.out_proj(y.transpose(1, 2).flatten(2))
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if alone:
            return y.squeeze(0), None if weights is None else weights.squeeze(0)
        return (y if self.batch_first else y.transpose(0, 1)), weights

    @contextlib.contextmanager
    def _as_found(self) -> Iterator[None]:
        """torch.matmul folds a batch otherwise when the weight wants a gradient, so freezing alone would move the last bit."""
        frozen: list[Tensor] = [p for p in (self.in_proj_weight, self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
                                if p is not None and not p.requires_grad]
        if not self.wanted or torch.is_grad_enabled() or torch.compiler.is_compiling() or not frozen:
            yield
            return
        for p in frozen:
            p.requires_grad_(True)
        try:
            yield
        finally:
            for p in frozen:
                p.requires_grad_(False)

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
        """q, k, v [batch, heads, length, dim], and how many key positions were appended to the given ones."""
        q, k, v = self.q(query), self.k(key), self.v(value)
        if self.bias_k is not None and self.bias_v is not None:
            k = torch.cat([k, self.bias_k.expand(len(k), -1, -1)], 1)
            v = torch.cat([v, self.bias_v.expand(len(v), -1, -1)], 1)
        q, k, v = (t.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2) for t in (q, k, v))
        if self.add_zero_attn:
            k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
        return q, k, v, k.shape[2] - key.shape[1]

    def _mask(self, q: Tensor, padding: Tensor | None, attn: Tensor | None, extra: int, alone: bool) -> Tensor | None:
        """One additive mask [batch or 1, heads or 1, queries, keys], or None."""
        total = None
        if attn is not None:
            attn = self._additive(attn, q.dtype)
            total = attn[None, None] if attn.dim() == 2 else attn.view(-1, self.num_heads, *attn.shape[1:])
        if padding is not None:
            padding = self._additive(padding[None] if alone else padding, q.dtype)[:, None, None]
            total = padding if total is None else total + padding
        return total if total is None or not extra else F.pad(total, (0, extra))

    @staticmethod
    def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
        if mask.dtype != torch.bool:
            return mask.to(dtype)
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(mask, float("-inf"))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, weights: bool) -> tuple[Tensor, Tensor | None]:
        dropout = self.dropout if self.training else 0.0
        if not weights:
            if mask is not None and mask.shape[-2] == 1:
                mask = mask.expand(-1, -1, q.shape[2], -1)
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout), None
        scores = q @ k.transpose(-2, -1) / self.head_dim**0.5
        share = F.dropout((scores if mask is None else scores + mask).softmax(-1), dropout, bool(dropout))
        return share @ v, share


class OpenEncoder(nn.TransformerEncoder):
    """Same parameters and output; while an edit acts inside, the batch stays padded, and edits see [batch, length, width]."""

    def forward(self, src: Tensor, mask: Tensor | None = None, src_key_padding_mask: Tensor | None = None,
                is_causal: bool | None = None) -> Tensor:
        """As nn.TransformerEncoder.forward."""
        padding = src_key_padding_mask
        edits = (e for m in self.modules() for e in getattr(m, "edits", {}).values())
        if padding is None or not any(getattr(e, "on", False) for e in edits):
            return super().forward(src, mask, padding, is_causal)
        empty = padding if padding.dtype == torch.bool else padding != 0
        nests = self._nests(src, mask, empty)
        for layer in self.layers:
            src = layer(src, src_mask=mask, is_causal=bool(is_causal), src_key_padding_mask=padding)
        if nests:
            src = src.masked_fill(empty.unsqueeze(-1), 0.0)
        return src if self.norm is None else self.norm(src)

    def _nests(self, src: Tensor, mask: Tensor | None, empty: Tensor) -> bool:
        """Whether the stock module would answer with zeros at padded places, as it does for nested tensors."""
        if (self.training or torch.is_grad_enabled() or torch.is_autocast_enabled() or torch.compiler.is_compiling()
                or not torch.backends.mha.get_fastpath_enabled() or not self.use_nested_tensor or src.dim() != 3
                or mask is not None):
            return False
        return not self.mask_check or bool((empty.int().diff(dim=1) >= 0).all())


for _open, _stock in ((OpenAttention, nn.MultiheadAttention), (OpenEncoder, nn.TransformerEncoder)):
    _open.__name__ = _stock.__name__  # a model's class is named in errors and files; those speak of its owner's class


def open_attention(model: nn.Module) -> None:
    """Open every stock nn.MultiheadAttention and nn.TransformerEncoder in ``model``."""
    for module in list(model.modules()):
        if type(module) is nn.MultiheadAttention:
            module.__class__ = OpenAttention
            module.__dict__["wanted"] = any(p.requires_grad for p in module.parameters(recurse=False))
            for i, name in enumerate("qkv"):
                module.add_module(name, Rows(module, i).train(module.training))
        elif type(module) is nn.TransformerEncoder:
            module.__class__ = OpenEncoder


def close_attention(model: nn.Module) -> None:
    """Undo ``open_attention``."""
    for module in list(model.modules()):
        if type(module) is OpenAttention:
            module.__class__ = nn.MultiheadAttention  # type: ignore[assignment]
            del module.__dict__["wanted"]
            for name in "qkv":
                delattr(module, name)
        elif type(module) is OpenEncoder:
            module.__class__ = nn.TransformerEncoder  # type: ignore[assignment]


def is_open(module: Any) -> bool:
    """Whether the module is an attention opened for edits."""
    return isinstance(module, OpenAttention)
