"""Ranking real files: features by other code, kept and found again, classifiers of checkpoints, failures, and the command."""
from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_jobs
import tiny_folders
import torch
import transformers as T

import thrifty
from thrifty import rank
from thrifty.candidates import Cost
from thrifty.candidates.page import compose
from thrifty.cli import main
from thrifty.core.errors import BrokenArtifact, NoSuchSetting, ThriftyError
from thrifty.models import wrap

FEW: dict[str, Any] = {"rows": 40, "draws": 4, "progress": False, "scores": ["logme", "hscore"]}


def texts(numbers: bool = False) -> dict[str, Any]:
    drawn = random.Random(2)
    bits = [f"{i:b}".replace("0", "x").replace("1", "y") for i in range(60)]
    rows = [{"text": " ".join([*drawn.choices(["ab", "cd", "ef", "gh"], k=2 + i % 4), *bits[i]]),
             "label": i * 0.5 if numbers else ("odd" if i % 2 else "even")} for i in range(60)]
    return {"train": rows[:40], "validation": rows[40:50], "test": rows[50:]}


def pictures() -> dict[str, Any]:
    from test_every_task import picture

    drawn = random.Random(1)
    rows = [{"image": picture(drawn, i), "label": "dark" if i % 2 else "bright"} for i in range(36)]
    return {"train": rows[:24], "validation": rows[24:30], "test": rows[30:]}


def table(data: dict[str, Any]) -> tuple[list[str], np.ndarray]:
    rows = data["train"]
    return [row["text"] for row in rows], np.array([row["label"] for row in rows])


def mean_state(folder: Path, given: list[str]) -> np.ndarray:
    """The mean over tokens of the last states, text by text."""
    reader, model = T.AutoTokenizer.from_pretrained(folder), T.AutoModel.from_pretrained(folder).eval()
    model = model.get_encoder() if model.config.is_encoder_decoder else model
    with torch.no_grad():
        states = [model(**reader(one, return_tensors="pt", return_token_type_ids=False))[0][0] for one in given]
    return np.array([state.mean(0).double().numpy() for state in states])


def test_features_are_means_over_tokens_or_what_the_head_reads(tmp_path: Path) -> None:
    folders = {"llama": tiny_folders.llama(tmp_path / "llama"), "roberta": tiny_folders.roberta(tmp_path / "roberta"),
               "t5": tiny_folders.t5(tmp_path / "t5")}
    pooled = small_jobs.bert(tmp_path / "pooled", dropout=0.0)
    data = texts()
    found = rank.models({**{name: str(folder) for name, folder in folders.items()}, "pooled": str(pooled)}, data, **FEW)
    given, labels = table(data)
    assert not found.failed and set(found.order) == {*folders, "pooled"}
    for name, folder in (*folders.items(), ("pooled", pooled)):
        wanted = rank.logme(mean_state(folder, given), labels)
        assert found.scores["logme"][name].value == pytest.approx(float(wanted), rel=1e-3), name
        assert found.seen[name]["reads"] == ("classifier" if name == "pooled" else "the mean of the last states")
    assert found.seen["t5"]["dimension"] == 16 and found.seen["llama"]["parameters"] > 0


def test_features_are_found_again_and_checked(tmp_path: Path) -> None:
    folder = str(tiny_folders.bert(tmp_path / "bert"))
    first, again = (rank.models([folder], texts(), **FEW) for _ in range(2))
    assert [found.seen[folder]["reused"] for found in (first, again)] == [False, True]
    assert first.scores["logme"][folder].value == again.scores["logme"][folder].value
    assert not rank.models([folder], texts(), **{**FEW, "cache": False}).seen[folder]["reused"]
    (store,) = (tmp_path / "cache" / "trunk").glob("*.safetensors")
    data = bytearray(store.read_bytes())
    data[-200] ^= 255
    store.write_bytes(data)
    with pytest.raises(ThriftyError, match="rm .*" + store.name):
        rank.models([folder], texts(), **FEW)


