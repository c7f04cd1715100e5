"""B-Tuning: weights and posterior means by other algebra, the loss by hand, its limits, who may teach, and the life of a run."""
from __future__ import annotations

import json
import random
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_classifiers import CLASSES, attach, batch, batches, network, steps, task
from torch import Tensor

import thrifty
from thrifty.core.errors import BadData, NoSuchSetting, ThriftyError, Unfit
from thrifty.methods import find, make
from thrifty.methods.b_tuning import CHOSEN, MEAN, REFERENCES, SCORES, WEIGHTS
from thrifty.testing import contract, tiny

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "train"))
import tiny_folders  # noqa: E402


def other(seed: int = 1, kind: str = "resnet") -> Any:
    """A network with other numbers than the student's."""
    model = network(kind)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(seed), dtype=p.dtype))
    return model


def read(model: Any, pixels: Tensor) -> Tensor:
    """What the tiny ResNet's classifier reads."""
    with torch.no_grad():
        return model.eval().resnet(pixels).pooler_output.flatten(1)


def believe(F: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, float]:
    """Posterior mean and evidence per row of one column, by the paper's steps with dense matrices (no spectrum)."""
    n, d = F.shape
    alpha = beta = 1.0
    for _ in range(11):
        A = alpha * np.eye(d) + beta * F.T @ F
        m = beta * np.linalg.solve(A, F.T @ t)
        gamma = d - alpha * np.trace(np.linalg.inv(A))
        error = ((F @ m - t) ** 2).sum()
        ratio, alpha, beta = alpha / beta, gamma / (m @ m + 1e-5), (n - gamma) / (error + 1e-5)
        if abs(alpha / beta - ratio) <= 1e-3 * ratio:
            break
    A = alpha * np.eye(d) + beta * F.T @ F
    log = n * np.log(beta) + d * np.log(alpha) - n * np.log(2 * np.pi) - beta * error - alpha * m @ m - np.linalg.slogdet(A)[1]
    return m, log / 2 / n


def believe_all(model: Any, count: int = 2) -> tuple[np.ndarray, float]:
    """M [classes, d] and LogME of the rows that ``batches(count)`` gives."""
    F = torch.cat([read(model, b["pixel_values"]) for b in batches(count)]).numpy()
    y = torch.cat([b["labels"] for b in batches(count)]).numpy()
    found = [believe(F, (y == c).astype(float)) for c in range(CLASSES)]
    return np.array([m for m, _ in found]), float(np.mean([e for _, e in found]))


def test_the_worked_example() -> None:
    pi = thrifty.rank.weigh([0.95, 0.948, 0.9478])
    assert pi == pytest.approx([0.338016, 0.331323, 0.330661], abs=1e-6) and pi.sum() == pytest.approx(1)


def test_means_and_weights_are_learned_from_all_rows() -> None:
    student, teachers = network(), [other(1), other(2)]
    at = attach(deepcopy(student), thrifty.BTuning(teachers=teachers), batches=batches(4))
    M, _ = believe_all(student, 4)
    np.testing.assert_allclose(at.memory[MEAN].numpy(), M, rtol=1e-5, atol=1e-7)
    known = [believe_all(one, 4) for one in teachers]
    logs = [log for _, log in known]
    order = [int(i) for i in np.argsort([-log for log in logs])]
    powers = np.exp((np.array(logs) - max(logs)) / 0.1)[order]
    assert at.memory[CHOSEN].tolist() == order
    assert at.memory[WEIGHTS].tolist() == pytest.approx((powers / powers.sum()).tolist(), rel=1e-4)
    assert float(at.memory[WEIGHTS].sum()) == pytest.approx(1) and at.memory[SCORES].tolist() == pytest.approx(
        [logs[k] for k in order], rel=1e-4)
    for i, k in enumerate(order):
        np.testing.assert_allclose(at.memory[f"{MEAN} {i}"].numpy(), known[k][0], rtol=1e-5, atol=1e-7)


