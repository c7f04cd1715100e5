"""ATTEMPT: reference arrays, published counts, how prompts are weighed, and sources that are read and verified."""
from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from backbones import IDS, MASK, count, frozen_stay, golden, published, run, shake, tiny
from torch import Tensor, nn

import thrifty
from thrifty.core.errors import BrokenArtifact, NoSuchSetting, ThriftyError, Unfit, WrongBase
from thrifty.methods.attempt import Mixture


def prompts(number: int = 3, length: int = 4, width: int = 16) -> list[Tensor]:
    return list(torch.randn(number, length, width, generator=torch.Generator().manual_seed(3)))


def attached(model: Any, **settings: Any) -> tuple[thrifty.Attachment, Mixture]:
    at = thrifty.attach(model, thrifty.Attempt(**{"sources": prompts(), "hidden": 8, **settings}))
    return at, next(e for e in at.edits.values() if isinstance(e, Mixture))


def test_reference_arrays() -> None:
    g = golden("nlp_attempt")
    sources = list(g["w/source_prompts"])
    _, edit = attached(tiny("t5"), sources=sources, hidden=100, temperature=g["hp/temperature"], pool="official")
    with torch.no_grad():
        edit.targets[0].copy_(g["w/target_prompt"])
        edit.down.weight.copy_(g["w/down_weight"]), edit.up.weight.copy_(g["w/up_weight"])
        edit.norm.load_state_dict({k: g[f"w/layernorm_{k}"] for k in ("weight", "bias")})
    assert edit.norm.eps == g["hp/layernorm_eps"] and len(sources) == g["hp/sources"] and edit.count == g["hp/prompt_length"]
    x = g["in/input_embeddings"]
    torch.testing.assert_close(edit.vectors(x, None), g["out/instance_prompt"], atol=1e-5, rtol=0)
    _, given = edit((), {"inputs_embeds": x})
    torch.testing.assert_close(given["inputs_embeds"], g["out/encoder_input"], atol=1e-5, rtol=0)


def test_counts() -> None:
    sources = [torch.empty(100, 768, device="meta")] * 6
    assert count(thrifty.attach(published("t5-base"), thrifty.Attempt(sources=sources))) == 231_936
    assert count(thrifty.attach(published("t5-base"), thrifty.Attempt(sources=sources, norm=False))) == 230_400
    eight = thrifty.attach(published("t5-base"), thrifty.Attempt(sources=sources), tasks=[f"task {i}" for i in range(8)])
    assert count(eight) / 8 == 96_192
    _, edit = attached(published("t5-base"), sources=sources, hidden=100)
    assert round(edit.temperature) == 2088 and edit.temperature == 768 * math.e


@pytest.mark.parametrize("mode", ["sub", "linear", "token", "dot", "constant"])
def test_each_mode_by_hand(mode: str) -> None:
    at, edit = attached(tiny("t5").double(), mode=mode, temperature=3.0)
    shake(at)
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    for row in range(2):
        best = x[row, : int(MASK[row].sum())].max(0).values
        H = best
        if mode in ("sub", "token"):
            H = F.layer_norm(edit.up.weight @ F.silu(edit.down.weight @ best), (16,), edit.norm.weight, edit.norm.bias)
        elif mode == "linear":
            H = F.layer_norm(edit.linear.weight @ best, (16,), edit.norm.weight, edit.norm.bias)
        target = edit.targets[0]
        every = [*edit.sources, target]
        if mode == "token":
            a = torch.stack([p @ H / 3 for p in every]).softmax(0)  # [4, P]
            mixed = sum(w[:, None] * p for w, p in zip(a, every, strict=True))
        else:
            scores = torch.stack([p.max(0).values @ H for p in every])
            a = {"dot": scores, "constant": torch.zeros(4, dtype=scores.dtype)}.get(mode, scores / 3).softmax(0)
            mixed = sum(w * p for w, p in zip(a, every, strict=True))
        torch.testing.assert_close(edit.vectors(x, MASK)[row], target + mixed)
        torch.testing.assert_close(edit.weights(x, MASK, edit.target(2)).sum(1)[row], a.sum(0))
        torch.testing.assert_close(a.sum(0), torch.ones_like(a.sum(0)))


def test_limits() -> None:
    x = torch.randn(2, 5, 16)
    one = prompts(1)[0]
    at, edit = attached(tiny("t5"), sources=[one, one, one])
    torch.testing.assert_close(edit.vectors(x, None), (2 * one).expand(2, -1, -1))
    at, edit = attached(tiny("t5"), temperature=1e9)
    shake(at)
    mean = torch.stack([*edit.sources, edit.targets[0]]).mean(0)
    torch.testing.assert_close(edit.vectors(x, None), (edit.targets[0] + mean).expand(2, -1, -1))
    at, edit = attached(tiny("t5"))
    shake(at)
    y = edit.vectors(x, None)
    edit.sources.copy_(edit.sources[[2, 0, 1]].clone())
    torch.testing.assert_close(edit.vectors(x, None), y)
    alone = at.put(edit.site, Mixture, length=4, sources=0)  # the target is then all that it looks at
    nn.init.normal_(alone.targets[0])
    torch.testing.assert_close(alone.vectors(x, None), (2 * alone.targets[0]).expand(2, -1, -1))


