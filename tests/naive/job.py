"""Plain twins of core/job.py: an epoch as a queue of batches, a request as a loop over its tokens."""

from __future__ import annotations


def epoch_seconds(steps: int, step_s: float, read_s: float, workers: int) -> float:
    """Workers take batches in turn; the step of a batch begins when it is read and the step before is done."""
    if workers == 0:
        clock = 0.0
        for _ in range(steps):
            clock += read_s
            clock += step_s
        return clock
    free = [0.0] * workers
    done = 0.0
    for batch in range(steps):
        worker = batch % workers
        free[worker] += read_s
        done = max(done, free[worker]) + step_s
    return done


def decode_sum(contexts: list[int], values: list[float], first: int, last: int) -> float:
    total = 0.0
    for context in range(first, last + 1):
        if context <= contexts[0]:
            total += values[0]
        elif context >= contexts[-1]:
            total += values[-1]
        else:
            right = next(i for i, c in enumerate(contexts) if c >= context)
            left = right - 1
            share = (context - contexts[left]) / (contexts[right] - contexts[left])
            total += values[left] + share * (values[right] - values[left])
    return total
