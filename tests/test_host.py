"""The detected machine agrees with the system, saved machines of other kinds are read right, peaks are sane."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodel import host, peaks
from costmodel.device import Device, Number, load_device, user_profiles
from costmodel.errors import CostmodelError
from costmodel.toml import dumps


@pytest.fixture(autouse=True)
def _no_user_profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COSTMODEL_HOME", str(tmp_path / "home"))


def lay(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def cpu_files(n: int, khz: int | None, caches: list[tuple[int, str, str, str]], siblings: str = "") -> dict[str, str]:
    base = f"sys/devices/system/cpu/cpu{n}"
    files = {f"{base}/topology/thread_siblings_list": siblings or str(n)}
    if khz:
        files[f"{base}/cpufreq/cpuinfo_max_freq"] = str(khz)
    for i, (level, kind, size, shared) in enumerate(caches):
        where = f"{base}/cache/index{i}"
        files |= {f"{where}/level": str(level), f"{where}/type": kind}
        files |= {f"{where}/size": size, f"{where}/shared_cpu_list": shared}
    return files


ARM = "processor\t: {}\nFeatures\t: {}\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU part\t: {}\n"
MEMINFO = "MemTotal:        8000000 kB\nMemFree: 1 kB\nMemAvailable:    6000000 kB"


def test_this_machine_agrees_with_the_system() -> None:
    device = load_device("host")
    assert device.name == "host"
    first = Path("/sys/devices/system/cpu/cpu0/cache")
    shown = {
        int((i / "level").read_text()): (i / "size").read_text().strip()
        for i in first.glob("index*")
        if (i / "type").read_text().strip() != "Instruction"
    }
    ours = {c.level: c.bytes.value for c in device.cpu[0].cache}
    units = {"K": 1024, "M": 1 << 20}
    assert ours == {level: int(text[:-1]) * units[text[-1]] for level, text in shown.items()}
    assert 1 <= device.cores <= (os.cpu_count() or 1)
    assert device.memory.bytes.value <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < device.usable_bytes("cpu") < device.memory.bytes.value
    assert device.energy is None
    assert "torch-eager" in device.runtime
    for place, number in device.numbers():
        assert number.source in device.sources, place
    if "avx512f" in Path("/proc/cpuinfo").read_text():
        assert device.cpu[0].flops_per_cycle["fp32"].value >= 32


def test_a_big_little_board(tmp_path: Path) -> None:
    files = {"proc/meminfo": MEMINFO, "proc/cpuinfo": ""}
    features = "fp asimd evtstrm aes pmull sha1 sha2 crc32"
    text = []
    for n in range(6):
        little = n < 4
        shared = "0-3" if little else "4-5"
        size = "512K" if little else "1024K"
        levels = [(1, "Data", "32K", str(n)), (1, "Instruction", "32K", str(n)), (2, "Unified", size, shared)]
        files |= cpu_files(n, 1_416_000 if little else 1_800_000, levels)
        text.append(ARM.format(n, features, "0xd03" if little else "0xd08"))
    files["proc/cpuinfo"] = "\n".join(text)
    device = host.detect(lay(tmp_path, files))
    assert [(c.name, c.cores.value, c.clock_hz.value) for c in device.cpu] == [
        ("cortex-a72", 2, 1.8e9),
        ("cortex-a53", 4, 1.416e9),
    ]
    fast = device.cpu[0]
    assert [(c.level, c.bytes.value, c.cores.value if c.cores else 0) for c in fast.cache] == [
        (1, 32768, 1),
        (2, 1048576, 2),
    ]
    assert fast.flops_per_cycle["fp32"].value == 8
    assert "fp16" not in fast.flops_per_cycle
    assert device.memory.bytes.value == 8_000_000 * 1024
    assert device.usable_bytes("cpu") == 6_000_000 * 1024


def test_an_arm_core_that_nobody_described_goes_by_its_features(tmp_path: Path) -> None:
    features = "fp asimd asimdhp asimddp i8mm bf16"
    files = {"proc/cpuinfo": ARM.format(0, features, "0xfff"), "proc/meminfo": MEMINFO}
    files |= cpu_files(0, 3_000_000, [(1, "Data", "64K", "0")])
    core = host.detect(lay(tmp_path, files)).cpu[0]
    assert core.name == "0xfff"
    flops = {unit: number.value for unit, number in core.flops_per_cycle.items()}
    assert flops == {"fp32": 16, "fp64": 8, "fp16": 32, "bf16": 64, "int8": 128}


@pytest.mark.parametrize(
    ("vendor", "family", "flags", "fp32", "int8", "bf16"),
    [
        ("GenuineIntel", "6", "sse2 avx avx2 fma avx512f avx512_vnni", 64, 256, None),
        ("AuthenticAMD", "25", "sse2 avx avx2 fma avx512f avx512_vnni avx512_bf16", 32, 128, 64),
        ("AuthenticAMD", "26", "sse2 avx avx2 fma avx512f avx512_vnni avx512_bf16", 64, 256, 128),
        ("GenuineIntel", "6", "sse2 avx avx2 fma avx_vnni", 32, 128, None),
        ("GenuineIntel", "6", "sse2 avx avx2 fma", 32, 64, None),
        ("GenuineIntel", "6", "sse2", 8, None, None),
    ],
)
def test_x86_units(
    tmp_path: Path, vendor: str, family: str, flags: str, fp32: float, int8: float | None, bf16: float | None
) -> None:
    block = (
        "processor\t: {}\nvendor_id\t: {}\ncpu family\t: {}\nmodel name\t: Chip\ncpu MHz\t\t: 2500.5\nflags\t\t: {}\n"
    )
    levels = [(1, "Data", "48K", "0,2"), (2, "Unified", "2048K", "0,2"), (3, "Unified", "30M", "0-3")]
    files = {"proc/cpuinfo": "\n".join(block.format(n, vendor, family, flags) for n in range(4))}
    for n in range(4):  # two cores of two threads
        files |= cpu_files(n, None, levels, siblings=("0,2", "1,3")[n % 2])
    device = host.detect(lay(tmp_path, files | {"proc/meminfo": MEMINFO}))
    (core,) = device.cpu
    assert core.cores.value == 2
    assert core.clock_hz.value == 2500.5e6
    assert core.clock_hz.kind == "guess"
    assert [c.cores.value for c in core.cache if c.cores] == [1, 1, 2]
    assert {u: n.value for u, n in core.flops_per_cycle.items()} == {
        k: v for k, v in {"fp32": fp32, "fp64": fp32 / 2, "bf16": bf16, "int8": int8}.items() if v
    }


def test_a_container_has_the_memory_of_its_limit(tmp_path: Path) -> None:
    files = {"proc/cpuinfo": ARM.format(0, "asimd", "0xd08"), "proc/meminfo": MEMINFO}
    files |= cpu_files(0, 1_500_000, [(1, "Data", "32K", "0")])
    files |= {"sys/fs/cgroup/memory.max": str(1 << 30), "sys/fs/cgroup/memory.current": str(1 << 28)}
    device = host.detect(lay(tmp_path, files))
    assert device.memory.bytes.value == 1 << 30
    assert device.usable_bytes("cpu") == (1 << 30) - (1 << 28)


def test_another_system_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(CostmodelError, match="needs Linux on x86-64 or 64-bit Arm; write a profile"):
        host.detect(tmp_path)


@pytest.fixture(scope="module")
def measured() -> dict[str, float]:
    device = host.detect()
    return {key: number.value for key, number in host.quick_peaks(device, seconds=0.05).items()}


def test_peaks_are_sane(measured: dict[str, float]) -> None:
    levels = [f"L{c.level}" for c in host.detect().cpu[0].cache]
    assert set(measured) == {"fp32_flops_per_s", "page_fault_s"} | {
        f"{level}_{way}_bytes_per_s" for level in (*levels, "dram") for way in ("read", "write")
    }
    assert 1e9 < measured["fp32_flops_per_s"] < 1e12
    assert measured["L1_read_bytes_per_s"] > measured["dram_read_bytes_per_s"] > 2e8
    with pytest.raises(CostmodelError, match="measure 1 to"):
        host.quick_peaks(host.detect(), threads=10_000)


def test_multiply_adds_really_run() -> None:
    """x ← x/2 + 1/2 has the fixed point 1: twelve accumulators of it sum to 12."""
    assert peaks._multiply_add(2000) == pytest.approx(12.0)
    data = peaks._aligned(1000)
    assert data.ctypes.data % 64 == 0
    assert peaks._read(data, 1) == int(data.sum())
    peaks._write(data, 2)
    assert data.tolist() == list(range(1, 1001))


def test_a_measured_host_is_written_and_found(measured: dict[str, float]) -> None:
    device = host.detect()
    peak = {k: device.memory.bytes.model_copy(update={"value": v, "source": "peaks"}) for k, v in measured.items()}
    calibrated = host.with_peaks(device, peak)
    assert calibrated.cpu[0].clock_hz.source == "peaks"
    path = host.write_host_profile(calibrated)
    assert path.name == "host.toml"
    assert load_device("host") == calibrated
    again = load_device("host")
    reached = again.cpu[0].clock_hz.value * again.cpu[0].flops_per_cycle["fp32"].value
    assert reached == pytest.approx(measured["fp32_flops_per_s"])
    assert not list(path.parent.glob(".*"))


@pytest.mark.parametrize("name", ["raspberry-pi-4b", "jetson-orin-nano-8g-super", "i9-10940x", "rtx-a5000"])
def test_every_profile_survives_writing(name: str, tmp_path: Path) -> None:
    device = load_device(name)
    assert load_device(host.write_host_profile(device, tmp_path / f"{name}.toml")) == device


plain = st.text() | st.integers(-(2**63), 2**63 - 1) | st.booleans() | st.floats(allow_nan=False)
documents = st.dictionaries(
    st.text(),
    st.recursive(
        plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=12
    ),
    max_size=5,
)


@given(documents)
def test_toml_reads_back_equal(document: dict) -> None:
    assert tomllib.loads(dumps(document)) == document
    with pytest.raises(TypeError, match="no form for"):
        dumps({"a": {1}})


# A calibration is of one torch on one processor


@pytest.fixture
def calibrated(monkeypatch: pytest.MonkeyPatch) -> Device:
    """The shipped profile of the Zen 4 machine as this machine's own calibration, made by torch 2.0 on a Zen 9."""
    zen = load_device("epyc-zen4-vm-2c")
    runtime = zen.runtime["torch-eager"]
    fits = tuple(f.model_copy(update={"torch": "2.0", "cpu": "Zen 9"}) for f in runtime.fit)
    own = zen.model_copy(
        update={
            "name": "host", "runtime": {"torch-eager": runtime.model_copy(update={"fit": fits})},
        }
    )  # fmt: skip
    host.write_host_profile(own)
    monkeypatch.setattr(host, "_installed_torch", lambda: "2.0")
    monkeypatch.setattr(host, "cpu_name", lambda: "Zen 9")
    monkeypatch.delenv(host.ALLOW_FOREIGN, raising=False)
    return load_device("host")


