"""The site of a PEFT target: the whole module, also where its q, k and v are fused."""
from __future__ import annotations

from torch import Tensor, nn

from ...core import Attachment, Site
from ...core.errors import BrokenArtifact, nearest
from ...core.site import at_path
from .refusal import CannotExpress


def place(at: Attachment, path: str) -> Site:
    """The whole of the module at ``path`` as a site, with the role and depth that its parts have.

    Raises:
        CannotExpress: an nn.MultiheadAttention or a part of one, which PEFT adapts by merging into its weights.
    """
    like = _known(at).get(path)
    role, depth, stack = (like.role, like.depth, like.stack) if like else ("linear", -1, "")
    fused = like is not None and like.part is not None
    role = ("attn.qkv" if role.startswith("attn.") else "mlp.gate_in") if fused else role
    site = at_path(at.model, path, role, None, depth, stack, at.seen)
    holder = at.model.get_submodule(path.rpartition(".")[0])
    if any(isinstance(m, nn.MultiheadAttention) for m in (site.module, holder)):
        raise CannotExpress(f"{path!r} belongs to an nn.MultiheadAttention: PEFT adapts its fused weights in one piece, here "
                            "q, k, v and out_proj are edited one by one")
    return site


def take(tensors: dict[str, Tensor], name: str) -> Tensor:
    """Remove ``name`` from ``tensors`` and return it.

    Raises:
        BrokenArtifact: it is not there.
    """
    if name not in tensors:
        raise BrokenArtifact(f"the tensor {name!r} is missing." + nearest(name, tensors))
    return tensors.pop(name)


def refuse_shape(name: str, tensor: Tensor, wanted: tuple[int, ...]) -> None:
    """Compare before anything is built from numbers that the config only claims.

    Raises:
        BrokenArtifact: the shapes differ.
    """
    if tuple(tensor.shape) != wanted:
        raise BrokenArtifact(f"{name!r} has shape {tuple(tensor.shape)}; config and model ask for {wanted}")


def _known(at: Attachment) -> dict[str, Site]:
    found: dict[str, Site] = {}
    for site in at.sites("*"):
        if not site.role.startswith("after."):
            found.setdefault(site.path, site)
    return found
