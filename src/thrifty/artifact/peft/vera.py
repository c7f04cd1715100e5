"""VeRA: PEFT's vera_lambda_b and vera_lambda_d, around the vera_A and vera_B that all layers share."""
from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ...core import Attachment, Site
from .config import Config
from .naming import target_names
from .place import place, refuse_shape, take
from .refusal import CannotExpress
from .targets import targets


def read(at: Attachment, config: Config, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Put vectors on every target; takes what it uses out of ``tensors`` and returns the attachment's state.

    Without its random matrices in the file (``save_projection`` false) they are drawn from the seed, as PEFT does.

    Raises:
        BrokenArtifact: a tensor is missing or of the wrong shape.
        CannotExpress: a target is no linear layer.
    """
    from ...methods.vera import Vectors, share

    found = [linear(place(at, path)) for path in targets(at.model, config)]
    rank, keep = config["r"], bool(config.get("save_projection", True))
    din, dout = max(s.din for s in found), max(s.dout for s in found)
    state: dict[str, Tensor] = {}
    for name, shape in (("A", (rank, din)), ("B", (dout, rank))) if keep else ():
        state[f"shared:{name}"] = take(tensors, f"vera_{name}")
        refuse_shape(f"vera_{name}", state[f"shared:{name}"], shape)
    own = {site.path: {n: take(tensors, f"{site.path}.vera_lambda_{n}") for n in "db"} for site in found}
    for site in found:
        refuse_shape(f"{site.path}.vera_lambda_d", own[site.path]["d"], (rank,))
        refuse_shape(f"{site.path}.vera_lambda_b", own[site.path]["b"], (site.dout,))
    share(at, rank, din, dout, config.get("projection_prng_key", 0), keep)
    for site in found:
        at.put(site, Vectors, rank=rank, start=float(config.get("d_initial", 0.1)),
               dropout=float(config.get("vera_dropout", 0.0)))
        state |= {f"edit:{at.plan[-1].key}:{n}": t for n, t in own[site.path].items()}
    return state


def linear(site: Site) -> Site:
    """``site``, if it is one that PEFT's VeRA adapts.

    Raises:
        CannotExpress: it is not.
    """
    if not isinstance(site.module, nn.Linear) and not hasattr(site.module, "nf"):
        raise CannotExpress(f"{site.path!r} is a {type(site.module).__name__}: PEFT's VeRA adapts linear layers")
    return site


def write(at: Attachment, config: Config) -> dict[str, Tensor]:
    """Complete ``config`` and return the tensors.

    Raises:
        CannotExpress: an edit is about a part of a fused projection, which in PEFT would meet other rows of B; a module has
            two; dropouts differ.
    """
    for row in at.plan:
        if row.part is not None:
            raise CannotExpress(f"{row.key!r} is about {row.part.name} of the fused {row.path!r}: PEFT's VeRA scales the whole of "
                                "it. Attach with where= naming the module")
    edits: dict[str, Any] = {row.path: at.edits[row.key] for row in at.plan}
    found = [linear(place(at, path)) for path in edits]
    dropouts = {e.dropout.p for e in edits.values()}
    if len(edits) < len(at.plan) or len(dropouts) > 1:
        said = "two VeRA edits on one module" if len(edits) < len(at.plan) else f"dropouts of {sorted(dropouts)} in one adapter"
        raise CannotExpress(f"{said}: PEFT has one of each")
    shared: Any = at.context.shared
    if (shared.A.shape[1], shared.B.shape[0]) != (max(s.din for s in found), max(s.dout for s in found)):
        raise CannotExpress("the random matrices are larger than the layers here want them: PEFT would draw smaller ones")
    assert at.shared_as is not None
    numbers = at.shared_as[1]
    config |= {"r": numbers["rank"], "projection_prng_key": numbers["seed"], "save_projection": numbers["keep"],
               "vera_dropout": dropouts.pop(), "d_initial": at.plan[0].numbers["start"], "init_weights": True,
               "fan_in_fan_out": all(hasattr(s.module, "nf") for s in found)}
    config["target_modules"] = target_names(at.model, list(edits), config)
    tensors = {f"{path}.vera_lambda_{n}": getattr(edit, n).detach() for path, edit in edits.items() for n in "db"}
    return tensors | ({"vera_A": shared.A, "vera_B": shared.B} if numbers["keep"] else {})
