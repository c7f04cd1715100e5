"""Several tasks as one: every number is that of the task alone, and the mean over them is computed again by hand."""
from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import tiny_folders as tiny
import torch
import torch.nn.functional as F

import thrifty
from thrifty import models, tasks
from thrifty.core.errors import BadData, NoSuchSetting
from thrifty.evaluate.intervals import ROUNDS
from thrifty.methods.heads import heads
from thrifty.models import Backbone
from thrifty.tasks.several import MEAN, Several

LABELS: dict[str, Any] = {"kind": ["no", "yes", "perhaps"], "size": None, "pair": ["same", "other"]}
PARTS = {"kind": {"task": "text-classification", "max_length": 16}, "size": {"task": "regression"},
         "pair": {"task": "text-classification", "metric": "matthews"}}
ROWS = [("kind", {"text": "ab c", "label": 0}), ("size", {"text": "efg", "label": 7.5}),
        ("pair", {"text": "d", "text_pair": "e f", "label": 1}), ("kind", {"text": "hij klm", "label": 2}),
        ("size", {"text": "a b c d", "label": -2.0}), ("pair", {"text": "x", "text_pair": "y", "label": 0}),
        ("kind", {"text": "n", "label": 1}), ("size", {"text": "q", "label": 1.0}),
        ("pair", {"text": "u", "text_pair": "v", "label": 1})]
TABLE: dict[str, Any] = {"task": [name for name, _ in ROWS], "row": [row for _, row in ROWS]}


def alone(name: str) -> dict[str, list[Any]]:
    rows = [row for task, row in ROWS if task == name]
    return {role: [row[role] for row in rows] for role in rows[0]}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return models.load(str(tiny.bert(tmp_path_factory.mktemp("bert"))), "text-classification", LABELS["kind"])


@pytest.fixture(scope="module")
def task(backbone: Backbone) -> Several:
    made = tasks.get("several", backbone, LABELS, parts=PARTS)
    assert isinstance(made, Several)
    made.fit(TABLE)
    return made


def predictions(shift: int = 0) -> list[dict[str, Any]]:
    drawn = np.random.default_rng(shift)
    found: list[dict[str, Any]] = []
    for name, row in ROWS:
        if name == "size":
            found.append({"prediction": row["label"] + float(drawn.normal()), "scores": None})
        else:
            scores = drawn.dirichlet(np.ones(len(LABELS[name])))
            found.append({"prediction": int(scores.argmax()), "scores": scores.tolist()})
    return found


