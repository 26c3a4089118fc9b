"""Convolutions: FLOPs against torch's counter, and the algorithm against torch's own choice and the ops it runs."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from costmodel.costs import formula_for, op
from costmodel.costs.conv import algorithm, backend, convolution, convolution_backward, geometry
from costmodel.costs.spec import TensorSpec
from costmodel.host import detect

aten = torch.ops.aten
quick = settings(max_examples=60, deadline=None)


def output_size(size: int, k: int, stride: int, padding: int, dilation: int, transposed: bool = False) -> int:
    if transposed:
        return (size - 1) * stride - 2 * padding + dilation * (k - 1) + 1
    return (size + 2 * padding - dilation * (k - 1) - 1) // stride + 1


@st.composite
def convolutions(draw, most_groups=1):
    dims = draw(st.sampled_from([1, 2, 2, 2, 3]))
    g = draw(st.integers(1, most_groups))
    n, ci, co = draw(st.integers(1, 5)), g * draw(st.integers(1, 9)), g * draw(st.integers(1, 9))
    k, stride = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    padding, dilation, transposed = draw(st.integers(0, 2)), draw(st.integers(1, 2)), draw(st.booleans())
    size = [draw(st.integers(1, 12)) for _ in range(dims)]
    out = [output_size(s, k, stride, padding, dilation, transposed) for s in size]
    assume(min(out) > 0)
    x, y = (n, ci, *size), (n, co, *out)
    w = (ci, co // g, *[k] * dims) if transposed else (co, ci // g, *[k] * dims)
    attrs = {
        "stride": [stride] * dims,
        "padding": [padding] * dims,
        "dilation": [dilation] * dims,
        "transposed": transposed,
        "output_padding": [0] * dims,
        "groups": g,
    }
    return x, w, y, attrs


def meta(shape) -> torch.Tensor:
    return torch.empty(shape, device="meta")


@quick
@given(convolutions(), st.tuples(st.booleans(), st.booleans()))
def test_ungrouped_flops_equal_torchs_counter(conv, mask):
    x, w, y, attrs = conv
    with FlopCounterMode(display=False) as counter:
        made = aten.convolution(meta(x), meta(w), None, *attrs.values())
    assert tuple(made.shape) == y
    ours = formula_for("aten::convolution")(op("aten::convolution", [x, w], [y], **attrs))
    assert ours.flops == counter.get_total_flops()
    mask = [*mask, False]
    with FlopCounterMode(display=False) as counter:
        aten.convolution_backward(meta(y), meta(x), meta(w), None, *attrs.values(), mask)
    outputs = [t for t, asked in zip((x, w), mask) if asked]
    spec = op("aten::convolution_backward", [y, x, w], outputs, output_mask=mask, **attrs)
    assert formula_for(spec.name)(spec).flops == counter.get_total_flops()


@quick
@given(convolutions(most_groups=8))
def test_grouped_backward_is_the_forward_once_a_gradient(conv):
    x, w, y, attrs = conv
    forward = formula_for("aten::convolution")(op("aten::convolution", [x, w], [y], **attrs))
    spec = op("aten::convolution_backward", [y, x, w], [x, w], output_mask=[True, True, False], **attrs)
    backward = formula_for(spec.name)(spec)
    assert backward.flops == 2 * forward.flops
    with FlopCounterMode(display=False) as counter:
        aten.convolution(meta(x), meta(w), None, *attrs.values())
    assert forward.flops == counter.get_total_flops()
    assert forward.work >= forward.flops
    assert backward.work >= backward.flops


def test_a_depthwise_net_trains_at_three_times_its_forward_where_torchs_counter_says_more():
    from costmodel.capture import capture

    net = nn.Sequential(*[nn.Conv2d(64, 64, 3, padding=1, groups=64, bias=False) for _ in range(4)], nn.Flatten(1))
    x = torch.empty(2, 64, 8, 8)
    graph = capture(net, x, mode="train")
    specs = [
        TensorSpec(shape, dtype, stride)
        for shape, dtype, stride in zip(graph.tensor_shape, graph.tensor_dtype, graph.tensor_stride)
    ]
    by_phase: Counter[str] = Counter()
    for k, name in enumerate(graph.op_name):
        if "convolution" in name:
            inputs, outputs = ([specs[t] for t in column[k]] for column in (graph.op_inputs, graph.op_outputs))
            spec = op(name.split(".")[0], inputs, outputs, **graph.op_attrs[k])
            by_phase[graph.op_phase[k]] += formula_for(name)(spec).flops
    ratio = (by_phase["forward"] + by_phase["backward"]) / by_phase["forward"]
    assert ratio == pytest.approx(3, abs=0.3)  # the first layer has no gradient of its input
    with FlopCounterMode(display=False) as counter:
        net.to("meta")(x.to("meta").requires_grad_()).sum().backward()
    assert counter.get_total_flops() / by_phase["forward"] > 10


CHOICES = {
    "n": [1, 2, 3, 8, 15, 16, 17, 32], "g": [1, 1, 1, 2, 4, 8], "inner": [1, 2, 3, 8, 16, 64], "outer": [1, 2, 8, 16],
    "k": [1, 1, 1, 2, 3, 3, 5, 7], "stride": [1, 1, 2], "dilation": [1, 1, 1, 2], "padding": [0, 1, 2],
    "size": [7, 8, 14, 20, 33],
    "dtype": [torch.float32] * 6 + [torch.float64, torch.bfloat16],
}  # fmt: skip


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("transposed", [False, True])
def test_library_is_the_one_that_torch_selects(count, transposed, threads):
    threads(count)
    lanes = detect().lanes
    rng = random.Random(count)
    seen: Counter[str] = Counter()
    for _ in range(1000):
        c = {key: rng.choice(values) for key, values in CHOICES.items()}
        dims = rng.choice([1, 2, 2, 2, 3])
        size = min(c["size"], 8) if dims == 3 else c["size"]
        extra = rng.randint(0, c["stride"]) if transposed and c["dilation"] > c["stride"] else 0
        ci, co = c["g"] * c["inner"], c["g"] * c["outer"]
        out = output_size(size, c["k"], c["stride"], c["padding"], c["dilation"], transposed) + extra
        if out < 1:
            continue
        pair = (ci, co // c["g"]) if transposed else (co, ci // c["g"])
        x = torch.empty((c["n"], ci, *[size] * dims), dtype=c["dtype"])
        w = torch.empty((*pair, *[c["k"]] * dims), dtype=c["dtype"])
        lists = [[c[key]] * dims for key in ("stride", "padding", "dilation")]
        picked = torch._C._select_conv_backend(x, w, None, *lists, transposed, [extra] * dims, c["g"], None).name
        if picked == "???":  # the binding does not name this one
            picked = "MkldnnTranspose"
        dtype = str(c["dtype"]).removeprefix("torch.")
        spec = op(
            "aten::convolution",
            [TensorSpec(tuple(x.shape), dtype), TensorSpec(tuple(w.shape), dtype)],
            [TensorSpec((c["n"], co, *[out] * dims), dtype)],
            threads=count, lanes=lanes, stride=lists[0], padding=lists[1], dilation=lists[2],
            transposed=transposed, output_padding=[extra] * dims, groups=c["g"],
        )  # fmt: skip
        assert backend(geometry(spec)) == picked, spec
        seen[picked] += 1
    assert len(seen) >= 3, seen


NAMES = {  # kind -> what the profiler shows inside aten::convolution
    "conv_pointwise_gemm": "aten::_slow_conv2d_forward", "conv_im2col": "aten::_slow_conv2d_forward",
    "conv_direct": "aten::mkldnn_convolution", "conv_1x1": "aten::mkldnn_convolution",
    "conv_stem": "aten::mkldnn_convolution", "conv_depthwise": "aten::mkldnn_convolution",
    "conv_depthwise_strided": "aten::mkldnn_convolution", "conv_grouped_8": "aten::mkldnn_convolution",
    "conv_1x1_strided": "aten::mkldnn_convolution", "conv_direct_strided": "aten::mkldnn_convolution",
}  # fmt: skip
CASES = [  # batch, ci, co, k, size, stride, groups, kind
    (8, 24, 48, 1, 14, 1, 1, "conv_pointwise_gemm"),
    (16, 24, 48, 1, 14, 1, 1, "conv_1x1"),
    (1, 32, 32, 3, 7, 1, 1, "conv_im2col"),
    (2, 32, 32, 3, 14, 1, 1, "conv_direct"),
    (2, 32, 32, 3, 14, 2, 1, "conv_direct_strided"),
    (2, 32, 64, 1, 14, 2, 1, "conv_1x1_strided"),
    (2, 3, 16, 3, 32, 2, 1, "conv_stem"),
    (2, 32, 32, 3, 14, 1, 32, "conv_depthwise"),
    (2, 32, 32, 5, 14, 2, 32, "conv_depthwise_strided"),
    (2, 32, 32, 3, 14, 1, 4, "conv_grouped_8"),
]


@pytest.mark.parametrize(("n", "ci", "co", "k", "size", "stride", "groups", "kind"), CASES)
def test_algorithm_is_what_the_profiler_shows(n, ci, co, k, size, stride, groups, kind, threads):
    threads(1)
    x, w = torch.zeros(n, ci, size, size), torch.zeros(co, ci // groups, k, k)
    args = ([stride] * 2, [k // 2] * 2, [1, 1], False, [0, 0], groups)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        y = aten.convolution(x, w, None, *args)
    attrs = dict(zip(("stride", "padding", "dilation", "transposed", "output_padding", "groups"), args))
    spec = op("aten::convolution", [tuple(x.shape), tuple(w.shape)], [tuple(y.shape)], **attrs)
    assert algorithm(spec) == kind
    assert NAMES[kind] in {event.name for event in profiled.events()}
    assert formula_for(spec.name)(spec).kind == kind


def test_backward_kinds_tell_depthwise_kernels_apart():
    def kind(k: int, groups: int) -> str:
        x, w = (4, 32, 14, 14), (32, 32 // groups, k, k)
        attrs = {"padding": [k // 2] * 2, "groups": groups, "output_mask": [True, True, False]}
        spec = op("aten::convolution_backward", [x, x, w], [x, w], **attrs)
        return formula_for(spec.name)(spec).kind

    assert [kind(3, 32), kind(5, 32), kind(3, 1)] == [
        "conv_depthwise_backward_k3",
        "conv_depthwise_backward_k5",
        "conv_direct_backward",
    ]


@pytest.mark.parametrize(
    ("channels", "groups", "wide", "narrow"),
    [
        (128, 32, "conv_grouped_4", "conv_grouped_gemm"),  # oneDNN has no blocks of 4 on AVX2
        (128, 16, "conv_grouped_8", "conv_grouped_8"),
        (128, 4, "conv_grouped_16", "conv_grouped_8"),
        (96, 8, "conv_grouped_4", "conv_grouped_gemm"),
        (90, 90, "conv_depthwise", "conv_depthwise"),
        (60, 1, "conv_direct", "conv_direct"),
    ],
)
def test_the_width_of_vectors_decides_blocks(channels: int, groups: int, wide: str, narrow: str) -> None:
    """As ONEDNN_VERBOSE=1 names kernels and layouts on AVX-512 (aBcd16b) and on AVX2 (aBcd8b)."""
    x, w = (8, channels, 28, 28), (channels, channels // groups, 3, 3)
    kinds, taps = [], []
    for lanes in (16, 8):
        cost = convolution(op("aten::convolution", [x, w], [x], padding=[1, 1], groups=groups, lanes=lanes))
        kinds.append(cost.kind)
        taps.append(cost.terms.get("taps"))
    assert kinds == [wide, narrow]
    if channels in (90, 60):  # padded to 96 and 64 on both; 90 to 96, 60 to 64
        assert taps[0] == taps[1]


def test_channels_are_padded_to_the_width_of_vectors() -> None:
    x, w = (8, 40, 28, 28), (40, 40, 3, 3)
    spec = [op("aten::convolution", [x, w], [x], padding=[1, 1], lanes=lanes) for lanes in (16, 8)]
    wide, narrow = (convolution(s).terms["taps"] for s in spec)
    assert wide / narrow == (48 / 40) ** 2


@pytest.mark.parametrize(
    ("kernel", "side", "to_w", "images"),
    [(5, 14, True, 2 * 96), (3, 14, True, 0), (3, 2, True, 2 * 96), (5, 14, False, 0)],
)
def test_a_gemm_for_each_image_where_onednn_has_no_gradient_of_the_weight(
    kernel: int, side: int, to_w: bool, images: float
) -> None:
    """ONEDNN_VERBOSE of EfficientNet-Lite0 at 50 px: `x64:gemm:jit` for wide kernels, and for maps that one covers."""
    x, w = (2, 96, side, side), (96, 1, kernel, kernel)
    spec = op(
        "aten::convolution_backward", [x, x, w], [x, w], padding=[kernel // 2] * 2, groups=96,
        output_mask=[True, to_w, False],
    )  # fmt: skip
    assert convolution_backward(spec).terms["images"] == images
