"""One run over several datasets: heads of each task, tasks that are written as text, resuming, processes, files and mistakes."""
from __future__ import annotations

import json
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import several_jobs
import small_jobs
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from several_jobs import KINDS, NAMES, SIZES, column

import thrifty
from thrifty.cli import main
from thrifty.cli.tune import sources
from thrifty.core.errors import BadData, NoSuchSetting, ThriftyError, Unfit
from thrifty.methods import make
from thrifty.models import load
from thrifty.report.schema import check, check_prediction
from thrifty.train import Run, Settings, predict

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models"))
import tiny_folders  # noqa: E402

QUICK: dict[str, Any] = {"epochs": 6, "batch": 8, "rate": 1e-2, "progress": False, "task": {"length": "regression"}}
LAUNCH = (sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--num_machines", "1", "--mixed_precision",
          "no", "--dynamo_backend", "no", "--main_process_port", "0")
KINDS_OF_RUN = {"ddp": ("--multi_gpu",), "fsdp2": ("--use_fsdp", "--fsdp_version", "2")}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("several")
    small_jobs.bert(folder / "bert")
    several_jobs.sets(folder)
    return folder


def sets(place: Path) -> dict[str, str]:
    return {name: str(place / name) for name in NAMES}


def tune(place: Path, out: Path, **more: Any) -> Run:
    return thrifty.tune(str(place / "bert"), sets(place), out=out, **{**QUICK, **more})


@pytest.fixture(scope="module")
def run(place: Path) -> Run:
    return tune(place, place / "run", temperature=2)


def lines(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.folder / "predictions.jsonl").read_text().splitlines()]


def test_the_files_say_what_each_task_came_to(run: Run, place: Path) -> None:
    m = check(json.loads((run.folder / "metrics.json").read_text()))
    assert m["task"] == "several" and m["metric"] == "mean_of_tasks" and m["data"] == "themes, wet, length" and m["labels"] is None
    assert m["items"] == {"train": 104, "validation": 40, "test": 48}
    roots = {name: SIZES[name][0] ** 0.5 for name in NAMES}
    for name, part in m["tasks"].items():
        assert (part["task"], part["items"]["test"]) == (KINDS[name], SIZES[name][2])
        assert part["rate"] == pytest.approx(roots[name] / sum(roots.values()))
        assert [b["name"] for b in part["baselines"]] == ["majority", "linear"]
    assert m["tasks"]["wet"]["labels"] == ["dry", "wet"] and m["tasks"]["length"]["labels"] is None
    own = [m["test"][f"{name}.{m['tasks'][name]['metric']}"]["value"] for name in NAMES]
    assert m["test"]["mean_of_tasks"]["value"] == pytest.approx(sum(own) / 3)
    assert set(m["seeds"][0]["evaluations"][0]["values"]) >= {"mean_of_tasks", "themes.accuracy", "wet.accuracy", "length.pearson"}
    for i, row in enumerate(lines(run)):
        check_prediction(row, m, f"line {i}")
    body = 2 * 2 * (32 * 8 + 8 * 32)  # layers × (q, v) × (A and B)
    assert m["parameters"]["tuner"] == body and m["parameters"]["head"] == (32 + 1) * (3 + 2 + 1)


def test_predictions_are_scored_task_by_task(run: Run, place: Path) -> None:
    said = lines(run)
    assert [row["task"] for row in said] == [name for name in NAMES for _ in range(SIZES[name][2])]
    for name in NAMES:
        own = [row for row in said if row["task"] == name]
        assert [row["index"] for row in own] == list(range(len(own)))
        truth = column(str(place / name), "test")
        if name == "length":
            assert [row["target"] for row in own] == [float(value) for value in truth]
            score = statistics.correlation([row["target"] for row in own], [row["prediction"] for row in own])
        else:
            assert [row["target"] for row in own] == truth
            score = sum(row["prediction"] == row["target"] for row in own) / len(own)
        assert run.metrics["test"][f"{name}.{run.metrics['tasks'][name]['metric']}"]["value"] == pytest.approx(score)
    themes = run.metrics["tasks"]["themes"]
    majority = {b["name"]: b for b in themes["baselines"]}["majority"]
    most = statistics.mode(column(str(place / "themes"), "train"))
    share = sum(value == most for value in column(str(place / "themes"), "test")) / SIZES["themes"][2]
    right = run.metrics["test"]["themes.accuracy"]["value"]
    assert majority["test"]["accuracy"]["value"] == pytest.approx(share) and right > share
    assert majority["difference"]["value"] == pytest.approx(right - share)
    together = {b["name"]: b for b in run.metrics["baselines"]}
    for name in ("majority", "linear"):
        theirs = [{b["name"]: b for b in part["baselines"]}[name]["test"][part["metric"]]["value"]
                  for part in run.metrics["tasks"].values()]
        mean = sum(theirs) / 3
        assert together[name]["test"]["mean_of_tasks"]["value"] == pytest.approx(mean)
        assert together[name]["difference"]["value"] == pytest.approx(run.metrics["test"]["mean_of_tasks"]["value"] - mean)


