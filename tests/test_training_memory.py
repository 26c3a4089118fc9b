"""Peak and saved bytes of LBP-WHT and MobileTL on real steps: below the exact layer's, and as the formulas say."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import costmodel as cm
from costmodel.costs import op as spec_of
from costmodel.costs.lbp_wht import lbp_wht_backward as price
from costmodel.kernels.lbp_wht import lbp_wht_backward
from costmodel.kernels.wht import Tiling, project, select_bases
from costmodel.measure.memory import measure_live_peak
from costmodel.methods import apply_method
from costmodel.models.load import load_model
from costmodel.models.step import make_step


def allocated_peak(run) -> int:
    """The most bytes that torch's allocator gave out at once while `run` ran, above what was there before."""
    run()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        kept = run()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    del kept
    return peak


SHAPES = [
    # images, grid, prefix, inputs, outputs, order
    (32, (16, 16), 0, 384, 1536, 3),
    (32, (16, 16), 0, 384, 1536, 6),
    (8, (14, 14), 0, 384, 1536, 8),
    (1, (14, 14), 0, 384, 1536, 6),
    (4, (14, 14), 1, 192, 576, 4),
    (8, (7, 7), 0, 448, 1792, 8),
    (8, (7, 7), 0, 1792, 448, 4),
    (2, (12, 20), 0, 96, 288, 4),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("convolution", [False, True])
def test_backward_takes_what_its_price_says_and_little_more_than_its_outputs(shape, convolution):
    images, grid, prefix, inputs, outputs, order = shape
    if convolution and prefix:
        pytest.skip("a map has no class token")
    t = Tiling(grid, prefix, 8, select_bases(order, "l1", 8), "zero")
    x, g, w = (
        torch.randn(images, t.tokens, inputs),
        torch.randn(images, t.tokens, outputs),
        torch.randn(outputs, inputs),
    )
    x_hat = project(x, t, mean=False)
    if convolution:
        g, w = g.transpose(1, 2).reshape(images, outputs, *grid).contiguous(), w.view(outputs, inputs, 1, 1)
    mask = [True, True, False]
    results = 4 * (x.numel() + w.numel())
    peak = allocated_peak(lambda: lbp_wht_backward(g, x_hat, w, *t, mask))
    made = spec_of("costmodel::lbp_wht_backward", [g.shape, x_hat.shape, w.shape], [], **t._asdict(), mask=mask)
    assert peak == results + price(made).workspace
    spared = 4 * inputs * images * (t.tokens - prefix - t.tiles * t.rank)
    assert peak - results <= max(spared, 0)  # what is kept less than by the exact layer pays for it


class Mlp(nn.Module):
    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.first, self.act = nn.Linear(inputs, hidden), nn.GELU()
        self.second = nn.Linear(hidden, inputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.act(self.first(x)))


@pytest.mark.parametrize("order", [2, 4, 6, 8])
def test_a_step_never_peaks_above_the_exact_one(order):
    x = torch.randn(4, 14 * 14, 96)
    exact = nn.Sequential(Mlp(96, 384), Mlp(96, 384))
    reduced = apply_method(f"lbp_wht:order={order}", exact, x)
    peaks = [measure_live_peak(make_step(m, x, mode="train")) for m in (exact, reduced)]
    assert peaks[1] < peaks[0]


METHODS = [
    ("timm:vit_tiny_patch16_224", "lbp_wht:order=2"),
    ("timm:vit_tiny_patch16_224", "lbp_wht:order=8,stage=last"),
    ("timm:efficientformer_l1", "lbp_wht:order=4"),
    ("torchvision:mobilenet_v3_small", "mobiletl:blocks=3"),
    ("torchvision:mobilenet_v3_small", "mobiletl:blocks=5,exact"),
    ("torchvision:mobilenet_v2", "mobiletl:blocks=3"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "method"), METHODS)
def test_predicted_peak_of_a_step_is_the_measured_one(name, method):
    x = torch.randn(2, 3, 224, 224)
    model = apply_method(method, load_model(name, mode="train").model, x)
    graph = cm.capture(model, x, mode="train", optimizer="sgd", method=method)
    estimate = cm.estimate(graph, cm.load_device("rtx-3090"), runtime="torch-eager")
    measured = measure_live_peak(make_step(model, x, mode="train", optimizer="sgd"))
    assert not estimate.coverage.unpriced
    assert estimate.memory.peak_live.point == pytest.approx(measured, rel=5e-3)
