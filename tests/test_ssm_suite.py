"""The ssm suite: what it runs, and that a prediction follows the bandwidth of its process."""

from __future__ import annotations

import numpy as np
import pytest

from costmodel.device import load_device
from costmodel.errors import UnknownName
from costmodel.measure.ssm_suite import READER, SIZES, ssm_groups, ssm_suite, with_dram
from costmodel.measure.stream import STREAM_BYTES, reader
from costmodel.suites import Options, run, suites

DEVICE = load_device("epyc-zen4-vm-2c")


def bandwidth() -> float:
    memory = DEVICE.memory
    return (memory.core_read_bytes_per_s or memory.read_bytes_per_s).value


def test_every_precision_decodes_and_prefills_at_three_sizes() -> None:
    for base in SIZES:
        groups = ssm_groups(base)
        assert len(groups) == 3
        for first, *jobs in groups:
            assert first is READER
            assert {job.mode for job in jobs} == {"decode", "prefill"}
            methods = {job.method for job in jobs}
            assert all(any(bits in str(m) for m in methods) for bits in ("w8a8", "w4a8", "w4a16"))


def test_rates_of_dram_and_nothing_else_follow_the_bandwidth() -> None:
    half = with_dram(DEVICE, None, bandwidth() / 2)
    assert half.memory.read_bytes_per_s.value == pytest.approx(DEVICE.memory.read_bytes_per_s.value / 2)
    before, after = (d.runtime[DEVICE.default_runtime].fit for d in (DEVICE, half))
    for old, new in zip(before, after):
        for kind, constants in old.kinds.items():
            changed = new.kinds[kind]
            assert changed.term_s == constants.term_s
            assert changed.overhead_s == constants.overhead_s
            for level, seconds in constants.read_s.items():
                factor = 2.0 if level == "dram" else 1.0
                assert changed.read_s[level] == pytest.approx(factor * seconds)
    same = with_dram(DEVICE, None, bandwidth())
    assert same.runtime[DEVICE.default_runtime].fit[0].kinds.keys() == before[0].kinds.keys()


def test_reader_reads_what_it_says() -> None:
    module, (x,) = reader()
    assert module.data.nbytes == STREAM_BYTES
    assert module(x) is x
    assert np.all(module.data == 1)


def test_it_is_found_by_its_name() -> None:
    assert "ssm" in suites()
    with pytest.raises(UnknownName, match="part"):
        run("ssm", DEVICE, Options(part="mamba3"), lambda *_: None)


@pytest.mark.slow
def test_a_small_group_end_to_end() -> None:
    from costmodel.measure.job import Job

    model = "transformers:mamba-tiny"
    group = (READER, Job(model, "decode", "quamba", seq=16), Job(model, "prefill", "quamba", seq=64))
    found = ssm_suite(DEVICE, groups=[group], processes=1, seconds=0.05)
    assert not found.skipped
    assert [c.mode for c in found.cases] == ["decode", "prefill"]
    assert all("DRAM at" in c.note and (c.measured or 0.0) > 0 for c in found.cases)