def test_the_adapter_says_its_tasks_and_answers_with_their_heads(run: Run, place: Path) -> None:
    backbone = load(str(place / "bert"), "text-classification", ["any", "two"], seed=99)
    at = thrifty.load(backbone.model, run.adapter)
    assert at.tasks == list(NAMES) and at.about["labels"]["themes"] == ["light", "road", "water"]
    limits = at.about["limits"]["parts"]
    assert {name: limits[name]["task"] for name in NAMES} == KINDS
    edit = next(edit for key, edit in at.edits.items() if key.endswith("#heads"))
    for row in lines(run)[::7]:
        batch = backbone.preprocess(row["input"], return_tensors="pt")
        with torch.no_grad(), thrifty.task(backbone.model, row["task"]):
            logits = backbone.model(**batch)["logits"][0]
            hidden = backbone.model.base_model(**batch)[0].mean(dim=1)[0]
        head = edit.heads[NAMES.index(row["task"])]
        torch.testing.assert_close(logits, F.linear(hidden, head.weight, head.bias).detach())
        if row["task"] == "length":
            own = limits["length"]
            assert row["prediction"] == pytest.approx(float(logits) * own["scale"] + own["centre"], rel=1e-4)
        else:
            assert row["scores"] == pytest.approx(logits.softmax(-1).tolist(), abs=1e-5)


def test_predict_repeats_the_predictions_of_the_run(run: Run, place: Path) -> None:
    for name in NAMES:
        again = predict(run.folder, str(place / name), split="test", task_name=name)
        for old, new in zip([row for row in lines(run) if row["task"] == name], again, strict=True):
            same = pytest.approx(old["prediction"], rel=1e-4) if name == "length" else old["prediction"]
            assert new["prediction"] == same and new["input"] == old["input"]
    typed = predict(run.folder, texts=["the pipe leak flood tap"], task_name="wet")
    assert typed[0]["prediction"] in ("wet", "dry") and len(typed[0]["scores"]) == 2
    with pytest.raises(NoSuchSetting, match=r"say which task is meant \(--task-name\): themes, wet, length"):
        predict(run.folder, texts=["a"])
    with pytest.raises(NoSuchSetting, match="no task 'theme'. Did you mean 'themes'"):
        predict(run.folder, texts=["a"], task_name="theme")


def test_the_page_shows_each_task_and_no_name_twice(run: Run) -> None:
    page = run.report.read_text()
    for name in NAMES:
        assert f"<h2>Task {name}</h2>" in page
    ids = [part.split('"')[0] for part in page.split(' id="')[1:]]
    assert len(ids) == len(set(ids)) and {"themes-confusion-t", "wet-confusion-t", "length-scatter-t"} <= set(ids)
    said = str(run)
    for word in ("mean of tasks", "themes: accuracy", "length: Pearson correlation", "the mean of the training targets"):
        assert word in said, word


def test_config_json_repeats_the_run(run: Run, tmp_path: Path) -> None:
    config = json.loads((run.folder / "config.json").read_text())
    assert config["data"].keys() == set(NAMES) and config["task"] == KINDS and config["temperature"] == 2.0
    places = {key: config.pop(key) for key in ("model", "data", "method")}
    again = thrifty.tune(places["model"], places["data"], places["method"], tmp_path / "again", settings=Settings.make(config),
                         progress=False)
    assert small_jobs.numbers(again.folder) == small_jobs.numbers(run.folder)
    for name in ("adapter/adapter.safetensors", "adapter/adapter.json", "predictions.jsonl"):
        assert (again.folder / name).read_bytes() == (run.folder / name).read_bytes()


