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
