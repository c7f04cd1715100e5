"""Knowledge distillation: the divergence by hand and at its limits, its variants, whom the student asks, and how."""
from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from backbones import tiny
from small_classifiers import attach, batch, network, steps, task
from torch import Tensor, nn

import thrifty
from thrifty import models, tasks
from thrifty.core.errors import NoSuchSetting, Unfit
from thrifty.methods import find, make
from thrifty.methods.guidance.soft_targets import divergence
from thrifty.methods.guidance.teacher import find_teacher

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models"))
import tiny_folders  # noqa: E402

Z, V = torch.tensor([[1.0, 2.0, 0.5]], dtype=torch.float64), torch.tensor([[2.0, 1.0, 0.0]], dtype=torch.float64)


@pytest.mark.parametrize(("T", "plain", "squared"), [(1.0, 0.4322600178, 0.4322600178), (3.0, 0.0449077827, 0.4041700445),
                                                     (4.0, 0.0246947185, 0.3951154958)])
def test_the_worked_example(T: float, plain: float, squared: float) -> None:
    assert divergence(Z, V, T, squared=False).item() == pytest.approx(plain, abs=1e-9)
    assert divergence(Z, V, T).item() == pytest.approx(squared, abs=1e-9)


def test_what_deits_code_makes_of_it() -> None:
    assert divergence(Z, V, 4.0, reduction="deit_legacy").item() == pytest.approx(0.1317051652, abs=1e-9)


def test_invariants() -> None:
    z, v = (torch.randn(5, 7, dtype=torch.float64).requires_grad_() for _ in range(2))
    assert divergence(z, z.detach().clone(), 2.0).item() == pytest.approx(0, abs=1e-12)
    shifted = divergence(z + 3.0, v - torch.arange(5.0)[:, None], 2.0)
    torch.testing.assert_close(shifted, divergence(z, v, 2.0))
    gone = lambda t: t - t.mean(1, keepdim=True)  # noqa: E731
    limit = (gone(z) - gone(v)).square().sum(1).mean() / (2 * 7)
    assert divergence(z, v, 1e4).item() == pytest.approx(limit.item(), rel=1e-3)
    divergence(z, v, 3.0).backward()
    assert v.grad is None
    torch.testing.assert_close(z.grad, 3.0 * ((z / 3).softmax(1) - (v / 3).softmax(1)).detach() / 5)


@pytest.mark.parametrize(("name", "more"), [("distillation", {"alpha": 0.3, "temperature": 2.0}), ("tllib-distillation", {}),
                                            ("kd", {"alpha": 0.0}), ("kd", {"reduction": "deit_legacy"})])
def test_the_loss_is_mixed_as_it_says(name: str, more: dict[str, Any]) -> None:
    model, teacher, mine = network(), network(), batch()
    with torch.no_grad():
        for p in teacher.parameters():
            p.mul_(1.3)
    method = make(name, teacher=teacher, **more)
    at = attach(model, method)
    teacher.train()  # it is asked in evaluation mode all the same
    loss, rows = method.loss(at, task(model), model, mine)
    teacher.eval()
    z, v = model(mine["pixel_values"]).logits, teacher(mine["pixel_values"]).logits
    s: dict[str, Any] = {"alpha": 0.5, "temperature": 4.0, "squared": True, "mixing": "convex", "reduction": "batchmean",
                         **(find(name).presets.get(name, {})), **more}
    T = s["temperature"]
    q, p = (z / T).softmax(1), (v / T).softmax(1)
    soft = (p * (p / q).log()).sum(1).mean() * (T * T if s["squared"] else 1) / (3 if s["reduction"] == "deit_legacy" else 1)
    hard = F.cross_entropy(z.float(), mine["labels"])
    wanted = hard + s["alpha"] * soft if s["mixing"] == "sum" else (1 - s["alpha"]) * hard + s["alpha"] * soft
    assert rows == 6 and float(loss) == pytest.approx(float(wanted), rel=1e-5)
    loss.backward()
    assert all(p.grad is None for p in teacher.parameters()) and all(p.grad is not None for p in model.parameters())
    assert method.settings()["teacher"] == "ResNetForImageClassification"
    method.finish(at)
    assert not at.plan and not at.guests


def test_a_student_comes_nearer_to_its_teacher_with_few_parameters() -> None:
    teacher, model = network("vit"), network("vit")
    with torch.no_grad():
        for p in teacher.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(2)))
    method = thrifty.Distillation(teacher=teacher, around="lora", settings_of={"rank": 2}, alpha=1.0)
    at = attach(model, method, side=16)
    pixels = batch(side=16)["pixel_values"]
    before = divergence(model(pixels).logits, teacher(pixels).logits, 4.0)
    steps(at, method, task(model), 20, 1e-2, side=16)
    assert divergence(model.eval()(pixels).logits, teacher(pixels).logits, 4.0) < 0.7 * before
    assert at.parameters() and all("edits" in n or "classifier" in n for n, p in model.named_parameters() if p.requires_grad)


