"""Real sets, read by `read` and once more by pyarrow alone; both must hold the same rows under the same labels.

The sets lie outside the project, in the folder that THRIFTY_ASSETS names.
"""
from __future__ import annotations

import collections
import os
from pathlib import Path

import pytest

from thrifty.core.errors import BadData
from thrifty.data import read

ASSETS = Path(os.environ.get("THRIFTY_ASSETS") or Path(__file__).parents[2].parent / "shared" / "assets") / "data"
TEXT, IMAGE = "text-classification", "image-classification"

# set: task, columns as `read` must find them, and those of them that have to be said because several could be meant
EXPECTED: dict[str, tuple[str, dict[str, str], dict[str, str]]] = {
    **{f"image/{name}": (IMAGE, {"image": "image", "label": "label"}, {}) for name in (
        "caltech101", "cifar100", "digits", "dtd10", "fashion_mnist", "flowers5", "imagenet_1per", "pacs", "rsscn7",
        "tinyimagenet100")},
    **{f"text/{name}": (TEXT, {"text": "text", "label": "label"}, {}) for name in (
        "ag_news_test", "banking77", "mr", "sst5", "trec", "tweet_emoji")},
    **{f"text/{name}": (TEXT, {"text": "sentence", "label": "label"}, {}) for name in ("glue_cola", "glue_sst2")},
    **{f"text/{name}": (TEXT, {"text": "premise", "text_pair": "hypothesis", "label": "label"}, {}) for name in (
        "americas_nli", "glue_mnli_10k", "snli_10k", "superglue_cb", "superglue_rte")},
    **{f"text/{name}": (TEXT, {"text": "sentence1", "text_pair": "sentence2", "label": "label"}, {}) for name in (
        "glue_mrpc", "glue_rte", "glue_wnli", "sick")},
    "text/glue_qnli_10k": (TEXT, {"text": "question", "text_pair": "sentence", "label": "label"}, {}),
    "text/glue_qqp_10k": (TEXT, {"text": "question1", "text_pair": "question2", "label": "label"}, {}),
    "text/superglue_boolq": (TEXT, {"text": "passage", "text_pair": "question", "label": "label"}, {}),
    "text/superglue_multirc": (TEXT, {"text": "question", "text_pair": "answer", "label": "label"},
                               {"text": "question", "text_pair": "answer"}),
    "text/superglue_wsc": (TEXT, {"text": "text", "text_pair": "span2_text", "label": "label"},
                           {"text": "text", "text_pair": "span2_text"}),
    "text/glue_stsb": ("regression", {"text": "sentence1", "text_pair": "sentence2", "label": "label"}, {}),
    "text/masakhaner2": ("token-classification", {"tokens": "tokens", "tags": "ner_tags"}, {}),
    "text/ud_partut": ("token-classification", {"tokens": "tokens", "tags": "upos"}, {"tags": "upos"}),
    "text/arc_challenge": ("multiple-choice", {"text": "question", "choices": "choices", "label": "answer"}, {}),
    "text/mmlu_30": ("multiple-choice", {"text": "question", "choices": "choices", "label": "answer"}, {}),
    "text/superglue_copa": ("multiple-choice", {"text": "premise", "choices": "choice1,choice2", "label": "label"},
                            {"text": "premise"}),
    "text/gsm8k": ("causal-generation", {"source": "question", "target": "answer"}, {}),
    "text/e2e_nlg": ("causal-generation", {"source": "mr", "target": "ref"}, {}),
    "text/webnlg2017": ("causal-generation", {"source": "source", "target": "refs", "references": "refs"}, {}),
    "text/alpaca_1k": ("causal-generation", {"source": "instruction", "target": "output"}, {"source": "instruction"}),
}  # fmt: skip
NO_TASK = {"multimodal/easy_vqa", "multimodal/flickr8k_1k", "multimodal/nlvr", "text/preference_300"}


MARKS = "ABCDE12345"
FAULTS = {"text/americas_nli": 3, "text/superglue_multirc": 3, "text/arc_challenge": 32}  # blank texts; one answer of no choice


def flat(value: object) -> list:
    """The items of a list, and nothing for anything else."""
    return value if isinstance(value, list) else []


def load(path: Path) -> list[dict]:
    """One file as row dicts, by pyarrow alone."""
    return pytest.importorskip("pyarrow.parquet").read_table(path).to_pylist()


