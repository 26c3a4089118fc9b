"""Live bytes and allocation events by definition."""

from __future__ import annotations

from collections.abc import Sequence


def live_bytes(size: Sequence[int], birth: Sequence[int], death: Sequence[int], workspace: Sequence[int]) -> list[int]:
    """Bytes live before the step and during each op."""
    n = len(workspace)
    return [
        sum(z for z, b, d in zip(size, birth, death) if b <= k < d) + (workspace[k] if k >= 0 else 0)
        for k in range(-1, n)
    ]


def allocation_events(
    birth: Sequence[int], death: Sequence[int], first_birth: Sequence[int], ops: int, steps: int
) -> list[int]:
    """Signed block numbers of `steps` runs."""
    lives = [i for i in range(len(birth)) if birth[i] < death[i]]
    events = []
    for step in range(steps):
        born = first_birth if step == 0 else birth
        if step > 0:
            events += [-(i + 1) for i in lives if birth[i] >= 0 and death[i] == ops]
        else:
            events += [i + 1 for i in lives if born[i] == -1]
        for k in range(ops):
            events += [-(i + 1) for i in lives if death[i] == k and (birth[i] >= 0 or step == 0)]
            events += [i + 1 for i in lives if born[i] == k]
    return events