def words(place: Path, out: str, *more: object, model: str = "bert") -> tuple[object, ...]:
    data = [word for name in NAMES for word in ("--data", f"{name}={place / name}")]
    return ("tune", "--model", place / model, *data, "--task", "length=regression", "--out", place / out, "--epochs", 3,
            "--rate", "1e-2", "--patience", 0, *more)


def test_a_killed_training_goes_on_bit_for_bit(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ("--batch", 8, "--set", "dropout=0.1", "--checkpoint-every", 2, "--no-baselines", "--temperature", 3)
    whole = small_jobs.run(*words(place, "whole", *more))
    assert whole.returncode == 0, whole.stderr
    process = subprocess.Popen(small_jobs.command(*words(place, "killed", *more)), env=small_jobs.environment(),
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    state = place / "killed" / "seed-0" / "checkpoint" / "state.json"
    until = time.monotonic() + 240
    while time.monotonic() < until and process.poll() is None:
        if state.is_file() and json.loads(state.read_text())["log"]["step"] >= 9:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.005)
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    again = small_jobs.run(*words(place, "killed", *more, "--resume"))
    assert again.returncode == 0, again.stderr
    for name in ("adapter/adapter.safetensors", "adapter/adapter.json", "predictions.jsonl", "config.json", "data.json"):
        assert (place / "killed" / name).read_bytes() == (place / "whole" / name).read_bytes(), name
    assert small_jobs.numbers(place / "killed") == small_jobs.numbers(place / "whole")
    capsys.readouterr()
    assert main(["predict", str(place / "killed"), "--task-name", "wet", "--text", "the pipe leak flood"]) == 0
    assert json.loads(capsys.readouterr().out)["prediction"] in ("wet", "dry")
    assert main([str(word) for word in words(place, "killed", *more[:-1], 4, "--resume")]) == 2
    assert "temperature was 3.0 and is 4.0" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["ddp", pytest.param("fsdp2", marks=pytest.mark.slow)])
def test_two_processes_and_accumulation_take_the_steps_of_one(kind: str, place: Path) -> None:
    """All processes draw the same task at a step, each a part of its rows."""
    place = place / kind
    several_jobs.sets(place)
    small_jobs.bert(place / "calm", dropout=0.0)
    for out, more in (("one", ("--batch", 16)), ("summed", ("--batch", 4, "--accumulate", 4))):
        assert main([str(word) for word in words(place, out, "--quiet", *more, model="calm")]) == 0
    launched = [*LAUNCH, *KINDS_OF_RUN[kind], "-m", "thrifty", *map(str, words(place, "two", "--batch", 8, model="calm"))]
    two = subprocess.run(launched, env=small_jobs.environment(), capture_output=True, text=True, timeout=300)
    assert two.returncode == 0, two.stderr[-3000:]
    wanted = load_file(place / "one" / "adapter" / "adapter.safetensors")
    runs = {out: small_jobs.numbers(place / out) for out in ("one", "two", "summed")}
    for out in ("two", "summed"):
        found = load_file(place / out / "adapter" / "adapter.safetensors")
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4)
        curves = [[step["loss"] for step in runs[which]["seeds"][0]["history"]] for which in (out, "one")]
        assert curves[0] == pytest.approx(curves[1], rel=1e-3)
        assert runs[out]["tasks"].keys() == runs["one"]["tasks"].keys()


@pytest.mark.parametrize("method", ["linear-probe", "full", "prefix"])
def test_methods_that_know_no_tasks_need_nothing(method: str, place: Path, tmp_path: Path) -> None:
    run = tune(place, tmp_path / "run", method=method, epochs=1, baselines=False, rate=1e-3, seeds=2 if method == "full" else 1)
    assert run.metrics["parameters"]["head"] == 33 * 6 and run.metrics["baselines"] == []
    assert (run.metrics["parameters"]["tuner"] == 0) == (method == "linear-probe")
    found = predict(run.folder, str(place / "wet"), split="test", task_name="wet")
    first = run.metrics["seeds"][0]["seed"]
    reported = [row for row in lines(run) if row["task"] == "wet" and row["seed"] == first]
    assert len(found) == len(reported)