def test_the_target_starts_as_the_first_source_and_sources_stay() -> None:
    model = tiny("t5")
    at, edit = attached(model)
    assert torch.equal(edit.targets[0], prompts()[0]) and torch.equal(edit.sources, torch.stack(prompts()))
    moved = frozen_stay(model, at)
    assert {n.rpartition("edits.default.")[2] for n in moved} == {
        "targets.0", "down.weight", "up.weight", "norm.weight", "norm.bias"}
    assert torch.equal(edit.sources, torch.stack(prompts())) and not edit.sources.requires_grad and edit.sources.grad is None
    still = tiny("t5")
    at, edit = attached(still, norm=False)
    assert not any("norm" in n for n in frozen_stay(still, at)) and edit.norm.weight.grad is None


@pytest.mark.parametrize("kind", ["t5", "bert"])
def test_padding_matters_only_as_in_the_official_code(kind: str) -> None:
    for pool in ("masked", "official"):
        model = tiny(kind)
        with torch.no_grad():
            model.get_input_embeddings().weight[0] = 5.0  # padding would win every maximum
        at, _ = attached(model, pool=pool, temperature=1.0)
        shake(at)
        more = {"decoder_input_ids": IDS[:1, :3]} if kind == "t5" else {}
        row, mask = IDS[:1], MASK[:1]
        y = model(input_ids=row, attention_mask=mask, **more).logits
        padded = model(input_ids=F.pad(row, (0, 2)), attention_mask=F.pad(mask, (0, 2)), **more).logits
        assert torch.allclose(padded, y, atol=1e-5) == (pool == "masked")


def saved_prompt(folder: Path, kind: str = "t5", seed: int = 0, length: int = 4, **config: Any) -> Tensor:
    model = tiny(kind, **config)
    at = thrifty.attach(model, thrifty.PromptTuning(length=length), seed=seed,
                        also_train="head" if kind == "bert" else None)
    shake(at)
    at.save(folder)
    return next(p for n, p in at.named_parameters() if n.endswith(":prompt")).detach()


def test_sources_from_folders(tmp_path: Path) -> None:
    saved = [saved_prompt(tmp_path / str(i), seed=i) for i in range(2)]
    model = tiny("t5")
    at, edit = attached(model, sources=[str(tmp_path / "0"), tmp_path / "1"])
    assert torch.equal(edit.sources, torch.stack(saved)) and torch.equal(edit.targets[0], saved[0])
    shake(at)
    y = run(model)
    at.save(tmp_path / "attempt")
    for i in range(2):  # the adapter needs its sources no more
        (tmp_path / str(i)).rename(tmp_path / f"gone-{i}")
    fresh = tiny("t5")
    loaded = thrifty.load(fresh, tmp_path / "attempt")
    assert torch.equal(run(fresh), y) and loaded.method.sources == [str(tmp_path / "0"), str(tmp_path / "1")]
    written = [model.generate(input_ids=IDS, attention_mask=MASK, max_new_tokens=4, use_cache=c) for c in (True, False)]
    assert torch.equal(*written)


def test_a_source_for_other_labels(tmp_path: Path) -> None:
    """Only the prompt is taken: the head of the source's task is not part of the base."""
    saved = saved_prompt(tmp_path / "three", "bert", num_labels=3)
    _, edit = attached(tiny("bert"), sources=[tmp_path / "three"])
    assert torch.equal(edit.sources[0], saved)


def test_the_network_of_another_attempt(tmp_path: Path) -> None:
    model = tiny("t5")
    at, trained = attached(model)
    shake(at)
    at.save(tmp_path / "first")
    _, edit = attached(tiny("t5"), attention=str(tmp_path / "first"))
    for name in ("down.weight", "up.weight", "norm.weight", "norm.bias"):
        assert torch.equal(edit.get_parameter(name), trained.get_parameter(name))
    assert torch.equal(edit.targets[0], prompts()[0])
    with pytest.raises(Unfit, match="mode 'linear'"):
        attached(tiny("t5"), attention=str(tmp_path / "first"), mode="linear")
    saved_prompt(tmp_path / "prompt")
    with pytest.raises(Unfit, match="holds no ATTEMPT"):
        attached(tiny("t5"), attention=str(tmp_path / "prompt"))


