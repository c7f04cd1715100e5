"""BERT and PALs: reference arrays, published counts, and what its sheet promises."""
from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from backbones import IDS, MASK, count, frozen_stay, golden, published, run, shake, tiny
from torch import Tensor

import thrifty
from thrifty.core.building import Context
from thrifty.core.errors import CannotMerge, DeadEdit, NoSuchSetting, NoSuchSite, ThriftyError, Unfit
from thrifty.core.routing import tell
from thrifty.methods import make
from thrifty.methods.pals import PAL, LowRank

TASKS = ["rte", "mrpc", "cola"]
GLUE = ["cola", "mrpc", "mnli", "rte", "stsb", "sst2", "qqp", "qnli"]


def attached(kind: str = "bert", double: bool = True, **settings: Any) -> tuple[Any, Any]:
    model = tiny(kind).double() if double else tiny(kind)
    return model, thrifty.attach(model, thrifty.PALs.make(**{"width": 12, **settings}), tasks=TASKS)


def answer(model: Any, told: Any) -> Tensor:
    with thrifty.task(model, told):
        return run(model)


def pals(at: Any) -> list[Any]:
    return [edit for edit in at.edits.values() if isinstance(edit, (PAL, LowRank))]


def test_reference_arrays() -> None:
    g = golden("nlp_pals_encoder")
    config = hf.BertConfig(vocab_size=8, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32,
                           layer_norm_eps=g["hp/layernorm_eps"])
    model = hf.BertModel(config).double().eval()
    names = {"attention.self.query": "attention.self.query", "attention.self.key": "attention.self.key",
             "attention.self.value": "attention.self.value", "attention.output.dense": "attention.output.dense",
             "intermediate.dense": "intermediate.dense", "output.dense": "output.dense"}
    with torch.no_grad():
        for i, layer in enumerate(model.encoder.layer):
            for name in names:
                for kind in ("weight", "bias"):
                    layer.get_submodule(name).get_parameter(kind).copy_(g[f"w/layer.{i}.{name}.{kind}"])
            for name in ("attention.output.LayerNorm", "output.LayerNorm"):
                layer.get_submodule(name).weight.copy_(g[f"w/layer.{i}.{name}.gamma"])
                layer.get_submodule(name).bias.copy_(g[f"w/layer.{i}.{name}.beta"])
    at = thrifty.attach(model, thrifty.PALs(width=12, dropout=0.0), tasks=["zero", "one"])
    shared, edits = at.context.shared, pals(at)
    pairs = [(f"mult_aug_dense.{t}", shared.encode[t]) for t in (0, 1)]
    pairs += [(f"mult_aug_dense2.{t}", shared.decode[t]) for t in (0, 1)]
    pairs += [(f"layer.{i}.multi_layers.{t}.attn.{name}", getattr(edits[i].attention[t], name))
              for i in (0, 1) for t in (0, 1) for name in ("query", "key", "value")]
    with torch.no_grad():
        for name, linear in pairs:
            linear.weight.copy_(g[f"w/{name}.weight"])
            linear.bias.copy_(g[f"w/{name}.bias"])
    for told in (0, 1):
        seen: list[Tensor] = []
        handles = [layer.register_forward_hook(lambda m, a, out, s=seen: s.append(out if isinstance(out, Tensor) else out[0]))
                   for layer in model.encoder.layer]
        with thrifty.task(model, told):
            last = model.encoder(g["in/hidden"], g["in/additive_mask"]).last_hidden_state
        for handle in handles:
            handle.remove()
        for i, y in enumerate(seen):
            torch.testing.assert_close(y, g[f"out/task{told}.layer{i}"], atol=1e-10, rtol=0)
    at.context.taps[edits[0].mask] = g["in/additive_mask"], False, 5
    with thrifty.task(model, "one"):
        torch.testing.assert_close(edits[0].branch(g["in/hidden"]), g["out/pal_task1_layer0"], atol=1e-10, rtol=0)
    (last * g["in/probe"]).sum().backward()
    for name, grad in (("mult_aug_dense.1", shared.encode[1]), ("mult_aug_dense2.1", shared.decode[1]),
                       ("layer.0.multi_layers.1.attn.query", edits[0].attention[1].query)):
        torch.testing.assert_close(grad.weight.grad, g[f"grad/{name}.weight"], atol=1e-10, rtol=0)
    others = (shared.encode[0], shared.decode[0], edits[0].attention[0])
    assert all(p.grad is None for module in others for p in module.parameters())