@pytest.mark.parametrize("method", [{"name": "hyperformer", "rank": 4, "embedding": 8, "hidden": 8}, {"name": "pals", "width": 12}])
def test_methods_that_tell_tasks_apart_are_told(method: dict[str, Any], place: Path, tmp_path: Path) -> None:
    run = tune(place, tmp_path / "run", method=method, epochs=1, baselines=False, rate=1e-3)
    for name in NAMES:
        again = predict(run.folder, str(place / name), split="test", task_name=name)
        for old, new in zip([row for row in lines(run) if row["task"] == name], again, strict=True):
            assert new["prediction"] == (pytest.approx(old["prediction"], rel=1e-4) if name == "length" else old["prediction"])
    with pytest.raises(NoSuchSetting, match="serves several tasks: name them"):
        thrifty.tune(str(place / "bert"), str(place / "wet"), method, tmp_path / "one", progress=False)


def test_metrics_by_task_and_equal_shares(place: Path, tmp_path: Path) -> None:
    run = tune(place, tmp_path / "run", epochs=1, baselines=False, metric={"length": "negative_mae", "wet": "matthews"},
               temperature=float("inf"))
    parts = run.metrics["tasks"]
    assert {name: part["metric"] for name, part in parts.items()} == {
        "themes": "accuracy", "wet": "matthews", "length": "negative_mae"}
    assert all(part["rate"] == pytest.approx(1 / 3) for part in parts.values())
    assert json.loads((run.folder / "config.json").read_text())["temperature"] == "equal"


def test_tasks_written_as_text_share_the_whole_model(tmp_path: Path) -> None:
    pytest.importorskip("sacrebleu")
    letters = [a + b for a in "abcdefgh" for b in "abcdefgh"]
    data = {name: {"train": [{"source": f"{name} {text}", "target": turn(text)} for text in letters[:30]],
                   "validation": [{"source": f"{name} {text}", "target": turn(text)} for text in letters[30:40]],
                   "test": [{"source": f"{name} {text}", "target": turn(text)} for text in letters[40:50]]}
            for name, turn in (("copy", str), ("back", lambda text: text[::-1]))}
    run = thrifty.tune(str(tiny_folders.t5(tmp_path / "t5")), data, out=tmp_path / "run", epochs=1, batch=8, rate=1e-3,
                       max_new_tokens=6, progress=False)
    m = run.metrics
    assert {part["task"] for part in m["tasks"].values()} == {"seq2seq-generation"} and m["parameters"]["head"] == 0
    assert m["test"]["mean_of_tasks"]["value"] == pytest.approx(
        (m["test"]["copy.negative_loss"]["value"] + m["test"]["back.negative_loss"]["value"]) / 2)
    assert [b["name"] for b in m["baselines"]] == ["untrained"]
    again = predict(run.folder, data["back"], split="test", task_name="back")
    assert [row["prediction"] for row in again] == [row["prediction"] for row in lines(run) if row["task"] == "back"]
    ranked = [{"text": text, "choices": [text[0], text[1], "x"], "label": i % 2} for i, text in enumerate(letters)]
    data["rank"] = {"train": ranked[:30], "validation": ranked[30:40], "test": ranked[40:50]}
    data["other"] = data["rank"]
    for names, method in ((("back", "rank"), "ia3"), (("rank", "other"), "t-few")):
        both = thrifty.tune(str(tmp_path / "t5"), {name: data[name] for name in names}, method, tmp_path / method, epochs=1,
                            batch=8, rate=1e-3, max_new_tokens=6, progress=False)
        assert both.metrics["tasks"]["rank"]["task"] == "multiple-choice" and both.metrics["parameters"]["head"] == 0
        assert [b["name"] for b in both.metrics["tasks"]["rank"]["baselines"]] == ["majority", "untrained"]


