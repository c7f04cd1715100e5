"""Cached: the same training where the frozen part of the model is computed once for each row, and read afterwards."""
from __future__ import annotations

from dataclasses import replace

from thrifty.core import Method
from thrifty.core.errors import Unfit
from thrifty.planning.rehearsal import Rehearsed, ask, perform, repeat
from thrifty.planning.scene import Scene
from thrifty.trunk.cut import find
from thrifty.trunk.timeline import record


def keep_trunk(scene: Scene, method: Method, found: Rehearsed) -> Rehearsed:
    """What was ``found``, but with the work above the deepest cut alone for each batch, and that below it once for each row.

    Memory stays as it was, which is more than is needed. Whether dropout, or rows beside a row, make what would be kept wrong is
    only known with numbers: the run asks that of its model, and says so.

    Raises:
        Unfit: there is nothing that could be kept.
    """
    with perform(scene, method, found.settings) as (seen, job, at):
        if job.task.varies:
            raise Unfit("pictures that are changed by chance are other ones each time")
        batch = job.task.collate(scene.usual)
        timeline = record(at.model, job.task.inputs(at.model, batch), len(scene.usual))
        top = find(at, timeline, alive=False).places[-1]
        below = [*timeline.before(top.path), *([top.path] if top.port == "out" else [])]
        with seen.skipping([at.model.get_submodule(path) for path in below]):
            learn, update = repeat(seen, job, at, scene.usual)
            answer, _, _ = ask(seen, job, at, scene.usual)
    if answer is None or found.answer is None:
        raise Unfit("what runs depends on numbers")
    return replace(found, learn=learn, update=update, answer=answer, below=found.answer - answer)