@pytest.mark.parametrize(("name", "each", "places"), [("pals", 1_819_836, 2 * 768 * 204 + 204 + 768),
                                                     ("pals-low-rank", 1_853_616, 0)])
def test_counts_on_bert_base(name: str, each: int, places: int) -> None:
    at = thrifty.attach(published("bert-base"), make(name), tasks=GLUE)
    assert (at.summary().tuner, at.summary().in_place) == (8 * each, 109_482_240)
    shared = at.context.shared
    assert (0 if shared is None else sum(p.numel() for p in shared.parameters())) == 8 * places
    frozen = thrifty.attach(published("bert-base"), make(name, freeze=True), tasks=GLUE)
    assert (frozen.summary().tuner, frozen.summary().in_place) == (8 * each, 38_400)
    if name == "pals":
        assert 8 * each == 14_558_688 and round(count(at) / 109_482_240, 2) == 1.13


@pytest.mark.parametrize(("variant", "heads"), [("code", 6), ("paper", 12), ("low-rank", 0)])
def test_a_layer_by_hand(variant: str, heads: int) -> None:
    model, at = attached(variant=variant)
    shake(at, 0.2)
    x, layer, edit = torch.randn(2, 5, 16, dtype=torch.float64), model.bert.encoder.layer[1], pals(at)[1]
    added = torch.zeros(2, 1, 1, 5, dtype=torch.float64).masked_fill(MASK[:, None, None] == 0, -torch.inf)
    with thrifty.task(model, "mrpc"):
        y = layer(x, added)
    y = y if isinstance(y, Tensor) else y[0]
    if variant == "low-rank":
        branch = edit.decode[1](F.gelu(edit.encode[1](x)))
        assert at.context.shared is None
    else:
        attention, shared = edit.attention[1], at.context.shared
        z = shared.encode[1](x)
        q, k, v = (f(z).view(2, 5, heads, -1).transpose(1, 2) for f in (attention.query, attention.key, attention.value))
        share = (q @ k.transpose(2, 3) / (12 / heads) ** 0.5 + added).softmax(-1)
        branch = shared.decode[1]((share @ v).transpose(1, 2).reshape(2, 5, 12))
        branch = F.gelu(branch) if variant == "code" else branch
    own, out = layer.attention, layer.output
    for edit in at.edits.values():
        edit.on = False
    a = own.output.LayerNorm(x + own.output.dense(own.self(x, added)[0]))
    torch.testing.assert_close(y, out.LayerNorm(a + out.dense(F.gelu(layer.intermediate.dense(a))) + branch))


def test_start() -> None:
    model, at = attached(double=False, width=60)
    for name, p in at.named_parameters():
        if not name.startswith("base:"):
            assert not p.any() if p.dim() == 1 else float(p.detach().std()) == pytest.approx(0.02, rel=0.15)
    moved = answer(model, 0)
    with at.disabled():
        base = run(model)
    assert 1e-6 < float((moved - base).abs().max()) < 0.1


@pytest.mark.parametrize("variant", ["code", "paper", "low-rank"])
def test_without_its_decoder_it_is_plain_bert(variant: str) -> None:
    model, at = attached(variant=variant)
    with at.disabled():
        base = run(model)
    decoders = at.context.shared.decode if at.context.shared is not None else [d for e in pals(at) for d in e.decode]
    with torch.no_grad():
        for linear in decoders:
            linear.weight.zero_()
            linear.bias.zero_()
    torch.testing.assert_close(answer(model, "rte"), base)


def test_projections_are_one_object_whose_gradient_is_the_sum_over_layers() -> None:
    model, at = attached()
    shake(at, 0.2)
    shared = at.context.shared
    assert not any("encode" in n or "decode" in n for e in pals(at) for n, _ in e.named_parameters())
    answer(model, "rte").square().sum().backward()
    whole = shared.encode[0].weight.grad.clone()
    model.zero_grad()
    second, twin = pals(at)[1], Context(at)
    twin.task, twin.taps, twin.shared = 0, at.context.taps, copy.deepcopy(shared)
    second.join(twin)  # from now on the second layer reads a copy, which gets that layer's share of the gradient
    answer(model, "rte").square().sum().backward()
    torch.testing.assert_close(shared.encode[0].weight.grad + twin.shared.encode[0].weight.grad, whole)
    assert not torch.allclose(shared.encode[0].weight.grad, whole)


