"""LBP-WHT ops: every invariant of METHODS.md §1, against autograd and against a float64 twin tile by tile."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from costmodel.errors import CostmodelError
from costmodel.kernels.lbp_wht import lbp_wht_apply
from costmodel.kernels.wht import TILES, Tiling, project, select_bases, unproject, walsh

from .naive import lbp_wht as naive

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 3e-2}


def tiling(h: int, w: int, order: int = 15, *, prefix: int = 0, tile: int = 8, padding: str = "zero") -> Tiling:
    return Tiling((h, w), prefix, tile, select_bases(order, "l1", tile), padding)


def layer(t: Tiling, *, images: int = 2, inputs: int = 5, outputs: int = 7, dtype=torch.float64, convolution=False):
    """x, W, b and the gradient of y, random."""
    generator = torch.Generator().manual_seed(7)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    if convolution:
        x, w, g = random(images, inputs, *t.grid), random(outputs, inputs, 1, 1), random(images, outputs, *t.grid)
    else:
        x, w, g = random(images, t.tokens, inputs), random(outputs, inputs), random(images, t.tokens, outputs)
    return x.requires_grad_(), w.requires_grad_(), random(outputs).requires_grad_(), g


def gradients(y: Tensor, g: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(y, leaves, g)


def close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).abs().max()) <= tolerance * max(1.0, float(b.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("convolution", [False, True])
@settings(deadline=None, max_examples=25)
@given(
    h=st.integers(1, 19),
    w=st.integers(1, 19),
    tile=st.sampled_from(TILES),
    prefix=st.integers(0, 2),
    channels=st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_full_rank_with_zero_padding_is_exact(dtype, convolution, h, w, tile, prefix, channels):
    t = tiling(h, w, 2 * tile - 1, prefix=0 if convolution else prefix, tile=tile)
    x, weight, bias, g = layer(t, inputs=channels[0], outputs=channels[1], dtype=dtype, convolution=convolution)
    exact = F.conv2d(x, weight, bias) if convolution else F.linear(x, weight, bias)
    low_rank = lbp_wht_apply(x, weight, bias, t)
    assert torch.equal(low_rank, exact)
    want = gradients(exact.double(), g.double(), x, weight, bias)
    for got, expected in zip(gradients(low_rank, g, x, weight, bias), want, strict=True):
        assert got.shape == expected.shape
        assert close(got, expected, TOLERANCE[dtype] * (h * w) ** 0.5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@settings(deadline=None, max_examples=20)
@given(
    h=st.integers(5, 18),
    w=st.integers(5, 18),
    prefix=st.integers(0, 2),
    padding=st.sampled_from(["zero", "reflect"]),
    pairs=st.sets(st.tuples(st.integers(0, 7), st.integers(0, 7)), min_size=1, max_size=12),
    inputs=st.integers(1, 36),
)
def test_any_bases_equal_the_float64_twin(dtype, h, w, prefix, padding, pairs, inputs):
    chosen = sorted(pairs)
    t = Tiling((h, w), prefix, 8, tuple(8 * i + j for i, j in chosen), padding)
    x, weight, bias, g = layer(t, inputs=inputs, outputs=21, dtype=dtype)
    want = naive.backward(*(v.detach().double().numpy() for v in (x, g, weight)), prefix, (h, w), chosen, padding)
    for got, expected in zip(gradients(lbp_wht_apply(x, weight, bias, t), g, x, weight, bias), want, strict=True):
        assert close(got, torch.from_numpy(expected), 20 * TOLERANCE[dtype])


@pytest.mark.parametrize("tile", TILES)
def test_walsh_functions_are_orthogonal_and_ordered_by_sign_changes(tile):
    w = walsh(tile).astype(int)
    assert np.array_equal(w @ w.T, tile * np.eye(tile, dtype=int))
    assert (np.diff(w, axis=1) != 0).sum(1).tolist() == list(range(tile))
    if tile == 8:
        assert ["".join("+" if v > 0 else "-" for v in row) for row in w] == naive.WALSH_8


@pytest.mark.parametrize("order", [1, 2, 3, 4, 6, 8, 10, 15])
def test_projector_laws_on_a_whole_grid(order):
    t = tiling(8, 16, order)
    eye = torch.eye(128, dtype=torch.float64)[None]  # every token a channel: P itself
    p = unproject(project(eye, t, mean=True), 1, t)[0]
    assert torch.allclose(p @ p, p, atol=1e-12)
    assert torch.allclose(p, p.T, atol=1e-12)
    assert p.trace().item() == pytest.approx(t.rank * t.tiles)


def test_order_one_is_the_mean_of_a_tile():
    t = tiling(16, 8, 1)
    x, weight, _, g = layer(t)
    means = g.view(2, 2, 8, 8, 7).mean((2, 3))  # tiles are rows of eight by eight tokens here
    blurred = means[:, :, None, None].expand(2, 2, 8, 8, 7).reshape(2, 128, 7)
    g_x, g_w = gradients(lbp_wht_apply(x, weight, None, t), g, x, weight)
    assert close(g_x, blurred @ weight, 1e-12)
    assert close(g_w, torch.einsum("blo,bli->oi", blurred, x), 1e-12)


@pytest.mark.parametrize("order", [2, 4, 6])
def test_energy_of_white_noise_is_the_share_of_bases(order):
    t = tiling(8, 8, order)
    noise = torch.randn(64, 64, 200, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    kept = unproject(project(noise, t, mean=True), 64, t)
    assert (kept.square().sum() / noise.square().sum()).item() == pytest.approx(t.rank / 64, rel=0.02)


@pytest.mark.parametrize(
    ("base", "selected"), [(0, True), (8 + 2, True), (3 * 8, True), (2 * 8 + 2, False), (63, False)]
)
def test_a_basis_as_gradient_passes_exactly_or_not_at_all(base, selected):
    t = tiling(8, 8, 4)
    x, weight, _, _ = layer(t)
    pattern = torch.from_numpy(naive.basis(base // 8, base % 8)).view(1, 64, 1)
    g = pattern * torch.arange(1.0, 8.0, dtype=torch.float64).expand(2, 1, 7)
    g_x, g_w = gradients(lbp_wht_apply(x, weight, None, t), g, x, weight)
    assert close(g_x, g @ weight if selected else torch.zeros_like(g_x), 1e-12)
    assert close(g_w, torch.einsum("blo,bli->oi", g, x) if selected else torch.zeros_like(g_w), 1e-12)


@pytest.mark.parametrize("padding", ["zero", "reflect"])
@pytest.mark.parametrize("convolution", [False, True])
def test_bias_and_class_tokens_are_exact_at_any_rank(padding, convolution):
    t = tiling(7, 14, 1, prefix=0 if convolution else 2, padding=padding)
    x, weight, bias, g = layer(t, convolution=convolution)
    exact = F.conv2d(x, weight, bias) if convolution else F.linear(x, weight, bias)
    got = gradients(lbp_wht_apply(x, weight, bias, t), g, x, bias)
    want = gradients(exact, g, x, bias)
    assert close(got[1], want[1], 1e-12)
    if not convolution:
        assert close(got[0][:, :2], want[0][:, :2], 1e-12)


@pytest.mark.parametrize("tile", TILES)
def test_error_falls_with_the_order(tile):
    errors = []
    for order in range(1, 2 * tile):
        t = tiling(tile, 2 * tile, order, tile=tile)
        x, _, _, g = layer(t, inputs=7)
        g_x = gradients(lbp_wht_apply(x, torch.eye(7, dtype=g.dtype), None, t), g, x)[0]
        errors.append((g_x - g).norm().item())
    assert all(b < a for a, b in pairwise(errors))
    assert errors[-1] < 1e-12


def saved_bytes(function, *parameters: Tensor) -> int:
    """Bytes of the storages that autograd keeps for backward, parameters left out."""
    kept = {}
    known = {p.untyped_storage().data_ptr() for p in parameters}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        alive = function()
    del alive
    return sum(kept.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@settings(deadline=None, max_examples=15)
@given(h=st.integers(1, 17), w=st.integers(1, 17), order=st.integers(1, 7), prefix=st.integers(0, 1))
def test_only_reduced_rows_are_saved(dtype, h, w, order, prefix):
    t = tiling(h, w, order, prefix=prefix)
    x, weight, bias, _ = layer(t, images=3, dtype=dtype)
    saved = saved_bytes(lambda: lbp_wht_apply(x * 1, weight, bias, t), weight, bias)
    assert saved == 3 * (prefix + t.rank * t.tiles) * 5 * dtype.itemsize


class Names(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("convolution", [False, True])
@pytest.mark.parametrize("needs", [(True, True, True), (False, True, True), (True, True, False)])
def test_fake_shapes_are_real_shapes_and_each_way_is_one_node(convolution, needs):
    t = tiling(7, 9, 3, prefix=0 if convolution else 1)
    values = [v.detach() for v in layer(t, dtype=torch.float32, convolution=convolution)]

    def step(x, weight, bias, g):
        for leaf, need in zip((x, weight, bias), needs, strict=True):
            leaf.requires_grad_(need)
        with Names() as seen:
            y = lbp_wht_apply(x, weight, bias, t)
            grads = torch.autograd.grad(y, [v for v, n in zip((x, weight, bias), needs) if n], g)
        assert [n for n in seen.names if n.startswith("costmodel")] == [
            "costmodel::lbp_wht",
            "costmodel::lbp_wht_backward",
        ]
        return [(tuple(v.shape), v.dtype, v.stride()) for v in (y, *grads)]

    with FakeTensorMode() as mode:
        fake = step(*(mode.from_tensor(v) for v in values))
    assert fake == step(*values)


def test_exports_to_one_node():
    t = tiling(8, 8, 3)

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.nn.Linear(5, 7)

        def forward(self, x):
            return lbp_wht_apply(x, self.inner.weight, self.inner.bias, t)

    program = torch.export.export(Net(), (torch.randn(2, 64, 5),))
    calls = [str(n.target) for n in program.graph.nodes if n.op == "call_function"]
    assert calls.count("costmodel.lbp_wht.default") == 1


def test_op_passes_torchs_own_checks():
    t = tiling(7, 9, 3, prefix=1)
    x, weight, bias, _ = layer(t, dtype=torch.float32)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.costmodel.lbp_wht.default, (x, weight, bias, *t), test_utils=checks)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tile": 5}, "4, 8, 16"),
        ({"padding": "same"}, "zero or reflect"),
        ({"bases": (0, 0)}, "distinct"),
        ({"bases": (64,)}, "i, j < 8"),
        ({"grid": (3, 8), "padding": "reflect"}, "padding=zero"),
    ],
)
def test_a_tiling_that_does_not_fit_says_what_does(change, words):
    with pytest.raises(CostmodelError, match=words):
        tiling(8, 8, 3)._replace(**change).check()


class Counted:
    """A number that counts the additions of everybody."""

    adds = 0

    def __add__(self, other):
        Counted.adds += 1
        return Counted()

    __sub__ = __add__

    def __neg__(self):
        return Counted()


@pytest.mark.parametrize("tile", TILES)
def test_price_counts_the_adds_that_are_emitted(tile):
    from costmodel.costs.lbp_wht import unwht_adds, wht_adds
    from costmodel.kernels.wht_simd import _inverse, _transform

    for keep in range(1, tile + 1):
        kept = frozenset(range(keep))
        Counted.adds = 0
        assert set(_transform(None, [Counted() for _ in range(tile)], kept)) == kept
        assert Counted.adds == wht_adds(tile, kept)
        Counted.adds = 0
        assert len(_inverse(None, {k: Counted() for k in kept}, tile)) == tile
        assert Counted.adds == unwht_adds(tile, kept)
