"""Vision-and-language navigation: a world of viewpoints in R2R's formats, an agent that remembers, and exact metrics.

    data = thrifty.navigation.read("r2r/")                       # episodes, connectivity graphs, features of 36 views
    agent = load_agent(Path("agent/"))                            # or wrap(Agent(config), tokenizer, new=["head"])
    run = thrifty.tune(agent, data, "vln-petl", feedback="both")

``thrifty tune --task navigation --model agent/ --data r2r/ --method vln-petl`` is the same. ``make_world`` writes a small made-up
world. Nothing is rendered: features of views are computed elsewhere, and read.
"""
from __future__ import annotations

from .agent import Agent
from .config import AgentConfig
from .episodes import Episode, read_episodes
from .features import Features, read_features
from .graph import Graph, read_graph, read_graphs
from .making import make_world, vocabulary
from .metrics import score
from .reading import read, read_world
from .saving import load_agent, save_agent
from .vocabulary import Vocabulary
from .walking import Walk, follow, roam, teach
from .world import World

__all__ = ["Agent", "AgentConfig", "Episode", "Features", "Graph", "Vocabulary", "Walk", "World", "follow", "load_agent",
           "make_world", "read", "read_episodes", "read_features", "read_graph", "read_graphs", "read_world", "roam", "save_agent",
           "score", "teach", "vocabulary"]
