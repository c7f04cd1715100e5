"""What is said on the command line and in files of settings, and what is answered to what nobody knows."""
from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import small_jobs

import thrifty
from thrifty.cli import main
from thrifty.cli import tune as command
from thrifty.cli.main import COMMANDS
from thrifty.core.errors import NoSuchSetting


def gather(*words: str) -> tuple[dict[str, object], dict[str, object], dict[str, object]]:
    return command.gather(command.parser().parse_args(["--model", "m", "--data", "d", *words]))


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(words)
    found = capsys.readouterr()
    return code, found.out, found.err


def test_contents_name_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ((), ("--help",), ("-h",)):
        code, out, err = said(capsys, *words)
        assert code == 0 and not err and all(name in out for name in COMMANDS) and "Examples:" in out
    assert said(capsys, "--version")[1].strip() == f"thrifty {thrifty.__version__}"


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_has_examples_in_its_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([name, "--help"])
    out = capsys.readouterr().out
    assert left.value.code == 0 and "examples:" in out and f"thrifty {name}" in out.split("examples:")[1]


def test_help_and_the_catalogue_load_nothing_heavy() -> None:
    for words, unwanted in ((["--help"], ("torch", "transformers")),
                            (["methods"], ("transformers", "accelerate", "pyarrow", "PIL"))):
        program = f"import sys; from thrifty.cli import main; main({words!r}); print([m for m in {unwanted!r} if m in sys.modules])"
        done = subprocess.run([sys.executable, "-c", program], env=small_jobs.environment(), capture_output=True, text=True)
        assert done.stdout.strip().endswith("[]"), done.stdout[-300:] + done.stderr


def test_the_module_is_the_same_program() -> None:
    done = small_jobs.run("tuen")
    assert done.returncode == 2 and done.stdout == "" and "Traceback" not in done.stderr
    assert done.stderr.startswith("thrifty: there is no command 'tuen'. Did you mean 'tune'?")


