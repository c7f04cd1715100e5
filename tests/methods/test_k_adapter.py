"""K-Adapter: reference arrays, counts, the chain of plugs, padding, and both phases."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from backbones import IDS, MASK, count, frozen_stay, golden, published, run, shake, tiny
from torch import Tensor, nn

import thrifty
from thrifty.core.errors import CannotCombine, CannotMerge, NoSuchSetting, Unfit, WrongBase
from thrifty.methods.k_adapter import Knowledge, Plug

SMALL: dict[str, Any] = {"width": 8, "heads": 2}


def knowledge(at: Any) -> Knowledge:
    (edit,) = [e for e in at.edits.values() if isinstance(e, Knowledge)]
    return edit


def test_reference_arrays() -> None:
    g = golden("nlp_kadapter")
    plug = Plug(g["hp/plm_width"], g["hp/width"], 2, g["hp/heads"], 0.1).double().eval()
    for layer in plug.layers:  # the reference arrays have a feed-forward network of twice the width
        layer.wide, layer.back = nn.Linear(12, 24).double(), nn.Linear(24, 12).double()
    theirs = {"down": "down_project", "up": "up_project"}
    inner = {"q": "attention.self.query", "k": "attention.self.key", "v": "attention.self.value",
             "o": "attention.output.dense", "norm_attention": "attention.output.LayerNorm", "wide": "intermediate.dense",
             "back": "output.dense", "norm_feed": "output.LayerNorm"}
    theirs |= {f"layers.{i}.{ours}": f"encoder.layer.{i}.{name}" for i in range(2) for ours, name in inner.items()}
    names = {f"{ours}.{kind}": f"{name}.{kind}" for ours, name in theirs.items() for kind in ("weight", "bias")}
    assert names.keys() == plug.state_dict().keys() and {f"w/{n}" for n in names.values()} == {k for k in g if k[:2] == "w/"}
    plug.load_state_dict({ours: g[f"w/{name}"] for ours, name in names.items()})
    y = plug(g["in/hidden"], None, False)
    torch.testing.assert_close(y, g["out/y"], atol=1e-10, rtol=0)
    (y * g["in/probe"]).sum().backward()
    for ours, name in names.items():
        torch.testing.assert_close(plug.get_parameter(ours).grad, g[f"grad/{name}"], atol=1e-10, rtol=0)


def test_counts() -> None:
    with torch.device("meta"):
        large = hf.RobertaModel(hf.RobertaConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16,
                                                 intermediate_size=4096))
    for model, plugs, wanted, d in ((large, [0, 11, 22], 47_251_200, 1024), (published("bert-base"), [0, 5, 10], 46_070_784, 768)):
        at = thrifty.attach(model, thrifty.KAdapter())
        edit = knowledge(at)
        assert edit.blocks == [f"encoder.layer.{p}" for p in plugs]
        assert sum(p.numel() for p in edit.plugs.parameters()) == wanted
        layers = [layer for plug in edit.plugs[0] for layer in plug.layers]
        assert sum(p.numel() for layer in layers for p in layer.parameters()) == 6 * 7_087_872
        assert count(at) == wanted + 2 * d * d + d


def test_the_chain_by_hand() -> None:
    model = tiny("bert", num_hidden_layers=5).double()
    states = model.bert(input_ids=IDS, attention_mask=MASK, output_hidden_states=True).hidden_states
    at = thrifty.attach(model, thrifty.KAdapter(plugs=[0, 2, 4], **SMALL))
    shake(at)
    edit, mask = knowledge(at), MASK.bool()[:, None, None, :]
    o = torch.zeros_like(states[0])
    for plug, k in zip(edit.plugs[0], (0, 2, 4), strict=True):
        u = states[k] + o
        t = u @ plug.down.weight.T + plug.down.bias
        for layer in plug.layers:
            q, k_, v = (lin(t).view(2, 5, 2, 4).transpose(1, 2) for lin in (layer.q, layer.k, layer.v))
            weights = (q @ k_.transpose(-1, -2) / 2).masked_fill(~mask, -torch.inf).softmax(-1)
            a = layer.norm_attention(t + layer.o((weights @ v).transpose(1, 2).flatten(2)))
            t = layer.norm_feed(a + layer.back(F.gelu(layer.wide(a))))
        o = u + t @ plug.up.weight.T + plug.up.bias
    wanted = edit.fuse[0](torch.cat([states[-1], o], -1))
    found = model.bert(input_ids=IDS, attention_mask=MASK).last_hidden_state
    torch.testing.assert_close(found[mask[:, 0, 0]], wanted[mask[:, 0, 0]])


def test_a_plug_is_nearly_the_identity_at_the_start() -> None:
    torch.manual_seed(0)
    plug, u = Plug(1024, 768, 2, 12, 0.1).eval(), torch.randn(1, 3, 1024)
    with torch.no_grad():
        moved = float((plug(u, None, False) - u).abs().max())
    assert 1e-4 < moved < 0.05 and float(plug.down.weight.detach().std()) == pytest.approx(2e-4, rel=0.02)
    assert not plug.up.bias.any() and not plug.down.bias.any()


def test_padding_is_seen_only_if_blind() -> None:
    for blind in (False, True):
        model = tiny("bert")
        shake(thrifty.attach(model, thrifty.KAdapter(blind=blind, **SMALL)))
        short = model.bert(input_ids=IDS[1:, :3], attention_mask=MASK[1:, :3]).last_hidden_state
        padded = model.bert(input_ids=IDS[1:], attention_mask=MASK[1:]).last_hidden_state[:, :3]
        assert torch.allclose(short, padded, atol=1e-5) != blind


def test_the_first_phase_trains_the_network_alone_and_keeps_no_graph() -> None:
    model = tiny("bert").requires_grad_(False)
    before = run(model, output_hidden_states=True).detach()
    at = thrifty.attach(model, thrifty.KAdapter(**SMALL))
    states: list[Tensor] = []
    for block in model.bert.encoder.layer:
        block.register_forward_hook(lambda m, a, y: states.append(y))
    assert not torch.allclose(run(model), before, atol=1e-4)
    with at.disabled():
        run(model)
    assert not any(s.requires_grad for s in states)
    assert len(states) == 4 and all(torch.equal(a, b) for a, b in zip(states[:2], states[2:], strict=True))
    assert all("edits" in n.split(".") for n in frozen_stay(model, at))
    with pytest.raises(CannotMerge):
        at.merge()


def adapter(folder: Path, seed: int, **more: Any) -> str:
    at = thrifty.attach(tiny("bert"), thrifty.KAdapter(**{**SMALL, **more}), also_train="head", seed=seed)
    shake(at, 0.1 * (seed + 1))
    return str(at.save(folder))


@pytest.mark.parametrize("tasks", [1, 2])
def test_the_second_phase_tunes_the_trunk_under_frozen_adapters(tmp_path: Path, tasks: int) -> None:
    folders = [adapter(tmp_path / str(i), i) for i in range(tasks)]
    model, alone = tiny("bert"), tiny("bert")
    at = thrifty.attach(model, thrifty.KAdapter(adapters=",".join(folders), **SMALL), also_train="head")
    edit, first = knowledge(at), knowledge(thrifty.load(alone, folders[0]))
    known = zip(edit.plugs[0].parameters(), first.plugs[0].parameters(), strict=True)
    assert len(edit.plugs) == tasks and all(torch.equal(a, b) for a, b in known)
    held = {n: p.clone() for n, p in edit.plugs.named_parameters()}
    trained = [n for n, _ in at.named_parameters() if n.startswith("edit")]
    assert len(trained) == 2 * tasks + 2 * (tasks > 1) and not any("plugs" in n for n in trained)
    optimiser = torch.optim.AdamW(at.parameters(), lr=0.01)
    y = run(model)
    for _ in range(2):
        optimiser.zero_grad()
        run(model).square().sum().backward()
        optimiser.step()
    assert all(torch.equal(p, held[n]) for n, p in edit.plugs.named_parameters())
    query = model.bert.encoder.layer[0].attention.self.query.weight
    assert not torch.equal(query, at.base["bert.encoder.layer.0.attention.self.query.weight"])
    states = model.bert(input_ids=IDS, attention_mask=MASK).last_hidden_state
    assert states.shape[-1] == 16 and not torch.equal(run(model), y)
    at.save(tmp_path / "task")
    again = tiny("bert")
    thrifty.load(again, tmp_path / "task")
    assert torch.equal(run(again), run(model))


def test_two_adapters_are_fused_apart_and_then_together(tmp_path: Path) -> None:
    model = tiny("bert").double()
    folders = [adapter(tmp_path / str(i), i) for i in range(2)]
    outputs, base = [], model.bert(input_ids=IDS, attention_mask=MASK).last_hidden_state
    for folder in folders:  # o_K of each: what its own fusion would read
        at = thrifty.load(model, folder, base="any")
        seen: list[Tensor] = []
        handle = knowledge(at).fuse[0].register_forward_pre_hook(lambda m, a, seen=seen: seen.append(a[0]))
        model.bert(input_ids=IDS, attention_mask=MASK)
        handle.remove()
        at.detach()
        outputs.append(seen[0][..., 16:])
    other = tiny("bert")
    at = thrifty.attach(other, thrifty.KAdapter(adapters=",".join(folders), tune_trunk=False, **SMALL))
    shake(at)
    edit = knowledge(at).double()
    fused = [fuse(torch.cat([base, o], -1)) for fuse, o in zip(edit.fuse, outputs, strict=True)]
    found = other.double().bert(input_ids=IDS, attention_mask=MASK).last_hidden_state
    torch.testing.assert_close(found, edit.join_all(torch.cat(fused, -1)), atol=1e-5, rtol=1e-5)
    assert not at.base


def test_causal_models_do_not_see_the_future() -> None:
    model = tiny("llama")
    shake(thrifty.attach(model, thrifty.KAdapter(**SMALL)))
    whole = model(input_ids=IDS[:1]).logits
    torch.testing.assert_close(model(input_ids=IDS[:1, :3]).logits, whole[:, :3], atol=1e-5, rtol=1e-5)
    ask = {"input_ids": IDS[:1], "attention_mask": MASK[:1], "max_new_tokens": 4, "do_sample": False}
    assert model.generate(**ask, use_cache=False).shape[1] == 9
    with pytest.raises(Unfit, match="use_cache=False"):
        model.generate(**ask, use_cache=True)


def test_refusals(tmp_path: Path) -> None:
    for settings, name in (({"width": 0}, "width"), ({"width": 10, "heads": 4}, "heads"), ({"dropout": 1.0}, "dropout"),
                           ({"plugs": [1, 0]}, "plugs"), ({"plugs": [-1]}, "plugs")):
        with pytest.raises(NoSuchSetting, match=name):
            thrifty.attach(tiny("bert"), thrifty.KAdapter(**{**SMALL, **settings}))
    with pytest.raises(Unfit, match="cannot plug in at 2"):
        thrifty.attach(tiny("bert"), thrifty.KAdapter(plugs=[0, 2], **SMALL))
    stock = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2)
    with pytest.raises(Unfit, match="takes no attention_mask"):
        thrifty.attach(stock, thrifty.KAdapter(**SMALL), example=torch.randn(1, 3, 16))
    folder = adapter(tmp_path / "a", 0)
    with pytest.raises(CannotCombine, match="has width 8, this one 12"):
        thrifty.attach(tiny("bert"), thrifty.KAdapter(adapters=folder, width=12, heads=2))
    with pytest.raises(WrongBase):
        thrifty.attach(tiny("bert", seed=5), thrifty.KAdapter(adapters=folder, **SMALL))
    lora = thrifty.attach(tiny("bert"), thrifty.LoRA(rank=2))
    shake(lora)
    with pytest.raises(CannotCombine, match="holds no K-Adapter of one network, but 'lora'"):
        thrifty.attach(tiny("bert"), thrifty.KAdapter(adapters=str(lora.save(tmp_path / "l")), **SMALL))
