"""Worlds of viewpoints: what the files say, distances, views and turns by hand, and everything that cannot be walked."""
from __future__ import annotations

import heapq
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_world
import torch

import thrifty
from thrifty.core.errors import BadData
from thrifty.navigation import angles
from thrifty.navigation.episodes import Episode, read_episodes, write_episodes
from thrifty.navigation.features import Features, read_features
from thrifty.navigation.graph import Graph, read_graph, read_graphs, write_graph
from thrifty.navigation.making import build
from thrifty.navigation.reading import read, read_world
from thrifty.navigation.walking import begin, follow, gather, teach
from thrifty.navigation.world import Place, World


def world(tmp_path: Path, context: bool = True, **changes: Any) -> World:
    return read_world(small_world.write(tmp_path, **changes), context)


def test_graph_as_published(tmp_path: Path) -> None:
    graph = world(tmp_path).graph("home")
    assert graph.viewpoints == ["c", "n", "e", "w", "far"]  # what is not included is no viewpoint
    assert graph.neighbours("c") == ["n", "e", "w"] and graph.neighbours("far") == []
    assert graph.distance("c", "e") == 5.0 and graph.distance("w", "n") == 11.0 and graph.distance("n", "n") == 0.0
    assert graph.length(["w", "c", "e", "c", "n"]) == 5 + 5 + 5 + 6
    assert graph.towards("w", "n") == "c" and graph.towards("c", "n") == "n"


def test_distances_are_those_of_dijkstra() -> None:
    graph = build("s", 5, random.Random(3))
    for start in (0, 7, 24):
        found, queue = {start: 0.0}, [(0.0, start)]
        while queue:
            metres, here = heapq.heappop(queue)
            for other in np.flatnonzero(graph.joined[here]):
                far = metres + float(np.linalg.norm(graph.positions[here] - graph.positions[other]))
                if far < found.get(int(other), math.inf):
                    found[int(other)] = far
                    heapq.heappush(queue, (far, int(other)))
        np.testing.assert_allclose(graph.distances[start], [found[i] for i in range(25)], atol=1e-9)


def test_a_step_towards_the_goal_is_on_a_shortest_path() -> None:
    graph = build("s", 4, random.Random(1))
    for start in graph.viewpoints:
        for goal in graph.viewpoints:
            if start != goal:
                step = graph.towards(start, goal)
                assert graph.distance(start, step) + graph.distance(step, goal) == pytest.approx(graph.distance(start, goal))


def test_graphs_and_episodes_are_written_as_they_are_read(tmp_path: Path) -> None:
    graph = build("s", 3, random.Random(2))
    again = read_graph(write_graph(tmp_path, graph), "s")
    assert again.viewpoints == graph.viewpoints and np.array_equal(again.joined, graph.joined)
    np.testing.assert_array_equal(again.positions, graph.positions)
    known = [Episode("a_0", "s", ("x", "y"), 0.5, "go"), Episode("a_1", "s", ("x", "y"), 0.5, "walk"),
             Episode("b_0", "s", ("y",), 1.0, "stay")]
    write_episodes(tmp_path / "R2R_x.json", known)
    assert read_episodes(tmp_path / "R2R_x.json") == known


def test_angles_by_hand() -> None:
    """Views are 30 degrees apart; heading 0 is north (+y) and grows to the east (+x)."""
    origin = np.zeros(3)
    for point, view in (((0, 1, 0), 12), ((1, 0, 0), 15), ((0, -1, 0), 18), ((-1, 0, 0), 21), ((0, 1, 1), 24), ((1, 0, -0.6), 3)):
        assert angles.nearest_view(*angles.bearing(origin, np.array(point, float))) == view
    assert angles.bearing(origin, np.array([3.0, 4.0, 0.0]))[0] == pytest.approx(math.asin(0.6))
    assert [angles.view_along(h) for h in (0.0, 0.2, 0.3, math.pi, 6.2)] == [12, 12, 13, 18, 12]
    found = angles.panorama(13)
    assert found.shape == (36, 4)
    np.testing.assert_allclose(found[14], [0.5, math.sqrt(3) / 2, 0, 1], atol=1e-6)
    np.testing.assert_allclose(found[0], [-0.5, math.sqrt(3) / 2, -0.5, math.sqrt(3) / 2], atol=1e-6)


