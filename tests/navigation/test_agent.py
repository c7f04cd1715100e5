"""The agent: its layers beside those of transformers and by hand, what may be seen when, and one step at a time."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from thrifty.core.errors import BadData, BrokenArtifact, NoSuchSetting, Unfit
from thrifty.navigation import Agent, AgentConfig, Vocabulary, load_agent, save_agent
from thrifty.navigation.layers import BertLayer, CrossLayer, hide
from thrifty.testing.stock import AGENT

SMALL = {**AGENT, "fixed_language": True, "fixed_history": True}


def agent(**changes: Any) -> Agent:
    torch.manual_seed(0)
    made = Agent(AgentConfig(**{**SMALL, **changes})).double().eval()
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return made


def walk(model: Agent, **changes: Any) -> dict[str, Tensor]:
    return {name: t.double() if t.is_floating_point() else t for name, t in {**model.example(), **changes}.items()}


def test_a_layer_is_one_of_bert() -> None:
    from transformers import BertConfig
    from transformers.models.bert.modeling_bert import BertLayer as Theirs

    torch.manual_seed(0)
    config = BertConfig(hidden_size=16, num_attention_heads=2, intermediate_size=32, attn_implementation="eager")
    theirs, ours = Theirs(config).double().eval(), BertLayer(16, 2, 32, 0.1).double().eval()
    ours.load_state_dict(theirs.state_dict())
    x, mask = torch.randn(2, 5, 16, dtype=torch.float64), hide(torch.tensor([[1] * 5, [1, 1, 1, 0, 0]])).double()
    y = theirs(x, mask)
    torch.testing.assert_close(ours(x, mask), y if isinstance(y, Tensor) else y[0], atol=1e-10, rtol=0)


def test_a_cross_layer_by_hand() -> None:
    """Both cross-attentions are one module, and read what the layer is given."""
    torch.manual_seed(0)
    layer = CrossLayer(16, 2, 32, 0.0, True).double()
    v, w = torch.randn(2, 4, 16, dtype=torch.float64), torch.randn(2, 3, 16, dtype=torch.float64)
    masks = [hide(torch.ones(2, n)).double() for n in (4, 3)]

    def attend(x: Tensor, context: Tensor) -> Tensor:
        own = layer.cross_attn
        pairs = (own.query, x), (own.key, context), (own.value, context)
        q, k, u = (project(t).view(2, -1, 2, 8).transpose(1, 2) for project, t in pairs)
        y = ((q @ k.transpose(-1, -2) / 8**0.5).softmax(-1) @ u).transpose(1, 2).flatten(2)
        return F.layer_norm(x + y @ own.output.dense.weight.T + own.output.dense.bias, (16,), eps=1e-12)

    seen, heard = layer(v, masks[0], w, masks[1])
    torch.testing.assert_close(seen, layer.vision(attend(v, w)))
    torch.testing.assert_close(heard, layer.language(attend(w, v)))
    layer.updates = False
    assert torch.equal(layer(v, masks[0], w, masks[1])[1], w)


def test_history_tokens_by_hand() -> None:
    model, given = agent(), walk(agent())
    own = model.history
    sight = lambda s, i, a: s.image_norm(s.image(i)) + s.angle_norm(s.angle(a))  # noqa: E731
    around = own.panorama_sight(given["past_views"][1, 2], given["past_view_angles"][1, 2])
    for layer in own.panorama.layer:
        around = layer(around[None])[0]
    x = sight(own.sight, given["past_images"][1, 2], given["past_angles"][1, 2]) + own.positions.weight[2] + own.kind.weight[0]
    tokens = model.remember(*(given[f"past_{name}"] for name in ("images", "angles", "views", "view_angles")))
    torch.testing.assert_close(tokens[1, 3], own.LayerNorm(x + around.mean(0)))
    torch.testing.assert_close(tokens[:, 0], own.LayerNorm(own.cls + own.kind.weight[0]).expand(2, -1))


def cut(given: dict[str, Tensor], step: int) -> dict[str, Tensor]:
    """The one decision after ``step`` steps."""
    found = {name: t[:, :step] if name.startswith("past") else t for name, t in given.items()}
    return {name: t[:, step : step + 1] if name in ("images", "angles", "kinds") else t for name, t in found.items()}


@pytest.mark.parametrize("changes", [{}, {"language_attends": False, "action": "alone"}, {"action": "history"}, {"action": "both"}])
def test_step_by_step_is_as_all_at_once(changes: dict[str, Any]) -> None:
    """So no decision sees a later step; and language is read once."""
    model = agent(**changes)
    given = walk(model)
    whole = model(**given)
    read = model.read(given["input_ids"], given["attention_mask"])
    assert whole.shape == (2, 4, 4) and whole[..., 3].isneginf().all() and whole[..., :3].isfinite().all()
    for step in range(4):
        torch.testing.assert_close(model(**cut(given, step), language=read)[:, 0], whole[:, step])
    assert not torch.allclose(whole[:, 0, :3], model(**cut(given, 0), language=[2 * t for t in read])[:, 0, :3])


def test_padding_is_not_seen() -> None:
    model = agent()
    given = walk(model)
    wide = {name: F.pad(given[name], (0, 0, 0, 3)) for name in ("images", "angles")}
    more = {"input_ids": F.pad(given["input_ids"], (0, 2), value=5), "attention_mask": F.pad(given["attention_mask"], (0, 2))}
    padded = model(**{**given, **wide, **more, "kinds": F.pad(given["kinds"], (0, 3), value=-1)})
    torch.testing.assert_close(padded[..., :4], model(**given))
    assert padded[..., 4:].isneginf().all()


def test_language_that_sees_nothing_is_of_one_state_for_all_layers() -> None:
    model = agent(language_attends=False, action="alone", cross_layers=3)
    given = walk(model)
    read = model.read(given["input_ids"], given["attention_mask"])
    mask = hide(given["attention_mask"])
    states = model.language(model.embeddings(given["input_ids"]), mask)
    assert len(read) == 3 and torch.equal(read[0], states)
    for number in (0, 1):
        assert torch.equal(read[number + 1], model.cross.layer[number].language(states, mask))
    assert AgentConfig(language_attends=False, action="alone").heard == [True] * 3 + [False]
    assert AgentConfig(action="history").heard == [True] * 3 + [False] and AgentConfig().heard == [True] * 4


def test_fixed_encoders_get_no_gradient() -> None:
    for fixed in (True, False):
        model = agent(fixed_language=fixed, fixed_history=fixed)
        model(**walk(model))[..., :3].square().sum().backward()
        for name in ("language.layer.0.attention.self.query", "history.panorama.layer.0.output.dense"):
            assert (model.get_submodule(name).weight.grad is None) == fixed
        assert model.cross.layer[0].cross_attn.query.weight.grad is not None


def test_published_sizes() -> None:
    with torch.device("meta"):
        model = Agent()

    def numbers(module: torch.nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    assert numbers(model.language) == 9 * 7_087_872 and numbers(model.history.panorama) == 2 * 7_087_872
    assert numbers(model.cross) == 4 * (2 * 7_087_872 + 4 * (768 * 768 + 768) + 2 * 768)
    assert numbers(model.embeddings) == (30522 + 512 + 2 + 2) * 768


def test_saved_with_and_without_a_head(tmp_path: Path) -> None:
    model, words = agent().float(), Vocabulary(["go", "left"])
    save_agent(tmp_path / "whole", model, words)
    again = load_agent(tmp_path / "whole")
    assert again.source["new_tensors"] == [] and again.preprocess("Go left.") == {"input_ids": [1, 3, 4, 2]}
    assert all(torch.equal(a, b) for a, b in zip(again.model.state_dict().values(), model.state_dict().values(), strict=True))
    save_agent(tmp_path / "headless", model, words, head=False)
    one, two = load_agent(tmp_path / "headless", seed=1), load_agent(tmp_path / "headless", seed=2)
    assert one.source["new_tensors"] == [f"head.{i}.{n}" for i in (0, 2, 4) for n in ("weight", "bias")]
    assert not torch.equal(one.model.head[0].weight, two.model.head[0].weight)
    (tmp_path / "whole" / "agent.json").write_text('{"widht": 3}')
    with pytest.raises(BrokenArtifact, match="no setting 'widht'. Did you mean 'width'"):
        load_agent(tmp_path / "whole")
    (tmp_path / "whole" / "agent.json").write_text('{"width": 24, "heads": 2}')
    with pytest.raises(BrokenArtifact, match="does not fit agent.json"):
        load_agent(tmp_path / "whole")
    (tmp_path / "headless" / "words.json").write_text('{"go": 1}')
    with pytest.raises(BrokenArtifact, match="no list of at most 64 words"):
        load_agent(tmp_path / "headless")
    with pytest.raises(BrokenArtifact, match="nowhere"):
        load_agent(tmp_path / "nowhere")


def test_refusals() -> None:
    model = agent(positions=4, steps=2)
    with pytest.raises(Unfit, match="5 tokens, and the agent has 4 positions"):
        model(**walk(model))
    model = agent(steps=2)
    with pytest.raises(Unfit, match="3 steps, and the agent has positions for 2"):
        model(**walk(model))
    model = agent()
    with pytest.raises(Unfit, match="4 decisions cannot be the last of a walk of 2 steps"):
        model(**{name: t[:, :2] if name.startswith("past") else t for name, t in walk(model).items()})
    with pytest.raises(Unfit, match="5 features, and the agent was made for 6"):
        model(**{**walk(model), "images": walk(model)["images"][..., :5]})
    for settings, said in (({"action": "txt"}, "Did you mean 'text'"), ({"language_attends": False}, "action='alone'"),
                           ({"width": 10, "heads": 3}, "no multiple of heads")):
        with pytest.raises(NoSuchSetting, match=said):
            AgentConfig(**settings)
    with pytest.raises(BadData, match="'rihgt' of 'go rihgt' is not in the vocabulary. Did you mean 'right'"):
        Vocabulary(["go", "right"])("go rihgt")
