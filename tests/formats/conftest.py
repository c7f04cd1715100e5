"""The two kinds of models that write: an encoder with a decoder, and a decoder alone."""
from __future__ import annotations

import sys
from pathlib import Path

import pytest

from thrifty import models
from thrifty.models import Backbone

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models"))
import tiny_folders as tiny  # noqa: E402


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return models.load(str(tiny.t5(tmp_path_factory.mktemp("t5"))), "seq2seq-generation")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return models.load(str(tiny.llama(tmp_path_factory.mktemp("llama"))), "causal-generation")


@pytest.fixture(params=["t5", "llama"])
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return request.getfixturevalue(request.param)
