from __future__ import annotations

from typing import Annotated

import typer

from . import _options as o

Epochs = Annotated[int | None, typer.Option("--epochs", min=1, help="Of a training run: price the whole job.")]
Samples = Annotated[int | None, typer.Option("--samples", min=1, help="Of an epoch, with --epochs.")]
Workers = Annotated[int, typer.Option("--workers", min=0, help="Processes that read samples beside the step.")]
SampleSeconds = Annotated[
    float | None,
    typer.Option("--sample-seconds", min=0.0, help="To read one sample; 0: in memory.", show_default="the profile's"),
]
StartSeconds = Annotated[
    float | None,
    typer.Option("--start-seconds", min=0.0, help="Of start-up; 0: it runs already.", show_default="the profile's"),
]
Prompt = Annotated[int | None, typer.Option("--prompt", min=1, help="Tokens read: price a whole request.")]
Cold = Annotated[bool, typer.Option("--cold", help="Count the start-up of the process in a request, too.")]
Generate = Annotated[int | None, typer.Option("--generate", min=1, help="Tokens written, with --prompt.")]


def estimate(
    model: o.ModelName,
    device: o.DeviceName = "host",
    mode: o.Mode = "infer",
    method: o.Method = None,
    batch: o.Batch = 1,
    input_size: o.InputSize = None,
    seq: o.Seq = None,
    dtype: o.Dtype = "float32",
    threads: o.Threads = 1,
    optimizer: o.Optimizer = "sgd",
    allocator: o.Allocator = "default",
    epochs: Epochs = None,
    samples: Samples = None,
    workers: Workers = 0,
    sample_seconds: SampleSeconds = None,
    start_seconds: StartSeconds = None,
    prompt: Prompt = None,
    generate: Generate = None,
    cold: Cold = False,
    runtime: o.RuntimeName = None,
    profile: o.Profile = None,
    strict: o.Strict = False,
    json: o.Json = False,
) -> None:
    """Predict latency, peak memory, FLOPs, bytes and energy of one step on a device, or of a whole job.

    Each predicted figure comes as low - point - high. What has no formula, no source or only a guessed number is
    listed by name. --epochs and --samples make a step of --mode train a fine-tuning run, with reading samples and
    starting up; --prompt and --generate price a request: prefill, and a decode step a token.
    """
    from functools import partial

    from ..errors import CostmodelError
    from ..estimate import estimate as price
    from ..job import Request, TrainingJob, request_of, training_job

    for one, other, names in ((epochs, samples, "--epochs, --samples"), (prompt, generate, "--prompt, --generate")):
        if (one is None) != (other is None):
            raise CostmodelError(f"{names} go together; give both")
    if prompt is not None and (epochs is not None or o.is_trace(model)):
        raise CostmodelError("a request (--prompt, --generate) is no training run, and needs a model, not a trace")
    graph_of = partial(
        o.graph_of, model, method=method, batch=batch, input_size=input_size, dtype=dtype, optimizer=optimizer
    )
    target = o.device_of(device, profile)
    priced = partial(price, device=target, runtime=runtime, threads=threads, strict=strict, allocator=allocator)
    job: TrainingJob | Request | None = None
    if prompt is not None and generate is not None:
        start_s = start_seconds if start_seconds is not None or cold else 0.0
        job = request_of(
            lambda mode, tokens: graph_of(mode=mode, seq=tokens),
            priced, prompt=prompt, generate=generate, start_s=start_s,
        )  # fmt: skip
        step = job.step
    else:
        step = priced(graph_of(mode=mode, seq=seq))
    if epochs is not None and samples is not None:
        job = training_job(
            step, epochs=epochs, samples=samples, workers=workers, sample_s=sample_seconds, start_s=start_seconds
        )
    if json:
        from json import dumps

        print(dumps((step if job is None else job).as_dict()))
        return
    from ..report.text import estimate_table, job_table
    from ._console import console

    if job is not None:
        console().print(job_table(job))
    console().print(estimate_table(step))
