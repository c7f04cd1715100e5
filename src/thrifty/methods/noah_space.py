"""The search space of NOAH, Neural Prompt Search (Zhang, Zhou, Liu; 2022, arXiv:2206.04673), and the evolution that searches it."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random

from ..core.errors import NoSuchSetting

Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Net:
    """A sub-network: how many tokens, LoRA directions and adapter features each block has; 0 is none at all."""

    prompt: Sizes
    lora: Sizes
    adapter: Sizes

    @property
    def kinds(self) -> tuple[Sizes, Sizes, Sizes]:
        """All three, in this order."""
        return self.prompt, self.lora, self.adapter

    def count(self, width: int) -> int:
        """How many numbers of it train, in blocks of that width: sum_l p d + 4 r d + (2 d a + a + d), the last where a > 0."""
        return sum(p * width + 4 * r * width + (2 * width * a + a + width if a else 0)
                   for p, r, a in zip(self.prompt, self.lora, self.adapter, strict=True))


@dataclass(frozen=True)
class Space:
    """All sub-networks of ``blocks`` blocks, ``width`` wide: a kind is in the first so many (``depths``), of the sizes ``dims``."""

    dims: Sizes
    depths: Sizes
    blocks: int
    width: int

    def draw(self, random: Random) -> Net:
        """A depth for each kind and a size for each block, all equally likely."""
        return Net(*(self._fill((), random.choice(self.depths), 1.0, random) for _ in range(3)))

    def mutate(self, net: Net, random: Random, size: float = 0.2, depth: float = 0.4) -> Net:
        """``net`` with each size drawn anew with the probability ``size``, and each depth with ``depth``."""
        return Net(*(self._fill(kind, random.choice(self.depths) if random.random() < depth else _deep(kind), size, random)
                     for kind in net.kinds))

    def cross(self, one: Net, other: Net, random: Random) -> Net:
        """A net whose depths and sizes are each those of one of its two parents."""
        made = []
        for a, b in zip(one.kinds, other.kinds, strict=True):
            deep = random.choice((_deep(a), _deep(b)))
            made.append(tuple(random.choice([n for n in pair if n] or [0]) if i < deep else 0
                              for i, pair in enumerate(zip(a, b, strict=True))))
        return Net(*made)

    def _fill(self, kind: Sizes, depth: int, chance: float, random: Random) -> Sizes:
        old = kind[: _deep(kind)]
        kept = [old[i] if i < len(old) and random.random() >= chance else random.choice(self.dims) for i in range(depth)]
        return (*kept, *(0 for _ in range(self.blocks - depth)))


def _deep(kind: Sizes) -> int:
    return sum(n > 0 for n in kind)


def search(space: Space, score: Callable[[Net], float], limit: int = 640_000, *, least: int = 0, rounds: int = 15,
           population: int = 50, crossed: int = 25, mutated: int = 25, top: int = 10, seed: int = 0) -> tuple[Net, float]:
    """The best sub-network found, and its score, of those that train from ``least`` to ``limit`` numbers.

    The first ``population`` are drawn. In every round each new one is scored once (on rows that it was not trained on; higher is
    better), the ``top`` of all so far are kept, and the next ones are ``mutated`` and ``crossed`` from those.

    Raises:
        NoSuchSetting: hardly any sub-network is within the limits.
    """
    random, scored = Random(seed), dict[Net, float]()
    waiting = _collect(space, population, least, limit, scored, lambda: space.draw(random))
    if not waiting:
        sizes = (min(space.dims),) * min(space.depths) + (0,) * (space.blocks - min(space.depths))
        raise NoSuchSetting(f"no sub-network was found that trains {least:,} to {limit:,} numbers; the smallest has "
                            f"{Net(sizes, sizes, sizes).count(space.width):,}")
    for left in reversed(range(rounds)):
        scored |= {net: score(net) for net in waiting}
        best = sorted(scored, key=lambda net: -scored[net])[:top]
        waiting = _breed(space, best, mutated, crossed, least, limit, scored, random) if left else {}
    return best[0], scored[best[0]]


def _breed(space: Space, parents: list[Net], mutated: int, crossed: int, least: int, limit: int, known: dict[Net, float],
           random: Random) -> dict[Net, None]:
    """New nets: some mutated from one of the ``parents``, some crossed from two."""
    found = _collect(space, mutated, least, limit, known, lambda: space.mutate(random.choice(parents), random))
    return found | _collect(space, crossed, least, limit, {**known, **found},
                            lambda: space.cross(random.choice(parents), random.choice(parents), random))


def _collect(space: Space, count: int, least: int, limit: int, known: Mapping[Net, object],
             make: Callable[[], Net]) -> dict[Net, None]:
    """Up to ``count`` new nets within the limits, in the order in which they were made; a narrow limit may give fewer."""
    found: dict[Net, None] = {}
    for _ in range(200 * count):
        net = make()
        if least <= net.count(space.width) <= limit and net not in known:
            found[net] = None
        if len(found) == count:
            break
    return found