def test_tasks_of_every_kind_as_text_each_in_a_format_of_its_own(place: Path, tmp_path: Path) -> None:
    pytest.importorskip("sacrebleu")
    formats = {"themes": "what is it about? {text}", "wet": "water? {text}", "length": "how long? {text}"}
    run = thrifty.tune(str(tiny_folders.t5(tmp_path / "t5")), sets(place), out=tmp_path / "run", epochs=1, batch=8, rate=1e-3,
                       format=formats, task={"length": "regression"}, words={"wet": {"wet": "yes", "dry": "no"}}, progress=False)
    config = json.loads((run.folder / "config.json").read_text())
    assert config["format"] == formats and config["task"] == KINDS and config["words"] == {"wet": {"wet": "yes", "dry": "no"}}
    assert {name: part["task"] for name, part in run.metrics["tasks"].items()} == KINDS and run.metrics["parameters"]["head"] == 0
    for name in NAMES:
        again = predict(run.folder, str(place / name), split="test", task_name=name)
        reported = [row for row in lines(run) if row["task"] == name]
        assert [row["written"] for row in again] == [row["written"] for row in reported]
    with pytest.raises(NoSuchSetting, match="format is told for several datasets"):
        thrifty.tune(str(tmp_path / "t5"), str(place / "wet"), out=tmp_path / "a", format=formats, progress=False)
    with pytest.raises(Unfit, match="no one form of this model serves both"):
        thrifty.tune(str(tmp_path / "t5"), sets(place), out=tmp_path / "a", format={"wet": formats["wet"]}, progress=False,
                     task={"length": "regression"})


def test_choices_and_classes_share_an_encoder_of_sentences(place: Path, tmp_path: Path) -> None:
    """And a baseline that only some tasks have is told for those alone."""
    texts = [text for text, _ in small_jobs.rows(60, 9)]
    choices = [{"text": text, "choices": [text.split()[0], "stone"], "label": i % 2} for i, text in enumerate(texts)]
    data = {"wet": str(place / "wet"), "word": {"train": choices[:30], "validation": choices[30:45], "test": choices[45:]}}
    run = thrifty.tune(str(place / "bert"), data, out=tmp_path / "run", **{**QUICK, "task": None, "epochs": 1})
    assert [b["name"] for b in run.metrics["baselines"]] == ["majority"]
    parts = run.metrics["tasks"]
    assert [b["name"] for b in parts["wet"]["baselines"]] == ["majority", "linear"]
    assert parts["word"]["task"] == "multiple-choice" and [b["name"] for b in parts["word"]["baselines"]] == ["majority"]
    assert run.metrics["parameters"]["head"] == 33 * 3 and "Task word" in run.report.read_text()


def test_one_head_for_tasks_that_answer_alike(place: Path, tmp_path: Path) -> None:
    other = [{"text": f"again {text}", "label": several_jobs.answer("wet", text, theme)} for text, theme in small_jobs.rows(60, 8)]
    data = {"wet": str(place / "wet"), "again": {"train": other[:30], "validation": other[30:45], "test": other[45:]}}
    run = thrifty.tune(str(place / "bert"), data, out=tmp_path / "run", **{**QUICK, "task": None, "epochs": 1}, one_head=True)
    assert run.metrics["parameters"]["head"] == 33 * 2 and not any("have a text that task" in w for w in run.metrics["warnings"])
    with pytest.raises(Unfit, match="one_head: task 'wet' .*does not answer as task 'themes'"):
        tune(place, tmp_path / "other", one_head=True)


def test_a_module_comes_back_as_it_was(place: Path, tmp_path: Path) -> None:
    backbone = load(str(place / "bert"), "text-classification", ["one", "two"])
    before = {name: t.clone() for name, t in backbone.model.state_dict().items()}
    run = thrifty.tune(backbone, sets(place), out=tmp_path / "run", **{**QUICK, "epochs": 1})
    after = backbone.model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], t) for name, t in before.items())
    assert predict(run.folder, texts=["a"], task_name="themes", model=backbone)


@pytest.mark.parametrize(("more", "error", "said"), [
    ({"temperature": 0}, NoSuchSetting, "temperature must be at least 1, equal or annealed, not 0"),
    ({"temperature": -1.0}, NoSuchSetting, "temperature"), ({"temperature": float("nan")}, NoSuchSetting, "temperature"),
    ({"temperature": "eqal"}, NoSuchSetting, "temperature is 'eqal'. Did you mean 'equal'"),
    ({"cap": 0}, NoSuchSetting, "cap must be at least 1"),
    ({"metric": "accuracy"}, NoSuchSetting, "task 'length': regression cannot select by metric 'accuracy'"),
    ({"metric": {"lenght": "mse"}}, NoSuchSetting, "metric speaks of a task 'lenght'.*Did you mean 'length'"),
    ({"task": {"lenght": "regression"}}, NoSuchSetting, "task speaks of a task 'lenght'"),
    ({"task": {"wet": "token-classification", "length": "regression"}}, ThriftyError, "task 'wet'"),
    ({"columns": {"wet.text": "txet"}}, BadData, "task 'wet'.*txet"),
    ({"method": thrifty.LoRA(where="head")}, Unfit, "'low-rank' acts on 'classifier'"),
])
def test_mistakes_name_the_task(more: dict[str, Any], error: type[Exception], said: str, place: Path, tmp_path: Path) -> None:
    with pytest.raises(error, match=said):
        tune(place, tmp_path / "run", **more)


