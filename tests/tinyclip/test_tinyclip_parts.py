"""The loss, the gates, and weights inherited by hand: equations, published numbers, invariants."""
from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import transformers as T
from backbones import golden
from small_clips import features, make

from thrifty.core.errors import NoSuchSetting, Unfit
from thrifty.tinyclip import SHAPES, Shape, Tower, affinity_loss, count, inherit
from thrifty.tinyclip.gates import Gates
from thrifty.tinyclip.inheriting import origin
from thrifty.tinyclip.shapes import parse


def unit(*shape: int, seed: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_the_loss_on_paper() -> None:
    image, text = torch.eye(2), torch.tensor([[0.8, 0.6], [0.0, 1.0]])
    their_image, their_text = torch.tensor([[1.0, 0.0], [0.6, 0.8]]), torch.eye(2)
    forth, back = 0.0, 0.0
    for of, (a, b) in enumerate((((image, text), (their_image, their_text)), ((text, image), (their_text, their_image)))):
        own, wanted = 2 * a[0] @ a[1].T, 4 * b[0] @ b[1].T
        total = 0.0
        for i in range(2):
            p = np.exp(wanted[i].numpy()) / np.exp(wanted[i].numpy()).sum()
            q = np.exp(own[i].numpy()) / np.exp(own[i].numpy()).sum()
            total -= float((p * np.log(q)).sum()) / 2
        forth, back = (total, back) if of == 0 else (forth, total)
    assert (forth, back) == pytest.approx((0.4158998789, 0.3927336775), abs=1e-7)
    assert affinity_loss(image, text, 2.0, their_image, their_text, 4.0).item() == pytest.approx(0.4043167782, abs=1e-7)


def test_the_loss_of_the_authors() -> None:
    g = {key: torch.as_tensor(value) for key, value in golden("vision_tinyclip").items() if key.startswith(("in/", "out/"))}
    found = affinity_loss(g["in/I"], g["in/T"], float(g["in/scale"]), g["in/I_teacher"], g["in/T_teacher"],
                          float(g["in/teacher_scale"]))
    assert found.item() == pytest.approx(float(g["out/loss"]), abs=1e-5)


def test_a_student_that_is_the_teacher_pays_entropy_and_has_no_gradient() -> None:
    image, text = unit(6, 4, seed=1), unit(6, 4, seed=2)
    own_image, own_text = image.clone().requires_grad_(), text.clone().requires_grad_()
    scale = torch.tensor(7.0, requires_grad=True)
    loss = affinity_loss(own_image, own_text, scale, image, text, 7.0)
    entropy = 0.0
    for logits in (7 * image @ text.T, 7 * text @ image.T):
        p = logits.softmax(1)
        entropy -= float((p * p.log()).sum(1).mean()) / 2
    assert loss.item() == pytest.approx(entropy, rel=1e-5)
    loss.backward()
    for value in (own_image, own_text, scale):
        assert value.grad is not None and value.grad.abs().max() < 1e-5
    order = torch.tensor([3, 0, 5, 1, 2, 4])
    other = unit(6, 9, seed=3), unit(6, 9, seed=4)
    loss = affinity_loss(image, text, 3.0, *other, 5.0)
    torch.testing.assert_close(affinity_loss(image[order], text[order], 3.0, other[0][order], other[1][order], 5.0), loss)


def test_gates() -> None:
    gates = Gates(4)
    assert (gates.alpha == 10).all()
    gates.alpha.data = torch.tensor([0.0, -2.0, 2.0, 10.0])
    assert gates.chance().tolist() == pytest.approx([0.8318221840, 0.4009752644, 0.9733666553, 0.9999908], abs=1e-6)
    drawn = gates.sample(torch.full((4,), 0.3))
    assert drawn[[0, 2]].tolist() == pytest.approx([0.1629142643, 0.9191495304], abs=1e-6)
    settled = gates.settle()  # 0.79 are expected to be closed, so one is
    assert settled.tolist() == pytest.approx([0.5, 0.0, 0.9168273035, 1 / (1 + math.exp(-12))], abs=1e-6)
    torch.manual_seed(0)
    draws = torch.stack([gates.sample() for _ in range(4_000)])
    assert ((draws > 0).float().mean(0) - gates.chance()).abs().max() < 0.03 and draws.min() >= 0 and draws.max() <= 1
    gates.clamp()
    assert gates.alpha.max().item() == pytest.approx(math.log(100)) and gates.alpha.min().item() == -2


def test_what_by_hand_is_kept(teacher: Any) -> None:
    same = inherit(teacher, Shape(Tower(3, 32), Tower(2, 32)))
    assert same.state_dict().keys() == teacher.state_dict().keys()
    for ours, theirs in zip(features(same), features(teacher), strict=True):
        assert torch.equal(ours, theirs)
    small = inherit(teacher, Shape(Tower(1, 16), Tower(1, 24)))
    held, source = small.state_dict(), teacher.state_dict()
    block = "vision_model.encoder.layers.0."
    heads = source[f"{block}self_attn.q_proj.weight"].view(4, 8, 32)[:2, :, :16]  # the first two heads of four
    assert torch.equal(held[f"{block}self_attn.q_proj.weight"].view(2, 8, 16), heads)
    assert torch.equal(held[f"{block}mlp.fc2.weight"], source[f"{block}mlp.fc2.weight"][:16, :32])
    assert torch.equal(held["text_model.embeddings.token_embedding.weight"],
                       source["text_model.embeddings.token_embedding.weight"][:, :24])
    assert torch.equal(held["visual_projection.weight"], source["visual_projection.weight"][:, :16])
    assert features(small)[0].shape == (5, 24)


@pytest.mark.parametrize(("layers", "of", "wanted"), [
    (6, 12, [0, 2, 4, 6, 8, 10]), (9, 12, list(range(9))), (5, 12, [0, 2, 4, 6, 8]), (3, 12, [0, 4, 8]), (12, 12, list(range(12)))])
def test_which_layers(layers: int, of: int, wanted: list[int]) -> None:
    step = {"vision": of // layers, "text": 1}
    names = [origin(f"vision_model.encoder.layers.{i}.mlp.fc1.bias", step) for i in range(layers)]
    assert names == [f"vision_model.encoder.layers.{i}.mlp.fc1.bias" for i in wanted]
    assert origin("vision_model.pre_layrnorm.bias", step) == "vision_model.pre_layrnorm.bias"


def test_a_whole_layer_comes_from_where_it_should() -> None:
    teacher = make(image_layers=4)
    small = inherit(teacher, Shape(Tower(2, 32), Tower(2, 32)))
    for ours, theirs in ((0, 0), (1, 2)):
        pairs = zip(small.vision_model.encoder.layers[ours].parameters(),
                    teacher.vision_model.encoder.layers[theirs].parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def numbers(layers: int, width: int, patch: int | None, positions: int) -> int:
    """Of one tower, written out: blocks, positions, LayerNorms, patches, and the projection to 512 features."""
    blocks = layers * (4 * (width * width + width) + 8 * width * width + 5 * width + 4 * width)
    ends = 2 * width + positions * width + 512 * width
    return blocks + ends + (0 if patch is None else 3 * patch * patch * width + width + 2 * width)


@pytest.mark.parametrize(("name", "patch", "millions"), [("61m-29m", 32, (61, 29)), ("40m-19m", 32, (40, 19)),
                                                         ("40m-19m", 16, (39, 19)), ("8m-3m", 16, (8, 3))])
def test_published_sizes(name: str, patch: int, millions: tuple[int, int]) -> None:
    shape = SHAPES[name]

    def sizes(tower: Tower) -> dict[str, int]:
        return {"num_hidden_layers": tower.layers, "hidden_size": tower.width, "num_attention_heads": tower.width // 64,
                "intermediate_size": 4 * tower.width}

    with torch.device("meta"):
        model = T.CLIPModel(T.CLIPConfig(text_config=sizes(shape.text), vision_config={**sizes(shape.image), "patch_size": patch},
                                         projection_dim=512))
    found = count(model)
    assert found["image"] == numbers(shape.image.layers, shape.image.width, patch, (224 // patch) ** 2 + 1)
    assert found["text"] == numbers(shape.text.layers, shape.text.width, None, 77)
    assert (round(found["image"] / 1e6), round(found["text"] / 1e6)) == millions
    assert found["all"] == found["image"] + found["text"] + 49408 * shape.text.width + 1


@pytest.mark.parametrize("shape", [Shape(Tower(layers, width), Tower(2, 32)) for layers, width in
                                   ((4, 32), (3, 40), (3, 20), (0, 32))])
def test_shapes_that_do_not_fit(teacher: Any, shape: Shape) -> None:
    with pytest.raises(Unfit, match="image tower: .* do not fit"):
        inherit(teacher, shape)


def test_words_for_shapes(teacher: Any) -> None:
    assert parse("12x512/6x512") == SHAPES["40m-19m"] == parse("40m-19m") and str(SHAPES["8m-3m"]) == "10x256/3x256"
    with pytest.raises(NoSuchSetting, match="no shape.*8m-3m"):
        parse("8m-3")
    with pytest.raises(Unfit, match="not CLIPTextModel"):
        inherit(teacher.text_model, SHAPES["8m-3m"])
