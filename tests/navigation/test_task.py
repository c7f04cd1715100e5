"""Walking as a task: losses by hand, walks of an agent's own, metrics, what training gives on graphs that it has not seen."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import small_world
import torch

import thrifty
from thrifty import tasks
from thrifty.core.errors import BadData, NoSuchSetting, Unfit
from thrifty.models import Backbone, load, wrap
from thrifty.navigation import Agent, AgentConfig, Vocabulary, make_world, read, save_agent, score, vocabulary
from thrifty.navigation.walking import Walk, best, follow, gather, roam, teach
from thrifty.train import predict

SHAPE = {"width": 32, "heads": 4, "hidden": 64, "language_layers": 1, "panorama_layers": 1, "cross_layers": 2, "positions": 32,
         "steps": 16, "dropout": 0.0, "feature_dropout": 0.0}


def words() -> Vocabulary:
    said = [text for split in small_world.STARTS for row in small_world.episodes(split) for text in row["instructions"]]
    return Vocabulary(" ".join(said).lower().replace(",", "").replace(".", "").split())


def agent(tokens: Vocabulary, features: int, new: bool = True, **changes: Any) -> Backbone:
    torch.manual_seed(0)
    made = Agent(AgentConfig(vocabulary=len(tokens), features=features, **{**SHAPE, **changes})).eval()
    return wrap(made, tokens, new=["head"] if new else (), name="agent")


def task(tmp_path: Path, **limits: Any) -> tuple[Any, Any]:
    data = read(small_world.write(tmp_path))
    return tasks.get("navigation", agent(words(), small_world.WIDTH), None, **limits), data


def test_loss_is_that_of_every_decision(tmp_path: Path) -> None:
    """Each decision alone, from what was seen until then."""
    walking, data = task(tmp_path)
    table = data.splits["train"]
    batch = walking.collate(walking.encode(table))
    model = walking.backbone.model
    loss, items = walking.loss(model, batch)
    summed = 0.0
    for row, (episode, world) in enumerate(zip(table["episode"], table["world"], strict=True)):
        ids = batch["input_ids"][row : row + 1, : int(batch["attention_mask"][row].sum())]
        own = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        walk = follow(world, episode)
        for step, right in enumerate(walk.taken):
            now = Walk(world, episode, walk.seen[: step + 1], walk.taken[:step])
            logits = model(**own, **gather([now], decisions=1))[0, 0]
            summed -= float(logits.log_softmax(-1)[right])
    assert items == 9
    assert float(loss) == pytest.approx(summed / 9, abs=1e-5)


def test_an_agent_walks_by_itself(tmp_path: Path) -> None:
    """Greedily; a walk ends by stopping or after its last step, and its way is one of the graph."""
    walking, data = task(tmp_path, max_steps=4)
    table = data.splits["train"]
    batch = walking.collate(walking.encode(table))
    said = walking.predict(walking.backbone.model, batch)
    for row, (one, episode, world) in enumerate(zip(said, table["episode"], table["world"], strict=True)):
        path = one["prediction"].split()
        assert path[0] == episode.path[0] and len(path) <= 5
        world.graph("home").check(path)
        only = walking.encode({role: column[row : row + 1] for role, column in table.items()})
        alone = walking.predict(walking.backbone.model, walking.collate(only))
        assert alone[0]["prediction"] == one["prediction"]  # whatever it walks beside
    found = walking.metrics(said, table)
    graph = table["world"][0].graph("home")
    rows = [score(graph, one["prediction"].split(), episode.path) for one, episode in zip(said, table["episode"], strict=True)]
    assert found == pytest.approx({name: sum(row[name] for row in rows) / 3 for name in rows[0]})
    thrifty.attach(walking.backbone.model, thrifty.VLNPETL(rank=4), example=walking.inputs(walking.backbone.model, batch))
    assert walking.predict(walking.backbone.model, batch) == said  # an adapter that has learnt nothing goes nowhere else
    assert walking.groups(table).tolist() == [0, 0, 1]
    stayed = walking.metrics(walking.majority(table, table), table)
    assert stayed["length"] == 0 and stayed["spl"] == 0 and stayed["error"] == pytest.approx((11 + 11 + 11) / 3)


def test_students_learn_the_shortest_way_from_where_they_are(tmp_path: Path) -> None:
    walking, data = task(tmp_path, feedback="student", max_steps=3)
    batch = walking.collate(walking.encode(data.splits["train"]))
    model = walking.backbone.model
    torch.manual_seed(1)
    loss, items = walking.loss(model, batch)
    torch.manual_seed(1)
    walks = walking._roam(model, batch, lambda logits: torch.distributions.Categorical(logits=logits.float()).sample())
    assert items == sum(len(walk.taken) for walk in walks) == sum(map(len, map(teach, walks)))
    assert loss.requires_grad
    both, more = tasks.get("navigation", walking.backbone, None, feedback="both", max_steps=3).loss(model, batch)
    assert more > 9 and bool(both.isfinite())


def test_training_walks_better_on_graphs_that_it_has_not_seen(tmp_path: Path) -> None:
    """Two seeds of VLN-PETL on a frozen random agent, beside the same agent as it was, with its untrained head."""
    make_world(tmp_path / "world", side=3)
    data = read(tmp_path / "world", context=False)
    assert "0 of 96 test episodes are in scans that training walks in." in data.record["decisions"]
    run = thrifty.tune(agent(vocabulary(), 16), data, {"name": "vln-petl", "rank": 32}, tmp_path / "run", epochs=2.0, batch=8,
                       rate=8e-3, max_steps=6, patience=0, evaluations=0.5, seeds=2, progress=False)
    untrained = next(b for b in run.metrics["baselines"] if b["name"] == "untrained")
    before = untrained["test"]["spl"]["value"]
    assert untrained["difference"]["low"] > 0
    assert all(seed["test"]["spl"]["value"] > before + 0.05 for seed in run.metrics["seeds"])
    assert run.metrics["test"]["success"]["value"] > 0.1
    assert run.metrics["items"] == {"train": 216, "validation": 72, "test": 96} and run.report.is_file()


def test_the_main_job_from_folders(tmp_path: Path) -> None:
    """A saved agent without a head, a folder of walks, both kinds of feedback; and its answers afterwards."""
    small_world.write(tmp_path / "walks")
    tokens = words()
    save_agent(tmp_path / "agent", agent(tokens, small_world.WIDTH, False).model, tokens, head=False)
    run = thrifty.tune(str(tmp_path / "agent"), str(tmp_path / "walks"), {"name": "vln-petl", "rank": 4}, tmp_path / "run",
                       task="navigation", feedback="both", epochs=2.0, max_steps=4, progress=False)
    assert run.metrics["task"] == "navigation" and run.metrics["parameters"]["head"] == 32 * 32 + 32 + 64 + 33
    assert "staying at the start" in str(run)
    held = thrifty.load(load(str(tmp_path / "agent"), "navigation").model, run.adapter)
    assert held.method is not None and held.method.name == "vln-petl"
    with pytest.raises(NoSuchSetting, match="limit is about tables"):
        thrifty.tune(str(tmp_path / "agent"), str(tmp_path / "walks"), out=tmp_path / "no", task="navigation", limit=3)
    with pytest.raises(Unfit, match="depends on what it answered before"):
        thrifty.tune(str(tmp_path / "agent"), str(tmp_path / "walks"), "linear-probe", tmp_path / "kept", task="navigation",
                     cache="still", progress=False)
    with pytest.raises(BadData, match="holds 3 files of walks .*name one"):
        predict(run.folder, str(tmp_path / "walks"))
    said = predict(run.folder, str(tmp_path / "walks"), split="val_unseen")
    assert [one["input"] for one in said] == [text for row in small_world.episodes("val_unseen") for text in row["instructions"]]
    assert [one["prediction"].split()[0] for one in said] == ["w", "w", "n"]


def test_a_made_up_world_is_that_of_its_seed(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make_world(tmp_path / name, seed, scans=2, unseen=1, walks=4, side=3)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert len(files) == 3 + 3 + 1
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)
    assert (tmp_path / "a" / "R2R_train.json").read_bytes() != (tmp_path / "c" / "R2R_train.json").read_bytes()
    with pytest.raises(NoSuchSetting, match="walks=99: scan00 has only"):
        make_world(tmp_path / "d", walks=99, side=2)
    data = read(tmp_path / "a")
    assert all(3 <= len(episode.path) <= 5 for episode in data.splits["train"]["episode"])
    assert "0 of 4 test episodes are in scans that training walks in." in data.record["decisions"]


def test_refusals(tmp_path: Path) -> None:
    walking, data = task(tmp_path, max_length=7)
    with pytest.raises(BadData, match="episode '7_0': its instruction has 9 tokens, more than max_length=7: 'Walk to the hall"):
        walking.encode(data.splits["train"])
    for limits, said in (({"feedback": "pupil"}, "feedback='pupil' is unknown"), ({"max_steps": 0}, "max_steps must be at least 1"),
                         ({"metric": "error"}, "cannot select by metric 'error'"), ({"steps": 3}, "no limit 'steps'")):
        with pytest.raises(NoSuchSetting, match=said):
            task(tmp_path, **limits)
    other = tasks.get("navigation", agent(words(), 7))
    with pytest.raises(Unfit, match="features of width 5, and the agent was made for 7"):
        other.encode(data.splits["train"])
    with pytest.raises(Unfit, match="needs an agent .*not Linear"):
        tasks.get("navigation", wrap(torch.nn.Linear(2, 2), words()))
    with pytest.raises(NoSuchSetting, match="no tokenizer"):
        tasks.get("navigation", wrap(agent(words(), 5).model))
    with pytest.raises(NoSuchSetting, match="at least 1"):
        roam(walking.backbone.model, [], {}, 0, best)