def test_what_is_observed(tmp_path: Path) -> None:
    home = world(tmp_path)
    seen = home.observe("home", Place("c", 15))  # at the crossing, looking east
    north, east, west = 12, 27, 21  # the stairs go up by 37 degrees, nearer to 30 than to 0
    assert [target.view for target in seen.targets] == [north, east, west]
    assert [target.viewpoint for target in seen.targets] == ["n", "e", "w"] and seen.stop == 3
    assert seen.kinds.tolist() == [1, 1, 1, 2] + [0] * 33
    own = small_world.features()["home_c"]
    assert torch.equal(seen.images[:3], own[[north, east, west]]) and not seen.images[3].any() and not seen.angles[3].any()
    assert torch.equal(seen.images[4:], own[[v for v in range(36) if v not in (north, east, west)]])
    torch.testing.assert_close(seen.angles[0], torch.tensor([-1.0, 0, 0, 1]))  # north is a quarter turn to the left of east
    torch.testing.assert_close(seen.angles[1], torch.tensor([0, 1.0, 0.6, 0.8]))  # straight on, three up on four along
    assert home.observe("home", Place("c", 15)) is seen
    bare = world(tmp_path, context=False).observe("home", Place("c", 15))
    assert bare.kinds.tolist() == [1, 1, 1, 2] and torch.equal(bare.views, own)


def test_walking_and_teaching(tmp_path: Path) -> None:
    home = world(tmp_path)
    episode = read_episodes(tmp_path / "R2R_train.json")[0]
    walk = follow(home, episode)
    assert walk.path == ["w", "c", "n"] and walk.taken == [0, 0, 1] and walk.over  # at n one option leads back, the next stops
    assert [seen.place.view for seen in walk.seen] == [15, 15, 12]  # he looks where he went
    lost = begin(home, episode)
    for viewpoint in ("c", "e", "c"):
        lost.take(lost.seen[-1].leading_to(viewpoint))
    lost.take(lost.seen[-1].stop)
    assert lost.path == ["w", "c", "e", "c"] and teach(lost) == [0, 0, 0, 0]
    assert lost.seen[2].targets[0].viewpoint == "c"


def test_batches_of_walks(tmp_path: Path) -> None:
    home = world(tmp_path, context=False)
    walks = [follow(home, episode) for episode in read_episodes(tmp_path / "R2R_train.json")]
    short = begin(home, walks[0].episode)
    short.take(short.seen[0].stop)
    batch = gather([walks[0], short])
    assert batch["kinds"].tolist() == [[[1, 2, -1, -1], [1, 1, 1, 2], [1, 2, -1, -1]], [[1, 2, -1, -1], [-1] * 4, [-1] * 4]]
    assert batch["past_images"].shape == (2, 2, 5) and batch["past_views"].shape == (2, 2, 36, 5)
    assert torch.equal(batch["past_images"][0, 1], small_world.features()["home_c"][15])
    assert torch.equal(batch["past_angles"][0, 1], walks[0].seen[1].angles[0]) and not batch["past_angles"][1].any()
    last = gather(walks[:2], decisions=1)
    assert last["kinds"].tolist() == [[[1, 2]], [[1, 2]]] and last["past_views"].shape == (2, 2, 36, 5)
    first = gather([begin(home, walk.episode) for walk in walks], decisions=1)
    assert first["past_views"].shape == (3, 0, 36, 5) and first["kinds"].shape == (3, 1, 2)


def test_a_folder_as_a_dataset(tmp_path: Path) -> None:
    data = read(small_world.write(tmp_path))
    assert data.task == "navigation" and data.test_rows == 3 and data.splits["train"]["label"][0] == "w c n"
    assert data.splits["train"]["text"][1] == "Go north at the crossing."
    assert data.record["rows"] == {"train": 3, "validation": 3, "test": 3}
    before = data.record["content"]["test"]
    again = small_world.features()
    again["home_c"][0, 0] += 1
    assert read(small_world.write(tmp_path, features=again)).record["content"]["test"] != before
    assert thrifty.navigation.read is read


def test_npz_and_safetensors(tmp_path: Path) -> None:
    np.savez(tmp_path / "f.npz", **{name: t.numpy() for name, t in small_world.features().items()})
    ours, theirs = read_features(tmp_path / "f.npz"), read_features(small_world.write(tmp_path) / "features.safetensors")
    assert ours.width == theirs.width == 5
    assert torch.equal(ours.at("home", "e"), theirs.at("home", "e")) and "home_far" in theirs.held


@pytest.mark.parametrize(("path", "said"), [
    (["w", "c", "far"], "no path leads from 'w' to 'far'"), (["w", "n"], "no edge leads from 'w' to 'n'"),
    (["w", "closed"], "no viewpoint 'closed'"), (["w", "w", "c"], "stands still at 'w'")])
def test_what_cannot_be_walked(tmp_path: Path, path: list[str], said: str) -> None:
    rows = [{**small_world.episodes()[0], "path": path}]
    with pytest.raises(BadData, match=f"R2R_train.json: episode '7_0'.*{said}"):
        read(small_world.write(tmp_path, R2R_train=rows))