def test_a_calibration_of_this_machine_is_used_as_it_is(calibrated: Device) -> None:
    assert calibrated.name == "host"
    assert calibrated.runtime["torch-eager"].interval["default"].source != "foreign"


@pytest.mark.parametrize(
    ("torch", "cpu", "said", "wider"),
    [
        ("2.1", "Zen 9", r"made with torch 2\.0, here is 2\.1: run `costmodel calibrate` again", 0.2),
        ("2.0", "Zen 4", r"made with Zen 9, here is Zen 4: run", 0.7),
        ("2.1", "Zen 4", r"made with torch 2\.0, here is 2\.1; Zen 9, here is Zen 4: run", 0.9),
        ("", "Zen 4", r"made with Zen 9, here is Zen 4: run", 0.7),
    ],
)
def test_a_calibration_of_another_torch_or_processor_is_refused_or_wider(
    calibrated: Device, monkeypatch: pytest.MonkeyPatch, torch: str, cpu: str, said: str, wider: float
) -> None:
    monkeypatch.setattr(host, "_installed_torch", lambda: torch)
    monkeypatch.setattr(host, "cpu_name", lambda: cpu)
    with pytest.raises(CostmodelError, match=said):
        load_device("host")
    monkeypatch.setenv(host.ALLOW_FOREIGN, "1")
    allowed = load_device("host")
    for key, usual in calibrated.runtime["torch-eager"].interval.items():
        interval = allowed.runtime["torch-eager"].interval[key]
        assert interval.low == pytest.approx(usual.low - wider)
        assert interval.high == pytest.approx(usual.high + wider)
        assert interval.kind == "guess"
        assert "Zen 9" in allowed.sources[interval.source] or "2.0" in allowed.sources[interval.source]
    assert allowed.runtime["torch-eager"].fit == calibrated.runtime["torch-eager"].fit


