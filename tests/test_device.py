"""Profiles: every shipped one loads and is sourced; a broken one says file, key and fix; boards inherit."""

from __future__ import annotations

from pathlib import Path

import pytest

from costmodel.device import devices, load_device, user_profiles
from costmodel.errors import FileError, UnknownName

GIB = 2**30
REQUIRED = {
    "raspberry-pi-3b-plus", "raspberry-pi-4b", "raspberry-pi-5", "rk3399", "rk3588", "snapdragon-855",
    "jetson-nano", "jetson-tx2", "jetson-xavier-nx", "jetson-agx-xavier", "jetson-orin-nano-8g",
    "jetson-orin-nano-8g-super", "jetson-orin-nx", "jetson-agx-orin", "intel-n100", "i9-10940x",
    "tesla-p100", "tesla-v100", "a100", "h100", "rtx-3090", "rtx-4090", "rtx-a5000",
}  # fmt: skip

BOARD = """
schema = 1
name = "board"
title = "A board"

[[cpu]]
core = "cortex-a72"
cores = { value = 2, kind = "guess", source = "me" }
clock_hz = { value = 2e9, kind = "guess", source = "me" }

[[cpu.cache]]
level = 2
bytes = { value = 524288, kind = "guess", source = "me" }

[memory]
bytes = { value = 1e9, kind = "guess", source = "me" }
reserved_bytes = { value = 1e8, kind = "guess", source = "me" }
read_bytes_per_s = { value = 5e9, kind = "guess", source = "me" }

[runtime.torch-eager]
title = "eager"
engine = "cpu"
overhead_s = { value = 1e-5, kind = "guess", source = "me" }
[runtime.torch-eager.efficiency]
default = { value = 0.5, kind = "guess", source = "me" }
[runtime.torch-eager.interval.default]
low = -0.5
high = 0.5
cases = 0
kind = "guess"
source = "me"

[sources]
me = "written for this test"
"""


@pytest.fixture(autouse=True)
def _no_user_profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COSTMODEL_HOME", str(tmp_path / "home"))


@pytest.fixture
def write(tmp_path: Path):
    def writer(text: str, name: str = "board") -> Path:
        path = tmp_path / f"{name}.toml"
        path.write_text(text)
        return path

    return writer


def test_every_promised_device_is_shipped() -> None:
    assert set(devices()) >= REQUIRED


@pytest.mark.parametrize("name", sorted(devices()))
def test_shipped_profile(name: str) -> None:
    device = load_device(name)
    assert device.name == name
    numbers = device.numbers()
    assert len(numbers) > 15
    for place, number in numbers:
        assert number.source in device.sources, place
    for place, number in numbers:
        if number.kind == "datasheet":  # a datasheet number names its document, not "general knowledge"
            assert "general knowledge" not in device.sources[number.source], place
    for cluster in device.cpu:
        sizes = [level.bytes.value for level in cluster.cache]
        rates = [level.read_bytes_per_s.value for level in cluster.cache if level.read_bytes_per_s]
        assert [level.level for level in cluster.cache] == list(range(1, len(sizes) + 1))
        assert sizes == sorted(sizes)
        assert rates == sorted(rates, reverse=True)
        assert len(rates) == len(sizes)
        assert 0.9e9 <= cluster.clock_hz.value <= 6e9
    assert device.memory.reserved_bytes.value < device.memory.bytes.value
    for runtime in device.runtime.values():
        assert all(0 < share.value <= 1 for share in runtime.efficiency.values())
        assert runtime.engine == "cpu" or device.gpu is not None
        for interval in runtime.interval.values():
            assert interval.source in device.sources
            assert interval.low < 0 < interval.high


def test_the_published_out_of_memory_map() -> None:
    """METHODS.md §4: weights + state against what the two devices can give."""
    nano = load_device("jetson-orin-nano-8g").usable_bytes("gpu")
    parameters, mib = 8237.0e6, 2**20
    state_int8, state_fp16 = 58_720_256 + 2_293_760, 2 * (58_720_256 + 2_293_760)
    assert 15_711 * mib + state_fp16 > nano
    assert parameters + state_int8 > nano
    assert 4037 * mib + state_int8 < nano
    assert 4049 * mib + state_fp16 < nano
    a5000 = load_device("rtx-a5000").usable_bytes("gpu")
    assert a5000 == pytest.approx(23.3 * GIB, rel=1e-3)
    assert 15_711 * mib + 32 * state_fp16 < a5000 < 15_711 * mib + 128 * state_fp16


