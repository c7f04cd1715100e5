"""LST: reference arrays, published counts, the ladder by hand, structural pruning, two caches, and what is refused."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from backbones import IDS, MASK, count, frozen_stay, golden, published, run, shake, tiny
from torch import Tensor, nn

import thrifty
from thrifty.core.errors import CannotMerge, NoSuchSetting, NoSuchSite, ThriftyError, Unfit
from thrifty.core.roles import blocks
from thrifty.methods import make
from thrifty.methods.lst import Between, Ladder

PLAIN: dict[str, Any] = {"reduction": 2, "init": "magnitude"}
KINDS = ["bert", "gpt2", "llama", "t5", "bart", "vit"]


def lst(**more: Any) -> Any:
    return thrifty.LST(**{**PLAIN, **more})


def ladders(at: Any) -> list[Any]:
    return [edit for edit in at.edits.values() if isinstance(edit, Ladder)]


# -- the reference arrays -------------------------------------------------------------------------------------------------


def reference(dtype: torch.dtype = torch.float32) -> tuple[dict[str, Any], Any, Any, dict[str, tuple[Tensor, Any]]]:
    """The arrays, the model, the attachment, and each array's name -> (the tensor of ours, which entry of it)."""
    g = golden("nlp_lst_t5")
    model = hf.T5ForConditionalGeneration(hf.T5Config(**json.loads(g["hp/config"]))).eval()
    base = {k[2:]: v for k, v in g.items() if k.startswith("w/") and "side" not in k}
    missing = model.load_state_dict(base, strict=False)
    assert not missing.unexpected_keys
    assert set(missing.missing_keys) <= {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"}
    kept = g["hp/kept_layers"].tolist()
    at = thrifty.attach(model, thrifty.LST(reduction=g["hp/reduction"], keep=kept, init="magnitude",
                                           temperature=g["hp/gate_temperature"]))
    ours: dict[str, tuple[Tensor, Any]] = {}
    for stack, ladder in zip(("encoder", "decoder"), ladders(at), strict=True):
        ours |= {f"{stack}.side_gate_params.{i}": (ladder.alpha, slice(i, i + 1)) for i in range(3)}
        parts = {"side_first_downsample": ladder.start, "final_side_layer_norm": ladder.norm}
        parts |= {f"side_downsamples.{i}": ladder.down[j] for j, i in enumerate(kept)}
        parts |= {f"side_block.{i}": ladder.rungs[j] for j, i in enumerate(kept)}
        ours |= {f"{stack}.{part}.{n}": (p, ...) for part, module in parts.items() for n, p in module.named_parameters()}
    ours |= {f"side_final_upsample.{n}": (p, ...) for n, p in ladders(at)[1].up.named_parameters()}
    assert {k[2:] for k in g if k.startswith("w/") and "side" in k} == ours.keys()
    with torch.no_grad():
        for name, (tensor, entry) in ours.items():
            tensor[entry] = g[f"w/{name}"]
    return g, model, at, ours


def test_reference_arrays() -> None:
    g, model, at, ours = reference()
    out = model(input_ids=g["in/input_ids"], attention_mask=g["in/attention_mask"], labels=g["in/labels"],
                decoder_input_ids=g["in/decoder_input_ids"])
    torch.testing.assert_close(out.logits, g["out/logits"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out.loss, torch.as_tensor(g["out/loss"]), atol=1e-5, rtol=1e-5)
    own, side = out.encoder_last_hidden_state.split([16, 8], -1)
    torch.testing.assert_close(own, g["out/encoder_backbone_last"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(side, g["out/encoder_side_last"], atol=1e-5, rtol=1e-5)
    out.loss.backward()
    still = {"encoder.side_gate_params.1", "decoder.side_gate_params.1"}
    for name, (tensor, entry) in ours.items():
        if name in still:
            assert not tensor.grad[entry].any()
        else:
            torch.testing.assert_close(tensor.grad[entry], g[f"grad/{name}"], atol=1e-5, rtol=1e-4)
    assert {k[5:] for k in g if k.startswith("grad/")} == ours.keys() - still


# -- counts and start -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("backbone", "drop_every", "wanted"), [
    ("t5-base", 4, 3_878_712), ("t5-base", 0, 5_097_240), ("bert-base", 0, 2_376_288 + 12)])
def test_counts(backbone: str, drop_every: int, wanted: int) -> None:
    at = thrifty.attach(published(backbone), thrifty.LST(drop_every=drop_every))
    assert count(at) == wanted
    if wanted == 3_878_712:
        assert [ladder.kept for ladder in ladders(at)] == 2 * [[1, 2, 3, 5, 6, 7, 9, 10, 11]]
        assert f"{wanted / 222_882_048:.3%}" == "1.740%"


def test_the_authors_choices_for_larger_models() -> None:
    with torch.device("meta"):
        large = hf.T5EncoderModel(hf.T5Config(d_model=64, d_kv=8, d_ff=64, num_layers=24, num_heads=8))
    assert ladders(thrifty.attach(large, thrifty.LST(drop_every=2)))[0].kept == list(range(1, 24, 2))
    with torch.device("meta"):
        large = hf.T5EncoderModel(hf.T5Config(d_model=64, d_kv=8, d_ff=64, num_layers=24, num_heads=8))
    assert ladders(thrifty.attach(large, thrifty.LST(keep=[23])))[0].kept == [23]


def test_start_values() -> None:
    model = tiny("bert", hidden_size=256, intermediate_size=256)
    at = thrifty.attach(model, lst())
    (ladder,) = ladders(at)
    for layer in (ladder.start, *ladder.down, ladder.up):
        assert float(layer.weight.std()) == pytest.approx(0.01, rel=0.05) and not layer.bias.any()
    assert not ladder.alpha.any()


# -- structural pruning ---------------------------------------------------------------------------------------------------


def ranked(score: Tensor) -> Tensor:
    """The better half of the rows, by their sums of absolute values, in order."""
    order = sorted(range(len(score)), key=lambda i: -float(score[i].abs().sum()))
    return torch.tensor(sorted(order[: len(score) // 2]))


def followed(model: Any, weight: Any, kept: list[int]) -> dict[str, Tensor]:
    """The side weights of a T5 as the paper's code prunes them, walked by hand; ``weight`` gives a tensor's importance."""
    values = dict(model.named_parameters())
    found: dict[str, Tensor] = {}

    def put(name: str, value: Tensor) -> None:
        if name.split(".")[2] in map(str, kept):
            found[name] = value

    K = ranked(weight("shared.weight").T)
    for stack in ("encoder", "decoder"):
        for i in range(model.config.num_layers):
            crosses = [] if stack == "encoder" else ["EncDecAttention"]
            for j, sub in enumerate(["SelfAttention", *crosses, "DenseReluDense"]):
                at = f"{stack}.block.{i}.layer.{j}"
                put(f"{at}.layer_norm.weight", values[f"{at}.layer_norm.weight"][K])
                first, last = (["wi"], "wo") if sub == "DenseReluDense" else (["q", "k", "v"], "o")
                score = torch.ones(())
                for name in first:
                    score = score * weight(f"{at}.{sub}.{name}.weight")[:, K]
                rows = ranked(score)
                for name in first:
                    put(f"{at}.{sub}.{name}.weight", values[f"{at}.{sub}.{name}.weight"][rows][:, K])
                K = ranked(weight(f"{at}.{sub}.{last}.weight")[:, rows])
                put(f"{at}.{sub}.{last}.weight", values[f"{at}.{sub}.{last}.weight"][K][:, rows])
        found[f"{stack}.final"] = values[f"{stack}.final_layer_norm.weight"][K]
        table = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        found[f"{stack}.block.{kept[0]}.layer.0.SelfAttention.relative_attention_bias.weight"] = values[table]
    return {n: t.detach().clone() for n, t in found.items()}


def side_weights(at: Any) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for stack, ladder in zip(("encoder", "decoder"), ladders(at), strict=True):
        for i, rung in zip(ladder.kept, ladder.rungs, strict=True):
            found |= {f"{stack}.block.{i}.{n}": p for n, p in rung.named_parameters()}
        found[f"{stack}.final"] = ladder.norm.weight
    return found


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name


def t5() -> Any:
    model = tiny("t5", num_layers=3)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "layer_norm" in name:
                p.normal_()
    return model


def test_pruning_by_magnitude() -> None:
    model = t5()
    wanted = followed(model, dict(model.named_parameters()).__getitem__, [1, 2])
    assert_same(side_weights(thrifty.attach(model, lst(keep=[1, 2]))), wanted)


def test_pruning_by_squared_gradients() -> None:
    model = t5()
    labels = torch.tensor([[4, 8, 1], [5, 1, -100]])
    batch = {"input_ids": IDS, "attention_mask": MASK, "labels": labels}
    sums = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    for i in range(2):
        model.zero_grad()
        model(**{k: v[i : i + 1] for k, v in batch.items()}).loss.backward()
        for name, p in model.named_parameters():
            sums[name] += p.grad**2
    model.zero_grad()
    wanted = followed(model, sums.__getitem__, [1, 2])
    at = thrifty.attach(model, lst(keep=[1, 2], init="fisher"), batches=iter([batch]))
    assert_same(side_weights(at), wanted)
    assert all(p.grad is None for p in model.parameters()) and not model.shared.weight.requires_grad
    one = thrifty.attach(t5(), lst(keep=[1, 2], init="fisher", examples=1), batches=[batch, batch])
    assert not all(torch.equal(a, b) for a, b in zip(side_weights(one).values(), wanted.values(), strict=True))


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "bart", "vit"])
def test_every_side_tensor_is_a_part_of_the_trunks(kind: str) -> None:
    model = tiny(kind)
    at = thrifty.attach(model, lst(drop_every=0))
    stacks: dict[str, list[Any]] = {}
    for site in thrifty.sites(model, "block"):
        stacks.setdefault(site.stack, []).append(site.module)
    for ladder, trunk in zip(ladders(at), stacks.values(), strict=True):
        for block, rung in zip(trunk, ladder.rungs, strict=True):
            wide = dict(block.named_parameters())
            for name, p in rung.named_parameters():
                held = set(wide[name].flatten().tolist())
                assert p.numel() * 2 ** p.dim() == wide[name].numel() and set(p.flatten().tolist()) <= held, name


def test_keys_and_values_of_fewer_heads_share_their_rows() -> None:
    model = tiny("llama")
    ladder = ladders(thrifty.attach(model, lst(drop_every=0)))[0]
    attention, side = model.model.layers[0].self_attn, ladder.rungs[0].self_attn
    k_rows, v_rows = ({row for row in range(8) if set(small.weight.flatten().tolist()) & set(wide.weight[row].tolist())}
                      for small, wide in ((side.k_proj, attention.k_proj), (side.v_proj, attention.v_proj)))
    assert k_rows == v_rows and len(k_rows) == 4 and side.q_proj.weight.shape == (8, 8)


# -- the ladder -----------------------------------------------------------------------------------------------------------


def test_gates_choose_between_the_two_streams() -> None:
    model = tiny("bert")
    at = thrifty.attach(model, lst(drop_every=0))
    shake(at, 0.1)
    (ladder,) = ladders(at)

    def noise_in_the_second_block() -> Tensor:
        handle = model.bert.encoder.layer[1].register_forward_hook(lambda m, a, y: y + 1.0, prepend=True)
        found = run(model)
        handle.remove()
        return found

    with torch.no_grad():
        ladder.alpha.fill_(100.0)  # only the embeddings are heard
        assert torch.equal(run(model), noise_in_the_second_block())
        ladder.alpha.fill_(-100.0)  # the side stream starts anew at each rung
        before = run(model)
        ladder.start.weight.mul_(5.0)
        assert torch.equal(run(model), before) and not torch.allclose(noise_in_the_second_block(), before, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_trunk_keeps_no_graph(kind: str) -> None:
    model = tiny(kind).requires_grad_(False)
    found: list[Tensor] = []
    for site in thrifty.sites(model, "block"):
        site.module.register_forward_hook(lambda m, a, y: found.append(y if isinstance(y, Tensor) else y[0]))
    at = thrifty.attach(model, lst(), check=False)
    shake(at, 0.1)
    found.clear()
    logits = run(model)
    heard = list(found)
    with at.disabled():
        found.clear()
        run(model)
    assert len(heard) >= 2 and not any(y.requires_grad for y in heard)
    assert all(torch.equal(a, b) for a, b in zip(heard, found, strict=True))
    logits.square().sum().backward()
    assert all(p.grad is not None for p in at.parameters())
    assert all("edits" in n.split(".") for n in frozen_stay(model, at))
    with pytest.raises(CannotMerge):
        at.merge()


def test_what_the_backward_pass_saves_grows_with_the_side_network_alone() -> None:
    """Of a wide trunk only what the ladder reads is saved: the states in front of Down, and nothing inside the blocks."""
    def saved(method: Any) -> int:
        model = tiny("bert", hidden_size=64, intermediate_size=256)
        thrifty.attach(model, method, also_train="head")
        seen: dict[int, int] = {}
        mine = {p.data_ptr() for p in model.parameters()}

        def pack(t: Tensor) -> Tensor:
            if t.data_ptr() not in mine:
                seen[t.data_ptr()] = t.numel()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            run(model).sum()
        return sum(seen.values())

    assert saved(lst(reduction=8, drop_every=0)) < 0.5 * saved(thrifty.LoRA(rank=1))


@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_padding_changes_nothing(kind: str) -> None:
    model = tiny(kind)
    shake(thrifty.attach(model, lst()), 0.1)
    more = {"decoder_input_ids": IDS[1:, :3]} if kind == "t5" else {}
    short = model(input_ids=IDS[1:, :3], attention_mask=MASK[1:, :3], **more).logits
    padded = model(input_ids=IDS[1:], attention_mask=MASK[1:], **more).logits
    torch.testing.assert_close(short, padded, atol=1e-5, rtol=1e-5)


def test_causal_models_do_not_see_the_future() -> None:
    for kind in ("llama", "gpt2"):
        model = tiny(kind)
        shake(thrifty.attach(model, lst()), 0.1)
        whole = model(input_ids=IDS[:1]).logits
        torch.testing.assert_close(model(input_ids=IDS[:1, :3]).logits, whole[:, :3], atol=1e-5, rtol=1e-5)


def test_recorded_states_are_the_trunks() -> None:
    model = tiny("bert").requires_grad_(False)
    wanted = model.bert(input_ids=IDS, output_hidden_states=True).hidden_states
    fresh = tiny("bert")
    thrifty.attach(fresh, lst())
    found = fresh.bert(input_ids=IDS, output_hidden_states=True).hidden_states
    assert len(found) == len(wanted) and all(torch.equal(a, b) for a, b in zip(found[:-1], wanted[:-1], strict=True))


def test_blocks_of_the_side_network_are_none_of_the_model() -> None:
    model = tiny("t5")
    before = blocks(model)
    thrifty.attach(model, lst())
    assert blocks(model) == before and len(thrifty.sites(model, "block")) == len(before)


# -- generation -----------------------------------------------------------------------------------------------------------

ASK = {"max_new_tokens": 7, "min_new_tokens": 7, "do_sample": False}


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5", "bart"])
@pytest.mark.parametrize("beams", [1, 3])
def test_two_caches_change_nothing(kind: str, beams: int) -> None:
    model = tiny(kind)
    at = thrifty.attach(model, lst(drop_every=0))
    shake(at, 0.5)
    ids = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    cached = model.generate(**ids, **ASK, num_beams=beams, use_cache=True, return_dict_in_generate=True, output_logits=True)
    plain = model.generate(**ids, **ASK, num_beams=beams, use_cache=False, return_dict_in_generate=True, output_logits=True)
    assert torch.equal(cached.sequences, plain.sequences)
    for a, b in zip(cached.logits, plain.logits, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    with at.disabled():
        base = model.generate(**ids, **ASK, num_beams=beams)
    assert torch.equal(base, tiny(kind).generate(**ids, **ASK, num_beams=beams))


def test_two_ladders_remember_apart() -> None:
    model = tiny("llama")
    for i, name in enumerate("ab"):
        shake(thrifty.attach(model, lst(drop_every=0), name, seed=i), 0.5)
    ids = {"input_ids": IDS[:1], "attention_mask": MASK[:1]}
    assert torch.equal(model.generate(**ids, **ASK, use_cache=True), model.generate(**ids, **ASK, use_cache=False))


def test_caches_that_do_not_fit_are_refused() -> None:
    model = tiny("llama")
    at = thrifty.attach(model, lst())
    with at.disabled():
        cache = model(input_ids=IDS[:1], use_cache=True).past_key_values
    with pytest.raises(Unfit, match="holds 5 earlier tokens of the trunk and 0 of the side network"):
        model(input_ids=IDS[:1, :1], past_key_values=cache, use_cache=True)
    with pytest.raises(Unfit, match="made of StaticLayer"):
        model.generate(input_ids=IDS[:1], **ASK, cache_implementation="static")


def test_a_decoder_needs_what_its_side_encoder_gave() -> None:
    model = tiny("t5")
    at = thrifty.attach(model, lst())
    with at.disabled():
        told = model.get_encoder()(input_ids=IDS)
    with pytest.raises(Unfit, match="needs what the encoder gave with the side network on"):
        model(encoder_outputs=told, decoder_input_ids=IDS[:, :3])
    told = model.get_encoder()(input_ids=IDS)
    assert told.last_hidden_state.shape[-1] == 24
    torch.testing.assert_close(model(encoder_outputs=told, decoder_input_ids=IDS[:, :3]).logits,
                               model(input_ids=IDS, decoder_input_ids=IDS[:, :3]).logits)


# -- what is off by default -----------------------------------------------------------------------------------------------


class Squares:
    """Stands in for a task."""

    def loss(self, model: nn.Module, batch: object) -> tuple[Tensor, int]:
        return run(model).square().mean(), 7


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_distillation(kind: str) -> None:
    model = tiny(kind, **({"dropout_rate": 0.0} if kind == "t5" else {}))
    base = run(model).detach()
    method = lst(distil=0.5, teacher_temperature=0.3)
    at = thrifty.attach(model, method)
    student = run(model)
    model.train()
    torch.testing.assert_close(run(model), student)
    at.context.taps.clear()
    p = (base / 0.3).softmax(-1)
    wanted = 0.5 * (p * (p.log() - student.log_softmax(-1))).sum(-1).mean()
    loss, items = method.loss(at, Squares(), model, None)
    torch.testing.assert_close(loss, student.square().mean() + wanted, rtol=1e-4, atol=1e-5)
    loss.backward()
    assert all(p.grad is not None for p in at.parameters())
    assert items == 7


def test_a_gate_that_keeps_some_of_the_trunk() -> None:
    model = tiny("bert").double()
    base = model.bert(input_ids=IDS).last_hidden_state
    at = thrifty.attach(model, lst(mix=True))
    (ladder,) = ladders(at)
    with torch.no_grad():
        ladder.beta.fill_(-100.0)
        torch.testing.assert_close(model.bert(input_ids=IDS).last_hidden_state, base)
        ladder.beta.fill_(100.0)
        alone = model.bert(input_ids=IDS).last_hidden_state
        ladder.beta.zero_()
    torch.testing.assert_close(model.bert(input_ids=IDS).last_hidden_state, (alone + base) / 2)
    frozen_stay(model, at)


# -- life cycle and refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_saves_and_loads(kind: str, tmp_path: Path) -> None:
    model = tiny(kind)
    at = thrifty.attach(model, lst())
    shake(at)
    at.save(tmp_path / "a")
    again = tiny(kind)
    loaded = thrifty.load(again, tmp_path / "a")
    assert torch.equal(run(again), run(model)) and [type(e) for e in loaded.edits.values()] == [type(e) for e in at.edits.values()]
    assert sum(isinstance(e, Between) for e in at.edits.values()) == (kind == "t5")


def test_refused_settings() -> None:
    for settings, name in (({"reduction": 0}, "reduction"), ({"drop_every": 1}, "drop_every"), ({"keep": [2, 1]}, "keep"),
                           ({"init": "fischer"}, "init"), ({"examples": 0}, "examples"), ({"temperature": 0.0}, "temperature"),
                           ({"distil": -1.0}, "distil"), ({"teacher_temperature": 0.0}, "teacher_temperature")):
        with pytest.raises(NoSuchSetting, match=name):
            thrifty.attach(tiny("bert"), make("lst", **settings))
    with pytest.raises(Unfit, match=r"keeps blocks \[5\] of the 2"):
        thrifty.attach(tiny("bert"), lst(keep=[5]))
    with pytest.raises(NoSuchSite, match="'attn.q' names no block"):
        thrifty.attach(tiny("bert"), lst(where="attn.q"))


def test_refused_data() -> None:
    with pytest.raises(ThriftyError, match="attach with batches="):
        thrifty.attach(tiny("bert"), thrifty.LST(reduction=2))
    with pytest.raises(ThriftyError, match=r"gives no loss for a batch of \['input_ids'\]"):
        thrifty.attach(tiny("bert"), lst(init="fisher"), batches=[{"input_ids": IDS}])
    with pytest.raises(ThriftyError, match="no row of data"):
        thrifty.attach(tiny("bert"), lst(init="fisher"), batches=[])


def test_refused_trunks() -> None:
    with pytest.raises(Unfit, match="3"):
        thrifty.attach(tiny("bert"), lst(reduction=3))
    with pytest.raises(Unfit, match="pairs would split"):
        thrifty.attach(tiny("llama"), lst(reduction=8))
    stock = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2)
    with pytest.raises(Unfit, match="TransformerEncoderLayer has no configuration|also takes 'src'"):
        thrifty.attach(stock, lst(), example=torch.randn(1, 3, 16))
    with pytest.raises(Unfit, match="none reads the other"):
        thrifty.attach(tiny("swin"), lst())
    with pytest.raises(Unfit, match="BertForSequenceClassification has no such head"):
        thrifty.attach(tiny("bert"), lst(distil=1.0))
    with pytest.raises(Unfit, match="set init='random'"):
        thrifty.attach(tiny("dinov2"), lst())
    model = tiny("dinov2")
    shake(thrifty.attach(model, lst(init="random")))
    run(model)