def test_words_are_judged_one_by_one() -> None:
    student, teacher = tiny("bert-tokens", num_labels=3), tiny("bert-tokens", seed=5, num_labels=3)
    method = thrifty.Distillation(teacher=teacher)
    at = thrifty.attach(student, method)
    labels = torch.tensor([[0, 2, -100, 1, -100]])

    class Words:
        labels = ["a", "b", "c"]
        backbone = models.wrap(student)

        def inputs(self, model: nn.Module, given: dict[str, Tensor]) -> dict[str, Tensor]:
            return {"input_ids": given["input_ids"]}

        def loss(self, model: Any, given: dict[str, Tensor]) -> tuple[Tensor, int]:
            return model(input_ids=given["input_ids"]).logits.sum() * 0, 3

    ids = torch.tensor([[5, 9, 11, 3, 7]])
    loss, _ = method.loss(at, Words(), student, {"input_ids": ids, "labels": labels})
    kept = labels[0] >= 0
    z, v = student(input_ids=ids).logits[0, kept], teacher(input_ids=ids).logits[0, kept]
    torch.testing.assert_close(loss, 0.5 * divergence(z, v, 4.0))


# -- teachers -------------------------------------------------------------------------------------------------------------


def student_task(folder: Path, labels: list[str]) -> Any:
    return tasks.get("image-classification", models.load(str(folder), "image-classification", labels), labels)


def saved(folder: Path, names: dict[int, str] | None, side: int = 32) -> Path:
    """A tiny ResNet with a trained head and its own preparation."""
    import transformers as T

    torch.manual_seed(1)
    config = T.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3)
    if names is not None:
        config.id2label, config.label2id = names, {v: k for k, v in names.items()}
    return tiny_folders.save(folder, T.ResNetForImageClassification(config),
                             T.ViTImageProcessorPil(size={"height": side, "width": side}, image_mean=[0.1, 0.2, 0.3]))


def test_a_named_teacher_answers_in_the_students_order_and_at_its_own_size(tmp_path: Path) -> None:
    folder = saved(tmp_path / "teacher", {0: "cat", 1: "ant", 2: "bee"}, side=64)
    labels = ["ant", "bee", "cat"]
    its = student_task(tiny_folders.vit(tmp_path / "student"), labels)
    teacher = find_teacher(str(folder), its, torch.device("cpu"))
    pixels = torch.randn(2, 3, 32, 32)
    grey = pixels * 0.5 + torch.tensor([0.5, 0.4, 0.3]).view(-1, 1, 1)
    seen = F.interpolate(grey, (64, 64), mode="bicubic", antialias=True).clamp(0, 1)
    seen = (seen - torch.tensor([0.1, 0.2, 0.3]).view(-1, 1, 1)) / 0.5
    with torch.no_grad():
        wanted = models.load(str(folder), "image-classification", ["cat", "ant", "bee"]).model(seen).logits[:, [1, 2, 0]]
    torch.testing.assert_close(teacher.answer(its, {"pixel_values": pixels}), wanted, atol=1e-5, rtol=1e-4)


def test_teachers_that_do_not_fit(tmp_path: Path) -> None:
    labels, here = ["ant", "bee", "cat"], torch.device("cpu")
    its = student_task(tiny_folders.vit(tmp_path / "student"), labels)
    with pytest.raises(Unfit, match="knows other classes.*'cat', 'dog'|knows other classes.*'cat'"):
        find_teacher(str(saved(tmp_path / "other", {0: "ant", 1: "bee", 2: "dog"})), its, here)
    with pytest.raises(Unfit, match="no trained head for the 3 classes"):
        find_teacher(str(tiny_folders.resnet(tmp_path / "seven")), its, here)
    with pytest.raises(NoSuchSetting, match="no-such"):
        find_teacher("./no-such", its, here)
    with pytest.raises(Unfit, match="answers with 5 classes"):
        find_teacher(network(classes=5), its, here).answer(its, {"pixel_values": batch()["pixel_values"]})
    assert find_teacher(str(saved(tmp_path / "numbers", None)), its, here).order == [0, 1, 2]


def test_texts_in_other_tokens_are_refused(tmp_path: Path) -> None:
    folder = tiny_folders.bert(tmp_path / "bert", kind="BertForSequenceClassification")
    its = tasks.get("text-classification", models.load(str(folder), "text-classification", ["a", "b"]), ["a", "b"])
    teacher = find_teacher(str(folder), its, torch.device("cpu"))
    given = its.collate(its.encode({"text": ["ab c", "d"]}))
    teacher.model.eval()
    torch.testing.assert_close(teacher.answer(its, given), its.backbone.model(**given).logits.detach())
    its.backbone.preprocess._tokenizer.add_tokens(["zz"])
    with pytest.raises(Unfit, match="other tokens"):
        teacher.answer(its, given)


@pytest.mark.parametrize(("settings", "name"), [
    ({}, "teacher"), ({"alpha": 1.5}, "alpha"), ({"temperature": 0.0}, "temperature"), ({"mixing": "some"}, "mixing"),
    ({"reduction": "sum"}, "reduction"), ({"around": "kd"}, "around"), ({"around": "lora", "settings_of": {"rnak": 1}}, "rank")])
def test_refused_settings(settings: dict[str, Any], name: str) -> None:
    with pytest.raises(NoSuchSetting, match=name):
        find("knowledge-distillation").make(**({"teacher": "x"} if settings else {}), **settings).check()


def test_several_tasks_are_refused() -> None:
    with pytest.raises(Unfit, match="one teacher"):
        thrifty.attach(tiny("bert"), thrifty.Distillation(teacher="x"), tasks=["a", "b"])
