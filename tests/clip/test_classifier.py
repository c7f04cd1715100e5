"""Pictures classified by the names of their classes: what transformers and open_clip say, ensembling, keeping, bad names."""
from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import two_towers as two
from torch import Tensor

import thrifty
from thrifty.clip import HAND, LISTS, ImageTextModel, resolve
from thrifty.core.errors import BadData, NoSuchSetting, Unfit


def by_trunk(model: ImageTextModel, pixels: Tensor) -> Tensor:
    """What the model inside says of the same sentences, padded to the end."""
    texts, trunk = model.texts, model.towers.trunk
    ids = torch.nn.functional.pad(texts.ids[0], (0, texts.context - texts.ids.shape[-1]))
    with torch.no_grad():
        return trunk(input_ids=ids, pixel_values=pixels).logits_per_image


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_as_transformers_says(kind: str) -> None:
    model = getattr(two, kind)()
    torch.testing.assert_close(two.logits(model), by_trunk(model, two.pictures()), rtol=2e-6, atol=2e-6)


def test_as_the_authors_say() -> None:
    model, g = two.golden_clip()
    pixels = g["in/pixel_values"]
    with torch.no_grad():
        for found, wanted in ((model.image_features(pixels), "out/image_features"), (model.class_features(), "out/text_features"),
                              (model(pixels)["logits"], "out/logits_per_image")):
            torch.testing.assert_close(found, g[wanted], rtol=0, atol=1e-5 * float(g[wanted].abs().max()))


@pytest.mark.timm
def test_as_open_clip_says() -> None:
    from thrifty.testing import tiny

    trunk = tiny.make("open_clip").fresh()
    tokenizer: Any = type("Tokenizer", (), {"sot_token_id": 62, "eot_token_id": 63, "encode": lambda self, text: two.reader()(
        text, add_special_tokens=False)["input_ids"]})()
    model = ImageTextModel(trunk, tokenizer, two.LABELS).eval()
    ids = torch.nn.functional.pad(model.texts.ids[0], (0, 16 - model.texts.ids.shape[-1]))
    pixels = two.pictures(side=32)
    with torch.no_grad():
        wanted, _ = trunk.get_logits(pixels, ids)
    torch.testing.assert_close(two.logits(model, pixels), wanted, rtol=1e-5, atol=1e-5)


def test_text_looks_backwards_only_whatever_computes_attention() -> None:
    model = two.clip()
    ids, ends = model.texts.ids, model.texts.ends
    later = ids.clone()
    later[0, 0, int(ends[0, 0]) + 1 :] = 7
    earlier = ids.clone()
    earlier[0, 0, 1] = 7
    with torch.no_grad():
        same, other, plain = (model.text(model.text.embed(x)[None], ends[None]) for x in (later, earlier, ids))
        torch.testing.assert_close(same, plain, rtol=0, atol=0)
        assert not torch.allclose(other[..., 0, :], plain[..., 0, :])
        model.towers.trunk.set_attn_implementation("eager")
        torch.testing.assert_close(model.text(model.text.embed(ids)[None], ends[None]), plain, rtol=1e-5, atol=1e-5)


def test_the_order_of_classes_and_the_length_of_features_do_not_matter() -> None:
    model = two.clip()
    before = two.logits(model)
    model.classify([two.LABELS[i] for i in (2, 0, 3, 1)])
    torch.testing.assert_close(two.logits(model), before[:, [2, 0, 3, 1]], rtol=1e-5, atol=1e-5)
    model.classify(two.LABELS)
    for place in (model.image, model.classes):
        hook = place.register_forward_hook(lambda m, a, y: 3.0 * y)
        torch.testing.assert_close(two.logits(model), before, rtol=1e-5, atol=1e-5)
        hook.remove()


def test_ensembling_is_the_mean_of_unit_features() -> None:
    model = two.clip(templates=["a photo of a {}."] * 3)
    torch.testing.assert_close(two.logits(model), two.logits(two.clip()), rtol=1e-5, atol=1e-5)
    templates = ["a photo of a {}.", "art of the {}.", "the {}"]
    model = two.clip(templates=templates)
    each = [two.clip(templates=[t]).class_features().detach() for t in templates]
    torch.testing.assert_close(model.sentence_features(templates), torch.stack(each), rtol=1e-5, atol=1e-5)
    mean = sum(t / t.norm(dim=-1, keepdim=True) for t in each) / 3
    torch.testing.assert_close(model.class_features().detach(), mean, rtol=1e-5, atol=1e-5)
    wanted = mean / mean.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(model(two.pictures())["text_embeds"].detach(), wanted, rtol=1e-5, atol=1e-5)


