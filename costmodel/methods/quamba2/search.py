"""W4AX: which blocks get 16-bit activations, by evolutionary search on the loss of the calibration data.

Quamba2, arXiv 2503.22879 section 3.4: population 40, 5 generations, 14 of 56 blocks wide.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

__all__ = ["search_blocks"]

Choice = tuple[bool, ...]


def search_blocks(
    blocks: int, wide: int, loss: Callable[[Choice], float], population: int, generations: int, seed: int
) -> Choice:
    """The choice of `wide` of `blocks` with the least loss that was met.

    Each generation keeps the better half and fills up with children: two parents' common blocks, the rest drawn from
    either, then a swap. Every choice has exactly `wide` wide blocks; a loss is asked for once.
    """
    draw = random.Random(seed)
    known: dict[Choice, float] = {}

    def rated(choice: Choice) -> float:
        if choice not in known:
            known[choice] = loss(choice)
        return known[choice]

    def of(members: Sequence[int]) -> Choice:
        chosen = set(members)
        return tuple(i in chosen for i in range(blocks))

    def child(a: Choice, b: Choice) -> Choice:
        both = [i for i in range(blocks) if a[i] and b[i]]
        either = [i for i in range(blocks) if a[i] != b[i]]
        members = both + draw.sample(either, wide - len(both))
        outside = [i for i in range(blocks) if i not in members]
        if members and outside:
            members[draw.randrange(len(members))] = draw.choice(outside)
        return of(members)

    pool = [of(draw.sample(range(blocks), wide)) for _ in range(population)]
    for _ in range(generations):
        pool = sorted(dict.fromkeys(pool), key=rated)[: max(2, population // 2)]
        parents = pool if len(pool) > 1 else pool * 2
        pool += [child(*draw.sample(parents, 2)) for _ in range(population - len(pool))]
    return min(pool, key=rated)
