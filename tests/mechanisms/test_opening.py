"""Opened nn.MultiheadAttention and nn.TransformerEncoder answer what the stock modules answer, whatever they are asked."""
from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import thrifty
from thrifty.core.errors import Unfit
from thrifty.testing.measuring import stir

HEADS, WIDTH, BATCH, QUERIES, KEYS = 2, 8, 3, 4, 5

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {}, "batch_first": {"batch_first": True}, "unbatched": {}, "widths": {"kdim": 6, "vdim": 10},
    "bias_kv": {"add_bias_kv": True, "batch_first": True}, "zero_attn": {"add_zero_attn": True}, "no_bias": {"bias": False},
    "both_extras": {"add_bias_kv": True, "add_zero_attn": True, "kdim": 6}}
MASKS = ("none", "padding_bool", "padding_float", "mask2d_bool", "mask2d_float", "mask3d_bool", "mask3d_float", "both_bool",
         "both_float", "causal")
# With appended keys torch takes the is_causal hint for the mask and hides those keys; without the hint it answers as documented.
EXTRA_KEYS = {"bias_kv", "zero_attn", "both_extras"}


class Holder(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(WIDTH, HEADS, **options)
        for p in self.parameters():
            nn.init.normal_(p, std=0.5)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.attn(*args, **kwargs)


def _ask(option: str, mask: str) -> tuple[tuple[Tensor, Tensor, Tensor], dict[str, Any]]:
    """Random query, key and value in the layout of ``option``, and the masks called ``mask``."""
    options, generator = OPTIONS[option], torch.Generator().manual_seed(3)
    queries = KEYS if mask == "causal" else QUERIES
    shapes = ((queries, WIDTH), (KEYS, options.get("kdim", WIDTH)), (KEYS, options.get("vdim", WIDTH)))
    lead: tuple[int, ...] = () if option == "unbatched" else (BATCH,)
    given = [torch.randn(*lead, *shape, generator=generator) for shape in shapes]
    if option != "unbatched" and not options.get("batch_first"):
        given = [t.transpose(0, 1) for t in given]
    masks: dict[str, Any] = {}
    if mask.startswith(("padding", "both")):
        hidden = torch.zeros(*lead, KEYS, dtype=torch.bool)
        hidden[..., -2:] = True
        masks["key_padding_mask"] = hidden if mask.endswith("bool") else torch.zeros(hidden.shape).masked_fill(hidden, -torch.inf)
    if mask.startswith(("mask", "both")):
        many = 1 if option == "unbatched" else BATCH
        shape = (many * HEADS, queries, KEYS) if mask.startswith("mask3d") else (queries, KEYS)
        hidden = torch.rand(shape, generator=generator) < 0.4
        hidden[..., 0] = False
        scores = torch.randn(shape, generator=generator).masked_fill(hidden, -torch.inf)
        masks["attn_mask"] = hidden if mask.endswith("bool") else scores
    if mask == "causal":
        masks |= {"attn_mask": torch.ones(KEYS, KEYS, dtype=torch.bool).triu(1), "is_causal": True}
    return (given[0], given[1], given[2]), masks


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("option", OPTIONS)
def test_open_attention_equals_the_stock_module(option: str, mask: str) -> None:
    torch.manual_seed(0)
    stock = Holder(**OPTIONS[option]).eval()
    model = copy.deepcopy(stock)
    at = thrifty.attach(model, thrifty.LoRA(rank=2, where="attn.?"))
    given, masks = _ask(option, mask)
    for weights in ({"need_weights": False}, {}, {"average_attn_weights": False}):
        if "is_causal" in masks and (not weights or option in EXTRA_KEYS):
            del masks["is_causal"]
        y, share = model(*given, **masks, **weights)
        wanted, wanted_share = stock(*given, **masks, **weights)
        torch.testing.assert_close(y, wanted, rtol=1e-5, atol=1e-6)
        assert (share is None) == (wanted_share is None)
        if share is not None:
            torch.testing.assert_close(share, wanted_share, rtol=1e-5, atol=1e-6)
        with torch.no_grad(), at.disabled():
            idle = model(*given, **masks, **weights)[0]
            assert torch.equal(idle, stock(*given, **masks, **weights)[0])


@pytest.mark.parametrize("option", OPTIONS)
def test_edits_of_q_k_v_o_merge_into_the_packed_weights(option: str) -> None:
    """The merged module is the stock one, so this compares the open path with torch's own on the edited weights."""
    torch.manual_seed(0)
    model = Holder(**OPTIONS[option]).eval()
    given, masks = _ask(option, "both_bool")
    base = model(*given, **masks)[0]
    before = copy.deepcopy(model.state_dict())
    at = thrifty.attach(model, thrifty.LoRA(rank=2, where="attn.?"))
    assert [s.role for s in at.sites("attn.?")] == ["attn.o", "attn.q", "attn.k", "attn.v"]
    stir(at)
    edited = model(*given, **masks)[0]
    assert not torch.allclose(edited, base, atol=1e-3)
    at.merge()
    assert list(model.state_dict()) == list(before)
    torch.testing.assert_close(model(*given, **masks)[0], edited, rtol=1e-4, atol=1e-5)
    at.detach()
    assert type(model.attn) is nn.MultiheadAttention
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_the_fast_kernel_is_used_again_when_disabled() -> None:
    torch.manual_seed(0)
    stock = Holder(batch_first=True).eval()
    model = copy.deepcopy(stock)
    at = thrifty.attach(model, thrifty.LoRA(rank=2, where="attn.q"))
    stir(at)
    x = torch.randn(2, 5, WIDTH)
    with torch.no_grad(), at.disabled():
        assert torch.equal(model(x, x, x)[0], stock(x, x, x)[0])


def test_freezing_moves_no_bit_of_an_idle_attention() -> None:
    """torch folds a batched product otherwise when the weight wants a gradient: 1e-7 in SigLIP's pooling head."""
    torch.manual_seed(0)
    model = nn.Sequential()
    model.attn = nn.MultiheadAttention(16, 2, batch_first=True)
    model.head = nn.Linear(16, 2)
    query, key = torch.randn(2, 1, 16), torch.randn(2, 16, 16)
    model.eval()
    with torch.no_grad():
        before = model.attn(query, key, key)[0]
        at = thrifty.attach(model, thrifty.LoRA(rank=2, where="head"), check=False)
        assert torch.equal(model.attn(query, key, key)[0], before)
        assert not any(p.requires_grad for p in model.attn.parameters())
        at.detach()
    assert all(p.requires_grad for p in model.parameters())


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    model = Holder(dropout=0.5, batch_first=True)
    thrifty.attach(model, thrifty.LoRA(rank=2, where="attn.q"))
    x = torch.randn(2, 5, WIDTH)
    assert not torch.equal(model(x, x, x, need_weights=False)[0], model(x, x, x, need_weights=False)[0])
    share = torch.stack([model(x, x, x)[1] for _ in range(400)]).mean(0)
    model.eval()
    assert torch.equal(model(x, x, x)[0], model(x, x, x)[0])
    torch.testing.assert_close(share, model(x, x, x)[1], rtol=0.3, atol=0.1)


def test_what_an_edited_attention_cannot_do_is_refused() -> None:
    model = Holder(batch_first=True)
    thrifty.attach(model, thrifty.LoRA(rank=2, where="attn.q"))
    x = torch.randn(2, 5, WIDTH)
    with pytest.raises(Unfit, match="is_causal"):
        model(x, x, x, is_causal=True)
    nested = torch.nested.nested_tensor([torch.randn(3, WIDTH), torch.randn(5, WIDTH)])
    with pytest.raises(Unfit, match="key_padding_mask"):
        model(nested, nested, nested)


def _encoder(norm_first: bool, nested: bool) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 16, dropout=0.0, batch_first=True, norm_first=norm_first)
    return nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(WIDTH), enable_nested_tensor=nested)