def test_datasets_that_do_not_go_together_or_cannot_be_read(place: Path, tmp_path: Path) -> None:
    tags = [{"tokens": text.split(), "tags": ["B-x" if word == "pipe" else "O" for word in text.split()]}
            for text, _ in small_jobs.rows(40, 2)]
    data = {"wet": str(place / "wet"), "tags": {"train": tags[:20], "validation": tags[20:30], "test": tags[30:]}}
    with pytest.raises(Unfit, match="task 'tags' is token-classification, but task 'wet' is text-classification"):
        thrifty.tune(str(place / "bert"), data, out=tmp_path / "a", progress=False)
    with pytest.raises(BadData, match="task 'dry': there is no file or folder"):
        thrifty.tune(str(place / "bert"), {"wet": str(place / "wet"), "dry": str(place / "dyr")}, out=tmp_path / "a")
    with pytest.raises(NoSuchSetting, match="'train' is the name of a split, not of a task"):
        thrifty.tune(str(place / "bert"), {"train": str(place / "wet"), "test": str(place / "themes")}, out=tmp_path / "a")
    for more, said in (({"temperature": 2}, "temperature is about several datasets"), ({"cap": 5}, "cap is about several"),
                       ({"metric": {"wet": "accuracy"}}, "metric is told for several datasets")):
        with pytest.raises(NoSuchSetting, match=said):
            thrifty.tune(str(place / "bert"), str(place / "wet"), out=tmp_path / "a", progress=False, **more)
    single = thrifty.tune(str(place / "bert"), str(place / "wet"), out=tmp_path / "b", epochs=1, progress=False, baselines=False)
    assert not {"temperature", "cap", "one_head"} & set(json.loads((single.folder / "config.json").read_text()))
    with pytest.raises(NoSuchSetting, match="learned one task and no 'wet'"):
        predict(single.folder, texts=["a"], task_name="wet")


@pytest.mark.parametrize(("data", "answer"), [
    (("rte=a", "rte=b"), "--data gives 'rte' twice"), (("rte=a", "b"), "--data takes key=value, not 'b'"),
    (("a", "b"), "--data takes key=value, not 'a'"), (("rte=a", "test=b"), "'test' is the name of a split"),
])
def test_sources_on_the_command_line(data: tuple[str, ...], answer: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = [word for source in data for word in ("--data", source)]
    assert main(["tune", "--model", "minilm", *given]) == 2
    assert answer in capsys.readouterr().err


def test_one_source_may_hold_an_equals_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "part=1.csv").write_text("text,label\n")
    monkeypatch.chdir(tmp_path)
    assert sources(["part=1.csv"]) == "part=1.csv" and sources(["cityline"]) == "cityline" and sources(None) is None
    assert sources(["part=1.csv", "b=x"]) == {"part": "1.csv", "b": "x"} and sources(["a=x"]) == {"a": "x"}


def test_attempt_learns_several_tasks_from_the_prompts_of_others(place: Path, tmp_path: Path) -> None:
    model = str(tiny_folders.t5(tmp_path / "t5"))
    alike = {"epochs": 1, "batch": 8, "rate": 1e-2, "progress": False, "baselines": False, "format": "Is it? {text}"}
    data = {name: str(place / name) for name in ("themes", "wet")}
    sources = [str(thrifty.tune(model, folder, thrifty.PromptTuning(length=3), out=tmp_path / name, **alike).adapter)
               for name, folder in data.items()]
    run = thrifty.tune(model, data, make("attempt", sources=sources), out=tmp_path / "run", **alike)
    targets = [tensor for name, tensor in load_file(run.adapter / "adapter.safetensors").items() if "targets." in name]
    assert len(targets) == 2 and not torch.equal(*targets), "each task has a target of its own, and both were trained"
    assert set(run.metrics["tasks"]) == {"themes", "wet"}
    assert all("written" in predict(run.folder, texts=["rain and light"], task_name=name)[0] for name in data)