def test_a_power_mode_changes_only_what_it_says() -> None:
    base, mode = load_device("jetson-orin-nano-8g"), load_device("jetson-orin-nano-8g-super")
    assert mode.gpu is not None
    assert base.gpu is not None
    assert mode.gpu.clock_hz.value == 1.02e9
    assert mode.gpu.sms == base.gpu.sms
    assert mode.memory.bytes == base.memory.bytes
    assert mode.runtime == base.runtime
    assert mode.cpu[0].cores == base.cpu[0].cores
    ratio = mode.cpu[0].clock_hz.value / base.cpu[0].clock_hz.value
    for slow, fast in zip(base.cpu[0].cache, mode.cpu[0].cache):
        assert slow.read_bytes_per_s is not None
        assert fast.read_bytes_per_s is not None
        assert fast.read_bytes_per_s.value == pytest.approx(ratio * slow.read_bytes_per_s.value)


def test_a_board_inherits_its_core_level_by_level(write) -> None:
    device = load_device(write(BOARD))
    cluster = device.cpu[0]
    assert cluster.name == "Cortex-A72"
    assert cluster.flops_per_cycle["fp32"].value == 8
    first, second = cluster.cache
    assert first.bytes.value == 32 * 1024
    assert second.bytes.value == 512 * 1024  # the board's own
    assert second.read_bytes_per_s is not None
    assert second.read_bytes_per_s.value == 8 * 2e9  # the core's, at the board's clock
    assert second.read_bytes_per_s.source in device.sources


@pytest.mark.parametrize(
    ("old", "new", "key", "fix"),
    [
        ("schema = 1", "schema = 0", "schema", "reads 1"),
        ("schema = 1", "schema = 1\ncolour = 'red'", "colour", "not permitted"),
        ("value = 2e9", "value = -2e9", "clock_hz.value", "greater than or equal to 0"),
        ("value = 2e9", "value = nan", "clock_hz.value", ""),
        ("value = 2e9", 'value = "2 GHz"', "clock_hz.value", "number"),
        ('value = 2e9, kind = "guess"', 'value = 2e9, kind = "rumour"', "clock_hz.kind", "'datasheet'"),
        ('value = 2e9, kind = "guess", source = "me"', "value = 2e9", "clock_hz", "required"),
        (
            '5e9, kind = "guess", source = "me"',
            '5e9, kind = "guess", source = "you"',
            "read_bytes_per_s.source",
            "[sources]",
        ),
        ('core = "cortex-a72"', 'core = "cortex-a720"', "cpu.core", "cores/"),
        ('core = "cortex-a72"', 'core = "../cortex-a72"', "cpu.core", "cores/"),
        ("default = {", "gemm = {", "runtime.torch-eager", "efficiency.default is missing"),
        ("interval.default]", "interval.train]", "runtime.torch-eager", "interval.default is missing"),
        ('title = "A board"', 'title = "A board"\nbase = "no-such-board"', "base", "raspberry-pi-4b"),
        ('title = "A board"', 'title = "A board"\nbase = "board"', "base", "itself"),
        ('title = "A board"', 'title = "A board"\ntitle = "twice"', "", "not TOML"),
        ("[sources]", "[sources", "", "not TOML"),
    ],
)  # fmt: skip
def test_a_broken_profile_says_file_key_and_fix(write, old: str, new: str, key: str, fix: str) -> None:
    assert old in BOARD
    path = write(BOARD.replace(old, new, 1))
    with pytest.raises(FileError) as caught:
        load_device(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert key in message
    assert fix in message
    assert "\n" not in message


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no such file"):
        load_device(tmp_path / "nothing.toml")


def test_an_unknown_device_lists_near_names() -> None:
    with pytest.raises(UnknownName) as caught:
        load_device("raspberry-pi-4")
    assert "raspberry-pi-4b" in str(caught.value)


@pytest.mark.parametrize(("given", "meant"), [("pi4", "raspberry-pi-4b"), ("Orin NX", "jetson-orin-nx")])
def test_a_short_name_finds_the_device_that_contains_it(given: str, meant: str) -> None:
    with pytest.raises(UnknownName, match=rf"did you mean .*{meant}"):
        load_device(given)


def test_the_users_profile_comes_first() -> None:
    folder = user_profiles()
    folder.mkdir(parents=True)
    (folder / "raspberry-pi-4b.toml").write_text(BOARD.replace('"board"', '"raspberry-pi-4b"'))
    assert load_device("raspberry-pi-4b").title == "A board"
