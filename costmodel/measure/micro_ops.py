"""Isolated ops at random shapes, for calibration: log-uniform sizes, never a model's own shapes.

A generator takes a `Shapes` and returns one aten call. The op that it makes is recorded as it is traced in a model, so
its formula, algorithm class and features are the ones that will be priced; nothing here says what an op costs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["GENERATORS", "Call", "Shapes"]

aten = torch.ops.aten


@dataclass(frozen=True)
class Call:
    """One op to time: `func(*args)`; `weights` are the positions in `args` that a model keeps and others evict.

    `again` gives other arguments, whose weights lie elsewhere: those of the next layer.
    """

    func: Any
    args: tuple[Any, ...]
    weights: tuple[int, ...] = ()
    again: Callable[[], tuple[Any, ...]] | None = None


class Shapes:
    """Random sizes and tensors from one seed.

    Args:
        seed: of this point.
        dtype: of the floating-point tensors.
    """

    def __init__(self, seed: int, dtype: torch.dtype) -> None:
        self.rng = np.random.default_rng(seed)
        self.dtype = dtype

    def size(self, low: float, high: float, multiple: int = 1) -> int:
        """Log-uniform between `low` and `high`, a multiple of `multiple`."""
        value = float(np.exp(self.rng.uniform(np.log(low), np.log(high))))
        return max(multiple, round(value / multiple) * multiple)

    def pick(self, *choices: Any) -> Any:
        return choices[int(self.rng.integers(len(choices)))]

    def channels(self, low: float = 8, high: float = 1024) -> int:
        """Mostly multiples of 8 or 16, as nets have; sometimes odd."""
        return self.size(low, high, self.pick(8, 8, 16, 16, 32, 32, 2))

    def batch(self) -> int:
        return int(self.pick(1, 1, 1, 2, 4, 4, 8, 16))

    def tensor(self, *shape: int) -> Tensor:
        return torch.randn(shape).to(self.dtype)

    def image(self, most: float = 6e6) -> tuple[int, int, int]:
        """Batch, channels and side of a feature map of at most `most` elements."""
        while True:
            b, c, h = self.batch(), self.channels(), self.size(4, 118)
            if b * c * h * h <= most:
                return b, c, h

    def any_shape(self, most: float = 6e6) -> tuple[int, ...]:
        """A feature map, a token grid or a vector."""
        kind = self.pick("image", "tokens", "vector")
        if kind == "image":
            b, c, h = self.image(most)
            return b, c, h, h
        if kind == "tokens":
            return self.batch(), self.size(8, 400), self.channels(32, 2048)
        return (self.size(8, 4e6),)


# Matrix products


def _gemm_sizes(s: Shapes, skinny: bool) -> tuple[int, int, int]:
    if s.rng.random() < (0.2 if skinny else 0.06):  # the classifier of a net of its time: weights of 100 MB
        m = s.size(2, 16) if skinny else s.size(17, 64)
        return m, *_large_weight(s, 2e9 / m)
    while True:
        m = s.size(2, 16) if skinny else s.size(17, 4096)
        n, k = s.channels(16, 4096), s.channels(16, 4096)
        if 2 * m * n * k < 3e9 and n * k < 8e6:
            return m, n, k


def _linear(s: Shapes, m: int, n: int, k: int) -> Call:
    return Call(aten.addmm.default, (s.tensor(n), s.tensor(m, k), s.tensor(n, k).t()), (0, 2))


def gemm_nt(s: Shapes) -> Call:
    return _linear(s, *_gemm_sizes(s, False))


def gemm_head(s: Shapes) -> Call:
    """Tokens to the words of a vocabulary, of even and odd size."""
    while True:
        m, n, k = s.size(16, 512), s.size(8192, 60_000, s.pick(1, 8, 32)), s.channels(64, 1024)
        if 2 * m * n * k < 2e9 and n * k < 3e7 and m * n < 1e7:
            return _linear(s, m, n, k)


def gemm_nn(s: Shapes) -> Call:
    m, n, k = _gemm_sizes(s, False)
    if s.rng.random() < 0.15:  # many rows of a few heads
        m, n, k = s.size(1000, 1e5), s.pick(2, 4, 8, 12), s.pick(2, 4, 8, 12)
    return Call(aten.mm.default, (s.tensor(m, k), s.tensor(k, n)), (1,))


def gemm_tn(s: Shapes) -> Call:
    m, n, k = _gemm_sizes(s, False)
    return Call(aten.mm.default, (s.tensor(m, k).t(), s.tensor(m, n)))


def gemm_tt(s: Shapes) -> Call:
    m, n, k = _gemm_sizes(s, False)
    return Call(aten.mm.default, (s.tensor(k, m).t(), s.tensor(n, k).t()))


def gemm_skinny(s: Shapes) -> Call:
    return _linear(s, *_gemm_sizes(s, True))


def gemv(s: Shapes) -> Call:
    if s.rng.random() < 0.2:
        return _linear(s, 1, *_large_weight(s, 1.2e8))
    return _linear(s, 1, s.channels(16, 4096), s.channels(16, 4096))


def _large_weight(s: Shapes, most: float) -> tuple[int, int]:
    """Rows and columns of a weight beyond every cache, of at most `most` elements."""
    while True:
        n, k = s.size(1000, 30_000, 8), s.size(1000, 30_000, 8)
        if 1e7 < n * k < most:
            return n, k


def bmm(s: Shapes) -> Call:
    heads, rows, cols, depth = s.size(1, 96), s.size(16, 400), s.size(16, 400), s.channels(16, 128)
    if s.pick(True, False):
        depth, cols = cols, depth
    right = s.tensor(heads, cols, depth).transpose(1, 2) if s.pick(True, False) else s.tensor(heads, depth, cols)
    return Call(aten.bmm.default, (s.tensor(heads, rows, depth), right))


def attention(s: Shapes) -> Call:
    shape = (s.batch(), s.size(2, 16), s.size(16, 400), s.channels(16, 96))
    q, k, v = (s.tensor(*shape) for _ in range(3))
    return Call(aten._scaled_dot_product_flash_attention_for_cpu.default, (q, k, v))


def attention_backward(s: Shapes) -> Call:
    _, (q, k, v), _ = (call := attention(s)).func, call.args, call.weights
    out, lse = aten._scaled_dot_product_flash_attention_for_cpu.default(q, k, v)
    backward = aten._scaled_dot_product_flash_attention_for_cpu_backward.default
    return Call(backward, (torch.randn_like(out), q, k, v, out, lse, 0.0, False))


def _projections(s: Shapes, most: float) -> tuple[Tensor, int, list[Tensor]]:
    """Tokens, heads, and the weights of attention: in, out, each with its bias."""
    while True:
        heads, batch, tokens = s.pick(2, 3, 4, 6, 8, 12), s.batch(), s.size(16, 400)
        width = heads * s.pick(16, 32, 64)
        if batch * tokens * width * width < most:
            weights = [s.tensor(3 * width, width), s.tensor(3 * width), s.tensor(width, width), s.tensor(width)]
            return s.tensor(batch, tokens, width), heads, weights


def multi_head(s: Shapes) -> Call:
    """Attention with its projections as one op, as `torch.nn.MultiheadAttention` runs in eval mode."""
    x, heads, weights = _projections(s, 3e8)
    args = (x, x, x, x.shape[-1], heads, *weights, None, False)
    return Call(aten._native_multi_head_attention.default, args, (5, 6, 7, 8))


def encoder_layer(s: Shapes) -> Call:
    """A layer of `torch.nn.TransformerEncoder` as one op, as it runs in eval mode."""
    x, heads, weights = _projections(s, 1e8)
    width = x.shape[-1]
    hidden = width * s.pick(2, 4)
    norms = [s.tensor(width) for _ in range(4)]
    feed = [s.tensor(hidden, width), s.tensor(hidden), s.tensor(width, hidden), s.tensor(width)]
    args = (x, width, heads, *weights, s.pick(True, False), s.pick(True, False), 1e-5, *norms, *feed)
    return Call(aten._transformer_encoder_layer_fwd.default, args, (*range(3, 7), *range(10, 18)))


# Element by element


def elementwise(s: Shapes) -> Call:
    x = s.tensor(*s.any_shape())
    name = s.pick("add", "add", "mul", "mul", "sub", "threshold", "clamp", "mul_scalar")
    if name == "clamp":
        return Call(aten.clamp_min.default, (x, 0.0))
    if name == "mul_scalar":
        return Call(aten.mul.Tensor, (x, 0.5))
    y = torch.randn_like(x)
    if name == "threshold":
        return Call(aten.threshold_backward.default, (x, y, 0.0))
    return Call({"add": aten.add, "mul": aten.mul, "sub": aten.sub}[name].Tensor, (x, y))


def elementwise_in_place(s: Shapes) -> Call:
    x = s.tensor(*s.any_shape())
    name = s.pick("relu", "hardtanh", "add", "mul", "step", "mul_scalar")
    if name == "relu":
        return Call(aten.relu_.default, (x,))
    if name == "hardtanh":
        return Call(aten.hardtanh_.default, (x, 0.0, 6.0))
    if name == "mul_scalar":
        return Call(aten.mul_.Tensor, (x, 0.9), (0,))
    y = torch.randn_like(x)
    if name == "step":  # of an optimizer, whose parameters others have evicted
        return Call(aten.add_.Tensor, (x, y), (0,))
    return Call({"add": aten.add_, "mul": aten.mul_}[name].Tensor, (x, y))


def elementwise_divide(s: Shapes) -> Call:
    x = s.tensor(*s.any_shape()).abs() + 1
    name = s.pick("sqrt", "div", "div_scalar", "div_row", "addcdiv_", "div_")
    if name == "sqrt":
        return Call(aten.sqrt.default, (x,))
    if name == "div_scalar":
        return Call(aten.div.Tensor, (x, 3.0))
    if name == "div_row":  # each row by one number, as in a normalisation
        return Call(aten.div.Tensor, (x, x[..., :1].clone().expand_as(x)))
    y = torch.rand_like(x) + 1
    if name == "addcdiv_":
        return Call(aten.addcdiv_.default, (torch.randn_like(x), x, y), (0,))
    return Call((aten.div if name == "div" else aten.div_).Tensor, (x, y))


def _mask(s: Shapes, x: Tensor) -> Tensor:
    """Runs of true and false, as in causal and padding masks; one that alternates at random takes thrice as long."""
    width = x.shape[-1]
    if x.dim() > 2 and s.pick(True, False):
        return torch.ones(x.shape[-2:], dtype=torch.bool).tril()  # broadcast over the rest
    return (torch.arange(width) < width // 2).expand(x.shape).contiguous()


def elementwise_select(s: Shapes) -> Call:
    x = s.tensor(*s.any_shape())
    mask = _mask(s, x)
    name = s.pick("masked_fill", "masked_fill", "masked_fill_", "where", "where")
    if name == "where":
        return Call(aten.where.self, (mask, x, torch.randn_like(x)))
    return Call(getattr(aten, name).Scalar, (x, mask, 0.0))


def elementwise_strided(s: Shapes) -> Call:
    b, c, h = s.image()
    x = s.tensor(b, c, h, h)
    other = s.pick(s.tensor(b, c, 1, 1), s.tensor(c, 1, 1), s.tensor(b, h, h, c).permute(0, 3, 1, 2))
    return Call(s.pick(aten.mul, aten.add).Tensor, (x, other))


def elementwise_strided_in_place(s: Shapes) -> Call:
    b, c, h = s.image()
    x = s.tensor(b, h, h, c).permute(0, 3, 1, 2)
    return Call(s.pick(aten.mul_, aten.add_).Tensor, (x, s.tensor(b, c, h, h)))


def elementwise_transcendental(s: Shapes) -> Call:
    x = s.tensor(*s.any_shape())
    fast = ("gelu", "gelu", "silu", "sigmoid", "silu_", "silu_", "sigmoid_", "hardswish_", "hardswish")
    library = ("exp", "exp", "exp_", "log", "erf", "softplus", "elu", "sin")
    name = s.pick(*fast, *library, "tanh", "tanh", "tanh_", "mish", "gelu_back", "gelu_back", "silu_back", "hs_back")
    if name.endswith("_back"):
        func = {"gelu": aten.gelu_backward, "silu": aten.silu_backward, "hs": aten.hardswish_backward}
        return Call(func[name.removesuffix("_back")].default, (torch.randn_like(x), x))
    return Call(getattr(aten, name).default, (x.abs() + 0.1 if name == "log" else x,))


def reduce_inner(s: Shapes) -> Call:
    b, c, h = s.image()
    return Call(s.pick(aten.mean.dim, aten.sum.dim_IntList), (s.tensor(b, c, h, h), [-1, -2], s.pick(True, False)))


def reduce_outer(s: Shapes) -> Call:
    kind = s.pick("rows", "tokens", "positions")
    if kind == "rows":
        return Call(aten.sum.dim_IntList, (s.tensor(s.size(8, 3000), s.channels(16, 2048)), [0], True))
    if kind == "tokens":
        return Call(aten.mean.dim, (s.tensor(s.batch(), s.size(8, 400), s.channels(32, 1024)), [1]))
    b, c, h = s.image()
    return Call(aten.mean.dim, (s.tensor(b, c, h, h).contiguous(memory_format=torch.channels_last), [2, 3], True))


def reduce_norm(s: Shapes) -> Call:
    b, c, h = s.image(2e6)
    layout = torch.channels_last if s.pick(True, False) else torch.contiguous_format
    return Call(
        aten.linalg_vector_norm.default, (s.tensor(b, c, h, h).contiguous(memory_format=layout), 2, [2, 3], True)
    )


# Movement


def copy(s: Shapes) -> Call:
    return Call(aten.clone.default, (s.tensor(*s.any_shape()),))


def copy_rows(s: Shapes) -> Call:
    b, t, c = s.batch(), s.size(8, 600), s.channels(32, 1024)
    heads = s.pick(2, 4, 8)
    c = max(heads, c // heads * heads)
    moved = s.tensor(b, t, heads, c // heads).transpose(1, 2) if s.pick(True, False) else s.tensor(b, t, 3 * c)[..., :c]
    return Call(aten.clone.default, (moved,), ())


def copy_transpose(s: Shapes) -> Call:
    b, c, h = s.image()
    source = s.tensor(b, c, h * h).transpose(1, 2) if s.pick(True, False) else s.tensor(b, h * h, c).transpose(1, 2)
    out = torch.empty(source.shape, dtype=s.dtype)
    return Call(aten.copy_.default, (out, source))


def roll(s: Shapes) -> Call:
    b, c, h = s.image()
    return Call(aten.roll.default, (s.tensor(b, h, h, c), [3, 3], [1, 2]))


def pad(s: Shapes) -> Call:
    b, c, h = s.image(2e6)
    return Call(aten.constant_pad_nd.default, (s.tensor(b, c, h, h), [1, 1, 1, 1]))


def cat(s: Shapes) -> Call:
    """Maps by channel; or rows end to end, whose runs are short and many, down to pairs of numbers."""
    if s.rng.random() < 0.5:
        while True:
            rows, width = s.size(16, 2e5), s.size(1, 512)
            if rows * width < 1.5e6:
                return Call(aten.cat.default, ([s.tensor(rows, width) for _ in range(s.pick(2, 2, 3, 4))], 1))
    b, _, h = s.image(1.5e6)
    return Call(aten.cat.default, ([s.tensor(b, s.channels(8, 256), h, h) for _ in range(s.pick(2, 2, 3, 4))], 1))


def view(s: Shapes) -> Call:
    x = s.tensor(4, 8, 6)
    return s.pick(
        Call(aten.t.default, (s.tensor(8, 6),)),
        Call(aten.view.default, (x, [32, 6])),
        Call(aten.detach.default, (x,)),
        Call(aten.permute.default, (x, [0, 2, 1])),
        Call(aten.slice.Tensor, (x, 1, 0, 4)),
        Call(aten.transpose.int, (x, 0, 1)),
        Call(aten.unsqueeze.default, (x, 0)),
        Call(aten.expand.default, (x, [4, 8, 6])),
        Call(aten.select.int, (x, 0, 1)),
    )


def allocate(s: Shapes) -> Call:
    return Call(aten.empty.memory_format, ([s.pick(0, 8, 100, 1000)],))


def fill(s: Shapes) -> Call:
    return Call(s.pick(aten.zeros_like, aten.ones_like).default, (s.tensor(*s.any_shape()),))


def item(s: Shapes) -> Call:
    return Call(aten._local_scalar_dense.default, (s.tensor(1)[0],))


def embedding(s: Shapes) -> Call:
    vocab, width = s.size(100, 50_000), s.channels(32, 1024)
    index = torch.from_numpy(s.rng.integers(0, vocab, (s.batch(), s.size(8, 512))))
    return Call(aten.embedding.default, (s.tensor(vocab, width), index), (0,))


def embedding_backward(s: Shapes) -> Call:
    vocab, width = s.size(100, 30_000), s.channels(32, 512)
    index = torch.from_numpy(s.rng.integers(0, vocab, (s.batch(), s.size(8, 256))))
    grad = s.tensor(*index.shape, width)
    return Call(aten.embedding_dense_backward.default, (grad, index, vocab, -1, False))


def index(s: Shapes) -> Call:
    rows, width = s.size(16, 4000), s.channels(8, 512)
    picked = torch.from_numpy(s.rng.integers(0, rows, s.size(16, 4000)))
    return Call(aten.index.Tensor, (s.tensor(rows, width), [picked]))


def index_put(s: Shapes) -> Call:
    rows, width = s.size(16, 4000), s.channels(8, 512)
    picked = torch.from_numpy(s.rng.integers(0, rows, s.size(16, 4000)))
    return Call(aten.index_put.default, (s.tensor(rows, width), [picked], s.tensor(len(picked), width), True))


def loss(s: Shapes) -> Call:
    n, c = s.size(1, 512), s.size(10, 4000)
    target = torch.from_numpy(s.rng.integers(0, c, n))
    return Call(aten.nll_loss_forward.default, (s.tensor(n, c), target, None, 1, -100))


def random(s: Shapes) -> Call:
    return Call(aten.bernoulli_.float, (s.tensor(*s.any_shape(1e6)), 0.9))


def scan(s: Shapes) -> Call:
    return Call(aten.cumsum.default, (s.tensor(s.batch(), s.size(4, 64), s.size(8, 512)), -1))


# name -> (generator, share of the points, used by training only)
GENERATORS: dict[str, tuple[Callable[[Shapes], Call], float, bool]] = {
    "gemm_nt": (gemm_nt, 2.0, False),
    "gemm_nn": (gemm_nn, 2.0, False),
    "gemm_head": (gemm_head, 1.0, False),
    "gemm_tn": (gemm_tn, 1.5, True),
    "gemm_skinny": (gemm_skinny, 1.5, False),
    "gemv": (gemv, 1.0, False),
    "bmm": (bmm, 1.5, False),
    "attention": (attention, 1.0, False),
    "multi_head": (multi_head, 0.7, False),
    "encoder_layer": (encoder_layer, 0.7, False),
    "attention_backward": (attention_backward, 1.0, True),
    **{
        f.__name__: (f, 1.0, f.__name__.endswith("backward") or f in (loss, random))
        for f in (
            elementwise_strided, elementwise_strided_in_place, index_put, gemm_tt,
            reduce_inner, reduce_outer, reduce_norm, copy, copy_rows, copy_transpose, roll,
            pad, cat, view, fill, embedding, embedding_backward, index, loss, random, scan,
        )
    },
    "elementwise_transcendental": (elementwise_transcendental, 2.5, False),
    "elementwise": (elementwise, 1.5, False),
    "elementwise_in_place": (elementwise_in_place, 1.3, False),
    "elementwise_divide": (elementwise_divide, 1.0, False),
    "elementwise_select": (elementwise_select, 1.0, False),
    "allocate": (allocate, 0.3, False),
    "item": (item, 0.2, False),
}  # fmt: skip