def test_without_torch_and_by_another_name_nothing_is_refused(
    calibrated: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "_installed_torch", lambda: "")
    assert load_device("host") == calibrated, "no torch is not another torch"
    monkeypatch.setattr(host, "_installed_torch", lambda: "3.0")
    monkeypatch.setattr(host, "cpu_name", lambda: "Zen 1")
    assert load_device("epyc-zen4-vm-2c").runtime["torch-eager"].fit
    assert load_device(user_profiles() / "host.toml").name == "host", "by its path it is of the machine it was made on"


def test_the_flag_is_said_before_the_command(calibrated: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "cpu_name", lambda: "Zen 1")
    from typer.testing import CliRunner

    from costmodel.cli import app

    trace = str(Path(__file__).parents[1] / "traces" / "mobilenet-v3-small-train-b8.json.gz")
    refused = CliRunner().invoke(app, ["estimate", trace, "--device", "host", "--json"])
    assert isinstance(refused.exception, CostmodelError)
    monkeypatch.setenv(host.ALLOW_FOREIGN, "")  # so that what the flag sets is undone after the test
    allowed = CliRunner().invoke(app, ["--allow-foreign-calibration", "estimate", trace, "--device", "host", "--json"])
    assert allowed.exit_code == 0, allowed.output
    assert CliRunner().invoke(app, ["devices"]).exit_code == 0


def test_a_level_is_not_slower_than_the_one_behind_it() -> None:
    """As happens where a neighbour disturbs one of ten measurements."""
    detected = host.detect()
    levels = [f"L{c.level}" for c in detected.cpu[0].cache]
    rates = {f"{name}_{way}_bytes_per_s": 1e11 / (i + 1) for i, name in enumerate(levels) for way in ("read", "write")}
    rates |= {f"dram_{way}_bytes_per_s": 1e10 for way in ("read", "write")}
    rates |= {"fp32_flops_per_s": 1e11, "L1_read_bytes_per_s": 2e10}
    one = {key: Number(value=value, kind="measured", source="peaks") for key, value in rates.items()}
    found = [c.read_bytes_per_s.value for c in host.with_peaks(detected, one).cpu[0].cache if c.read_bytes_per_s]
    assert found == sorted(found, reverse=True)
    assert found[0] == found[1] == 5e10
