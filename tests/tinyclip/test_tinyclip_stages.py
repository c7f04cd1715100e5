"""From a teacher and pairs to folders of students, by hand and by gates; the command; and what cannot be done."""
from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
import tiny_folders
import torch

pytest.importorskip("PIL")
from PIL import Image  # noqa: E402

from thrifty import models  # noqa: E402
from thrifty.cli import main  # noqa: E402
from thrifty.core.errors import NoSuchSetting, ThriftyError, Unfit  # noqa: E402
from thrifty.tinyclip import compress  # noqa: E402
from thrifty.tinyclip.stages import plan  # noqa: E402

QUICK = {"batch": 6, "warm_up": 1, "sparsity_warm_up": 6, "prune_at": 12, "rate": 1e-3}
WORDS = ["dark", "bright", "red", "dull", "loud", "wet"]


def rows(count: int, first: int) -> list[dict[str, Any]]:
    drawn, found = random.Random(first), []
    for i in range(first, first + count):
        held = io.BytesIO()
        Image.new("RGB", (20, 18), (i, 255 - i, i // 2)).save(held, "PNG")
        found.append({"image": held.getvalue(), "captions": [" ".join(drawn.choices(WORDS, k=3)) for _ in range(2)]})
    return found


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_folders.clip(tmp_path_factory.mktemp("teacher")))


@pytest.fixture(scope="module")
def pairs() -> dict[str, list[dict[str, Any]]]:
    return {"train": rows(18, 0), "validation": rows(4, 100), "test": rows(5, 200)}


def test_stages_by_hand(teacher: str, pairs: Any, tmp_path: Path) -> None:
    settings = {**QUICK, "epochs": 2.0}
    found = compress(teacher, pairs, tmp_path / "out", shapes=["2x24/1x32", "1x16/1x16"], settings=settings, progress=False)
    assert [stage["goal"] for stage in found["stages"]] == ["2x24/1x32", "1x16/1x16"]
    held = models.load(str(tmp_path / "out" / "stage-2"), "contrastive")
    assert held.source["parameters"] == found["stages"][1]["parameters"]["all"] < found["teacher"]["parameters"]["all"]
    config: Any = held.model.config
    assert (config.vision_config.hidden_size, config.text_config.num_hidden_layers) == (16, 1)
    again = compress(teacher, pairs, tmp_path / "again", shapes=["2x24/1x32", "1x16/1x16"], settings=settings, progress=False)
    assert again == found, "a pure function of its seed"
    log = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [1, 2, 3, 4, 5, 6] * 2 and "sparsity" not in log[0]
    assert json.loads((tmp_path / "out" / "compression.json").read_text()) == found


def test_stages_by_gates(teacher: str, pairs: Any, tmp_path: Path) -> None:
    settings = {**QUICK, "epochs": 30.0, "prune_at": 80, "gate_rate": 0.3, "parts": "hidden,heads,inner,layers"}
    found = compress(teacher, pairs, tmp_path / "out", keep=[0.7, 0.4], settings=settings, progress=False)
    sizes = [found["teacher"], *found["stages"]]
    counts = [part["parameters"]["all"] for part in sizes]
    assert counts[0] > counts[1] > counts[2]
    log = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    cut = [line for line in log if "pruned" in line]
    assert [(line["stage"], line["step"]) for line in cut] == [(1, 80), (2, 80)]
    assert [line["pruned"]["parameters"] for line in cut] == counts[1:]
    assert cut[0]["target"] == pytest.approx(0.3) and cut[0]["sparsity"] > 0.2 and "sparsity" not in log[85]
    loaded = models.load(str(tmp_path / "out" / "stage-2"), "contrastive")
    assert loaded.source["parameters"] == counts[2]
    for name in ("recall_at_1", "image_to_text_at_5", "text_to_image_at_10"):
        assert all(0 <= part["test"][name] <= 1 for part in sizes)


def test_a_student_comes_nearer_to_its_teacher(teacher: str, pairs: Any, tmp_path: Path) -> None:
    compress(teacher, pairs, tmp_path / "out", shapes=["1x16/1x16"], progress=False,
             settings={**QUICK, "epochs": 20.0, "rate": 3e-3, "batch": 9, "scale": 5.0})
    losses = [json.loads(line)["loss"] for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert sum(losses[-4:]) < sum(losses[:4])


def test_the_command(teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pyarrow")
    import pyarrow as pa
    import pyarrow.parquet as pq

    for split, count, first in (("train", 12, 0), ("validation", 3, 100), ("test", 3, 200)):
        (tmp_path / "pairs").mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows(count, first)), tmp_path / "pairs" / f"{split}.parquet")
    words = ["compress", "--teacher", teacher, "--data", str(tmp_path / "pairs"), "--out", str(tmp_path / "small"), "--quiet",
             "--shape", "1x16/1x16", "--warm-up", "1", "--batch", "6", "--epochs", "2", "--alpha", "0.5"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert out.startswith("teacher: ") and "stage-1: " in out and "recall at 1" in out
    assert main(words) == 2 and "is not empty" in capsys.readouterr().err
    assert main([*words[:6], str(tmp_path / "none"), "--keep", "half"]) == 2 and "--keep takes shares" in capsys.readouterr().err


@pytest.mark.parametrize(("settings", "words"), [
    ({"epochs": 1.0}, "a stage has 3 steps .* warm_up must be less, not 2000"), ({"batch": 1}, "batch must be at least 2"),
    ({"parts": "heads,neurons"}, "parts must be some of"), ({"epoch": 3}, "no setting 'epoch'.*epochs"), ({"alpha": 1.5}, "alpha"),
    ({**QUICK, "epochs": 5.0, "prune_at": 3}, "prune_at must not be less"),
])
def test_settings_that_make_no_sense(teacher: str, pairs: Any, tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(NoSuchSetting, match=words):
        compress(teacher, pairs, tmp_path / "out", keep=[0.5], settings={"batch": 6, **settings}, progress=False)


def test_plans(pairs: Any, tmp_path: Path) -> None:
    assert plan([], []) == [0.75, 0.5, 0.25]
    for shapes, keep in ((["1x8/1x8"], [0.5]), ([], [0.5, 0.7]), ([], [1.0]), ([], [0.5, 0.5])):
        with pytest.raises(NoSuchSetting):
            plan(shapes, keep)
    (tmp_path / "file").write_text("")
    with pytest.raises(ThriftyError, match="not empty"):
        compress("none", pairs, tmp_path / "file")
    with pytest.raises(Unfit, match="not Linear"):
        compress(models.wrap(torch.nn.Linear(1, 1)), pairs, tmp_path / "out")
