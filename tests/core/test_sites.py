"""The language of targets: roles, paths, depths and what is taken away."""
from __future__ import annotations

import pytest
from torch import nn

import thrifty
from thrifty.core.errors import NoSuchSite
from thrifty.core.probe import Seen
from thrifty.testing import tiny


def _paths(name: str, where: str) -> list[str]:
    return [s.path for s in thrifty.sites(tiny.make(name).fresh(), where)]


def test_terms_join_and_keep_the_models_order() -> None:
    assert _paths("llama", "attn.v[0]|attn.q[0]") == [f"model.layers.0.self_attn.{n}_proj" for n in "qv"]
    assert _paths("llama", "attn.q[0]|attn.?[0]") == [f"model.layers.0.self_attn.{n}_proj" for n in "qkvo"]


@pytest.mark.parametrize(("where", "depths"), [
    ("attn.q[0]", [0]), ("attn.q[-1]", [1]), ("attn.q[1:]", [1]), ("attn.q[:1]", [0]),
    ("attn.q[:-1]", [0]), ("attn.q[0:2]", [0, 1])])
def test_depths(where: str, depths: list[int]) -> None:
    assert [s.depth for s in thrifty.sites(tiny.make("bert").fresh(), where)] == depths


def test_depth_counts_in_each_stack() -> None:
    found = thrifty.sites(tiny.make("t5").fresh(), "block[-1]")
    assert [(s.stack, s.depth) for s in found] == [("encoder.block", 1), ("decoder.block", 1)]
    assert [s.path for s in found] == ["encoder.block.1", "decoder.block.1"]


def test_what_lies_inside_a_role_can_be_taken_away() -> None:
    every, own = _paths("t5", "attn.q"), _paths("t5", "attn.q|!cross")
    assert len(every) == 6 and len(own) == 4
    assert not any("EncDec" in p for p in own)
    assert _paths("bert", "attn.?|!attn.k|!attn.o") == _paths("bert", "attn.q|attn.v")


def test_path_globs_and_parts_of_a_fused_projection() -> None:
    assert len(_paths("bert", "bert.encoder.layer.1.*.dense")) == 3
    keys = [s.key for s in thrifty.sites(tiny.make("gpt2").fresh(), "transformer.h.0.attn.c_attn@attn.k")]
    assert keys == ["transformer.h.0.attn.c_attn@attn.k"]


def test_asking_for_sites_leaves_no_trace() -> None:
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1)
    names = [n for n, _ in model.named_modules()]
    assert len(thrifty.sites(model, "attn.?")) == 4
    assert [n for n, _ in model.named_modules()] == names
    assert type(model) is nn.TransformerEncoder and type(model.layers[0].self_attn) is nn.MultiheadAttention


def test_an_unknown_fused_layout_is_named() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)

    model = nn.Module()
    model.layers = nn.ModuleList([nn.Module()])
    model.layers[0].attn = Attention()
    with pytest.raises(NoSuchSite, match=r"fused in 'layers\.0\.attn\.qkv', whose layout is not known: choose 'attn\.qkv'"):
        thrifty.sites(model, "attn.q")
    assert [s.path for s in thrifty.sites(model, "attn.qkv")] == ["layers.0.attn.qkv"]


def test_widths_and_heads_are_seen_not_guessed() -> None:
    backbone = tiny.make("llama")
    model = backbone.fresh()
    seen = Seen(model, backbone.example)
    block = thrifty.sites(model, "block[0]", seen=seen)[0]
    attention = thrifty.sites(model, "attn[0]", seen=seen)[0]
    assert (block.din, block.dout) == (16, 16)
    assert attention.heads == (1, 8), "one key-value head of width 8 serves both query heads"
