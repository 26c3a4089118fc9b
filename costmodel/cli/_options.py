"""Options with one meaning everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..device import Device
    from ..graph import OpGraph

__all__ = [
    "Allocator", "Batch", "DeviceName", "Dtype", "InputSize", "Json", "Method", "Mode", "ModelName", "Optimizer",
    "Profile", "RuntimeName", "Seq", "Strict", "Threads", "device_of", "graph_of", "is_trace",
]  # fmt: skip

ModelName = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="timm:NAME, torchvision:NAME, transformers:NAME or a folder, path/file.py:function, a .pt2, "
        "or a saved trace (.json.gz). `costmodel models` lists names.",
        show_default=False,
    ),
]
Mode = Annotated[str, typer.Option("--mode", "-m", help="infer, train, prefill or decode.")]
Method = Annotated[
    str | None,
    typer.Option("--method", help="name:key=value,… such as lbp_wht:order=4. `costmodel methods` lists them."),
]
Batch = Annotated[int, typer.Option("--batch", "-b", min=1, help="Samples a step.")]
InputSize = Annotated[str | None, typer.Option("--input-size", help="Of one sample, such as 3x224x224.")]
Seq = Annotated[int | None, typer.Option("--seq", min=1, help="Tokens; with --mode decode, tokens of context.")]
Dtype = Annotated[str, typer.Option("--dtype", help="float32, bfloat16 or float16.")]
Threads = Annotated[int, typer.Option("--threads", "-t", min=1, help="CPU threads.")]
Allocator = Annotated[
    str,
    typer.Option(
        "--allocator",
        help="default (glibc's own: page faults cost time, where the profile has a measured page_fault_s) or pinned.",
    ),
]
Optimizer = Annotated[str, typer.Option("--optimizer", help="sgd, momentum or adamw, with --mode train.")]
DeviceName = Annotated[
    str, typer.Option("--device", "-d", help="A device by name; `costmodel devices` lists them; host is this machine.")
]
Profile = Annotated[
    Path | None, typer.Option("--profile", help="A .toml profile to use instead of a device by name.", metavar="FILE")
]
RuntimeName = Annotated[str | None, typer.Option("--runtime", help="A runtime of the device, such as torch-eager.")]
Strict = Annotated[bool, typer.Option("--strict", help="An op without a formula is an error, not a gap on the report.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]


def is_trace(model: str) -> bool:
    """Whether MODEL is a saved trace."""
    return model.endswith((".json.gz", ".json"))


def device_of(name: str, profile: Path | None) -> Device:
    """The device that the options name."""
    from ..device import load_device

    if profile is None:
        return load_device(name)
    return load_device(profile if profile.suffix == ".toml" else f"{profile}.toml")


def graph_of(
    model: str,
    *,
    mode: str = "infer",
    method: str | None = None,
    batch: int = 1,
    input_size: str | None = None,
    seq: int | None = None,
    dtype: str = "float32",
    optimizer: str = "sgd",
) -> OpGraph:
    """The op graph that MODEL and the options name: loaded if it is a saved trace, else captured now.

    Raises:
        CostmodelError: an option says otherwise than the saved trace.
    """
    from ..errors import CostmodelError

    if is_trace(model):
        from ..graph import load

        graph = load(model)
        asked = {"mode": mode, "method": method, "batch": batch, "dtype": dtype}
        for option, usual in (("mode", "infer"), ("method", None), ("batch", 1), ("dtype", "float32")):
            if asked[option] not in (usual, getattr(graph.meta, option)):
                raise CostmodelError(
                    f"{model} was traced with {option} {getattr(graph.meta, option)}, not {asked[option]}; leave "
                    f"--{option} out, or trace again with it"
                )
        return graph
    from ._progress import working

    with working(f"tracing {model}"):
        from ..measure.job import Job

        return Job(model, mode, method, batch, input_size, seq, dtype, optimizer=optimizer).trace()
