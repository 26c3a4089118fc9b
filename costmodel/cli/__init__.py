"""The command line: a file a command; the only place that prints.

Heavy imports are inside the commands, so that ``costmodel --help`` and ``costmodel estimate TRACE`` stay quick.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pkgutil import iter_modules

import typer

from ..errors import CostmodelError, MissingExtra

__all__ = ["app", "main"]

app = typer.Typer(
    name="costmodel",
    help=(
        "What a PyTorch model will cost on an edge device, before you deploy it: latency, peak memory, FLOPs, bytes "
        "and energy, for inference, a training step, or quantized generation.\n\n"
        "Start with:  costmodel estimate timm:mobilenetv2_100 --mode train --batch 8 --device raspberry-pi-4b"
    ),
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# A command is a file of this folder with a function of the same name; files that start with _ serve them.
_ORDER = ("estimate", "trace", "measure", "validate", "calibrate", "pareto", "check", "compare", "report", "demo")
for _name in sorted(
    (m.name for m in iter_modules(__path__) if not m.name.startswith("_")),
    key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name),
):
    app.command(_name)(getattr(import_module(f".{_name}", __name__), _name))


@app.callback(invoke_without_command=True)
def _before_all(
    version: bool = typer.Option(False, "--version", help="Print the version and leave."),
    allow_foreign_calibration: bool = typer.Option(
        False,
        "--allow-foreign-calibration",
        help="Use a calibration of this machine that another torch or processor made, with wider intervals.",
    ),
) -> None:
    if allow_foreign_calibration:
        from ..host import ALLOW_FOREIGN

        os.environ[ALLOW_FOREIGN] = "1"
    if version:
        from .. import __version__

        print(f"costmodel {__version__}")
        raise typer.Exit


# What a command may need and a light install does not bring, by the extra that does.
_EXTRAS = {
    "torch": "torch", "safetensors": "torch", "timm": "models", "torchvision": "models", "transformers": "models",
    "matplotlib": "report", "plotly": "report", "jinja2": "report", "pandas": "report", "sklearn": "tasks",
    "onnx": "onnx",
}  # fmt: skip


def main() -> None:
    """Run the command line: one line and status 2 for what the user can put right."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        app()
    except CostmodelError as error:
        print(f"costmodel: {error}", file=sys.stderr)
        sys.exit(2)
    except ModuleNotFoundError as error:
        library = str(error.name).partition(".")[0]
        if library not in _EXTRAS:
            raise
        print(f"costmodel: {MissingExtra(library, _EXTRAS[library])}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # `costmodel … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:  # a full disk, a folder that may not be read, a file that went away
        where = f"{error.filename}: " if error.filename else ""
        print(f"costmodel: {where}{error.strerror or error}", file=sys.stderr)
        sys.exit(2)
    except MemoryError:
        print("costmodel: this machine's memory is full; take a smaller batch, size or model", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("costmodel: interrupted", file=sys.stderr)
        sys.exit(130)
