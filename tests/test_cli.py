"""The command line: help that teaches, one line and status 2 for what the user can put right, JSON as promised."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from contextlib import ExitStack, chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import pytest
from typer.testing import CliRunner

from costmodel.cli import app, main
from costmodel.device import devices, load_device
from costmodel.estimate import estimate
from costmodel.graph import load

from .fuzz.fuzz import graph as hand_made

COMMANDS = sorted(c.name or "" for c in app.registered_commands)
runner = CliRunner()


def plain(text: str) -> str:
    """Without colours, boxes and line breaks that a terminal's width made."""
    return re.sub(r"[\s│╭╮╰╯─]+", " ", re.sub(r"\x1b\[[0-9;]*m", "", text))


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return hand_made().save(tmp_path / "hand.json.gz")


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def cli(*arguments: str, cwd: Path | None = None) -> Done:
    """The command line as `main` runs it, in this process: a fresh one would spend its time on importing torch."""
    out, err = io.StringIO(), io.StringIO()
    status = 0
    with ExitStack() as stack:
        stack.enter_context(patch.object(sys, "argv", ["costmodel", *arguments]))
        stack.enter_context(redirect_stdout(out))
        stack.enter_context(redirect_stderr(err))
        if cwd is not None:
            stack.enter_context(chdir(cwd))
        try:
            main()
        except SystemExit as leaving:
            status = int(leaving.code or 0)
    return Done(status, out.getvalue(), err.getvalue())