class Calls:
    """Counts how often the text tower runs."""

    def __init__(self, model: ImageTextModel):
        self.count = 0
        model.text.register_forward_hook(self)

    def __call__(self, *_: Any) -> None:
        self.count += 1


def test_frozen_sentences_are_read_once() -> None:
    model = two.clip()
    calls = Calls(model)
    first = two.logits(model)
    assert torch.equal(two.logits(model), first) and calls.count == 1
    copied = two.logits(copy.deepcopy(model))
    assert torch.equal(copied, first)
    calls.count = 0
    with torch.no_grad():
        model.towers.trunk.text_projection.weight.mul_(1.5)
        model.towers.trunk.text_model.final_layer_norm.bias.add_(0.5)
    moved = two.logits(model)
    assert calls.count == 1 and not torch.allclose(moved, first)
    model.classify(two.LABELS[:2])
    assert two.logits(model).shape == (3, 2) and calls.count == 2
    model(two.pictures())  # gradients are on, and the text tower could train
    assert calls.count == 3
    at = thrifty.attach(model, thrifty.LoRA(rank=2, where="clip.vision_model*q_proj"), check=False)
    calls.count = 0
    model(two.pictures())["logits"].sum().backward()
    model(two.pictures())
    assert calls.count <= 1, "the text tower is frozen beside what trains in the other"
    at.detach()


def test_sentences_that_train_are_read_every_time() -> None:
    model = two.clip()
    at = thrifty.attach(model, thrifty.LoRA(rank=2, where="clip.text_model*q_proj"), check=False)
    calls = Calls(model)
    two.logits(model), two.logits(model), model(two.pictures())
    assert calls.count == 3
    at.detach()
    two.logits(model), two.logits(model)
    assert calls.count == 4


def test_learned_sentences_are_read_once_after_training_and_not_during_it() -> None:
    model = two.clip()
    plain = two.logits(model)
    at = thrifty.attach(model, thrifty.CoOp(length=3), example={"pixel_values": two.pictures(1)})
    calls = Calls(model)
    first = two.logits(model)
    assert torch.equal(two.logits(model), first) and calls.count <= 1
    model(two.pictures())["logits"].sum().backward()
    model(two.pictures())
    assert calls.count >= 2
    torch.optim.SGD(at.parameters(), lr=10.0).step()
    assert not torch.allclose(two.logits(model), first), "a step of the optimiser is seen"
    at.check({"pixel_values": two.pictures(1)})  # an edit that is watched is called
    with at.disabled():
        assert torch.equal(two.logits(model), plain)
    at.detach()
    assert torch.equal(two.logits(model), plain)


def test_names_that_cannot_be_told_apart_or_read() -> None:
    with pytest.raises(BadData, match="'sea_horse' and 'sea horse' read alike"):
        two.clip(labels=["sea_horse", "sea horse"])
    with pytest.raises(BadData, match="class 'cat cat.* takes 36 tokens, and the text tower reads at most 24"):
        two.clip(labels=["dog", " ".join(["cat"] * 29)])
    with pytest.raises(BadData, match="class '_' has no name"):
        two.clip(labels=["cat", "_"])
    model = two.clip(labels=["dog", " ".join(["cat"] * 14)])
    with pytest.raises(BadData, match="class 'cat cat"):
        thrifty.attach(model, thrifty.CoOp(length=8), example={"pixel_values": two.pictures(1)})
    assert torch.equal(two.logits(model), two.logits(two.clip(labels=model.texts.labels)))


def test_underscores_are_spaces() -> None:
    assert torch.equal(two.logits(two.clip(labels=["sea_horse", "cat"])), two.logits(two.clip(labels=["sea horse", "cat"])))


def test_templates() -> None:
    assert resolve(None) == ("a photo of a {}.",) and resolve("dtd") == (HAND["dtd"],)
    assert resolve("a {}|the {}.") == ("a {}", "the {}.")
    assert [len(LISTS[f"clip-{n}"]) for n in (7, 8, 60, 80)] == [7, 8, 60, 80]
    every = set(LISTS["clip-80"])
    assert len(every) == 80 and set(LISTS["clip-7"]) < every and set(LISTS["clip-60"]) < every
    for bad in ("a photo", "a photo of a {} and a {}", [], ["{}", "no"], "clip-9"):
        with pytest.raises(NoSuchSetting, match="templates"):
            resolve(bad)
    with pytest.raises(NoSuchSetting, match="'clip-7'"):
        resolve("clip7")


def test_only_models_with_two_towers() -> None:
    from backbones import tiny

    with pytest.raises(Unfit, match="BertForSequenceClassification is no image-text model"):
        ImageTextModel(tiny("bert"), two.reader(), two.LABELS)