def test_the_loss_is_what_it_says() -> None:
    model, teachers, mine = network(), [other(1), other(2)], batch(seed=5)
    method = thrifty.BTuning(teachers=teachers, weight=7.0, temperature=0.5)
    at = attach(model, method, batches=batches(4))
    loss, rows = method.loss(at, task(model), model, mine)
    kept = [at.memory[f"{MEAN} {i}"] for i in range(2)]
    chosen = [teachers[k] for k in at.memory[CHOSEN].tolist()]
    wanted = 0.0
    for b in range(6):
        pixels = mine["pixel_values"][b : b + 1]
        own = read(model, pixels)[0] @ at.memory[MEAN].T
        theirs = sum(float(at.memory[WEIGHTS][i]) * (read(chosen[i], pixels)[0] @ kept[i].T) for i in range(2))
        wanted += 7.0 * float(((own - theirs) ** 2).sum()) / (6 * CLASSES)
    hard = torch.nn.functional.cross_entropy(model(mine["pixel_values"]).logits.float(), mine["labels"])
    assert rows == 6 and float(loss) == pytest.approx(float(hard) + wanted, rel=1e-5)
    loss.backward()
    assert all(p.grad is None for one in teachers for p in one.parameters()) and all(p.grad is not None for p in at.parameters())


def test_a_student_that_is_its_only_teacher_pays_nothing() -> None:
    model = network()
    method = thrifty.BTuning(teachers=[network()])
    at = attach(model, method, batches=batches())
    loss, _ = method.loss(at, task(model), model, batch())
    assert at.memory[WEIGHTS].tolist() == [1.0]
    assert float(loss) == pytest.approx(float(thrifty.FullFineTuning().loss(at, task(model), model, batch())[0]), abs=1e-12)


def test_without_weight_it_is_fine_tuning_with_a_faster_head() -> None:
    answers = []
    for method in (thrifty.BTuning(teachers=[other()], weight=0.0), thrifty.FullFineTuning(head_factor=10.0)):
        model = network()
        steps(attach(model, method, batches=batches()), method, task(model))
        answers.append(model.eval()(batch()["pixel_values"]).logits)
    torch.testing.assert_close(*answers)


def test_features_are_drawn_to_what_teachers_say() -> None:
    apart = []
    for weight in (0.0, 1000.0):
        model, method = network(), thrifty.BTuning(teachers=[other()], weight=weight)
        at = attach(model, method, batches=batches(4))
        memory = dict(at.memory)
        steps(at, method, task(model), 30, 1e-3)
        pixels = batch(seed=1)["pixel_values"]
        apart.append(float(((read(model, pixels) @ memory[MEAN].T - read(other(), pixels) @ memory[f"{MEAN} 0"].T) ** 2).mean()))
    assert apart[1] < 0.8 * apart[0]


def test_the_best_teachers_are_asked_and_scores_may_be_known() -> None:
    teachers = [other(k) for k in range(4)]
    at = attach(network(), thrifty.BTuning(teachers=teachers, scores=[0.1, 0.4, 0.2, 0.3], top=3), batches=batches())
    assert at.memory[CHOSEN].tolist() == [1, 3, 2] and len(at.guests[REFERENCES]) == 3
    wanted = np.exp(np.array([0.0, -1.0, -2.0]))
    assert at.memory[WEIGHTS].tolist() == pytest.approx((wanted / wanted.sum()).tolist())


def test_a_class_without_rows_is_left_alone() -> None:
    at = attach(network(), thrifty.BTuning(teachers=[other()]), batches=iter([batch(2, seed=k) for k in range(3)]))
    for key in (MEAN, f"{MEAN} 0"):
        assert not at.memory[key][2].any() and at.memory[key][:2].any(1).all()
    with pytest.raises(BadData, match="one class"):
        attach(network(), thrifty.BTuning(teachers=[other()]), batches=iter([batch(1)]))


def test_only_the_student_is_left() -> None:
    model, method = network(), thrifty.BTuning(teachers=[other(1), other(2)], top=1)
    at = attach(model, method, batches=batches())
    steps(at, method, task(model))
    before, best = model.eval()(batch()["pixel_values"]).logits, at.memory[SCORES].tolist()
    method.finish(at)
    assert not at.plan and not at.guests and not at.memory
    assert at.about["measured"] == {"teachers": ["ResNetForImageClassification"], "LogME": best, "weights": [1.0]}
    assert torch.equal(model(batch()["pixel_values"]).logits, before)
    json.dumps(at.about)


