"""A whole job from the cost of its steps: epochs that read samples beside computing, requests whose steps grow."""

from __future__ import annotations

import numpy as np

from .table import F8, I8

__all__ = ["decode_sum", "epoch_seconds"]


def epoch_seconds(steps: int, step_s: float, read_s: float, workers: int) -> float:
    """Seconds of one epoch whose batches are read beside the steps.

    Without workers the process that computes reads too: ``steps · (step_s + read_s)``. With w workers that take
    batches in turn, each at its own pace, batch k (from 0) is there at ``read_s · (1 + k // w)``, and the epoch ends
    when the last step does: the largest of ``ready_j + (steps − j) · step_s`` over batches j. Between two rounds of
    the workers that falls with j, over rounds it is linear, so its maximum is at the first batch of the first or of
    the last round.

    Args:
        steps: batches of the epoch.
        step_s: seconds that a step computes.
        read_s: seconds in which one process reads and prepares a batch.
        workers: processes that read beside the one that computes; started anew each epoch, without a limit on how far
            they read ahead.

    >>> epoch_seconds(10, 2.0, 1.0, 0), epoch_seconds(10, 2.0, 1.0, 1), epoch_seconds(10, 2.0, 8.0, 2)
    (30.0, 21.0, 44.0)
    """
    if steps < 1:
        return 0.0
    if workers < 1:
        return steps * (step_s + read_s)
    last = (steps - 1) // workers
    return max(read_s + steps * step_s, read_s * (1 + last) + (steps - last * workers) * step_s)


def decode_sum(contexts: I8, values: F8, first: int, last: int) -> float:
    """Sum of a cost of decode steps over every context from `first` to `last` tokens, both counted.

    The cost is known at some contexts and straight between them: attention reads its cache once a token, so that a
    step's cost is a straight line of the context but for bends where the cache leaves a level. Outside the contexts
    it is that of the nearest one. A model whose state does not grow has one context.

    Args:
        contexts: (k,) tokens, rising.
        values: (k,) cost of the step that reads one token more.
        first, last: tokens; nothing is summed where ``last < first``.

    >>> decode_sum(np.array([4, 8]), np.array([1.0, 2.0]), 4, 8)
    7.5
    """
    return float(np.interp(np.arange(first, last + 1), contexts, values).sum())