@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(("norm_first", "nested"), [(False, True), (False, False), (True, False)])
@pytest.mark.parametrize("padding", ["none", "bool", "float", "left"])
def test_transformer_encoder(padding: str, norm_first: bool, nested: bool, train: bool, grad: bool) -> None:
    torch.manual_seed(0)
    stock = _encoder(norm_first, nested).train(train)
    model = copy.deepcopy(stock)
    at = thrifty.attach(model, thrifty.LoRA(rank=2, where="attn.?|mlp.*"))
    model.train(train)
    x = torch.randn(2, 5, WIDTH)
    hidden = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    hidden = hidden.flip(1) if padding == "left" else hidden
    mask = {"none": None, "float": torch.zeros(2, 5).masked_fill(hidden, -torch.inf)}.get(padding, hidden)
    with torch.set_grad_enabled(grad):
        wanted = stock(x, src_key_padding_mask=mask)
        torch.testing.assert_close(model(x, src_key_padding_mask=mask), wanted, rtol=1e-4, atol=1e-5)
        if not grad:
            with at.disabled():
                assert torch.equal(model(x, src_key_padding_mask=mask), wanted)
        else:
            model(x, src_key_padding_mask=mask)[~hidden].pow(3).sum().backward()
            assert all(p.grad is not None for p in at.parameters())
    stir(at)
    assert not torch.allclose(model(x, src_key_padding_mask=mask)[~hidden], wanted[~hidden], atol=1e-3)
    at.detach()
    assert type(model) is nn.TransformerEncoder
    with torch.no_grad():
        assert torch.equal(model(x, src_key_padding_mask=mask), stock(x, src_key_padding_mask=mask))


def test_transformer_decoder_with_cross_attention() -> None:
    torch.manual_seed(0)
    stock = nn.TransformerDecoder(nn.TransformerDecoderLayer(WIDTH, HEADS, 16, dropout=0.0, batch_first=True), 2).eval()
    model = copy.deepcopy(stock)
    at = thrifty.attach(model, thrifty.LoRA(rank=2, where="attn.?|mlp.*"))
    assert len(at.edits) == 2 * (4 + 4 + 2)
    given = {"tgt": torch.randn(2, 4, WIDTH), "memory": torch.randn(2, 5, WIDTH),
             "tgt_mask": nn.Transformer.generate_square_subsequent_mask(4)}
    torch.testing.assert_close(model(**given), stock(**given), rtol=1e-4, atol=1e-5)
    stir(at)
    edited = model(**given)
    assert not torch.allclose(edited, stock(**given), atol=1e-3)
    at.merge()
    torch.testing.assert_close(model(**given), edited, rtol=1e-4, atol=1e-5)
