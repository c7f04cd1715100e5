"""Roles: what each module of a model is for, whatever the model's authors called it.

One table of path patterns covers the naming habits of HF transformers, timm, open_clip, torchvision and torch.nn. It is
matched against a module's path below its block, after the entries of its family (keyed by the class of the block), so
that a family whose names mislead can say so. A model with other names passes its own ``roles={pattern: role}``.

==============  =======================================================================================
role            what it names
==============  =======================================================================================
attn.q k v o    projections of an attention, self or cross; parts of a fused projection count as such
attn, cross     the module that computes self-attention, or attention to another sequence
mlp.in gate out projections of a feed-forward network; mlp the whole of it
after.attn      where the sub-layer's result leaves projection and dropout, before the residual is added
after.mlp       the same for the feed-forward network
norm.attn mlp   a normalisation applied after that residual was added (post-norm models only)
norm.branch     a normalisation of what a sub-layer gives, before the residual is added (Swin v2)
norm            every other normalisation
block           one layer of the stack; its depth counts from 0 in each stack
experts         expert weights held as one tensor, which no linear edit can reach
embed, position, patch, head, conv, linear, model
==============  =======================================================================================
"""
from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from torch import nn

from . import base

STACKS = re.compile(r"(?:^|\.)(?:layers?|blocks?|h|resblocks|stages?|layer\d+)\.(\d+)$")
HEADS = re.compile(
    r"^(?:model\.)?(classifier|pre_classifier|score|lm_head|head|head_dist|fc|proj_out|qa_outputs|embed_out|"
    r"classification_head|distillation_classifier|cls_classifier)(\.|$)"
)

FAMILIES: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (  # class of the block -> patterns tried first
    (r"^(Bert|Roberta|XLMRoberta|Electra|Camembert|Deberta|DebertaV2|MPNet)Layer$", (
        (r"^attention\.(self|attn)$", "attn"), (r"^attention$", ""), (r"^(output|attention\.output|intermediate)$", ""),
        (r"^attention\.(output\.)?dropout$", "after.attn"), (r"^output\.dropout$", "after.mlp"),
        (r"^attention\.(output\.)?LayerNorm$", "norm.attn"), (r"^output\.LayerNorm$", "norm.mlp"))),
    (r"^TransformerBlock$", (  # DistilBERT
        (r"^attention$", "attn"), (r"^ffn\.dropout$", "after.mlp"), (r"^sa_layer_norm$", "norm.attn"),
        (r"^output_layer_norm$", "norm.mlp"))),
    (r"^T5Block$", ((r"^layer\.0\.dropout$", "after.attn"), (r"^layer\.1\.dropout$", "after.mlp|after.cross"),
                    (r"^layer\.2\.dropout$", "after.mlp"), (r"^layer\.\d$", ""))),
    (r"^Bart(Encoder|Decoder)Layer$", (
        (r"^self_attn_layer_norm$", "norm.attn"), (r"^encoder_attn_layer_norm$", "norm.cross"),
        (r"^final_layer_norm$", "norm.mlp"))),
    (r"^Transformer(Encoder|Decoder)Layer$", (
        (r"^dropout1$", "after.attn"), (r"^norm[123]$", "norm.torch"), (r"^dropout[23]$", "after.torch"))),
    (r"^GPT2Block$", ((r"^attn\.resid_dropout$", "after.attn"), (r"^mlp\.dropout$", "after.mlp"))),
    (r"^GPTNeoXLayer$", ((r"^post_attention_dropout$", "after.attn"), (r"^post_mlp_dropout$", "after.mlp"))),
    (r"^(Block|LayerScaleBlock|ParallelScalingBlock|SwinTransformerBlock|ResPostBlock)$", (  # timm
        (r"^attn\.proj_drop$", "after.attn"), (r"^mlp\.drop2$", "after.mlp"))),
    (r"^(Swinv2Layer|SwinTransformerV2Block|ResPostBlock)$", ((r"^(layernorm_before|layernorm_after|norm[12])$", "norm.branch"),)),
    (r"^CrossLayer$", (  # two streams, each a layer of BERT, and an attention between them
        (r"^(language|vision)\.attention\.self$", "attn"), (r"^(language|vision)\.attention$", ""),
        (r"\.attention\.output\.dropout$", "after.attn"), (r"^(language|vision)\.output\.dropout$", "after.mlp"),
        (r"\.attention\.output\.LayerNorm$", "norm.attn"), (r"^(language|vision)\.output\.LayerNorm$", "norm.mlp"),
        (r"^cross_attn\.output\.dense$", "attn.o"), (r"^cross_attn\.output\.dropout$", "after.cross"),
        (r"^cross_attn\.output\.LayerNorm$", "norm.cross"))),
    (r"Bottle[nN]eck|BasicBlock|^ResNet", ((r"", "by type"),)),  # their fc1 or attn squeezes channels
)