def own(said: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [answer for answer, (task, _) in zip(said, ROWS, strict=True) if task == name]


def test_each_part_is_its_task(task: Several, backbone: Backbone) -> None:
    assert task.outputs == [3, 1, 2] and task.metric == MEAN and task.head_parameters
    assert task.limits["parts"]["size"]["centre"] == pytest.approx(6.5 / 3)
    again = tasks.get("several", backbone, LABELS, **json.loads(json.dumps(task.limits)))
    assert again.limits == task.limits
    assert [task.part(name).metric for name in PARTS] == ["accuracy", "pearson", "matthews"]


def test_examples_and_batches_say_their_task(task: Several, backbone: Backbone) -> None:
    examples = task.encode(TABLE)
    assert [example["task"] for example in examples] == TABLE["task"]
    for name in PARTS:
        mine = [example for example in examples if example["task"] == name]
        batch = task.collate(mine)
        plain = tasks.get(PARTS[name]["task"], backbone, LABELS[name],
                          **{k: v for k, v in task.limits["parts"][name].items() if k != "task"})
        wanted = plain.collate(plain.encode(alone(name)))
        assert batch.pop("task") == name and batch.keys() == wanted.keys()
        assert all(torch.equal(batch[key], wanted[key]) for key in wanted)
    with pytest.raises(BadData, match="a batch belongs to one task, not to 'kind' and 'size'"):
        task.collate(examples[:2])


def test_loss_and_predictions_come_from_the_tasks_own_head(task: Several, backbone: Backbone) -> None:
    model = backbone.model
    examples = task.encode(TABLE)
    batches = {name: task.collate([e for e in examples if e["task"] == name]) for name in PARTS}
    at = thrifty.attach(model, thrifty.LoRA(), tasks=list(PARTS), beside=heads(*task.outputs),
                        example=task.inputs(model, batches["kind"]))
    try:
        edit = next(edit for key, edit in at.edits.items() if key.endswith("#heads"))
        for number, (name, batch) in enumerate(batches.items()):
            with torch.no_grad():
                pooled = model.bert(**task.inputs(model, batch)).pooler_output
            head = edit.heads[number]
            logits = F.linear(pooled, head.weight, head.bias)
            loss, items = task.loss(model, batch)
            wanted = F.mse_loss(logits[:, 0], batch["labels"]) if name == "size" else F.cross_entropy(logits, batch["labels"])
            torch.testing.assert_close(loss, wanted)
            assert items == 3
            said = task.predict(model, batch)
            if name == "size":
                limits = task.limits["parts"]["size"]
                values = logits[:, 0].double() * limits["scale"] + limits["centre"]
                assert [row["prediction"] for row in said] == pytest.approx(values.tolist(), rel=1e-5)
            else:
                np.testing.assert_allclose([row["scores"] for row in said], logits.softmax(-1).tolist(), atol=1e-6)
            assert task.judge(model, batch) == said
    finally:
        at.detach()


def test_metrics_are_those_of_the_tasks_and_their_mean(task: Several, backbone: Backbone) -> None:
    said = predictions()
    found = task.metrics(said, TABLE)
    selecting = []
    for name, limits in PARTS.items():
        plain = tasks.get(limits["task"], backbone, LABELS[name], **{k: v for k, v in limits.items() if k == "metric"})
        for metric, value in plain.metrics(own(said, name), alone(name)).items():
            assert found.pop(f"{name}.{metric}") == value
        selecting.append(plain.metrics(own(said, name), alone(name))[plain.metric])
    assert found == {MEAN: pytest.approx(sum(selecting) / 3)}


def test_intervals_are_those_of_the_tasks_and_one_of_the_mean_that_resamples_each_on_its_own(task: Several) -> None:
    said = predictions()
    found = task.interval(said, TABLE, seed=3)
    for name in PARTS:
        for metric, ends in task.part(name).interval(own(said, name), alone(name), seed=3).items():
            assert found[f"{name}.{metric}"] == ends
    drawn = np.random.default_rng(0)
    statistics = {name: task.part(name).statistics(own(said, name), alone(name))[task.part(name).metric] for name in PARTS}
    means = [np.mean([float(statistics[name](drawn.multinomial(3, [1 / 3] * 3)[None].astype(float))[0]) for name in PARTS])
             for _ in range(ROUNDS)]
    low, high = np.quantile(means, [0.025, 0.975])
    assert found[MEAN] == pytest.approx((low, high), abs=0.08)
    assert found[MEAN][0] <= task.metrics(said, TABLE)[MEAN] <= found[MEAN][1]
    for counts in task.resamples(9, TABLE):
        assert all((counts[:, [i for i, (task_name, _) in enumerate(ROWS) if task_name == name]].sum(axis=1) == 3).all()
                   for name in PARTS)


def test_comparisons_pair_rows_and_tasks(task: Several) -> None:
    better, worse = [{"prediction": row["label"], "scores": None} for _, row in ROWS], predictions()
    whole = task.compare(better, worse, TABLE)
    assert whole.difference == pytest.approx(task.metrics(better, TABLE)[MEAN] - task.metrics(worse, TABLE)[MEAN])
    assert task.compare(worse, worse, TABLE).difference == 0
    one = task.compare(better, worse, TABLE, metric="kind.accuracy")
    assert one.difference == pytest.approx(1 - task.metrics(worse, TABLE)["kind.accuracy"])


def test_the_majority_of_each_task(task: Several) -> None:
    found = task.majority(TABLE, TABLE)
    for name in PARTS:
        assert own(found, name) == task.part(name).majority(alone(name), alone(name))


def test_mistakes_name_the_task(task: Several, backbone: Backbone) -> None:
    for parts, said in (({"a": {"task": "regresion"}}, "task 'a': task 'regresion' is unknown.*'regression'"),
                        ({"a": {"task": "regression", "metric": "accuracy"}}, "task 'a': regression cannot select by")):
        with pytest.raises(NoSuchSetting, match=said):
            tasks.get("several", backbone, {"a": None}, parts=parts)
    with pytest.raises(NoSuchSetting, match=r"say which task is meant \(--task-name\): kind, size, pair"):
        task.part(None)
    with pytest.raises(NoSuchSetting, match="there is no task 'kinds'. Did you mean 'kind'"):
        task.part("kinds")
    with pytest.raises(BadData, match="task 'kind': row 0: label 5"):
        task.encode({"task": ["kind"], "row": [{"text": "a", "label": 5}]})
    with pytest.raises(NoSuchSetting, match="nothing on this BertForSequenceClassification knows tasks"):
        task.predict(backbone.model, task.collate(task.encode(TABLE)[:1]))


def test_tasks_that_write_text_have_no_heads(tmp_path: Any) -> None:
    pytest.importorskip("sacrebleu")
    backbone = models.load(str(tiny.t5(tmp_path)), "seq2seq-generation")
    parts = {"up": {"task": "seq2seq-generation", "max_new_tokens": 6}, "down": {"task": "seq2seq-generation", "max_new_tokens": 6}}
    task = tasks.get("several", backbone, {}, parts=parts)
    assert isinstance(task, Several) and task.outputs == [] and task.head_parameters == []