def test_a_batch_trains_the_model_and_its_own_task() -> None:
    model, at = attached(double=False)
    tell(model, "mrpc")
    moved = frozen_stay(model, at)
    own = {n for n in moved if "edits" in n.split(".")}
    assert own and all(".encode.1." in n or ".decode.1." in n or ".attention.1." in n for n in own)
    assert {n for n, p in model.named_parameters() if ".edits." not in n and not n.startswith("edits.")} == set(at.base)
    assert len(moved - own) > 20
    frozen, at = attached(double=False, freeze=True)
    tell(frozen, "mrpc")
    moved = {n for n in frozen_stay(frozen, at) if "edits" not in n.split(".")}
    assert moved == {n for n, _ in frozen.named_parameters() if "LayerNorm" in n} and len(moved) == 10


def test_padding_and_rows_of_different_tasks() -> None:
    for kind in ("bert", "bart"):
        model, at = attached(kind, freeze=True)
        shake(at)
        mixed = answer(model, ["cola", "rte"])
        torch.testing.assert_close(mixed[:1], answer(model, "cola")[:1])
        torch.testing.assert_close(mixed[1:], answer(model, "rte")[1:])
        more = {"decoder_input_ids": IDS[:, :3]} if kind == "bart" else {}
        with thrifty.task(model, "cola"):
            padded = model(input_ids=F.pad(IDS, (0, 3), value=1), attention_mask=F.pad(MASK, (0, 3)), **more).logits
        torch.testing.assert_close(padded, answer(model, "cola"))
        assert not at.context.taps


def test_causal_models_see_no_later_token() -> None:
    model, at = attached("gpt2", freeze=True)
    shake(at)
    later = IDS.clone()
    later[:, -1] = 30
    with thrifty.task(model, 0):
        a, b = (model(input_ids=ids).logits for ids in (IDS, later))
        torch.testing.assert_close(a[:, :-1], b[:, :-1])
        assert not torch.allclose(a[:, -1], b[:, -1])
        with pytest.raises(Unfit, match="1 queries and 6 keys.*use_cache=False"):
            model.generate(input_ids=IDS, max_new_tokens=2, min_new_tokens=2)
        model.generate(input_ids=IDS, max_new_tokens=2, min_new_tokens=2, use_cache=False)


def test_saved_and_loaded(tmp_path: Any) -> None:
    model, at = attached(double=False)
    shake(at, 0.1)
    at.save(tmp_path / "adapter")
    fresh = tiny("bert")
    assert thrifty.load(fresh, tmp_path / "adapter").tasks == TASKS
    assert torch.equal(answer(fresh, "cola"), answer(model, "cola"))


def test_refusals() -> None:
    for settings, said in (({"variant": "mine"}, "variant"), ({"width": 10}, "a multiple of the 6 heads"), ({"width": -1}, "width"),
                           ({"heads": -1}, "heads"), ({"dropout": 1.0}, "dropout")):
        with pytest.raises(NoSuchSetting, match=said):
            thrifty.attach(tiny("bert"), thrifty.PALs.make(**settings), tasks=TASKS)
    with pytest.raises(NoSuchSetting, match="pals serves several tasks"):
        thrifty.attach(tiny("bert"), thrifty.PALs())
    model = tiny("t5")
    example = {"input_ids": IDS, "attention_mask": MASK, "decoder_input_ids": IDS[:, :3]}
    with pytest.raises(Unfit, match="its 2 heads"):
        thrifty.attach(model, thrifty.PALs(width=12), tasks=TASKS, example=example)
    assert not thrifty.attachments(model)
    with pytest.raises(NoSuchSite, match="no 'after.mlp'"):
        thrifty.attach(tiny("resnet"), thrifty.PALs(width=12), tasks=TASKS)
    with pytest.raises(Unfit, match="choose blocks of one width"):
        thrifty.attach(tiny("swin"), thrifty.PALs(width=12), tasks=TASKS)
    encoder = torch.nn.TransformerEncoder(torch.nn.TransformerEncoderLayer(16, 2, 32), 1, enable_nested_tensor=False)
    with pytest.raises(Unfit, match=r"takes in \[5, 2, 16\] and attends over 5"):
        thrifty.attach(encoder, thrifty.PALs(width=12), tasks=TASKS, example=torch.randn(5, 2, 16))
    model, at = attached(freeze=True)
    with pytest.raises(CannotMerge):
        at.merge()
    with pytest.raises(Unfit, match="serves the tasks that it was attached with"):
        thrifty.add_tasks(at, ["sst2"])
    with pytest.raises(ThriftyError, match="say which"):
        run(model)
    at.disable(lambda row: row.edit == "mask-tap")
    with pytest.raises(DeadEdit, match="tap"):
        answer(model, 0)
