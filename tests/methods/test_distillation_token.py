"""DeiT's distillation token: what each loss reaches, the sequence, the mean of both heads, counts and refusals."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from backbones import count, run, shake, tiny
from small_classifiers import attach, batch, network, steps, task

import thrifty
from thrifty.core.errors import NoSuchSetting, Unfit
from thrifty.methods import find
from thrifty.methods.guidance.soft_targets import divergence


def made(family: str = "vit", **settings: Any) -> tuple[Any, Any, Any, Any]:
    """A student with the token, the handle, the method and the teacher."""
    teacher, model = network(family), network(family)
    shake_module(teacher)
    method = thrifty.DistillationTokens(teacher=teacher, **settings)
    return model, attach(model, method, side=16), method, teacher


def shake_module(model: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))


def edits(at: Any) -> tuple[Any, Any]:
    """The token's and the head's."""
    token, _, head = at.edits.values()
    return token, head


@pytest.mark.parametrize("settings", [
    {"kind": "hard"}, {"kind": "hard", "alpha": 0.2}, {"kind": "soft", "temperature": 3.0, "alpha": 0.1},
    {"kind": "soft", "temperature": 4.0, "reduction": "deit_legacy"}])
def test_the_loss_is_recomputed_from_the_sequence(settings: dict[str, Any]) -> None:
    model, at, method, teacher = made(**settings)
    shake(at, 0.05)
    mine = batch(side=16)
    model.train()
    loss, rows = method.loss(at, task(model), model, mine)
    with torch.no_grad():
        model.eval()
        v = teacher(mine["pixel_values"]).logits
        answer = model(mine["pixel_values"]).logits
    y_c, y_d = both(model, at, mine["pixel_values"])
    alpha = settings.get("alpha", 0.5)
    learnt = F.cross_entropy(y_d.float(), v.argmax(1)) if settings["kind"] == "hard" else \
        divergence(y_d, v, settings["temperature"], reduction=settings.get("reduction", "batchmean"))
    wanted = (1 - alpha) * F.cross_entropy(y_c.float(), mine["labels"]) + alpha * learnt
    assert rows == 6 and float(loss) == pytest.approx(float(wanted), rel=1e-5)
    torch.testing.assert_close(answer, (y_c + y_d) / 2)


def both(model: Any, at: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """y_c and y_d with what trains in place left as it is."""
    values = at.state()
    twin = network("vit")
    names = dict(twin.named_parameters())
    with torch.no_grad():
        for name, value in values.items():
            if name.startswith("base:"):
                names[name.removeprefix("base:")].copy_(value)
    token, head = edits(at)
    x = twin.vit.embeddings(pixels)
    x = torch.cat([x[:, :1], (token.token + token.position).expand(len(x), 1, -1), x[:, 1:]], 1)
    for layer in blocks(twin):
        out = layer(x)
        x = out if isinstance(out, torch.Tensor) else out[0]
    x = twin.vit.layernorm(x)
    assert x.shape[1] == (16 // 8) ** 2 + 2  # N + 2 rows
    return twin.classifier(x[:, 0]).detach(), head.head(x[:, 1]).detach()


def blocks(model: Any) -> list[Any]:
    return [site.module for site in thrifty.sites(model, "block")]


def test_what_each_end_of_alpha_reaches() -> None:
    for alpha, reached, other in ((0.0, "classifier", "head.head"), (1.0, "head.head", "classifier")):
        model, at, method, _ = made(alpha=alpha)
        model.train()
        method.loss(at, task(model), model, batch(side=16))[0].backward()
        grads = {n: bool(p.grad is not None and p.grad.any()) for n, p in model.named_parameters()}
        own = {n: g for n, g in grads.items() if "classifier" in n}
        heads = {("head.head" if "edits" in n else "classifier", g) for n, g in own.items()}
        assert heads == {(reached, True), (other, False)}, (alpha, own)


def test_identical_tokens_and_heads_answer_alike() -> None:
    model, at, _, _ = made(init="copy")
    token, head = edits(at)
    pixels = batch(side=16)["pixel_values"]
    embeddings = model.vit.embeddings
    torch.testing.assert_close(token.token, (embeddings.cls_token + embeddings.position_embeddings[:, :1])[0, 0])
    assert not token.position.any()
    with torch.no_grad():
        head.head.weight.copy_(model.classifier.weight)
        head.head.bias.copy_(model.classifier.bias)
    y_c, y_d = both(model, at, pixels)
    torch.testing.assert_close(y_c, y_d)
    torch.testing.assert_close(model.eval()(pixels).logits, y_c)


def test_starts() -> None:
    _, at, _, _ = made()
    token, head = edits(at)
    assert 0.005 < float(token.token.detach().std()) < 0.05 and 0.005 < float(token.position.detach().std()) < 0.05
    assert 0.005 < float(head.head.weight.detach().std()) < 0.05 and not head.head.bias.any()


def test_published_count() -> None:
    with torch.device("meta"):
        model = hf.ViTForImageClassification(hf.ViTConfig(num_labels=1000))
    base = sum(p.numel() for p in model.parameters())
    at = thrifty.attach(model, thrifty.DistillationTokens(teacher="x"))
    assert count(at) - base == 770_536
    with torch.device("meta"):
        model = hf.ViTForImageClassification(hf.ViTConfig(num_labels=1000))
    at = thrifty.attach(model, thrifty.DistillationTokens(teacher="x", around="linear-probe"))
    assert count(at) == 770_536 + 769_000


@pytest.mark.parametrize("kind", ["vit", "dinov2"])
def test_it_trains_saves_and_loads(kind: str, tmp_path: Path) -> None:
    model, at, method, _ = made(kind, around="bitfit")
    steps(at, method, task(model), side=16)
    method.finish(at)
    at.save(tmp_path / "a")
    fresh = network(kind)
    thrifty.load(fresh, tmp_path / "a")
    pixels = batch(side=16)["pixel_values"]
    assert torch.equal(fresh(pixels).logits, model.eval()(pixels).logits) and not at.guests


@pytest.mark.parametrize(("kind", "match"), [
    ("swin", "one list of blocks"), ("resnet", "patches"), ("bert", "patches"), ("beit", "bias for each pair"),
    ("deit", "distillation token already")])
def test_refused_trunks(kind: str, match: str) -> None:
    model = tiny(kind)
    before = run(model)
    with pytest.raises(Unfit, match=match):
        thrifty.attach(model, thrifty.DistillationTokens(teacher="x"))
    assert torch.equal(run(model), before)


def test_refused_settings() -> None:
    for settings, name in (({}, "teacher"), ({"kind": "firm"}, "kind"), ({"alpha": 2.0}, "alpha"), ({"init": "zero"}, "init"),
                           ({"temperature": 0.0}, "temperature"), ({"reduction": "mean"}, "reduction"),
                           ({"around": "deit"}, "around")):
        with pytest.raises(NoSuchSetting, match=name):
            find("deit").make(**({"teacher": "x"} if settings else {}), **settings).check()