def test_unknown_scans(tmp_path: Path) -> None:
    rows = [{**small_world.episodes()[0], "scan": "hone"}]
    with pytest.raises(BadData, match="episode '7_0': there is no scan 'hone'. Did you mean 'home'"):
        read(small_world.write(tmp_path, R2R_val_unseen=rows))
    with pytest.raises(BadData, match="no scan"):
        world(tmp_path).observe("elsewhere", Place("c", 0))


def test_features_that_do_not_fit(tmp_path: Path) -> None:
    held = small_world.features()
    for changed, said in ((held["home_c"][:35], r"\[35, 5\], but a panorama is 36 views"),
                          (held["home_c"][:, :4], "width 4, others of 5|width 5, others of 4"),
                          (held["home_c"] * torch.nan, "not finite")):
        with pytest.raises(BadData, match=said):
            read(small_world.write(tmp_path, features={**held, "home_c": changed.contiguous()}))
    with pytest.raises(BadData, match="no features of viewpoint 'c' in scan 'home'"):
        read(small_world.write(tmp_path, features={n: t for n, t in held.items() if n != "home_c"}))
    with pytest.raises(BadData, match="holds no features"):
        Features({}, "nowhere")
    (tmp_path / "features.safetensors").write_bytes(b"no tensors")
    with pytest.raises(BadData, match="cannot be read"):
        read_features(tmp_path / "features.safetensors")
    for made, said in ((b"", "cannot be read"), (b"PK", "cannot be read")):
        (tmp_path / "features.npz").write_bytes(made)
        with pytest.raises(BadData, match=said):
            read_features(tmp_path / "features.npz")
    np.savez(tmp_path / "words.npz", home_c=np.array(["no", "numbers"]))
    with pytest.raises(BadData, match="'home_c' holds no numbers"):
        read_features(tmp_path / "words.npz")
    with pytest.raises(BadData, match=".npz"):
        read_features(tmp_path / "features.hdf5")


def test_damaged_graphs(tmp_path: Path) -> None:
    rows = small_world.connectivity()
    one_way = json.loads(json.dumps(rows))
    one_way[0]["unobstructed"][1] = False
    for changed, said in ((one_way, "'c' and 'n' in one direction only|'n' and 'c' in one direction only"),
                          ([*rows[:-1], {**rows[-1], "image_id": "c"}], "'c' more than once"),
                          ([{**row, "pose": [0]} for row in rows], "no list of viewpoints"), ({"a": 1}, "no list of viewpoints")):
        with pytest.raises(BadData, match=said):
            read(small_world.write(tmp_path, connectivity=changed))
    with pytest.raises(BadData, match="holds no file called SCAN_connectivity.json"):
        read_graphs(tmp_path)


@pytest.mark.parametrize(("key", "value", "said"), [
    ("heading", "north", "heading must be int or float, found 'north'"), ("scan", 3, "scan must be str"),
    ("path", [], "path must be a list of viewpoints"), ("instructions", ["  "], "says nothing"),
    ("path_id", None, "path_id must be")])
def test_damaged_episodes(tmp_path: Path, key: str, value: Any, said: str) -> None:
    rows = [small_world.episodes()[0], {**small_world.episodes()[1], key: value}]
    with pytest.raises(BadData, match=f"R2R_train.json, row 1: .*{said}"):
        read(small_world.write(tmp_path, R2R_train=rows))


def test_missing_files(tmp_path: Path) -> None:
    folder = small_world.write(tmp_path)
    with pytest.raises(BadData, match=r"\*_val.json, and holds 0"):
        read(folder, validation="val")
    (folder / "R2R_val_seen.json").rename(folder / "val.json")
    with pytest.raises(BadData, match="val_seen"):
        read(folder)
    with pytest.raises(BadData, match="a folder, and dict is none"):
        read({})  # type: ignore[arg-type]
    with pytest.raises(BadData, match="1 episodes .* lie in two splits, such as '8_0' of train and '8_0' of test"):
        read(small_world.write(tmp_path, R2R_val_unseen=small_world.episodes()[1:]))
    assert read(tmp_path, allow_leak=True).record["leaks"]["pairs"] == 1
    with pytest.raises(BadData, match="two episodes called '7_0'"):
        read(small_world.write(tmp_path, R2R_train=small_world.episodes()[:1] * 2))
    with pytest.raises(BadData, match="no path leads"):
        Graph("s", ["a", "b"], [[0, 0, 0], [1, 0, 0]], [[False] * 2] * 2).distance("a", "b")
