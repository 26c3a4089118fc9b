"""core/: numba against plain twins, and what must hold whatever the numbers."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodel.core.cpu import price_cpu, sweep_cpu
from costmodel.core.energy import op_energy
from costmodel.core.gpu import price_gpu, utilisation
from costmodel.core.table import F8, UNITS, CpuRates, GpuRates, OpTable
from costmodel.core.timeline import two_queues
from costmodel.core.traffic import reuse_distance

from .naive import pricing as naive

KINDS, TERMS, LEVELS = 3, 4, 3


def make_table(rng: np.random.Generator, n: int) -> OpTable:
    terms = rng.integers(0, 3, n)
    uses = rng.integers(0, 4, n)
    u = int(uses.sum())
    return OpTable(
        kind=rng.integers(0, KINDS, n).astype(np.int32),
        unit=rng.integers(0, len(UNITS), n).astype(np.int32),
        flops=rng.uniform(0, 1e9, n),
        work=rng.uniform(0, 1e9, n) * rng.integers(0, 2, n),
        calls=rng.integers(0, 3, n).astype(float),
        outputs=np.floor(10 ** rng.uniform(0, 7, n)),
        code=rng.integers(0, 4, n).astype(np.int32),
        term_ptr=np.concatenate(([0], np.cumsum(terms))).astype(np.int64),
        term=rng.integers(0, TERMS, int(terms.sum())).astype(np.int32),
        amount=rng.uniform(0, 1e6, int(terms.sum())),
        use_ptr=np.concatenate(([0], np.cumsum(uses))).astype(np.int64),
        use_storage=rng.integers(0, 8, u).astype(np.int32),
        use_bytes=np.floor(10 ** rng.uniform(0, 8, u)),
        use_write=rng.integers(0, 2, u).astype(bool),
    )


def distances(rng: np.random.Generator, table: OpTable) -> tuple[F8, F8]:
    return reuse_distance(table.use_storage, table.use_bytes, 8), 10 ** rng.uniform(3, 9, len(table.kind))


def make_cpu(rng: np.random.Generator) -> CpuRates:
    return CpuRates(
        overhead_s=rng.uniform(0, 1e-5, KINDS),
        cold_s=np.sort(rng.uniform(0, 1e-5, (KINDS, LEVELS)), axis=1),
        work_s=rng.uniform(1e-12, 1e-9, (KINDS, len(UNITS))),
        term_s=rng.uniform(0, 1e-9, TERMS),
        read_s=np.sort(rng.uniform(1e-12, 1e-9, (KINDS, LEVELS)), axis=1),
        write_s=np.sort(rng.uniform(1e-12, 1e-9, (KINDS, LEVELS)), axis=1),
        capacity=np.array([1e6, 3e7]),
        overlap=rng.uniform(0, 1, KINDS),
    )


def make_gpu(rng: np.random.Generator) -> GpuRates:
    return GpuRates(
        floor_s=rng.uniform(0, 1e-5, KINDS),
        work_s=rng.uniform(1e-14, 1e-12, (KINDS, len(UNITS))),
        byte_s=np.array([1e-12, 3e-12]),
        l2_bytes=4e6,
        sms=8.0,
        tile=16384.0,
        least_tile=1024.0,
        depth=64.0,
        loss=rng.uniform(0, 0.5, KINDS),
        issue_s=5e-6,
    )


seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(0, 40)


@given(seeds, sizes)
@settings(max_examples=60, deadline=None)
def test_reuse_distance_is_an_lru_stack(seed: int, n: int) -> None:
    table = make_table(np.random.default_rng(seed), n)
    ours = reuse_distance(table.use_storage, table.use_bytes, 8)
    theirs = naive.reuse_distance(table.use_storage.tolist(), table.use_bytes.tolist())
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-3)


@given(seeds, sizes)
@settings(max_examples=60, deadline=None)
def test_cpu_prices_like_its_twin_and_parts_add_up(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    table, rates = make_table(rng, n), make_cpu(rng)
    distance, code_distance = distances(rng, table)
    seconds, parts = price_cpu(table, distance, code_distance, rates)
    expected, expected_parts = naive.price_cpu(table, distance, code_distance, rates)
    np.testing.assert_allclose(seconds, expected, rtol=1e-9)
    np.testing.assert_allclose(parts, np.array(expected_parts).reshape(n, 2 + LEVELS), rtol=1e-9, atol=1e-15)
    assert (seconds >= parts.max(axis=1, initial=0.0) - 1e-15).all()
    assert (seconds <= parts.sum(axis=1) * (1 + 1e-12)).all()


@given(seeds, sizes)
@settings(max_examples=40, deadline=None)
def test_gpu_prices_like_its_twin(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    table, rates = make_table(rng, n), make_gpu(rng)
    distance, _ = distances(rng, table)
    seconds, _ = price_gpu(table, distance, rates)
    np.testing.assert_allclose(seconds, naive.price_gpu(table, distance, rates), rtol=1e-9)


@given(seeds, sizes)
@settings(max_examples=40, deadline=None)
def test_a_faster_device_is_never_slower(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    table, rates = make_table(rng, n), make_cpu(rng)
    distance, code_distance = distances(rng, table)
    slow, _ = price_cpu(table, distance, code_distance, rates)
    bigger = price_cpu(table, distance, code_distance, rates._replace(capacity=rates.capacity * 2))[0]
    wider = price_cpu(
        table, distance, code_distance, rates._replace(read_s=rates.read_s / 2, write_s=rates.write_s / 2)
    )[0]
    faster = price_cpu(
        table, distance, code_distance, rates._replace(work_s=rates.work_s / 2, term_s=rates.term_s / 2)
    )[0]
    for better in (bigger, wider, faster):
        assert (better <= slow * (1 + 1e-12)).all()


@given(seeds, st.integers(1, 30))
@settings(max_examples=30, deadline=None)
def test_a_sweep_is_the_sum_of_its_prices(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    table, rates = make_table(rng, n), make_cpu(rng)
    distance, code_distance = distances(rng, table)
    scales = rng.uniform(0.5, 2, (4, 3))
    totals = sweep_cpu(table, distance, code_distance, rates, *scales)
    for v in range(3):
        variant = rates._replace(
            work_s=rates.work_s * scales[0, v],
            term_s=rates.term_s * scales[0, v],
            read_s=rates.read_s * scales[1, v],
            write_s=rates.write_s * scales[1, v],
            overhead_s=rates.overhead_s * scales[2, v],
            cold_s=rates.cold_s * scales[2, v],
            capacity=rates.capacity * scales[3, v],
        )
        assert totals[v] == pytest.approx(price_cpu(table, distance, code_distance, variant)[0].sum(), rel=1e-9)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=0, max_size=30))
@settings(max_examples=60, deadline=None)
def test_two_queues(pairs: list[tuple[float, float]]) -> None:
    device = np.array([p[0] for p in pairs])
    issue = np.array([p[1] for p in pairs])
    start, end = two_queues(device, issue)
    np.testing.assert_allclose(end, naive.two_queues(device.tolist(), issue.tolist()), rtol=1e-9, atol=1e-12)
    if pairs:
        assert end[-1] >= max(device.sum(), issue.sum()) - 1e-9
        assert (start[1:] >= end[:-1]).all()


def test_energy_adds_its_parts() -> None:
    joules = op_energy(np.array([2.0]), np.array([1e9]), np.array([[1e6, 2e6]]), 3.0, 1e-10, np.array([1e-9, 1e-8]))
    assert joules[0] == pytest.approx(3 * 2 + 0.1 + 1e-3 + 2e-2)


def test_twins_agree_without_the_compiler() -> None:
    """The same comparisons on the uncompiled functions: what numba changes would show."""
    if os.environ.get("NUMBA_DISABLE_JIT") == "1":
        pytest.skip("already running without the compiler")
    command = [sys.executable, "-m", "pytest", __file__, "-q", "-p", "no:cacheprovider", "-k", "twin or lru or queues"]
    env = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stdout[-2000:]


@given(st.floats(1.0, 1e8), st.floats(1.0, 1e5), st.floats(1.0, 200.0), st.floats(1.0, 30.0), st.floats(0.0, 0.5))
@settings(max_examples=200, deadline=None)
def test_more_sms_help_only_blocks_that_wait(outputs: float, sums: float, sms: float, more: float, loss: float) -> None:
    """SMs come with what they compute: time is work over (SMs · utilisation), and falls only while blocks wait."""
    rates = make_gpu(np.random.default_rng(0))._replace(loss=np.full(KINDS, loss))
    work = 2.0 * outputs * sums
    few, many = (n * utilisation(outputs, work, 0, rates._replace(sms=n)) for n in (sms, sms * more))
    assert few <= many * (1 + 1e-12)
    blocks = max(outputs / rates.least_tile, 1.0) * max(sums / rates.depth, 1.0)
    if blocks <= sms and outputs <= rates.tile * sms:
        assert many == pytest.approx(few)