GENERAL: tuple[tuple[str, str], ...] = (  # first match wins; "" means: no role of its own
    (r"(^|\.)(query|q_proj|query_proj|q|q_lin|to_q)$", "attn.q"), (r"(^|\.)(key|k_proj|key_proj|k|k_lin|to_k)$", "attn.k"),
    (r"(^|\.)(value|v_proj|value_proj|v|v_lin|to_v)$", "attn.v"),
    (r"(^|\.)(qkv|c_attn|query_key_value|Wqkv|in_proj|qkv_proj)$", "attn.qkv"),
    (r"(^|\.)(attention\.output\.dense|o_proj|out_proj|attn\.proj|attn\.c_proj|\w*Attention\.o|attn\.o|out_lin|"
     r"self_attn\.dense|attention\.dense|to_out\.0)$", "attn.o"),
    (r"(^|\.)(intermediate\.dense|fc1|c_fc|up_proj|linear1|lin1|wi|wi_1|dense_h_to_4h|pwconv1)$", "mlp.in"),
    (r"(^|\.)(gate_proj|wi_0)$", "mlp.gate"), (r"(^|\.)gate_up_proj$", "mlp.gate_in"),
    (r"(^|\.)(output\.dense|fc2|mlp\.c_proj|down_proj|linear2|lin2|wo|dense_4h_to_h|pwconv2)$", "mlp.out"),
    (r"(^|\.)(EncDecAttention|cross_attn|crossattention\.self|encoder_attn|multihead_attn|attn2)$", "cross"),
    (r"(^|\.)(self_attn|attn|attention|SelfAttention|attn1)$", "attn"),
    (r"(^|\.)(mlp|DenseReluDense|feed_forward|ffn)$", "mlp"),
)

ROOT: tuple[tuple[str, str], ...] = (  # outside every block
    (r"(^|\.)(token_embedding|word_embeddings|embed_tokens|wte|shared|embed_in)$", "embed"),
    (r"(^|\.)(position_embeddings?|embed_positions|wpe|positional_embedding)$", "position"),
    (r"(^|\.)(patch_embed\.proj|patch_embeddings\.projection|patch_embedding|visual\.conv1|conv_stem|patch_embeddings)$",
     "patch"),
)


def blocks(model: nn.Module) -> dict[str, tuple[str, int]]:
    """Path of every block -> (its stack, its depth there). Stages are looked through: blocks are what they hold."""
    found: dict[str, tuple[str, int]] = {}
    count: dict[str, int] = {}
    for path, module in base.modules(model):  # an edit may have blocks of its own
        match = STACKS.search(path)
        if not match or any(path.startswith(b + ".") for b in found):
            continue
        if isinstance(module, (nn.Sequential, nn.ModuleList)) or re.search("Stage$", type(module).__name__):
            continue
        stack = re.split(r"\.\d+(?:\.|$)|\d+\.\d+", path)[0]
        found[path] = stack, count.setdefault(stack, 0)
        count[stack] += 1
    return found


def role(path: str, module: nn.Module, block: nn.Module | None, below: str, own: Mapping[str, str]) -> str | None:
    """The role of ``module`` at ``path``, which is ``below`` inside ``block``; None if it has none."""
    for pattern, name in own.items():
        if re.search(pattern, path):
            return name or None
    if expert_tensors(module):
        return "experts"
    if block is not None:
        said = _named(type(block).__name__, below)
        return _by_type(module) if said is None else _settle(said, module, block, below)
    if HEADS.search(path):
        return "head" if next(module.parameters(recurse=False), None) is not None else None
    held = getattr(module, "weight", None) is not None
    at_root = next((name for pattern, name in ROOT if held and re.search(pattern, path)), None)
    return at_root or _general(path) or _by_type(module)


@lru_cache(maxsize=1 << 14)
def _named(kind: str, below: str) -> str | None:
    """What the tables say of a path below a block of that class; blocks are many and their paths the same."""
    family = (rule for block, rules in FAMILIES if re.search(block, kind) for rule in rules)
    return next((name for pattern, name in (*family, *GENERAL) if re.search(pattern, below)), None)


def expert_tensors(module: nn.Module) -> list[str]:
    """Names of parameters that hold one matrix per expert, [experts, out, in], and so are no linear layer."""
    if "expert" not in type(module).__name__.lower():
        return []
    return [name for name, p in module.named_parameters(recurse=False) if p.dim() == 3]


def _general(path: str) -> str | None:
    return next((name for pattern, name in GENERAL if re.search(pattern, path)), None)


def _settle(name: str, module: nn.Module, block: Any, below: str) -> str | None:
    """Roles that depend on more than a name: is there a cross-attention, does the norm come after the residual?"""
    if name == "after.mlp|after.cross":
        return "after.cross" if hasattr(getattr(block.layer, "1", None) or block.layer[1], "EncDecAttention") else "after.mlp"
    if name == "by type":
        return _by_type(module)
    if name == "norm.torch":
        order = ("attn", "cross", "mlp") if hasattr(block, "multihead_attn") else ("attn", "mlp")
        return "norm" if block.norm_first else f"norm.{order[int(below[-1]) - 1]}"
    if name == "after.torch":
        return "after.cross" if hasattr(block, "multihead_attn") and below == "dropout2" else "after.mlp"
    closed = next(module.children(), None) is None and not isinstance(module, nn.MultiheadAttention)
    if name in ("attn", "cross", "mlp") and closed:
        return _by_type(module)
    return name or None


def _by_type(module: nn.Module) -> str | None:
    kind = type(module).__name__
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return "conv"
    if "Norm" in kind and next(module.parameters(recurse=False), None) is not None:
        return "norm"
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        return "linear"
    return "embedding" if isinstance(module, nn.Embedding) else None
