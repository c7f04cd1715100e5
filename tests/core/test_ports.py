"""Ports: in which order edits of several attachments act, and what reaches an attention's output."""
from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thrifty.artifact import read
from thrifty.core import Attachment, AttentionEdit, Edit, Site, register
from thrifty.core.errors import BrokenArtifact


@register("test-bracket-open")
class Open(Edit):
    """Puts a row of ``value`` in front."""

    port = "call"

    def __init__(self, site: Site, value: float):
        super().__init__(site)
        self.value = value

    def forward(self, args: Any, kwargs: Any) -> Any:
        return (torch.cat([torch.full_like(args[0][:1], self.value), args[0]]),), kwargs


@register("test-bracket-close")
class Close(Edit):
    """Takes the first row away, and remembers it."""

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        self.context.taps["gone"] = y[0]
        return y[1:]


@register("test-doubled")
class Doubled(AttentionEdit):
    """Adds the logits' scale times the queries to what the attention gives out."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return q, k, v

    def attended(self, y: Tensor, q: Tensor, scale: float) -> Tensor:
        return y + scale * q


class Attention(nn.Module):
    def __init__(self, scale: float | None):
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x, scale=self.scale)


def test_what_calls_put_in_and_outputs_take_away_nests_like_brackets() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    nn.init.eye_(model[0].weight), nn.init.zeros_(model[0].bias)
    x = torch.randn(3, 2)
    ats = []
    for i, name in enumerate(("older", "newer")):
        at = Attachment(model, name)
        (site,) = at.sites("linear")
        at.put(site, Open, value=float(i + 1)), at.put(site, Close)
        ats.append(at)
    torch.testing.assert_close(model(x), x)
    assert [float(at.context.taps["gone"][0]) for at in ats] == [1.0, 2.0]
    for at in ats:
        at.detach()


@pytest.mark.parametrize("scale", [None, 3.0])
def test_what_an_attention_gives_out_can_be_added_to(scale: float | None) -> None:
    model = nn.Sequential()
    model.attn = Attention(scale)
    model.forward = lambda x: model.attn(x)
    x = torch.randn(2, 3, 5, 4)
    base = model(x)
    at = Attachment(model)
    at.seen.example = x
    at.put(Site("attn", model.attn, "attn", seen=at.seen), Doubled)
    torch.testing.assert_close(model(x), base + (0.5 if scale is None else scale) * x)
    at.disable()
    assert torch.equal(model(x), base)


@register("test-asking")
class Asking(AttentionEdit):
    """Puts a query and two keys in front, and takes the query's answer off again."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        front = torch.ones_like(k[..., :2, :])
        return torch.cat([torch.ones_like(q[..., :1, :]), q], -2), torch.cat([front, k], -2), torch.cat([2 * front, v], -2)

    def attended(self, y: Tensor, q: Tensor, scale: float) -> Tensor:
        self.context.taps["asked"] = y[..., :1, :]
        return y[..., 1:, :]


@pytest.mark.parametrize("masked", ["none", "bool", "float", "row", "causal"])
def test_queries_in_front_see_every_key_and_no_row_moves(masked: str) -> None:
    x = torch.randn(2, 1, 3, 4, generator=torch.Generator().manual_seed(0))
    seen = torch.tensor([[True, False, True], [True, True, False], [False, True, True]])
    seen = {"row": seen[:1], "causal": torch.ones(3, 3).tril().bool(), "none": torch.ones(3, 3).bool()}.get(masked, seen)
    masks = {"none": {}, "causal": {"is_causal": True}, "float": {"attn_mask": torch.zeros(3, 3).masked_fill(~seen, -torch.inf)}}

    class Masked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(x, x, x, **masks.get(masked, {"attn_mask": seen}))

    model = nn.Sequential(Masked())
    at = Attachment(model, "default")
    at.seen.shapes["0"] = {"heads": 1, "dim": 4}
    at.put(Site("0", model[0], "attn", seen=at.seen), Asking)
    y = model(x)
    key, value = (torch.cat([torch.full((2, 1, 2, 4), n), x], 2) for n in (1.0, 2.0))
    every = torch.cat([torch.ones(3, 2).bool(), seen.expand(3, 3)], 1)
    logits = (x @ key.transpose(2, 3) / 2).masked_fill(~every, -torch.inf)
    torch.testing.assert_close(y, logits.softmax(-1) @ value)
    first = (torch.ones(2, 1, 1, 4) @ key.transpose(2, 3) / 2).softmax(-1) @ value
    torch.testing.assert_close(at.context.taps["asked"], first)


def test_a_folder_is_read_without_a_model(tmp_path: Any) -> None:
    import thrifty

    model = nn.Sequential(nn.Linear(4, 4))
    at = thrifty.attach(model, thrifty.LoRA(rank=2, where="linear"), example=torch.zeros(1, 4))
    at.save(tmp_path / "a", unchanged=True)
    data, rows, state = read(tmp_path / "a")
    assert data["method"]["name"] == "lora" and [r.edit for r in rows] == ["low-rank"] and state.keys() == data["tensors"].keys()
    assert all(torch.equal(t, at.state()[n]) for n, t in state.items())
    with pytest.raises(BrokenArtifact, match="not an adapter folder"):
        read(tmp_path / "b")