def test_a_target_for_each_task(tmp_path: Path) -> None:
    model = tiny("t5").double()
    at = thrifty.attach(model, thrifty.Attempt(sources=prompts(), hidden=8), tasks=["mnli", "rte", "cb"])
    shake(at)
    edit = next(e for e in at.edits.values() if isinstance(e, Mixture))
    assert [t.shape for t in edit.targets] == [(4, 16)] * 3
    with pytest.raises(ThriftyError, match="several tasks"):
        run(model)
    alone = []
    for name in ("rte", "cb"):
        with thrifty.task(model, name):
            alone.append(run(model))
    assert not torch.allclose(*alone, atol=1e-4)
    with thrifty.task(model, ["rte", "cb"]):
        torch.testing.assert_close(run(model), torch.stack([alone[0][0], alone[1][1]]))
    model.zero_grad()
    with thrifty.task(model, ["cb", "cb"]):
        run(model).square().sum().backward()
    assert [t.grad is not None for t in edit.targets] == [False, False, True] and edit.down.weight.grad.any()
    thrifty.add_tasks(at, ["copa"])
    assert torch.equal(edit.targets[3].float(), prompts()[0]) and at.summary().tuner == 4 * 64 + 2 * 8 * 16 + 32
    with thrifty.task(model, "copa"):
        fourth = run(model)
    with thrifty.task(model, "cb"):
        assert torch.equal(run(model), alone[1])
    at.save(tmp_path / "four")
    again = tiny("t5").double()
    thrifty.load(again, tmp_path / "four")
    with thrifty.task(again, "copa"):
        assert torch.equal(run(again), fourth)
    with pytest.raises(NoSuchSetting, match="task number 4"), thrifty.task(model, 4):
        run(model)
    with pytest.raises(NoSuchSetting, match="3 tasks were told for the rows of a batch of 2"), thrifty.task(model, [0, 1, 2]):
        run(model)


@pytest.mark.parametrize(("settings", "setting"), [
    ({"sources": []}, "sources"), ({"sources": "folder"}, "sources"), ({"mode": "add"}, "mode"), ({"hidden": 0}, "hidden"),
    ({"temperature": -1.0}, "temperature"), ({"pool": "mean"}, "pool"), ({"mode": "dot", "attention": "a"}, "attention")])
def test_settings_without_meaning(settings: dict[str, Any], setting: str) -> None:
    with pytest.raises(NoSuchSetting, match=setting):
        attached(tiny("t5"), **settings)


def test_sources_that_do_not_fit(tmp_path: Path) -> None:
    model = tiny("t5")
    with pytest.raises(Unfit, match=r"source 1 is a prompt of shape \[4, 8\], .* should be \[4, 16\]"):
        attached(model, sources=[torch.zeros(4, 16), torch.zeros(4, 8)])
    with pytest.raises(Unfit, match=r"source 0 is a prompt of shape \[4, 8\]"):
        attached(model, sources=[torch.zeros(4, 8)])
    saved_prompt(tmp_path / "long", length=6)
    with pytest.raises(Unfit, match=r"source 1 \('.*long'\) is a prompt of shape \[6, 16\]"):
        attached(model, sources=[torch.zeros(4, 16), tmp_path / "long"])
    for wrong, said in ((torch.zeros(4), r"a tensor \[4\]"), (torch.zeros(4, 16).long(), "int64")):
        with pytest.raises(Unfit, match=said):
            attached(model, sources=[wrong])
    with pytest.raises(NoSuchSetting, match="source 0 is a int"):
        attached(model, sources=[3])
    saved_prompt(tmp_path / "bert", "bert")
    other = tiny("t5", seed=5)
    for folder in ("long", "bert"):
        with pytest.raises(WrongBase, match=f"source 0 .*{folder}"):
            attached(other, sources=[tmp_path / folder])
    lora = thrifty.attach(tiny("t5"), thrifty.LoRA())
    lora.save(tmp_path / "lora", unchanged=True)
    with pytest.raises(Unfit, match=r"holds 0 prompts \(its edits are \['low-rank'\]\)"):
        attached(model, sources=[tmp_path / "lora"])
    with pytest.raises(BrokenArtifact, match="source 0 .*nowhere"):
        attached(model, sources=[tmp_path / "nowhere"])
    file = tmp_path / "long" / "adapter.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    with pytest.raises(BrokenArtifact, match="source 0 .*do not match their hash"):
        attached(model, sources=[tmp_path / "long"])
    assert not thrifty.attachments(model)


def test_models_that_write_on_or_have_no_room() -> None:
    for kind in ("llama", "gpt2"):
        with pytest.raises(Unfit, match="writes on where it ends"):
            attached(tiny(kind))
    with pytest.raises(Unfit, match="no room in the"):
        attached(tiny("bert", max_position_embeddings=4))
    attached(tiny("llama-class"))


def test_a_frozen_norm_is_saved(tmp_path: Path) -> None:
    model = tiny("t5")
    at, edit = attached(model, norm=False)
    nn.init.normal_(edit.norm.weight)
    shake(at)
    at.save(tmp_path / "a")
    fresh = tiny("t5")
    thrifty.load(fresh, tmp_path / "a")
    assert torch.equal(run(fresh), run(model))