def test_the_classifier_of_a_checkpoint_is_asked(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    folders = {"resnet": tiny_folders.resnet(tmp_path / "resnet"), "vit": tiny_folders.vit(tmp_path / "vit")}
    data = pictures()
    found = rank.models(folders, data, **{**FEW, "scores": ["leep", "nce", "logme", "etran"]})
    model = T.ResNetForImageClassification.from_pretrained(folders["resnet"]).eval()
    reader = T.ViTImageProcessorPil.from_pretrained(folders["resnet"])
    from thrifty.data import images

    pixels = torch.cat([reader(images.open(row["image"]), return_tensors="pt")["pixel_values"] for row in data["train"]])
    with torch.no_grad():
        said = model(pixels).logits.double().softmax(1).numpy()
    labels = [row["label"] for row in data["train"]]
    assert found.scores["leep"]["resnet"].value == pytest.approx(float(rank.leep(said, labels)), rel=1e-4)
    assert found.scores["nce"]["resnet"].value == pytest.approx(float(rank.nce(said.argmax(1), labels)))
    assert found.scores["leep"]["vit"].value is None and found.plain()["scores"]["leep"]["counts"] is False
    page = compose(found.plain())
    assert "no voice" in page and "leep of vit, nce of vit: the checkpoint holds no classifier" in page
    assert found.seen["resnet"]["source_classes"]["count"] == 7 and found.seen["vit"]["source_classes"] is None
    between = rank.models({"resnet": folders["resnet"]}, data, source=pictures(), **{**FEW, "scores": ["otce", "ped"]})
    assert between.scores["otce"]["resnet"].value == pytest.approx(0.0, abs=1e-9)  # of itself: every row is its own match
    assert between.data["source_rows"] == 24


def test_numbers_as_labels(tmp_path: Path) -> None:
    folder = tiny_folders.bert(tmp_path / "bert")
    data = texts(numbers=True)
    found = rank.models({"bert": folder}, data, **{**FEW, "scores": None})
    assert set(found.scores) == {"logme", "etran"} and "about classes" in found.left_out["sfda"]
    place = found.seen["bert"]["reads"]
    assert place in ("classifier", "the mean of the last states")
    assert found.data["labels"] is None


def test_modules_and_functions_of_ones_own(tmp_path: Path) -> None:
    made = thrifty.models.load(str(tiny_folders.bert(tmp_path / "bert")), "text-classification", ["even", "odd"])
    made.model.train()
    heads = np.random.default_rng(0).dirichlet(np.ones(4), size=40)

    def lengths(rows: Any) -> Any:
        return np.array([[len(text), text.count("x"), 1.0] for text in rows["text"]])

    found = rank.models({"module": made, "own": lengths, "both": rank.Candidate("both", features=lengths,
                                                                              probabilities=lambda rows: heads)},
                        texts(), **{**FEW, "scores": ["logme", "leep"]}, planner=lambda candidate, data: Cost(12.0, 5, "lora"))
    given, labels = table(texts())
    assert found.scores["logme"]["own"].value == float(rank.logme(lengths({"text": given}), labels))
    assert found.scores["leep"]["both"].value == float(rank.leep(heads, labels))
    assert made.model.training and found.seen["own"]["parameters"] is None and found.seen["module"]["cost"]["seconds"] == 12.0
    assert "to tune" in compose(found.plain())
    bare = wrap(torch.nn.Linear(2, 2))
    assert "no tokenizer" in rank.models({"bare": bare, "own": lengths}, texts(), **FEW).failed["bare"]


def test_failures_are_told_by_name_and_the_rest_is_ranked(tmp_path: Path) -> None:
    folder = str(tiny_folders.bert(tmp_path / "bert"))
    broken = tmp_path / "broken"
    broken.mkdir()

    def gone(rows: Any) -> Any:
        found = np.ones((len(rows["text"]), 2))
        found[3, 1] = np.nan
        return found

    def short(rows: Any) -> Any:
        return np.ones((7, 2))

    def raises(rows: Any) -> Any:
        raise RuntimeError("no such layer")

    found = rank.models([folder, str(broken), gone, short, raises], texts(), **FEW)
    assert found.order == [folder]
    assert "no config.json" in found.failed[str(broken)] and "RuntimeError: no such layer" in found.failed["raises"]
    assert "'gone' hold nan in row 3, column 1" in found.failed["gone"] and "7 for 40 rows" in found.failed["short"]
    with pytest.raises(ThriftyError, match="none of the models.*\n.*no config.json"):
        rank.models([str(broken)], texts(), **FEW)
    with pytest.raises(NoSuchSetting, match="draws=1"):
        rank.models([folder], texts(), draws=1)


def test_the_files_and_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = small_jobs.table(tmp_path / "data", train=36, rest=12)
    first, other = small_jobs.bert(tmp_path / "first"), tiny_folders.llama(tmp_path / "<b>other")
    out = tmp_path / "ranked"
    words = ["rank", "--models", f"{first},{other},{tmp_path / 'none'}", "--data", str(data), "--out", str(out), "--quiet",
             "--scores", "logme,nce,sfda", "--draws", "3"]
    assert main(words) == 1
    said = capsys.readouterr()
    assert "mean rank" in said.out and str(out / "ranking.html") in said.out and "was left out" in said.out
    held = json.loads((out / "ranking.json").read_text())
    assert {m["name"] for m in held["models"]} == {str(first), str(other)} and list(held["failed"]) == [str(tmp_path / "none")]
    assert held["scores"]["logme"]["counts"] and "no classifier" in held["left_out"]["nce"] and held["data"]["rows"] == 36
    for value in held["scores"]["logme"]["values"].values():
        assert value["low"] <= value["value"] <= value["high"] and value["rank"] in (1.0, 1.5, 2.0)
    page = (out / "ranking.html").read_text()
    assert "<b>other" not in page and "http" not in page.replace("http-equiv", "") and "Left out" in page
    assert sorted(path.name for path in out.iterdir()) == ["ranking.html", "ranking.json"]
    assert main(words) == 2 and "overwrite" in capsys.readouterr().err
    assert main([*words[:2], str(first), *words[3:], "--overwrite", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["failed"] == {}
    for wrong, match in ((["rank", "--data", "d"], "needs --models"), ([*words[:2], f"{first},{first}", *words[3:], "--overwrite"],
                                                                      "twice"),
                         ([*words, "--overwrite", "--scores", "logmee"], "Did you mean 'logme'")):
        assert main(wrong) == 2 and match in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["rank", "--help"])
    assert "id2label" in capsys.readouterr().out


def test_a_store_of_other_numbers_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same tensors that compute something else: the store's few rows that are computed again differ."""
    from thrifty.candidates import keeping

    folder = str(tiny_folders.bert(tmp_path / "bert"))
    rank.models([folder], texts(), **FEW)
    real = keeping.compute
    monkeypatch.setattr(keeping, "compute", lambda *given: real(*given) + 1.0)
    with pytest.raises(ThriftyError, match="computed otherwise") as raised:
        rank.models([folder], texts(), **FEW)
    assert not isinstance(raised.value, BrokenArtifact)  # it is one candidate's failure, told with the others'