@pytest.mark.parametrize(("words", "answer"), [
    (("tune", "--modle", "x"), "Did you mean '--model'"), (("tune", "--epoch", "3"), "Did you mean '--epochs'"),
    (("tune", "--data", "d"), "needs --model (minilm and vit-mini are built in)"), (("tune", "--model", "m"), "needs --data"),
    (("tune", "--model", "m", "--data", "d", "--batch", "many"), "batch must be int"),
    (("tune", "--model", "m", "--data", "d", "--set", "rnak=3"), "Did you mean 'rank'"),
    (("tune", "--model", "m", "--data", "d", "--set", "rank"), "takes key=value"),
    (("tune", "--model", "m", "--data", "d", "--set", "rank=1", "--set", "rank=2"), "gives 'rank' twice"),
    (("tune", "--model", "m", "--data", "d", "--set", "rank=many"), "rank must be int"),
    (("tune", "--model", "m", "--data", "d", "--method", "lroa"), "Did you mean 'lora'"),
    (("tune", "--model", "m", "--data", "d", "--schedule", "cosin"), "Did you mean 'cosine'"),
    (("methods", "lroa"), "Did you mean 'lora'"), (("predict",), "required: run"), (("predict", "x"), "either --data or --text"),
    (("report", "x", "y"), "no argument 'y'"), (("merge", "x"), "--out"), (("convert", "x", "--to", "pfet"), "invalid choice"),
    (("predict", "/nowhere", "--text", "a"), "not an adapter folder"), (("report", "/nowhere"), "no metrics.json"),
])
def test_mistakes_are_answered_with_the_nearest_and_no_traceback(words: tuple[str, ...], answer: str,
                                                                 capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = said(capsys, *words)
    assert code == 2 and out == "" and answer in err and err.startswith("thrifty: "), err


def test_values_get_the_types_of_their_fields() -> None:
    _, method, settings = gather("--set", "rank=16", "--set", "dropout=0", "--set", "where=attn.?|mlp.*", "--set", "stable=true",
                                 "--epochs", "3", "--rate", "5e-4", "--allow-leak", "--no-baselines", "--limit", "none",
                                 "--columns", "text=review,label=stars", "--set", "warmup=0.5")
    assert method == {"name": "lora", "rank": 16, "dropout": 0, "where": "attn.?|mlp.*", "stable": True}
    assert settings == {"epochs": 3, "rate": 5e-4, "allow_leak": True, "baselines": False, "limit": None, "warmup": 0.5,
                        "columns": {"text": "review", "label": "stars"}}


def test_what_may_be_said_of_one_dataset_or_of_each_of_several() -> None:
    _, _, one = gather("--task", "regression", "--metric", "spearman", "--format", "Is a = b, or {text}?", "--temperature", "inf")
    assert one == {"task": "regression", "metric": "spearman", "format": "Is a = b, or {text}?", "temperature": float("inf")}
    _, _, each = gather("--task", "a=regression", "--metric", "a=mse,b=accuracy", "--format", "a=t5:rte,b=flan:rte:3",
                        "--temperature", "equal", "--one-head", "true")
    assert each == {"task": {"a": "regression"}, "metric": {"a": "mse", "b": "accuracy"}, "temperature": "equal", "one_head": True,
                    "format": {"a": "t5:rte", "b": "flan:rte:3"}}


FILES = {
    "s.yaml": "model: here\ndata: there\nmethod: {name: lora, rank: 4}\nepochs: 2\nrate: 5e-4\ncolumns: {text: review}\n",
    "s.toml": 'model = "here"\ndata = "there"\nepochs = 2\nrate = 5e-4\n[method]\nname = "lora"\nrank = 4\n'
              '[columns]\ntext = "review"\n',
    "s.json": '{"model": "here", "data": "there", "method": {"name": "lora", "rank": 4}, "epochs": 2, "rate": 5e-4, '
              '"columns": {"text": "review"}}',
}


@pytest.mark.parametrize("name", list(FILES))
def test_a_file_of_settings_says_what_the_command_line_may_override(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(FILES[name])
    words = ["--config", str(tmp_path / name)]
    places, method, settings = command.gather(command.parser().parse_args(words))
    assert places == {"model": "here", "data": "there", "out": None} and method == {"name": "lora", "rank": 4}
    assert settings == {"epochs": 2, "rate": 5e-4, "columns": {"text": "review"}}
    words_and_more = [*words, "--model", "m", "--set", "rank=8", "--epochs", "9"]
    places, method, settings = command.gather(command.parser().parse_args(words_and_more))
    assert places["model"] == "m" and method["rank"] == 8 and settings["epochs"] == 9
    _, method, _ = command.gather(command.parser().parse_args([*words, "--method", "ia3"]))
    assert method == {"name": "ia3"}  # the file's rank was LoRA's


@pytest.mark.parametrize(("name", "text", "answer"), [
    ("s.yaml", "epoch: 3", "Did you mean 'epochs'"), ("s.yaml", "- a", "must hold names and values"),
    ("s.yaml", "a: [", "is not what"), ("s.toml", "a = ", "is not what"), ("s.json", "{", "is not what"),
    ("s.ini", "a=1", "end in .yaml, .toml or .json"),
    ("s.yaml", "!!python/object/apply:os.system ['true']", "is not what"),
])
def test_files_that_say_nothing_are_refused(name: str, text: str, answer: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(NoSuchSetting, match=answer):
        gather("--config", str(tmp_path / name))
    with pytest.raises(NoSuchSetting, match="cannot be read"):
        gather("--config", str(tmp_path / "none.yaml"))


def test_the_catalogue_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = said(capsys, "methods", "--json")
    entries = json.loads(out)
    assert {"name", "aliases", "route", "modalities", "paper", "mergeable", "trains", "inference"} <= set(entries[0])
    by_name = {entry["name"]: entry for entry in entries}
    assert by_name["lora"]["mergeable"] is True and "Hu et al." in by_name["lora"]["paper"]
    table = said(capsys, "methods")[1]
    assert all(entry["name"] in table for entry in entries)
    one = said(capsys, "methods", "lora")[1]
    assert "rank = 8" in one and by_name["lora"]["paper"] in one
