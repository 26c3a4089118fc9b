"""Tracing a training step beside `FlopCounterMode` under fake tensors: ``python tests/benchmarks/bench_trace.py``.

Both copy the model onto fake tensors, run forward, loss, backward and optimizer, and count. Bar: 1.5 times as long.
"""

from __future__ import annotations

import statistics
import sys
import time
from typing import Any

from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from costmodel.capture import capture
from costmodel.fakes import fake_inputs, fake_model
from costmodel.models import load_model
from costmodel.models.step import as_call, make_step

MODELS = (
    ("timm:mobilenetv2_100,num_classes=10", {"batch": 2}),
    ("timm:vit_small_patch16_224,num_classes=10", {"batch": 2}),
    ("timm:resnet18,num_classes=10", {"batch": 2}),
    ("transformers:bert-small", {"batch": 2, "seq": 128}),
)
REPEATS = 5


def count_flops(model: Any, inputs: Any) -> None:
    """A step under torch's counter, on fake tensors."""
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    faked = fake_inputs(as_call(inputs), fake)
    copied = fake_model(model, fake)
    with fake:
        step = make_step(copied, faked, mode="train")
        with FlopCounterMode(display=False):
            step.run()


def main() -> None:
    wanted = sys.argv[1:]
    print(f"training step, sgd, {REPEATS} repeats, interleaved; seconds")
    print(f"{'':44s}{'ops':>7s}{'ours':>8s}{'min':>8s}{'counter':>9s}{'min':>8s}{'ratio':>7s}{'of min':>8s}")
    for name, options in MODELS:
        if wanted and not any(w in name for w in wanted):
            continue
        loaded = load_model(name, mode="train", **options)  # type: ignore[arg-type]
        inputs = loaded.inputs
        ops = len(capture(loaded.model, inputs, mode="train"))
        count_flops(loaded.model, inputs)
        ours, theirs = [], []
        for _ in range(REPEATS):
            t0 = time.perf_counter()
            capture(loaded.model, inputs, mode="train")
            t1 = time.perf_counter()
            count_flops(loaded.model, inputs)
            t2 = time.perf_counter()
            ours.append(t1 - t0)
            theirs.append(t2 - t1)
        ratio = statistics.median(a / b for a, b in zip(ours, theirs))
        print(
            f"{name:44s}{ops:7,d}{statistics.median(ours):8.3f}{min(ours):8.3f}{statistics.median(theirs):9.3f}"
            f"{min(theirs):8.3f}{ratio:7.2f}{min(ours) / min(theirs):8.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
