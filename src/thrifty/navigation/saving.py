"""Agents as folders: shape, values, vocabulary."""
from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from thrifty.core.errors import BrokenArtifact, NoSuchSetting
from thrifty.models.backbone import Backbone, wrap
from thrifty.navigation.agent import Agent
from thrifty.navigation.config import AgentConfig
from thrifty.navigation.vocabulary import Vocabulary

CONFIG, WEIGHTS, WORDS, HEAD = "agent.json", "model.safetensors", "words.json", "head."


def save_agent(folder: Path, agent: Agent, words: Vocabulary | None = None, head: bool = True) -> None:
    """Write an agent's shape and values, and its vocabulary if it has one of its own; the ``head`` may be left out."""
    from safetensors.torch import save

    from thrifty.train.files import write_bytes, write_json

    folder.mkdir(parents=True, exist_ok=True)
    values = {name: t.contiguous() for name, t in agent.state_dict().items() if head or not name.startswith(HEAD)}
    write_bytes(folder / WEIGHTS, save(values))
    if words is not None:
        write_json(folder / WORDS, words.words)
    write_json(folder / CONFIG, asdict(agent.config))


def load_agent(folder: Path, tokenizer: Any = None, seed: int = 0, dtype: torch.dtype = torch.float32) -> Backbone:
    """The agent in a folder, in evaluation mode, with its vocabulary or another ``tokenizer``.

    A head that the folder does not hold is drawn under ``seed``; it then trains with every method.

    Raises:
        BrokenArtifact: the folder holds no agent, a damaged one, or one that lacks more than a head.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from thrifty.train.files import read_json

    shape = read_json(folder / CONFIG)
    try:
        config, values = AgentConfig.make(shape), load_file(folder / WEIGHTS)
    except (OSError, TypeError, SafetensorError, NoSuchSetting) as error:
        raise BrokenArtifact(f"{folder} holds no agent that can be used: {error}") from None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        agent = Agent(config)
    own = agent.state_dict()
    wrong = [name for name in {**own, **values} if name not in own or (name in values and values[name].shape != own[name].shape)
             or (name not in values and not name.startswith(HEAD))]
    if wrong:
        raise BrokenArtifact(f"{folder / WEIGHTS} does not fit {CONFIG}: {len(wrong)} tensors are missing, unknown or of another "
                             f"shape, such as {wrong[0]!r}")
    agent.load_state_dict(values, strict=False)
    new = [name for name in own if name not in values]
    words = tokenizer if tokenizer is not None else read_words(folder / WORDS, config.vocabulary)
    return wrap(agent.eval().to(dtype), words, new=new, name=str(folder))


def read_words(file: Path, most: int) -> Vocabulary:
    """The vocabulary in a file.

    Raises:
        BrokenArtifact: it is no list of words, or has more than the ``most`` that the agent knows.
    """
    from thrifty.train.files import read_json

    found = read_json(file)
    if not isinstance(found, list) or not all(isinstance(word, str) for word in found) or len(found) > most:
        raise BrokenArtifact(f"{file} is no list of at most {most} words, as the agent beside it knows")
    return Vocabulary(found)