@pytest.mark.parametrize("backbone", ["resnet", "bert", "vit"])
def test_it_keeps_the_contract(backbone: str) -> None:
    one = tiny.make(backbone)
    contract.check(thrifty.BTuning(teachers=[one.fresh()]), one, skip=("compiles",))  # nothing is left to compile


def test_refusals() -> None:
    for settings, name in (({"teachers": []}, "teachers"), ({"teachers": "a,b,a"}, "teachers"), ({"top": 0}, "top"),
                           ({"scores": [1.0]}, "scores"), ({"temperature": 0.0}, "temperature"), ({"weight": -1.0}, "weight")):
        with pytest.raises(NoSuchSetting, match=name):
            find("btuning").make(**{"teachers": "a, b", **settings}).check()
    with pytest.raises(ThriftyError, match="batches="):
        attach(network(), thrifty.BTuning(teachers=[other()]))
    with pytest.raises(ThriftyError, match="no row of data"):
        attach(network(), thrifty.BTuning(teachers=[other()]), batches=iter([]))
    with pytest.raises(ThriftyError, match="'minilm' is loaded in the form that a task needs"):
        attach(network(), thrifty.BTuning(teachers="minilm"), batches=batches())
    with pytest.raises(Unfit, match="labels are none"):
        attach(network(), thrifty.BTuning(teachers=[other()]), batches=iter([{**batch(), "labels": torch.rand(6)}]))
    model = network()
    with pytest.raises(Unfit, match="give a copy"):
        attach(model, thrifty.BTuning(teachers=[model]), batches=batches())


# -- through the main job -------------------------------------------------------------------------------------------------

QUICK: dict[str, Any] = {"epochs": 2, "batch": 8, "rate": 1e-3, "progress": False, "baselines": False}


def texts() -> dict[str, Any]:
    drawn = random.Random(2)
    rows = [{"text": " ".join(drawn.choices(["ab", "cd", "ef", "gh"], k=4)) + f" {i:b}".replace("0", " x").replace("1", " y"),
             "label": "odd" if i % 2 else "even"} for i in range(60)]
    return {"train": rows[:40], "validation": rows[40:50], "test": rows[50:]}


def pictures() -> dict[str, Any]:
    from test_every_task import picture

    drawn = random.Random(1)
    rows = [{"image": picture(drawn, i), "label": "dark" if i % 2 else "bright"} for i in range(40)]
    return {"train": rows[:24], "validation": rows[24:32], "test": rows[32:]}


def test_named_teachers_of_texts_and_a_run_among_them(tmp_path: Path) -> None:
    student = tiny_folders.bert(tmp_path / "bert")
    run = thrifty.tune(str(student), texts(), "linear-probe", tmp_path / "teacher", **{**QUICK, "epochs": 1})
    method = {"name": "b-tuning", "teachers": f"{student}, {run.folder}"}
    done = thrifty.tune(str(student), texts(), method, tmp_path / "run", **QUICK)
    about = json.loads((done.folder / "adapter" / "adapter.json").read_text())
    held = about["about"]["measured"]
    assert sorted(held["teachers"]) == sorted([str(student), str(run.folder)]) and sum(held["weights"]) == pytest.approx(1)
    assert held["LogME"][0] == pytest.approx(held["LogME"][1]) and not about["plan"]  # a probe's features are the model's own
    config = json.loads((done.folder / "config.json").read_text())
    assert make(**config["method"]).listed() == [str(student), str(run.folder)]


def test_a_teacher_sees_the_students_pictures_at_its_own_size(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    tiny_folders.vit(tmp_path / "vit")
    tiny_folders.resnet(tmp_path / "resnet")
    done = thrifty.tune(str(tmp_path / "vit"), pictures(), {"name": "b-tuning", "teachers": [str(tmp_path / "resnet")]},
                        tmp_path / "run", **{**QUICK, "epochs": 1})
    assert done.metrics["parameters"]["tuner"] > 0
    with pytest.raises(Unfit, match="which no checkpoint filled"):
        tiny_folders.roberta(tmp_path / "roberta")
        thrifty.tune(str(tiny_folders.bert(tmp_path / "bert")), texts(),
                     {"name": "b-tuning", "teachers": str(tmp_path / "roberta")}, tmp_path / "refused", **QUICK)
