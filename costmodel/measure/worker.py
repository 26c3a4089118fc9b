"""Fresh processes that run jobs: ``python -m costmodel.measure.worker`` reads one request a line, answers one a line.

Each request runs in a child forked for it, of a parent that has imported the libraries and run nothing: imports take
longer than most measurements, and are paid once. A request is ``{"jobs": [job, …], "seconds": s, "memory": bool}``;
the jobs of one request are timed in turn. The answer has one object a job, or ``{"error": text}``. With ``"ops": true``
the ops of each job are timed instead. Whatever a model prints goes to stderr.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import IO, Any

from ..errors import CostmodelError
from ..models._compat import require
from .job import Job
from .latency import pinned_allocator, time_interleaved

__all__ = ["Worker", "Workers", "run_jobs"]


def run_jobs(jobs: Sequence[Job], seconds: float, memory: bool) -> list[dict[str, Any]]:
    """Run `jobs` in this process: raw repeats, and the peak of live bytes if `memory`."""
    from .memory import measure_live_peak

    steps = [job.step() for job in jobs]
    samples = time_interleaved([s.run for s in steps], seconds=seconds, threads=jobs[0].threads, spin=True)
    return [
        {
            "wall_s": s.wall_s,
            "cpu_s": s.cpu_s,
            "preempted": s.preempted,
            "spin_s": s.spin_s,
            "peak_live_bytes": measure_live_peak(step) if memory else None,
        }
        for s, step in zip(samples, steps)
    ]


class Worker:
    """A child process with a fixed thread count and allocator, that runs every request in a fresh process of its own.

    Those of one worker have their libraries at the same addresses; where chance shall have its say, take several.
    """

    def __init__(self, threads: int = 1, allocator: str = "pinned") -> None:
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            "NUMBA_NUM_THREADS": str(threads),
            **(pinned_allocator() if allocator == "pinned" else {}),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "costmodel.measure.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def time_ops(self, job: Job) -> tuple[list[str], list[float]]:
        """Names and seconds of the ops of a step; raises as `run` does."""
        (answer,) = self._ask({"jobs": [job.as_dict()], "ops": True})
        return answer["names"], answer["seconds"]

    def run(self, jobs: Sequence[Job], *, seconds: float = 1.0, memory: bool = False) -> list[dict[str, Any]]:
        """The raw repeats of each job.

        Raises:
            CostmodelError: a job that cannot be built or run (its own message), or a worker that died.
        """
        return self._ask({"jobs": [j.as_dict() for j in jobs], "seconds": seconds, "memory": memory})

    def _ask(self, request: dict[str, Any]) -> list[dict[str, Any]]:
        stdin, stdout = self._pipes()
        try:
            stdin.write(json.dumps(request) + "\n")
            stdin.flush()
            line = stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            _, said = self._process.communicate()
            last = said.strip().splitlines()[-1] if said.strip() else "it said nothing"
            raise CostmodelError(f"the measuring process died (status {self._process.returncode}): {last}")
        answer = json.loads(line)
        if "error" in answer:
            raise CostmodelError(answer["error"])
        return list(answer["runs"])

    @property
    def died(self) -> bool:
        """Whether it has ended by itself."""
        return self._process.poll() is not None

    def _pipes(self) -> tuple[IO[str], IO[str]]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        return self._process.stdin, self._process.stdout

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Workers:
    """A worker for each thread count and allocator that is asked for."""

    def __init__(self) -> None:
        self._workers: dict[tuple[int, str], Worker] = {}

    def of(self, job: Job) -> Worker:
        """The worker of the setting of `job`; a new one where there is none, or where it died."""
        key = (job.threads, job.allocator)
        if key in self._workers and self._workers[key].died:
            self._workers.pop(key).close()
        if key not in self._workers:
            self._workers[key] = Worker(*key)
        return self._workers[key]

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers.values():
            worker.close()


@contextmanager
def _stdout_kept() -> Iterator[IO[str]]:
    """The real stdout for answers; prints of models, and of the libraries below them, go to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        yield answers
    finally:
        answers.close()


def _answers(jobs: Sequence[Job], request: dict[str, Any]) -> list[dict[str, Any]]:
    if not request.get("ops"):
        return run_jobs(jobs, request["seconds"], request["memory"])
    from .op_times import time_ops

    timed = [time_ops(job) for job in jobs]
    return [{"names": names, "seconds": seconds.tolist()} for names, seconds in timed]


def _respond(request: dict[str, Any]) -> dict[str, Any]:
    try:
        jobs = [Job(**job) for job in request["jobs"]]
        return {"runs": _answers(jobs, request)}
    except CostmodelError as error:
        return {"error": str(error)}
    except Exception as error:  # the parent reports it: one job's failure is a skipped case, not the end
        return {"error": f"{type(error).__name__}: {error}".splitlines()[0]}


# What building a step imports, beside the library that a model's name begins with.
_ALWAYS = ("numba", "costmodel.measure.memory")


def _preload(request: dict[str, Any], loaded: set[str]) -> None:
    """Import what the jobs will: a library that is missing, or cannot be imported, is for the child to report."""
    libraries = {str(job.get("model", "")).partition(":")[0] for job in request["jobs"]}
    for name in (*_ALWAYS, *sorted(libraries & {"timm", "torchvision", "transformers"})):
        if name not in loaded:
            loaded.add(name)
            with suppress(Exception):
                require(name)
            gc.freeze()  # a collection in a child would copy what it shares


def _in_child(request: dict[str, Any], answers: IO[str]) -> int:
    """Answer in a forked process; its exit status as `os.waitpid` gives it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # forking beside idle threads of libraries: the child starts its own
        child = os.fork()
    if child == 0:
        status = 1
        try:
            answers.write(json.dumps(_respond(request)) + "\n")
            answers.flush()
            status = 0
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1]


def main() -> None:
    loaded: set[str] = set()
    with _stdout_kept() as answers:
        for line in sys.stdin:
            request = json.loads(line)
            _preload(request, loaded)
            status = _in_child(request, answers)
            if status:
                sys.exit(f"a process that ran {request['jobs']} ended by {os.waitstatus_to_exitcode(status)}")


if __name__ == "__main__":
    main()
