"""A whole job: the epochs of a fine-tuning run, or a request that reads a prompt and writes tokens.

    step = estimate(capture(model, inputs, mode="train"), device)
    training_job(step, epochs=3, samples=50_000).seconds                  # hours of the run, low - point - high
    request(prefill, [decode_at_512, decode_at_638], prompt=512, generate=128).seconds

Steps cost what their estimates say. What a profile does not know (reading samples, starting up) is left out of the
sum and listed by name in `gaps`; `sample_s` and `start_s` of the caller take its place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from .core.job import decode_sum, epoch_seconds
from .device import Interval, Runtime
from .errors import CostmodelError
from .estimate import Estimate, Range
from .graph import OpGraph

__all__ = [
    "Job",
    "Part",
    "Request",
    "TrainingJob",
    "decode_contexts",
    "request",
    "request_of",
    "state_grows",
    "training_job",
]

# What a start-up is known to where a profile has its numbers and no interval for them: a file cache may be cold.
_START = Interval(low=-math.log(2), high=math.log(4), cases=0, kind="guess", source="not validated")
_NOTHING = Range(0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Part:
    """A part of a job that adds to its total.

    Attributes:
        name: ``steps``, ``data loading``, ``prefill``, ``decode`` or ``start-up``.
        seconds, energy_j: of the whole job; joules are None where the device has no sourced constants.
        source: what the figure rests on.
    """

    name: str
    seconds: Range
    energy_j: Range | None
    source: str


@dataclass(frozen=True, eq=False)
class Job:
    """What both kinds of job have: parts that add up, and what is missing.

    Ends add up as if all constants were off together: the steps of a job share the device's.

    Attributes:
        step: the estimate that says model, device and runtime: of the training step, or of the prefill.
        parts: they add up to `seconds` and `energy_j`.
        gaps: what is not in the sum, by name, with what to give instead.
    """

    step: Estimate
    parts: tuple[Part, ...]
    gaps: dict[str, str]

    @property
    def seconds(self) -> Range:
        """The whole job."""
        return _sum([p.seconds for p in self.parts])

    @property
    def energy_j(self) -> Range | None:
        """Joules of the whole job, or None where the device has no sourced constants."""
        joules = [p.energy_j for p in self.parts]
        return None if None in joules else _sum([j for j in joules if j is not None])

    def part(self, name: str) -> Range:
        """Seconds of a part; nothing where the job has no such part."""
        return next((p.seconds for p in self.parts if p.name == name), _NOTHING)

    def _as_dict(self, kind: str, what: dict[str, Any]) -> dict[str, Any]:
        return {
            "kind": kind,
            **what,
            "seconds": self.seconds.as_dict(),
            "energy_j": None if self.energy_j is None else self.energy_j.as_dict(),
            "parts": [
                {
                    "name": p.name,
                    "seconds": p.seconds.as_dict(),
                    "energy_j": None if p.energy_j is None else p.energy_j.as_dict(),
                    "source": p.source,
                }
                for p in self.parts
            ],
            "gaps": dict(self.gaps),
        }


@dataclass(frozen=True, eq=False)
class TrainingJob(Job):
    """A fine-tuning run.

    Attributes:
        epochs, samples: as given; `workers`: processes that read samples beside the one that computes.
        steps: of the whole run; the last, smaller batch of an epoch counts as a whole step.
    """

    epochs: int
    samples: int
    workers: int
    steps: int

    def as_dict(self) -> dict[str, Any]:
        """The object that ``estimate --epochs --samples --json`` prints: that of the step, and the ``job``."""
        what = {"epochs": self.epochs, "samples": self.samples, "workers": self.workers, "steps": self.steps}
        return self.step.as_dict() | {"job": self._as_dict("training", what)}


@dataclass(frozen=True, eq=False)
class Request(Job):
    """A prompt read and tokens written.

    Attributes:
        prompt, generate: tokens of each sequence of the batch; prefill gives the first generated token.
        decodes: estimates of decode steps after `contexts` tokens, rising; one where the state does not grow.
        grows: whether a step's state grows with its context (a cache of keys and values does, a scan's state not).
    """

    prompt: int
    generate: int
    decodes: tuple[Estimate, ...]
    contexts: tuple[int, ...]
    grows: bool

    @property
    def first_token_s(self) -> Range:
        """Seconds until the first generated token, the process running already."""
        return self.part("prefill")

    @property
    def token_s(self) -> Range | None:
        """Mean seconds of a token after the first; None where there is none."""
        n = self.generate - 1
        return None if n < 1 else _times(self.part("decode"), 1.0 / n)

    @property
    def peak(self) -> Estimate:
        """The step that needs the most resident bytes."""
        return max((self.step, *self.decodes), key=lambda e: e.memory.peak_rss.point)

    def as_dict(self) -> dict[str, Any]:
        """The object that ``estimate --prompt --generate --json`` prints: the ``job``, and each estimate behind it."""
        token, memory = self.token_s, self.peak.memory
        prefill = self.step.as_dict()
        job = self._as_dict(
            "request",
            {
                "prompt": self.prompt,
                "generate": self.generate,
                "batch": self.step.graph.meta.batch,
                "state_grows": self.grows,
                "first_token_s": self.first_token_s.as_dict(),
                "token_s": None if token is None else token.as_dict(),
                "memory_bytes": {
                    "peak_live": memory.peak_live.as_dict(),
                    "peak_reserved": memory.peak_reserved.as_dict(),
                    "peak_rss": memory.peak_rss.as_dict(),
                },
                "fits": all(e.fits for e in (self.step, *self.decodes)),
            },
        )
        shared = ("schema", "model", "device", "runtime", "method", "batch", "threads", "dtype")
        return {
            **{key: prefill[key] for key in shared},
            "mode": "request",
            "job": job,
            "prefill": prefill,
            "decode": [{"context": c, **e.as_dict()} for c, e in zip(self.contexts, self.decodes, strict=True)],
        }


def training_job(
    step: Estimate,
    *,
    epochs: int,
    samples: int,
    workers: int = 0,
    sample_s: float | None = None,
    start_s: float | None = None,
) -> TrainingJob:
    """A fine-tuning run of `epochs` over `samples`, from the estimate of one step.

    ``seconds = start-up + epochs · epoch``, the epoch by `core.job.epoch_seconds`: without workers reading and
    computing take turns; with workers they overlap, as far as the device has cores that the step leaves free (on a
    GPU all of them; where there is none, workers take the step's own, and nothing overlaps).

    Args:
        step: of mode ``train``.
        epochs, samples: both at least 1; an epoch is ``ceil(samples / batch)`` steps.
        workers: processes that read samples (``DataLoader(num_workers=…)``).
        sample_s: seconds in which one process reads and prepares a sample; the profile's if None. 0: in memory.
        start_s: seconds of start-up; by the profile's numbers if None.

    Raises:
        CostmodelError: not a training step, or a number that cannot be.
    """
    if step.graph.meta.mode != "train":
        raise CostmodelError(
            f"epochs and samples are of a training run; this step is of mode {step.graph.meta.mode!r}: use train"
        )
    _at_least(1, epochs=epochs, samples=samples)
    _at_least(0, workers=workers, sample_s=sample_s, start_s=start_s)
    batch = max(step.graph.meta.batch, 1)
    per_epoch = math.ceil(samples / batch)
    parts, gaps = [], {}
    computing = _times(step.latency_s, epochs * per_epoch)
    joules = None if step.energy_j is None else _times(step.energy_j, epochs * per_epoch)
    parts.append(Part("steps", computing, joules, f"{epochs * per_epoch:,} times the estimate of one step"))
    reading, source = _reading(step, sample_s)
    if reading is None:
        gaps["data loading"] = source
    else:
        read = _times(reading, batch)
        free = _free_workers(step, workers)
        waits = [
            epochs * (epoch_seconds(per_epoch, s, r, free) - per_epoch * s)
            for s, r in zip(_ends(step.latency_s), _ends(read), strict=True)
        ]
        waiting = Range(max(min(waits), 0.0), max(waits[1], 0.0), max(*waits, 0.0))  # a slower step waits less
        how = f"{free} of {workers} workers have a core of their own" if workers else "by the process that computes"
        parts.append(Part("data loading", waiting, _idle(step, waiting), f"{source}; {how}"))
        if step.energy_j is not None and sample_s != 0:
            gaps["energy of data loading"] = "counted at idle power; the profile has no constants for reading samples"
    _add_start(step, start_s, parts, gaps)
    return TrainingJob(step, tuple(parts), gaps, epochs, samples, workers, epochs * per_epoch)


def request(
    prefill: Estimate,
    decodes: Sequence[Estimate],
    *,
    prompt: int,
    generate: int,
    contexts: Sequence[int] | None = None,
    start_s: float | None = 0.0,
) -> Request:
    """A request: prefill of the prompt, which gives the first token, then one decode step for each further token.

    ``seconds = start-up + prefill + Σ decode(c)``, c from `prompt` to ``prompt + generate − 2`` tokens of context,
    straight lines between the contexts that are given (`core.job.decode_sum`).

    Args:
        prefill: of mode ``prefill`` (or ``infer``), over the prompt.
        decodes: of mode ``decode`` at `contexts`, on the same device; one where the state does not grow; none where
            one token is generated.
        prompt, generate: tokens of each sequence, both at least 1.
        contexts: tokens of context of each decode, rising; ``decode_contexts(prompt, generate)`` if None.
        start_s: seconds of start-up; 0 where the process runs already, None for the profile's numbers.

    Raises:
        CostmodelError: estimates of other modes or places, or numbers that cannot be.
    """
    _at_least(1, prompt=prompt, generate=generate)
    _at_least(0, start_s=start_s)
    at = tuple(contexts if contexts is not None else decode_contexts(prompt, generate)[-len(decodes) :])
    if len(at) != len(decodes) or any(b <= a for a, b in pairwise(at)):
        raise CostmodelError(f"{len(decodes)} decode estimates for contexts {list(at)}; give one each, contexts rising")
    if generate > 1 and not decodes:
        raise CostmodelError("a request of more than one token needs the estimate of a decode step")
    for e, allowed in [(prefill, ("prefill", "infer")), *((d, ("decode",)) for d in decodes)]:
        if e.graph.meta.mode not in allowed:
            raise CostmodelError(f"an estimate of mode {e.graph.meta.mode!r} where {' or '.join(allowed)} is needed")
        if (e.device.name, e.runtime) != (prefill.device.name, prefill.runtime):
            raise CostmodelError(f"a request runs in one place, not on {prefill.device.name} and {e.device.name}")
    n = generate - 1
    parts = [Part("prefill", prefill.latency_s, prefill.energy_j, f"the estimate of a prefill of {prompt:,} tokens")]
    gaps: dict[str, str] = {}
    if n:
        known = all(d.energy_j is not None for d in decodes)
        times = _decoded([d.latency_s for d in decodes], at, prompt, n)
        joules = _decoded([d.energy_j for d in decodes if d.energy_j is not None], at, prompt, n) if known else None
        where = f"estimates at {' and '.join(f'{c:,}' for c in at)} tokens of context, straight lines between"
        source = where if len(at) > 1 else f"{n:,} times one estimate: the state does not grow with the context"
        parts.append(Part("decode", times, joules, source))
    _add_start(prefill, start_s, parts, gaps)
    return Request(prefill, tuple(parts), gaps, prompt, generate, tuple(decodes), at, len(at) > 1)


def request_of(
    trace: Callable[[str, int], OpGraph],
    price: Callable[[OpGraph], Estimate],
    *,
    prompt: int,
    generate: int,
    start_s: float | None = 0.0,
) -> Request:
    """`request` from a function that traces a (mode, tokens) and one that prices; no step is traced that is not needed.

    Args:
        trace: ``trace("prefill", 512)``, ``trace("decode", 512)``: after 512 tokens of context.
        price: a graph to its estimate on the device.
        prompt, generate, start_s: as in `request`.
    """
    prefill = price(trace("prefill", prompt))
    contexts = decode_contexts(prompt, generate)
    graphs = [trace("decode", contexts[-1])] if contexts else []
    if graphs and state_grows(graphs[0], contexts[-1]):
        graphs = [*(trace("decode", c) for c in contexts[:-1]), *graphs]
    contexts = contexts[len(contexts) - len(graphs) :]
    decodes = [price(graph) for graph in graphs]
    return request(prefill, decodes, prompt=prompt, generate=generate, contexts=contexts, start_s=start_s)


def decode_contexts(prompt: int, generate: int) -> tuple[int, ...]:
    """Tokens of context at which the decode steps of a request are priced: first, middle and last.

    >>> decode_contexts(512, 128), decode_contexts(512, 2), decode_contexts(512, 1)
    ((512, 575, 638), (512,), ())
    """
    if generate < 2:
        return ()
    first, last = prompt, prompt + generate - 2
    return tuple(sorted({first, (first + last) // 2, last}))


def state_grows(decode: OpGraph, context: int) -> bool:
    """Whether any tensor of a decode step is as long as its context, or one longer: a cache of keys and values is.

    Where none is, no cost can depend on the context, and one decode step stands for all. A width that happens to
    equal the context only costs a second look.
    """
    return any(context in shape or context + 1 in shape for shape in decode.tensor_shape)


# Parts


def _reading(step: Estimate, sample_s: float | None) -> tuple[Range | None, str]:
    """Seconds to read a sample, and what they rest on, or why they are not known."""
    if sample_s is not None:
        return Range(sample_s, sample_s, sample_s), f"{sample_s:g} s a sample, as given"
    number = _runtime(step).sample_s
    if number is None:
        return None, f"no seconds a sample in the profile of {step.device.name}; give --sample-seconds (0: in memory)"
    if not _reads_images(step.graph):
        return None, "the profile's seconds a sample are of images, these inputs are not; give --sample-seconds"
    interval = _runtime(step).interval.get("train") or _runtime(step).interval["default"]
    why = step.device.sources.get(number.source, number.source)
    return Range.around(number.value, interval), f"{number.value:g} s an image, {number.kind}: {why}"


def _reads_images(graph: OpGraph) -> bool:
    """Whether an input is of four dimensions: samples, channels, height, width."""
    return any(
        len(shape) == 4 and graph.storage_role[storage] == "input"
        for shape, storage in zip(graph.tensor_shape, graph.tensor_storage)
    )


def _free_workers(step: Estimate, workers: int) -> int:
    """Workers that have a core which the step leaves free."""
    used = step.threads if _runtime(step).engine == "cpu" else 1  # one core issues kernels to a GPU
    return max(0, min(workers, step.device.cores - used))


def _add_start(step: Estimate, start_s: float | None, parts: list[Part], gaps: dict[str, str]) -> None:
    """Start-up: libraries, weights from storage, and what the first step makes once."""
    if start_s is not None:
        if start_s:
            exact = Range(start_s, start_s, start_s)
            parts.append(Part("start-up", exact, _idle(step, exact), f"{start_s:g} s, as given"))
        return
    runtime, storage = _runtime(step), step.device.memory.storage_bytes_per_s
    known, missing = {}, []
    if runtime.start_s is not None:
        known["loading libraries"] = runtime.start_s.value
    else:
        missing.append("loading libraries (start_s)")
    if storage is not None:
        known["reading weights"] = _weights(step.graph) / storage.value
    else:
        missing.append("reading weights (storage_bytes_per_s)")
    if runtime.first_op_s is not None:
        known["the first step"] = runtime.first_op_s.value * len(step.graph)
    else:
        missing.append("the first step, which makes and compiles what later ones reuse (first_op_s)")
    if known:
        total = Range.around(sum(known.values()), runtime.interval.get("start_up", _START))
        each = ", ".join(f"{name} {seconds:.3g} s" for name, seconds in known.items())
        used = [n for n in (runtime.start_s, storage, runtime.first_op_s) if n is not None]
        why = "; ".join(dict.fromkeys(f"{n.kind}: {step.device.sources.get(n.source, n.source)}" for n in used))
        parts.append(Part("start-up", total, _idle(step, total), f"{each}; {why}"))
    if missing:
        what = "; ".join(missing)
        gaps["start-up"] = f"no numbers in the profile of {step.device.name} for {what}; give --start-seconds"


def _weights(graph: OpGraph) -> int:
    return sum(b for b, role in zip(graph.storage_bytes, graph.storage_role) if role in ("parameter", "buffer"))


def _idle(step: Estimate, seconds: Range) -> Range | None:
    """Joules of `seconds` at idle power; None without sourced constants."""
    energy = step.device.energy
    return None if energy is None else _times(seconds, energy.idle_w.value)


def _decoded(values: Sequence[Range], contexts: tuple[int, ...], prompt: int, n: int) -> Range:
    at = np.array(contexts, np.int64)
    ends = np.array([_ends(v) for v in values])
    return Range(*(decode_sum(at, ends[:, k], prompt, prompt + n - 1) for k in range(3)))


def _runtime(step: Estimate) -> Runtime:
    return step.device.runtime[step.runtime]


def _ends(value: Range) -> tuple[float, float, float]:
    return value.low, value.point, value.high


def _times(value: Range, factor: float) -> Range:
    return Range(value.low * factor, value.point * factor, value.high * factor)


def _sum(values: Sequence[Range]) -> Range:
    low, point, high = (math.fsum(ends) for ends in zip(*map(_ends, values), strict=True))
    return Range(low, point, high)


def _at_least(least: int, **given: float | None) -> None:
    for name, value in given.items():
        if value is not None and not (math.isfinite(value) and value >= least):
            raise CostmodelError(f"{name} must be at least {least}, not {value}")
