"""What a notebook shows: each type as a fragment of HTML, well formed, without script or network; shells register it.

A real IPython shell is used where one is installed; the protocol that it calls is tested without it, too.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from costmodel.job import training_job
from costmodel.jupyter import SHOWN, load_ipython_extension

from . import report_cases as cases

TRACE = Path(__file__).resolve().parents[1] / "traces" / "mobilenet-v3-small-train-b8.json.gz"


class Formatter:
    def __init__(self) -> None:
        self.found: dict[tuple[str, str], Callable[[Any], str]] = {}

    def for_type_by_name(self, module: str, name: str, call: Callable[[Any], str]) -> None:
        self.found[module, name] = call


class Shell:
    def __init__(self) -> None:
        self.html = Formatter()
        self.display_formatter = self
        self.formatters = {"text/html": self.html}


def examples() -> dict[str, Any]:
    return {
        "OpGraph": cases.graph(),
        "Estimate": cases.train_estimate(),
        "TrainingJob": training_job(cases.train_estimate(), epochs=2, samples=100),
        "Validation": cases.validation(),
        "Front": cases.fronts()[0],
        "Comparison": cases.comparison(),
    }


@pytest.mark.parametrize("name", list(examples()))
def test_a_shell_is_given_html_of_each_type(name: str) -> None:
    shell = Shell()
    load_ipython_extension(shell)
    what = examples()[name]
    text = shell.html.found[SHOWN[name], name](what)
    root = ET.fromstring(re.sub(r"<details open>", '<details open="">', text))
    assert root.tag == "div"
    assert next(root.iter("table"), None) is not None
    assert "<script" not in text
    assert "http" not in text
    assert next(root.itertext()).strip(), "it begins with a sentence"


def test_every_type_that_is_shown_exists_by_that_name() -> None:
    for name, module in SHOWN.items():
        kind = getattr(import_module(module), name)
        assert (kind.__module__, kind.__qualname__) == (module, name), "IPython looks a type up by these"


def test_registering_imports_nothing_heavy() -> None:
    script = (
        "import sys, types\n"
        "import costmodel.jupyter as j\n"
        "class F:\n"
        "    def for_type_by_name(self, *a): pass\n"
        "shell = types.SimpleNamespace(display_formatter=types.SimpleNamespace(formatters={'text/html': F()}))\n"
        "j.load_ipython_extension(shell)\n"
        "assert not {'torch', 'numba', 'numpy', 'plotly'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


@pytest.mark.skipif(find_spec("IPython") is None, reason="IPython is not installed: pip install ipython brings it")
def test_a_real_shell_shows_them_after_an_import() -> None:
    script = f"""
import json, warnings
warnings.simplefilter("ignore")
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
import costmodel as cm
from costmodel.validate import validate
graph = cm.load({str(TRACE)!r})
step = cm.estimate(graph, cm.load_device("raspberry-pi-4b"))
format = shell.display_formatter.format
shown = [format(x)[0].get("text/html", "") for x in (graph, step, cm.training_job(step, epochs=1, samples=8))]
print(json.dumps([len(text) for text in shown]), all(text.startswith("<div") for text in shown))
"""
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert said.returncode == 0, said.stderr
    lengths, _, right = said.stdout.strip().splitlines()[-1].rpartition(" ")
    assert right == "True"
    assert min(json.loads(lengths)) > 500
