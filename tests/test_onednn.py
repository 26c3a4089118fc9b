"""Workspaces of convolutions on both vector units, as torch's allocator was seen to serve them on a machine of each."""

from __future__ import annotations

import pytest

from costmodel.costs import OpSpec, TensorSpec, formula_for
from costmodel.costs.conv import geometry
from costmodel.costs.conv_workspace import backward_data, backward_weights, forward


def convolution(
    which: str,
    batch: int,
    ci: int,
    co: int,
    size: int,
    kernel: int,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
    lanes: int = 8,
    threads: int = 1,
) -> OpSpec:
    """A square convolution: its forward (f), or its backward to the input (d) or the weight (w)."""
    out = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    x = TensorSpec((batch, ci, size, size))
    w = TensorSpec((co, ci // groups, kernel, kernel))
    y = TensorSpec((batch, co, out, out))
    attrs = {
        "stride": [stride] * 2, "padding": [padding] * 2, "dilation": [dilation] * 2, "transposed": False,
        "output_padding": [0, 0], "groups": groups,
    }  # fmt: skip
    if which == "f":
        return OpSpec("aten::convolution", (x, w), (y,), attrs, threads, lanes)
    mask = {"output_mask": [which == "d", which == "w", False]}
    made = x if which == "d" else w
    return OpSpec("aten::convolution_backward", (y, x, w), (made,), attrs | mask, threads, lanes)


# Of the allocator's events on a Zen 3, which has no AVX-512 (torch 2.13.0), bytes at the peak beyond the results.
AVX2 = [
    ("f", (4, 256, 2, 40, 3, 1, 1), 6780928),
    ("w", (4, 256, 2, 40, 3, 1, 1), 6813696),
    ("d", (1, 6, 32, 96, 3, 1, 1), 1262592),
    ("f", (1, 5, 2, 56, 4, 4, 2), 7960),
    ("f", (3, 5, 20, 64, 3, 2, 1), 294912),
    ("w", (2, 1, 128, 32, 3, 3, 1), 221696),
    ("f", (4, 10, 2, 28, 3, 2, 2, 2), 224128),
    ("w", (4, 10, 2, 28, 3, 2, 2, 2), 73696),
    ("f", (16, 60, 72, 32, 1), 4718592),
    ("d", (16, 60, 72, 32, 1), 4999168),
    ("w", (16, 60, 72, 32, 1), 8914048),
    ("f", (3, 5, 5, 14, 2, 1, 1, 1, 5), 27044),
    ("d", (3, 5, 5, 14, 2, 1, 1, 1, 5), 28784),
    ("w", (3, 5, 5, 14, 2, 1, 1, 1, 5), 40464),
    ("f", (4, 40, 20, 7, 1, 2), 36224),
    ("d", (4, 40, 20, 7, 1, 2), 66328),
    ("w", (4, 112, 60, 56, 1, 2), 6600064),
    ("d", (8, 10, 192, 6, 3, 3, 1), 172056),
    ("d", (16, 2, 120, 32, 7, 4), 634136),
]


@pytest.mark.parametrize(("which", "shape", "measured"), AVX2)
def test_workspace_on_256_bit_units(which: str, shape: tuple[int, ...], measured: int) -> None:
    op = convolution(which, *shape)
    assert formula_for(op.name)(op).workspace == pytest.approx(measured, rel=0.01, abs=16)


def test_512_bit_units_pad_to_16() -> None:
    """Figures of the rules that were read off a Zen 4; those for 256 bit must not move them."""
    for which, shape, predicted in (
        ("f", (4, 256, 2, 40, 3, 1, 1), 7059456),
        ("w", (4, 256, 2, 40, 3, 1, 1), 7092224),
        ("d", (1, 6, 32, 96, 3, 1, 1), 1566720),
        ("f", (16, 60, 72, 32, 1), 5242880),
        ("w", (16, 60, 72, 32, 1), 9440384),
        ("d", (3, 5, 5, 14, 2, 1, 1, 1, 5), 69328),
        ("d", (4, 40, 20, 7, 1, 2), 62720),
        ("w", (4, 10, 2, 28, 3, 2, 2, 2), 229680),
        ("w", (4, 112, 60, 56, 1, 2), 6775680),
    ):
        op = convolution(which, *shape, lanes=16)
        assert formula_for(op.name)(op).workspace == predicted, (which, shape)


def test_borders_that_registers_do_not_hold_go_to_gemm() -> None:
    """A border of four positions, where the kernel of 256-bit units holds three of a row; AlexNet's first layer."""
    wide = geometry(convolution("f", 2, 48, 24, 32, 5, 2, 4, 2))
    assert (forward(wide).name, forward(wide._replace(lanes=16)).name) == ("gemm", "direct")
    assert forward(geometry(convolution("f", 8, 3, 64, 224, 11, 4, 2))).name == "gemm"
    assert forward(geometry(convolution("f", 8, 3, 64, 224, 7, 2, 3))).name == "stem"


def test_groups_of_other_channels_than_blocks_go_to_gemm() -> None:
    twelve, eight = (geometry(convolution("f", 2, 4 * c, 4 * c, 14, 3, 1, 1, 1, 4)) for c in (12, 8))
    assert [f(twelve).name for f in (forward, backward_data, backward_weights)] == ["gemm"] * 3
    assert [f(eight).name for f in (forward, backward_data, backward_weights)] == ["grouped", "direct", "direct"]


def test_threads_that_share_a_block_sum_on_their_own() -> None:
    """Measured with two threads: 8 by 8 channels are one block, whose gradient both sum."""
    op = convolution("w", 4, 8, 2, 56, 3, 4, 1, threads=2)
    assert formula_for(op.name)(op).workspace == pytest.approx(442816, rel=0.01)
