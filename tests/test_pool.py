"""A grid in several processes: the same numbers as in one, nothing kept is run again, what is shared is made once."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from costmodel.errors import CostmodelError
from costmodel.tasks import pool, result, ssm
from costmodel.tasks.result import NotKept, TaskResult, only_kept


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(result, "_COMMITTED", tmp_path / "committed")
    result._committed_by_key.cache_clear()
    yield tmp_path
    result._committed_by_key.cache_clear()


def a_result(arm: str, seed: int) -> TaskResult:
    return TaskResult("irb", arm, seed, "demo", "accuracy", 0.5 + seed, True, 1.0, 1.0, "none", "tiny", {})


class Family:
    """Stands for a family whose points are quick; counts what it computes."""

    def __init__(self) -> None:
        self.ran: list[tuple[str, int]] = []

    def run(self, arm: str, *, seed: int, budget: Any, progress: Any = None) -> TaskResult:
        def compute() -> TaskResult:
            self.ran.append((arm, seed))
            return a_result(arm, seed)

        return result.cached(f"{arm}-{seed}", compute)


def test_kept_points_are_not_run_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake, said = Family(), []
    monkeypatch.setattr(pool, "family_of", lambda _name: fake)
    grid = [("full", 0), ("bias", 0), ("full", 1)]
    fake.run("bias", seed=0, budget="demo")
    found = pool.run_grid("irb", grid, "demo", processes=1, report=lambda done, what: said.append((done, what)))
    assert [(r.arm, r.seed) for r in found] == grid
    assert fake.ran == [("bias", 0), ("full", 0), ("full", 1)]
    assert said == [(1, "irb full seed 0"), (2, "irb full seed 1")]
    assert pool.run_grid("irb", grid, "demo", processes=1) == found
    assert len(fake.ran) == 3


def test_nothing_is_computed_where_only_what_is_kept_is_asked_for(cache: Path) -> None:
    with only_kept(), pytest.raises(NotKept):
        result.cached("k", lambda: a_result("full", 0))
    assert result.cached("k", lambda: a_result("full", 0)).arm == "full"
    with only_kept():
        assert result.cached("k", lambda: a_result("bias", 0)).arm == "full"


def test_an_intermediate_answer_is_made_once_and_waited_for(cache: Path) -> None:
    calls: list[int] = []
    begun, go = threading.Event(), threading.Event()

    def slow() -> dict[str, Any]:
        calls.append(1)
        begun.set()
        assert go.wait(30)
        return {"lr": 1.0}

    answers: list[dict[str, Any]] = []
    threads = [threading.Thread(target=lambda: answers.append(result.cached_json("lr", "k", slow))) for _ in range(2)]
    threads[0].start()
    assert begun.wait(30)
    threads[1].start()
    threads[1].join(0.2)
    assert threads[1].is_alive(), "the second waits"
    go.set()
    for thread in threads:
        thread.join(30)
    assert answers == [{"lr": 1.0}] * 2
    assert calls == [1]


def test_both_networks_are_trained_at_the_same_time() -> None:
    """The first two points of each seed are of different networks, and no point is lost."""
    for budget in ("quick", "full"):
        points = ssm.grid(budget)
        assert sorted(points) == sorted((arm, seed) for seed in ssm.SEEDS[budget] for arm in ssm.ARMS[budget])
        for seed in ssm.SEEDS[budget]:
            first, second = [arm for arm, s in points if s == seed][:2]
            assert {ssm._parts(first)[0], ssm._parts(second)[0]} == {"mamba", "mamba2"}


def test_bf16_is_evaluated_by_the_numbers_of_a_bf16_matmul() -> None:
    import torch
    from torch import nn

    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 8, bias=False)).bfloat16()
    x = torch.randn(5, 64).bfloat16()
    before = plain(x)
    ssm._sum_in_fp32(plain)
    after = plain(x)
    assert after.dtype == torch.bfloat16
    torch.testing.assert_close(after, before, rtol=2**-7, atol=2**-7)
    exact = nn.functional.linear(x.double(), plain[0].weight.double(), plain[0].bias.double())
    torch.testing.assert_close(plain[0](x).double(), exact, rtol=2**-8, atol=1e-6)


def test_what_else_there_is_to_do_of_an_arm_is_done_before_its_points(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, said = Family(), []
    monkeypatch.setattr(pool, "family_of", lambda _name: fake)
    monkeypatch.setattr(pool, "ProcessPoolExecutor", lambda most, **_: ThreadPoolExecutor(most))
    grid = [("full", 0), ("bias", 0), ("full", 1)]
    done: list[str] = []
    pool.run_grid("irb", grid, "demo", processes=2, first=done.append, report=lambda _n, what: said.append(what))
    assert done == ["full", "bias"]
    assert said[:3] == ["tracing full", "tracing bias", "irb full seed 0"]

    def fails(arm: str) -> None:
        raise CostmodelError(f"{arm} cannot be traced")

    fake.ran.clear()
    with pytest.raises(CostmodelError, match="full cannot be traced"):
        pool.run_grid("irb", [("full", 2), ("full", 3)], "demo", processes=2, first=fails)
    assert ("full", 3) not in fake.ran


@pytest.mark.slow
def test_two_processes_find_what_one_finds(tmp_path: Path) -> None:
    code = (
        "import sys, json\n"
        "from costmodel.tasks import pool\n"
        "grid = [('last_layer', 0), ('mobiletl:blocks=3', 0)]\n"
        "if __name__ == '__main__':\n"
        "    print(json.dumps([r.value for r in pool.run_grid('irb', grid, 'demo', processes=int(sys.argv[1]))]))\n"
    )
    script = tmp_path / "grid.py"
    script.write_text(code)
    said = []
    for n in ("1", "2"):
        environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / n), "COSTMODEL_OFFLINE": "1"}
        root = Path(__file__).parents[1]
        environment["PYTHONPATH"] = str(root)
        done = subprocess.run([sys.executable, str(script), n], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout.splitlines()[-1])
    assert said[0] == said[1]