def as_read(data, table: dict) -> collections.Counter:
    """Canonical rows, with names for indices, as a multiset."""
    table = dict(table)
    table.pop("references", None)
    if data.labels and "label" in table:
        table["label"] = [data.labels[i] for i in table["label"]]
    if "tags" in table:
        table["tags"] = [[data.labels[i] for i in tags] for tags in table["tags"]]
    return collections.Counter(zip(*([str(value) for value in table[role]] for role in sorted(table)), strict=True))


def as_stored(rows: list[dict], task: str, columns: dict[str, str], named: bool) -> collections.Counter:
    """The same multiset from the stored rows; rows with a blank text, or an answer that is no choice, do not count."""
    found: collections.Counter = collections.Counter()
    for row in rows:
        cells = {role: [row[name] for name in names.split(",")] for role, names in columns.items() if role != "references"}
        values = {role: cell if len(cell) > 1 else cell[0] for role, cell in cells.items()}
        if any(isinstance(text, str) and not text.strip() for value in values.values() for text in (value, *flat(value))):
            continue
        if task == "multiple-choice":
            answer = values["label"]
            values["label"] = answer if isinstance(answer, int) else MARKS.index(answer) % 5
            if values["label"] >= len(values["choices"]):
                continue
        if named:
            values["label"] = row["label_name"]
        if isinstance(values.get("target"), list):
            values["target"] = values["target"][0]
        found[tuple(str(values[role]) for role in sorted(values))] += 1
    return found


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_a_real_set_is_read_as_it_is_stored(name):
    folder = ASSETS / name
    if not folder.is_dir():
        pytest.skip(f"the set {name} is not here (THRIFTY_ASSETS names the folder of sets)")
    task, columns, said = EXPECTED[name]
    files = {path.stem: path for path in sorted(folder.glob("*.parquet"))}
    stored = {split: load(path) for split, path in files.items()}
    if said:
        with pytest.raises(BadData, match="could be the"):
            read(folder)
    source = folder if "train" in files else files["test"]
    seen = list(files) if "train" in files else ["test"]
    if name == "image/imagenet_1per":
        with pytest.raises(BadData, match=r"the class '.*' has 1"):
            read(source)
        return
    if name in FAULTS:
        with pytest.raises(BadData, match=rf"{FAULTS[name]} rows cannot be used"):
            read(source, columns=said, allow_leak=True)
    data = read(source, columns=said, allow_leak=True, skip_bad=name in FAULTS)
    assert len(data.record["skipped"]) == FAULTS.get(name, 0)
    assert (data.task, data.columns) == (task, columns)
    named = task.endswith("classification") and "label_name" in stored[seen[0]][0]
    test = as_read(data, data.test())
    rest = as_read(data, data.splits["train"]) + as_read(data, data.splits["validation"])
    untouched = "" if "train" not in files else "test" if "test" in files else "validation"
    whole = sum((as_stored(stored[split], task, columns, named) for split in seen), collections.Counter())
    assert test + rest == whole
    if untouched:
        assert test == as_stored(stored[untouched], task, columns, named)
    if named:
        order = {row["label"]: row["label_name"] for rows in stored.values() for row in rows}
        assert data.labels == [order[i] for i in sorted(order)]


def test_every_set_is_expected_or_has_no_task_here():
    if not ASSETS.is_dir():
        pytest.skip("the sets are not here (THRIFTY_ASSETS names their folder)")
    there = {f"{path.parent.name}/{path.name}" for path in ASSETS.glob("*/*") if path.is_dir()}
    assert there <= set(EXPECTED) | NO_TASK
    for name in sorted(NO_TASK & there):
        with pytest.raises(BadData):
            read(ASSETS / name)


@pytest.mark.parametrize("name", ["text/glue_cola", "text/glue_stsb", "text/banking77", "text/glue_mrpc", "text/glue_rte"])
def test_leaks_of_real_sets_are_counted_right(name):
    folder = ASSETS / name
    if not folder.is_dir():
        pytest.skip(f"the set {name} is not here (THRIFTY_ASSETS names the folder of sets)")
    columns = EXPECTED[name][1]
    seen = [columns[role] for role in ("text", "text_pair") if role in columns]
    sides = [collections.Counter(tuple(" ".join(row[column].split()) for column in seen) for row in load(path))
             for path in sorted(folder.glob("*.parquet"))]  # fmt: skip
    pairs = sum(count * sides[1][text] for text, count in sides[0].items())
    assert read(folder, allow_leak=True).record["leaks"]["pairs"] == pairs
    if pairs:
        with pytest.raises(BadData, match=f"{pairs} pairs? of rows"):
            read(folder)