def fresh(*arguments: str, code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A process of its own in which `code` runs before the command line does."""
    root = str(Path(__file__).parents[1])
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))}
    program = f"import sys\n{code}\nsys.argv[0] = 'costmodel'\nfrom costmodel.cli import main\nmain()"
    return subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, env=env, cwd=cwd)


def fails(*arguments: str, cwd: Path | None = None) -> str:
    """The one line that a command says when it cannot: status 2, nothing on stdout, no traceback."""
    done = cli(*arguments, cwd=cwd)
    assert done.returncode == 2, (done.returncode, done.stderr[-500:])
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("costmodel: ")
    return lines[0]


# Help


def test_every_command_of_the_design_is_there() -> None:
    promised = {
        "trace", "estimate", "measure", "calibrate", "validate", "pareto", "check", "compare", "report", "demo",
        "devices", "methods", "models",
    }  # fmt: skip
    assert promised <= set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches(command: str) -> None:
    done = runner.invoke(app, [command, "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert done.exit_code == 0
    text = plain(done.output)
    assert len(text) > 120
    about = next(c for c in app.registered_commands if c.name == command).callback
    first = plain((about.__doc__ or "").strip().splitlines()[0])
    assert first, f"{command} has no description"
    assert first[:50] in text
    options = re.findall(r"(--[a-z-]+)", text)
    assert "--help" in options


def test_help_starts_with_what_to_type() -> None:
    done = runner.invoke(app, ["--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert done.exit_code == 0
    assert "costmodel estimate timm:mobilenetv2_100 --mode train" in plain(done.output)
    for command in COMMANDS:
        assert command in done.output


def test_options_mean_the_same_everywhere() -> None:
    """An option with one name has one help text, whatever the command."""
    import typer.main

    texts: dict[str, set[str]] = {}
    group = typer.main.get_command(app)
    for name in ("estimate", "trace", "measure", "compare", "validate", "pareto", "calibrate"):
        for parameter in group.commands[name].params:  # type: ignore[attr-defined]
            for option in parameter.opts:
                if option in ("--mode", "--batch", "--input-size", "--seq", "--dtype", "--optimizer", "--runtime"):
                    texts.setdefault(option, set()).add(parameter.help or "")
    assert texts
    assert {option: t for option, t in texts.items() if len(t) != 1} == {}


def test_version() -> None:
    import costmodel

    done = runner.invoke(app, ["--version"])
    assert done.exit_code == 0
    assert done.output.strip() == f"costmodel {costmodel.__version__}"


# Errors: one line, status 2, the fix

PI = ("-d", "raspberry-pi-4b")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["estimate", "TRACE", "--device", "raspberry-pi4b"], r"no device named .*did you mean raspberry-pi-4b"),
        (["estimate", "TRACE", *PI, "--runtime", "eager"], r"no runtime of raspberry-pi-4b named 'eager'"),
        (["estimate", "TRACE", *PI, "--threads", "64"], r"raspberry-pi-4b has 4 cores"),
        (["estimate", "none.json.gz", *PI], r"none\.json\.gz: no such file"),
        (["estimate", "TRACE", "--profile", "none.toml"], r"none\.toml: no such file"),
        (["devices", "pi"], r"no device named 'pi'"),
        (["check", "--budget", "none.toml"], r"none\.toml: no such file"),
        (["pareto"], r"say which points: --family irb\|vit\|ssm, or --points table\.csv"),
        (["pareto", "--points", "none.csv"], r"none\.csv: no such file"),
        (["validate"], r"say what to validate against: --suite .* or --against runs\.csv"),
        (["validate", "--suite", "quik"], r"no suite named 'quik'; did you mean quick"),
        (["calibrate", "--from", "runs.csv"], r"--from needs --device"),
        (["estimate", "mobilenet-v3-smal", *PI], r"no model named .*did you mean .*mobilenet-v3-small"),
        (["estimate", "nope.py:f", *PI], r"nope\.py: no such file"),
        (["estimate", "mlp-small", "--mode", "trian", *PI], r"no mode named 'trian'; did you mean train"),
        (["estimate", "mlp-small", "--method", "lbp_wht:ordr=4", *PI], r"order"),
        (["estimate", "mlp-small", "--method", "lbpwht", *PI], r"no method named 'lbpwht'; did you mean lbp_wht"),
        (["trace", "mlp-small", "-o", "/proc/none/t.json.gz"], r"cannot be written"),
        (["trace", "mlp-small", "-o", "."], r"cannot be written \(it is a folder\)"),
        (["trace", "mlp-small", "-o", "/dev/full"], r"/dev/full: cannot be written \(No space left"),
        (["estimate", "mlp-small", "--batch", "999999999999", *PI], r"mlp-small cannot be built as asked: .*memory"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)  # fmt: skip
def test_what_the_user_can_put_right(arguments: list[str], message: str, trace: Path, tmp_path: Path) -> None:
    said = fails(*(str(trace) if a == "TRACE" else a for a in arguments), cwd=tmp_path)
    assert re.search(message, said), said
    assert [p.name for p in tmp_path.iterdir()] == [trace.name], "nothing is half-written"


def test_a_file_that_leaves_is_no_silence(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("import sys\nsys.exit('usage: script FILE')\n")
    assert "script.py: raised SystemExit when imported: usage" in fails("estimate", "script.py:f", *PI, cwd=tmp_path)


def test_a_device_is_written_to_and_stays_one(trace: Path) -> None:
    from costmodel.graph import write_atomic

    write_atomic("/dev/null", b"gone")
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize(
    "arguments",
    [["estimate"], ["estimate", "x", "--batch", "0"], ["estimate", "x", "--nope"], ["nope"], ["trace", "x"], ["check"]],
)
def test_usage_errors_exit_2(arguments: list[str]) -> None:
    done = runner.invoke(app, arguments)
    assert done.exit_code == 2
    assert "Traceback" not in done.output


BLOCK = """
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
"""


@pytest.mark.parametrize(
    ("missing", "arguments", "extra"),
    [
        (("torch",), ["estimate", "mlp-small", "-d", "raspberry-pi-4b"], "torch"),
        (("timm",), ["estimate", "timm:resnet18", "-d", "raspberry-pi-4b"], "models"),
        (("transformers",), ["estimate", "transformers:bert-small", "-d", "raspberry-pi-4b"], "models"),
        (("plotly", "jinja2"), ["pareto", "--points", "POINTS", "-d", "raspberry-pi-4b", "-o", "out"], "report"),
    ],
)
def test_a_missing_extra_says_the_pip_command(
    missing: tuple[str, ...], arguments: list[str], extra: str, trace: Path, tmp_path: Path
) -> None:
    table = tmp_path / "mine.csv"
    table.write_text(f"name,accuracy,model\ngood,0.9,{trace}\n")
    done = fresh(
        *(str(table) if a == "POINTS" else a for a in arguments), code=BLOCK.format(names=missing), cwd=tmp_path
    )
    assert done.returncode == 2, done.stderr[-600:]
    assert f"pip install 'costmodel[{extra}]'" in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and p not in (table, trace)]


# What is printed


def test_estimate_json_is_the_estimate(trace: Path) -> None:
    done = cli("estimate", str(trace), "--device", "raspberry-pi-4b", "--threads", "2", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == estimate(load(trace), load_device("raspberry-pi-4b"), threads=2).as_dict()


def test_trace_then_estimate_is_estimate(tmp_path: Path) -> None:
    made = tmp_path / "deep" / "mlp.json.gz"
    done = cli("trace", "mlp-small", "--mode", "train", "--batch", "3", "-o", str(made))
    assert done.returncode == 0, done.stderr
    assert str(made) in done.stdout
    assert re.search(r"\d+ ops", done.stdout)
    options = ("--device", "raspberry-pi-5", "--json")
    saved = cli("estimate", str(made), *options)
    direct = cli("estimate", "mlp-small", "--mode", "train", "--batch", "3", *options)
    assert json.loads(saved.stdout) == json.loads(direct.stdout)
    assert json.loads(saved.stdout)["batch"] == 3


def test_a_device_shows_every_number_with_its_source() -> None:
    done = cli("devices", "raspberry-pi-4b")
    assert done.returncode == 0
    text = plain(done.stdout)
    board = load_device("raspberry-pi-4b")
    assert "raspberry-pi-4b" in text
    for kind in {n.kind for _, n in board.numbers()}:
        assert kind in text
    for key in {n.source for _, n in board.numbers()}:
        assert plain(board.sources[key]).split()[0][:12] in text


def test_lists(capsys: pytest.CaptureFixture[str]) -> None:
    text = plain(runner.invoke(app, ["devices"], env={"COLUMNS": "200"}).output)
    for name in ("raspberry-pi-4b", "raspberry-pi-5", "jetson-nano", "jetson-orin-nano-8g", "rtx-a5000", "i9-10940x"):
        assert name in text
    assert "host" in text
    text = runner.invoke(app, ["models", "own"]).output
    assert "mlp-small" in text.split()
    assert runner.invoke(app, ["models", "own", "--search", "mlp"]).output.split() == ["mlp-small"]
    text = plain(runner.invoke(app, ["methods"], env={"COLUMNS": "200"}).output)
    for name in ("lbp_wht", "mobiletl", "quamba", "quamba2", "full", "last_layer"):
        assert name in text


@pytest.mark.parametrize(
    ("limit", "status"), [("60 s", 0), ("1 ns", 1), ("nonsense", 2)], ids=["within", "over", "broken"]
)
@pytest.mark.parametrize("format", ["text", "github"])
def test_check_exits_by_the_verdict(limit: str, status: int, format: str, trace: Path, tmp_path: Path) -> None:
    budget = tmp_path / "budget.toml"
    budget.write_text(
        f'schema = 1\n[[budget]]\nmodel = "{trace}"\ndevice = "raspberry-pi-4b"\nmode = "train"\nbatch = 4\n'
        f'latency = "{limit}"\n'
    )
    done = cli("check", "--budget", str(budget), "--format", format)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    if status == 2:
        assert "budget.0.latency" in done.stderr
    if status == 1 and format == "github":
        assert done.stdout.startswith("::")


def test_a_limit_that_cannot_be_tested_is_2(trace: Path, tmp_path: Path) -> None:
    without = next(d for d in devices() if load_device(d).energy is None)
    budget = tmp_path / "budget.toml"
    budget.write_text(
        f'schema = 1\n[[budget]]\nmodel = "{trace}"\ndevice = "{without}"\nmode = "train"\nbatch = 4\nenergy = "9 J"\n'
    )
    assert cli("check", "--budget", str(budget)).returncode == 2


def test_points_of_your_own_make_a_front(trace: Path, tmp_path: Path) -> None:
    table = tmp_path / "mine.csv"
    table.write_text(f"name,accuracy,model\ngood,0.9,{trace}\nworse,0.8,{trace}\n")
    done = cli("pareto", "--points", str(table), "-d", "raspberry-pi-4b", "-o", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert "good" in done.stdout
    assert {p.suffix for p in (tmp_path / "out").iterdir()} == {".html", ".png"}


def test_a_closed_pipe_is_no_traceback(trace: Path) -> None:
    command = f"{sys.executable} -m costmodel estimate {trace} -d raspberry-pi-4b | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [("--batch", "16", "batch 8, not 16"), ("--mode", "prefill", "mode train, not prefill")],
)
def test_a_trace_is_not_priced_as_what_it_is_not(option: str, value: str, said: str) -> None:
    trace = str(Path(__file__).parents[1] / "traces/mobilenet-v3-small-train-b8.json.gz")
    assert said in fails("estimate", trace, "--device", "raspberry-pi-4b", option, value)
    assert cli("estimate", trace, "--device", "raspberry-pi-4b", "--batch", "8", "--mode", "train").returncode == 0
