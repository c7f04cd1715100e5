"""The golden table: how many sites of each role every family has, and where they are, reasoned from its architecture.

Every backbone has two blocks (per stack) unless a comment says otherwise; a role that is not listed must not occur.
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from thrifty.core import sites
from thrifty.core.part import Part
from thrifty.testing import tiny

TIMM = pytest.mark.timm
ATTENTION = {"attn": 2, "attn.q": 2, "attn.k": 2, "attn.v": 2, "attn.o": 2, "after.attn": 2}
FEED = {"mlp.in": 2, "mlp.out": 2, "after.mlp": 2}
GATED = {**FEED, "mlp.gate": 2, "mlp": 2}
BLOCK = {"model": 1, "block": 2, **ATTENTION, **FEED}
POST_NORM = {**BLOCK, "norm.attn": 2, "norm.mlp": 2}  # BERT and its kin: a norm after each residual
TOKENS = {"embed": 1, "position": 1, "norm": 1}  # with the embeddings' own norm
CAUSAL = {"model": 1, "block": 2, **ATTENTION, **GATED, "embed": 1, "norm": 5, "head": 1}  # 2 norms a block and the last one
VISION = {**BLOCK, "mlp": 2, "norm": 5, "patch": 1, "head": 1}


def _times(counts: dict[str, int], by: int) -> dict[str, int]:
    return {role: n * by for role, n in counts.items()}


# Encoder and decoder of two blocks each: 4 self-attentions, 2 cross-attentions, so 6 of each projection.
BOTH = {"model": 1, "block": 4, "attn": 4, "cross": 2, "attn.q": 6, "attn.k": 6, "attn.v": 6, "attn.o": 6, "after.attn": 4,
        "after.cross": 2, "mlp.in": 4, "mlp.out": 4, "after.mlp": 4, "head": 1}
# T5: three norms in a decoder block and two in an encoder block, one at the end of each stack; a table of relative positions
# in the first block of each stack; one embedding that three modules share.
T5 = {**BOTH, "mlp": 4, "embed": 3, "embedding": 2, "norm": 2 * 2 + 2 * 3 + 2}
TOWERS = {"model": 1, **_times({"block": 2, **ATTENTION, **FEED, "mlp": 2}, 2)}
CLIP = {**TOWERS, "embed": 1, "position": 2, "patch": 1, "norm": 8 + 3, "linear": 2}  # two projections into one space

GOLDEN: dict[str, dict[str, int]] = {
    "bert": {**POST_NORM, **TOKENS, "embedding": 1, "linear": 1, "head": 1},  # token types; the pooler
    "roberta": {**POST_NORM, **TOKENS, "embedding": 1, "head": 2},  # a head of two layers, no pooler
    "deberta": {**POST_NORM, **TOKENS, "embedding": 1, "linear": 2 * 2 + 1, "head": 1},  # position projections; the pooler
    "deberta_v2": {**POST_NORM, **TOKENS, "embedding": 1, "linear": 2 * 2 + 1, "head": 1},
    "distilbert": {**POST_NORM, **TOKENS, "mlp": 2, "head": 2},
    "mpnet": {**POST_NORM, **TOKENS, "embedding": 1, "head": 2},
    "t5": T5,
    "t5_gated": {**T5, "mlp.gate": 4},
    "bart": {**BOTH, "embed": 3, "position": 2, "norm": 2, "norm.attn": 4, "norm.cross": 2, "norm.mlp": 4},
    "gpt2": {**BLOCK, "mlp": 2, "embed": 1, "position": 1, "norm": 5, "head": 1},
    "gpt_neox": {**BLOCK, "mlp": 2, "embed": 1, "norm": 5, "head": 1},
    "llama": CAUSAL,
    "mistral": CAUSAL,
    "mixtral": {**{k: v for k, v in CAUSAL.items() if not k.startswith("mlp.")}, "experts": 2},
    "qwen2": CAUSAL,
    "qwen3": {**CAUSAL, "norm": 9},  # and a norm of the queries and one of the keys
    "qwen2_moe": {**CAUSAL, "experts": 2, "linear": 2},  # the shared expert is a feed-forward network, its gate a linear
    "gemma": CAUSAL,
    "gemma2": {**CAUSAL, "norm": 9},  # four norms a block
    "gemma3": {**CAUSAL, "norm": 13},  # six
    "phi": {**BLOCK, "mlp": 2, "embed": 1, "norm": 3, "head": 1},  # one norm a block: attention and network are parallel
    "phi3": CAUSAL,
    "vit": VISION, "deit": VISION, "dinov2": VISION,
    "swin": {**VISION, "norm": 7, "linear": 1},  # norms of the patches and of the merging, whose reduction is a linear
    "beit": VISION,
    "clip": CLIP,
    "image_text": CLIP,  # the same in a classifier by names
    "siglip": {**TOWERS, **dict.fromkeys(("attn", "attn.q", "attn.k", "attn.v", "attn.o", "mlp", "mlp.in", "mlp.out"), 5),
               "embed": 1, "position": 2, "patch": 1, "norm": 8 + 3, "linear": 1},  # the image head attends, too
    "whisper": {**BOTH, "conv": 2, "position": 2, "embed": 1, "norm": 2 * 2 + 2 * 3 + 2},
    "resnet": {"model": 1, "block": 2, "conv": 1 + 2 * 4, "norm": 1 + 2 * 4, "head": 1},  # 3 a block and its shortcut
    "convnext": {"model": 1, "block": 2, **FEED, "patch": 1, "conv": 2 + 1, "norm": 1 + 2 + 1 + 1, "head": 1},
    "mobilenet_v2": {"model": 1, "block": 16, "conv": 52, "norm": 52, "head": 1},  # 3 + 16 * 3 + 1
    "timm_vit": VISION,
    "timm_swin": {**VISION, "norm": 7, "linear": 1},
    # Four blocks of two convolutions behind a stem of three. The widths are 64, 8, 8, 16, 16 and every stage after the first
    # halves the image, so each stage begins with a shortcut that is a convolution.
    "timm_resnet": {"model": 1, "block": 4, "conv": 3 + 8 + 4, "norm": 3 + 8 + 4, "head": 1},
    # Four stages of one block; the stem's convolution and one before each of the last three stages.
    "timm_convnext": {"model": 1, "block": 4, "mlp": 4, **_times(FEED, 2), "conv": 4 + 1 + 3, "norm": 4 + 1 + 3, "head": 2},
    "open_clip": {**TOWERS, "embed": 1, "patch": 1, "norm": 8 + 3},
    # Two layers of BERT for language and one for panoramas; two in which streams meet, each a layer per stream and one attention.
    "agent": {"model": 1, "block": 5, "cross": 2, "after.cross": 2, "norm.cross": 2,
              **dict.fromkeys(("attn", "after.attn", "norm.attn", "mlp.in", "mlp.out", "after.mlp", "norm.mlp"), 3 + 2 * 2),
              **dict.fromkeys(("attn.q", "attn.k", "attn.v", "attn.o"), 3 + 2 * 2 + 2), "head": 3, "embed": 1, "position": 1,
              "embedding": 4, "linear": 2 * 3, "norm": 1 + 1 + 1 + 2 * 3},  # types, kinds, steps; an image and an angle, thrice
    "encoder": POST_NORM,
    "encoder_norm_first": {**BLOCK, "norm": 4},
    "attender": {"model": 1, "attn": 1, "attn.q": 1, "attn.k": 1, "attn.v": 1, "attn.o": 1, "embed": 1, "norm": 1, "head": 1},
    "convolver": {"model": 1, "conv": 3, "norm": 2, "head": 1},
}

FUSED = "attn.q attn.k attn.v"
_HF_LLAMA = {"attn.q": "self_attn.q_proj", "attn.k": "self_attn.k_proj", "attn.v": "self_attn.v_proj",
             "attn.o": "self_attn.o_proj",
             "mlp.gate": "mlp.gate_proj", "mlp.in": "mlp.up_proj", "mlp.out": "mlp.down_proj"}
_HF_BERT = {"attn.q": "attention.self.query", "attn.k": "attention.self.key", "attn.v": "attention.self.value",
            "attn.o": "attention.output.dense", "mlp.in": "intermediate.dense", "mlp.out": "output.dense",
            "norm.attn": "attention.output.LayerNorm", "norm.mlp": "output.LayerNorm",
            "after.attn": "attention.output.dropout", "after.mlp": "output.dropout"}
_HF_VIT = {"attn.q": "attention.q_proj", "attn.k": "attention.k_proj", "attn.v": "attention.v_proj",
           "attn.o": "attention.o_proj",
           "mlp.in": "mlp.fc1", "mlp.out": "mlp.fc2", "after.attn": "attention.o_proj", "after.mlp": "mlp.fc2"}
_HF_BART = {"attn.q": "self_attn.q_proj", "attn.k": "self_attn.k_proj", "attn.v": "self_attn.v_proj",
            "attn.o": "self_attn.out_proj",
            "mlp.in": "fc1", "mlp.out": "fc2"}
_CLIP = {**_HF_BART, "mlp.in": "mlp.fc1", "mlp.out": "mlp.fc2"}
_TORCH = {"attn.q": "self_attn.q", "attn.k": "self_attn.k", "attn.v": "self_attn.v", "attn.o": "self_attn.out_proj",
          "mlp.in": "linear1", "mlp.out": "linear2", "after.attn": "dropout1", "after.mlp": "dropout2"}
_TIMM = {"attn.q attn.k attn.v": "attn.qkv", "attn.o": "attn.proj", "mlp.in": "mlp.fc1", "mlp.out": "mlp.fc2",
         "after.attn": "attn.proj_drop", "after.mlp": "mlp.drop2"}

PATHS: dict[str, tuple[str, dict[str, str]]] = {  # one block: role (or roles, for a fused projection) -> path below it
    "bert": ("bert.encoder.layer.1", _HF_BERT),
    "roberta": ("roberta.encoder.layer.1", _HF_BERT),
    "deberta": ("deberta.encoder.layer.1", {
        FUSED: "attention.self.in_proj", **{k: v for k, v in _HF_BERT.items() if k not in FUSED}}),
    "deberta_v2": ("deberta.encoder.layer.1", {
        **_HF_BERT, "attn.q": "attention.self.query_proj", "attn.k": "attention.self.key_proj",
        "attn.v": "attention.self.value_proj"}),
    "distilbert": ("distilbert.transformer.layer.1", {
        "attn.q": "attention.q_lin", "attn.k": "attention.k_lin", "attn.v": "attention.v_lin", "attn.o": "attention.out_lin",
        "mlp.in": "ffn.lin1", "mlp.out": "ffn.lin2", "norm.attn": "sa_layer_norm", "norm.mlp": "output_layer_norm"}),
    "agent": ("language.layer.1", _HF_BERT),
    "mpnet": ("mpnet.encoder.layer.1", {**_HF_BERT, "attn.q": "attention.attn.q", "attn.k": "attention.attn.k",
                                        "attn.v": "attention.attn.v", "attn.o": "attention.attn.o",
                                        "norm.attn": "attention.LayerNorm", "after.attn": "attention.dropout"}),
    "t5": ("encoder.block.1", {"attn.q": "layer.0.SelfAttention.q", "attn.o": "layer.0.SelfAttention.o",
                               "mlp.in": "layer.1.DenseReluDense.wi", "mlp.out": "layer.1.DenseReluDense.wo",
                               "after.attn": "layer.0.dropout", "after.mlp": "layer.1.dropout"}),
    "t5_gated": ("decoder.block.0", {"mlp.gate": "layer.2.DenseReluDense.wi_0", "mlp.in": "layer.2.DenseReluDense.wi_1",
                                     "mlp.out": "layer.2.DenseReluDense.wo", "cross": "layer.1.EncDecAttention",
                                     "after.cross": "layer.1.dropout", "after.mlp": "layer.2.dropout"}),
    "bart": ("model.encoder.layers.1", {**_HF_BART, "norm.attn": "self_attn_layer_norm", "norm.mlp": "final_layer_norm"}),
    "gpt2": ("transformer.h.1", {FUSED: "attn.c_attn", "attn.o": "attn.c_proj", "mlp.in": "mlp.c_fc", "mlp.out": "mlp.c_proj",
                                 "after.attn": "attn.resid_dropout", "after.mlp": "mlp.dropout"}),
    "gpt_neox": ("gpt_neox.layers.1", {
        FUSED: "attention.query_key_value", "attn.o": "attention.dense", "mlp.in": "mlp.dense_h_to_4h",
        "mlp.out": "mlp.dense_4h_to_h", "after.attn": "post_attention_dropout", "after.mlp": "post_mlp_dropout"}),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3"), ("model.layers.1", _HF_LLAMA)),
    "qwen2_moe": ("model.layers.1", {**{k: v for k, v in _HF_LLAMA.items() if k.startswith("attn")}, "experts": "mlp.experts",
                                     "mlp.gate": "mlp.shared_expert.gate_proj", "mlp.out": "mlp.shared_expert.down_proj",
                                     "after.mlp": "mlp"}),
    "mixtral": ("model.layers.1", {**{k: v for k, v in _HF_LLAMA.items() if k.startswith("attn")}, "experts": "mlp.experts",
                                   "after.mlp": "mlp"}),
    "phi": ("model.layers.1", {
        "attn.q": "self_attn.q_proj", "attn.o": "self_attn.dense", "mlp.in": "mlp.fc1", "mlp.out": "mlp.fc2"}),
    "phi3": ("model.layers.1", {
        FUSED: "self_attn.qkv_proj", "attn.o": "self_attn.o_proj", "mlp.gate mlp.in": "mlp.gate_up_proj",
        "mlp.out": "mlp.down_proj"}),
    "vit": ("vit.layers.1", _HF_VIT), "deit": ("deit.layers.1", _HF_VIT), "beit": ("beit.layers.1", _HF_VIT),
    "dinov2": ("dinov2.encoder.layer.1", _HF_VIT),
    "swin": ("swin.encoder.layers.1.blocks.0", _HF_VIT),
    "clip": ("text_model.encoder.layers.1", _CLIP), "siglip": ("vision_model.encoder.layers.1", _CLIP),
    "whisper": ("model.encoder.layers.0", _HF_BART),
    "resnet": ("resnet.encoder.stages.1.layers.0", {}),
    "convnext": ("convnext.encoder.stages.1.layers.0", {"mlp.in": "pwconv1", "mlp.out": "pwconv2", "conv": "dwconv"}),
    "timm_vit": ("blocks.1", _TIMM), "timm_swin": ("layers.1.blocks.0", _TIMM),
    "timm_convnext": ("stages.3.blocks.0", {"mlp.in": "mlp.fc1", "mlp.out": "mlp.fc2", "conv": "conv_dw"}),
    "open_clip": ("transformer.resblocks.1", {
        "attn.q": "attn.q", "attn.o": "attn.out_proj", "mlp.in": "mlp.c_fc", "mlp.out": "mlp.c_proj"}),
    "encoder": ("layers.1", {**_TORCH, "norm.attn": "norm1", "norm.mlp": "norm2"}),
    "encoder_norm_first": ("layers.1", _TORCH),
}


def _marked(names: Iterable[str]) -> list[object]:
    return [pytest.param(n, marks=[TIMM] if n.startswith(("timm_", "open_clip")) else []) for n in names]


def test_the_table_knows_every_backbone() -> None:
    assert set(GOLDEN) == set(tiny.NAMES)


@pytest.mark.parametrize("name", _marked(GOLDEN))
def test_number_of_sites_per_role(name: str) -> None:
    assert dict(Counter(s.role for s in sites(tiny.make(name).fresh()))) == GOLDEN[name]


@pytest.mark.parametrize("name", _marked(PATHS))
def test_paths_in_one_block(name: str) -> None:
    block, below = PATHS[name]
    found = {(s.role, s.path) for s in sites(tiny.make(name).fresh())}
    assert ("block", block) in found
    for roles, path in below.items():
        for role in roles.split():
            assert (role, f"{block}.{path}") in found
            here = {p for r, p in found if r == role and p.startswith(block + ".")}
            others = {p for p in here if "ross" not in p and "encoder_attn" not in p and "EncDec" not in p}
            assert others <= {f"{block}.{path}"}, f"{role} is also at {others}"


class _Watching(TorchFunctionMode):
    """Keeps q, k and v of the first attention call."""

    def __init__(self) -> None:
        super().__init__()
        self.first: tuple[Tensor, ...] | None = None

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func is F.scaled_dot_product_attention and self.first is None:
            given = dict(zip(("query", "key", "value"), args, strict=False)) | (kwargs or {})
            self.first = given["query"], given["key"], given["value"]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("which", [0, 1, 2], ids=["q", "k", "v"])
@pytest.mark.parametrize("name", _marked(["gpt2", "gpt_neox", "phi3", "timm_vit", "timm_swin"]))
def test_zeroed_columns_of_a_fused_projection_arrive_as_zero_q_k_or_v(name: str, which: int) -> None:
    """Where the model itself splits and reshapes: zero one part, and exactly that argument of the attention is zero."""
    backbone = tiny.make(name)
    model = backbone.fresh()
    site = sites(model, f"attn.{'qkv'[which]}")[0]
    for module in model.modules():  # timm's Swin uses SDPA only when asked to
        if hasattr(module, "fused_attn"):
            module.fused_attn = True
    with _Watching() as before:
        backbone.output(model)
    part = site.part
    assert isinstance(part, Part)
    site.module.register_forward_hook(lambda m, a, y: part.put(y, part.take(y) * 0))
    with _Watching() as after:
        backbone.output(model)
    assert before.first is not None and after.first is not None
    for i in range(3):
        assert bool((after.first[i] == 0).all()) == (i == which)
        assert i == which or bool((after.first[i] == before.first[i]).all())


@pytest.mark.parametrize("which", [0, 1, 2], ids=["q", "k", "v"])
def test_deberta_lays_out_q_k_v_head_by_head(which: int) -> None:
    """It computes attention without SDPA; its rows, by the recipe that it uses itself to take the projection apart."""
    model = tiny.make("deberta").fresh()
    site = sites(model, f"attn.{'qkv'[which]}")[0]
    heads, width = 2, 8
    wanted = [row for head in range(heads) for row in range((3 * head + which) * width, (3 * head + which + 1) * width)]
    assert site.dout == 16
    assert bool((site.weight == site.module.weight[wanted]).all())


def test_phi3_gates_with_the_first_half() -> None:
    backbone = tiny.make("phi3")
    model = backbone.fresh()
    gate, up = sites(model, "mlp.gate[0]")[0], sites(model, "mlp.in[0]")[0]
    assert gate.part is not None and up.part is not None
    seen: dict[str, Tensor] = {}
    mlp = model.get_submodule("model.layers.0.mlp")

    def set_gate(module: object, args: object, y: Tensor) -> Tensor:
        seen["up"] = up.part.take(y)
        return gate.part.put(y, 0 * gate.part.take(y) + 1.0)

    gate.module.register_forward_hook(set_gate)
    mlp.register_forward_hook(lambda m, a, y: seen.update(out=y))
    backbone.output(model)
    one = seen["up"].new_ones(())
    assert bool(((mlp.down_proj(F.silu(one) * seen["up"]) - seen["out"]).abs() < 1e-6).all())
    assert (gate.part.lo, gate.part.hi, up.part.lo, up.part.hi) == (0, 32, 32, 64)


def test_take_and_put_are_inverse() -> None:
    y = F.one_hot(torch.arange(12)).float()
    part = Part("attn.k", 2, 4, groups=2)
    assert part.width == 4
    assert part.take(y).argmax(0).tolist() == [2, 3, 8, 9]
    assert bool((part.put(y, part.take(y)) == y).all())
    changed = part.put(y, part.take(y) + 1)
    assert [i for i in range(12) if bool((changed[:, i] != y[:, i]).any())] == [2, 3, 8, 9]
    assert bool((part.put(y, part.take(y, 0) + 1, 0)[[2, 3, 8, 9]] == y[[2, 3, 8, 9]] + 1).all())


def test_own_roles_name_what_the_table_does_not_know() -> None:
    model = tiny.make("convolver").fresh()
    found = sites(model, "mlp.in", own={r"^features\.0$": "mlp.in", r"^features\.3$": ""})
    assert [s.path for s in found] == ["features.0"]
    assert {s.path for s in sites(model, "conv", own={r"^features\.3$": ""})} == {"features.0", "features.6"}
