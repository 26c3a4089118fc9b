"""A zoo of awkward models: each traces, is wholly priced, and costs what its plain twin says, or gives one clear line.

Plain forms (shared and tied weights, recursion, views, hooks, nested inputs) are in test_capture.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from costmodel.capture import capture
from costmodel.costs import Cost, OpSpec, cost
from costmodel.errors import CaptureError, CostmodelError
from costmodel.graph import OpGraph
from costmodel.lower import lower
from costmodel.models import load_model

X = torch.ones(4, 8)


def flops(graph: OpGraph) -> int:
    lowered = lower(graph.check())
    assert lowered.unpriced == {}
    return sum(c.flops for c in lowered.costs)


def names(graph: OpGraph) -> Counter[str]:
    return Counter(n.split("::")[1].split(".")[0] for n in graph.op_name)


def products(graph: OpGraph) -> int:
    """FLOPs of matrix products alone."""
    kinds = ("gemm", "gemv", "bmm", "conv", "int_mm")
    return sum(c.flops for c in lower(graph).costs if c.kind.startswith(kinds))


# Autocast


class Autocast(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.net, self.dtype = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 8)), dtype

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=self.dtype):
            return self.net(x).float()


@pytest.mark.parametrize("mode", ["infer", "train"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_runs_its_products_in_half_precision(dtype: torch.dtype, mode: str) -> None:
    graph = capture(Autocast(dtype), X, mode=mode)
    assert flops(graph) > 0
    halves = [
        graph.tensor_dtype[graph.op_outputs[k][0]]
        for k, n in enumerate(graph.op_name)
        if n.startswith(("aten::addmm", "aten::mm"))
    ]
    assert set(halves) == {str(dtype).removeprefix("torch.")}
    assert names(graph)["_to_copy"] >= 3, "casts are ops, and cost"


# Training


def test_accumulation_costs_a_forward_and_backward_each() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    one, three = (products(capture(model, X, mode="train", accumulate=n)) for n in (1, 3))
    assert three == 3 * one


def test_checkpointing_adds_a_forward_of_what_it_drops() -> None:
    from torch.utils.checkpoint import checkpoint

    class Block(nn.Module):
        def __init__(self, reentrant: bool | None) -> None:
            super().__init__()
            self.a, self.b, self.reentrant = nn.Linear(8, 32), nn.Linear(32, 8), reentrant

        def body(self, x: Tensor) -> Tensor:
            return self.b(torch.tanh(self.a(x)))

        def forward(self, x: Tensor) -> Tensor:
            x = x * self.a.weight.sum()
            return self.body(x) if self.reentrant is None else checkpoint(self.body, x, use_reentrant=self.reentrant)

    plain = products(capture(Block(None), X, mode="train"))
    forward = products(capture(Block(None), X))
    for reentrant in (False, True):
        again = products(capture(Block(reentrant), X, mode="train"))
        # the last product of a block is not needed again where recomputation stops early
        assert plain < again <= plain + forward


# Attention in every form that the CPU has


class Attention(nn.Module):
    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.q = form, nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).view(2, -1, 2, 8).transpose(1, 2)
        k, more = q, {}
        if self.form == "causal":
            more = {"is_causal": True}
        elif self.form == "bool mask":
            more = {"attn_mask": torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).tril()}
        elif self.form == "float mask":
            more = {"attn_mask": torch.zeros(2, 1, q.shape[2], q.shape[2])}
        elif self.form == "dropout":
            more = {"dropout_p": 0.1 if self.training else 0.0}
        elif self.form == "grouped":
            k, more = q[:, :1], {"enable_gqa": True}
        elif self.form == "scale":
            more = {"scale": 0.3}
        elif self.form == "short":
            q = q[:, :, -1:]
        if self.form == "math":
            from torch.nn.attention import SDPBackend, sdpa_kernel

            with sdpa_kernel(SDPBackend.MATH):
                return F.scaled_dot_product_attention(q, k, k)
        return F.scaled_dot_product_attention(q, k, k, **more)


@pytest.mark.parametrize("mode", ["infer", "train"])
@pytest.mark.parametrize(
    "form", ["plain", "causal", "bool mask", "float mask", "dropout", "grouped", "scale", "short", "math"]
)
def test_attention_costs_two_products_in_every_form(form: str, mode: str) -> None:
    n, q = 32, 1 if form == "short" else 32
    graph = capture(Attention(form), torch.randn(2, n, 16), mode=mode)
    total = flops(graph)
    two_products = 2 * 2 * (2 * 2 * q * n * 8)  # batch 2, heads 2, width 8
    assert total > two_products * (1 if mode == "infer" else 3) * (0.5 if form == "causal" else 1)


@pytest.mark.parametrize("mode", ["infer", "train"])
def test_multi_head_attention_module_and_its_fast_path(mode: str) -> None:
    model = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    assert flops(capture(model, torch.randn(2, 8, 16), mode=mode)) > 2 * 16 * (4 * 16 * 16 + 2 * 16 * 32)


# Generation with a cache


@pytest.mark.parametrize("name", ["llama-tiny", "gpt2-tiny"])
def test_decoders_prefill_and_decode(name: str) -> None:
    def traced(mode: str, seq: int) -> OpGraph:
        loaded = load_model(f"transformers:{name}", mode=mode, seq=seq)
        return capture(loaded.model, loaded.inputs, mode=mode, seq=seq)

    prefill, decode, later = traced("prefill", 64), traced("decode", 64), traced("decode", 128)
    assert 20 < flops(prefill) / flops(decode) < 100, "one token instead of 64"
    assert 0 < flops(later) - flops(decode) < flops(decode), "more of the cache is read, and no more"
    cached = sum(b for b, r in zip(later.storage_bytes, later.storage_role) if r == "input")
    assert cached > sum(b for b, r in zip(decode.storage_bytes, decode.storage_role) if r == "input")


# Shapes


def test_dynamic_shapes_are_several_traces_of_one_model() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    small, large = (capture(model, torch.randn(1, 3, s, s)) for s in (18, 34))
    conv = 2 * 8 * 27
    assert products(small) == conv * 16 * 16 + 2 * 8 * 2
    assert products(large) == conv * 32 * 32 + 2 * 8 * 2


# Layouts and numbers


class Sparse(nn.Module):
    def __init__(self, layout: str) -> None:
        super().__init__()
        dense = torch.eye(8)
        self.matrix = dense.to_sparse() if layout == "coo" else dense.to_sparse_csr()
        self.a = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sparse.mm(self.matrix, self.a(x).t())


class SparseGradient(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(10, 4, mode="sum")

    def forward(self, ids: Tensor) -> Tensor:
        return self.bag(ids)


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(8, 8, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.fft.fft(x.to(torch.complex64)) @ self.w
        return torch.view_as_real(y * y.conj()).sum(-1) + y.abs()


@pytest.mark.parametrize("mode", ["infer", "train"])
def test_complex_numbers(mode: str) -> None:
    assert flops(capture(Complex(), X, mode=mode)) > 8 * 4 * 8 * 8, "a complex multiply-add is four real ones"


@pytest.mark.parametrize("mode", ["infer", "train"])
def test_bags_of_embeddings(mode: str) -> None:
    graph = capture(SparseGradient(), torch.tensor([[1, 2, 3], [3, 4, 5]]), mode=mode)
    assert flops(graph) >= 6 * 4 * (1 if mode == "infer" else 2), "each of six rows is added, forward and backward"


# Your own op, priced in five lines (README)


@torch.library.custom_op("zoo::cube", mutates_args=())
def cube(x: Tensor) -> Tensor:
    return x**3


@cube.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Cubed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return cube(self.a(x))


def test_an_op_of_the_users_is_a_gap_until_five_lines_price_it() -> None:
    graph = capture(Cubed(), X)
    assert dict(lower(graph).unpriced) == {"zoo::cube": 1}

    @cost("zoo::cube")
    def _(op: OpSpec) -> Cost:
        n = op.outputs[0].numel
        return Cost(flops=2 * n, kind="elementwise")

    assert flops(graph) == 2 * 4 * 8 * 8 + 2 * 4 * 8


# Libraries that wrap a model


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_lora_by_peft() -> None:
    loaded = load_model("transformers:llama-tiny", mode="train", seq=16)
    peft = pytest.importorskip("peft", reason="peft is not installed")
    full = capture(loaded.model, loaded.inputs, mode="train")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.1)
    tuned = capture(peft.get_peft_model(loaded.model, config), loaded.inputs, mode="train")
    assert products(tuned) < 0.8 * products(full), "no gradients of frozen weights"
    gradients = sum(b for b, r in zip(tuned.storage_bytes, tuned.storage_role) if r == "gradient")
    assert gradients == 4 * sum(p.numel() for p in loaded.model.parameters() if p.requires_grad)


@pytest.mark.parametrize("form", ["int8 weights", "int8"])
def test_quantized_by_torchao(form: str) -> None:
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    config = {
        "int8 weights": quantization.Int8WeightOnlyConfig,
        "int8": quantization.Int8DynamicActivationInt8WeightConfig,
    }[form]()
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)).eval()
    x = torch.randn(8, 64)
    plain = products(capture(model, x))
    quantization.quantize_(model, config)
    graph = capture(model, x)
    assert flops(graph) >= plain
    assert names(graph)["_int_mm" if form == "int8" else "mm"] == 2
    weights = sum(b for b, r in zip(graph.storage_bytes, graph.storage_role) if r == "parameter")
    assert weights == 2 * (64 * 64 + (4 + 4 + 1) * 64), "a byte a weight; a scale, a bias and a zero point a row"


# One clear line

REFUSED: dict[str, tuple[Callable[[], nn.Module], Any, str]] = {
    "sparse matrix": (lambda: Sparse("coo"), X, "layout sparse_coo .*depends on its values: trace a dense twin"),
    "compressed rows": (lambda: Sparse("csr"), X, "layout sparse_csr .*depends on its values: trace a dense twin"),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta:UserWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_traced_says_so_in_one_line(name: str) -> None:
    make, x, said = REFUSED[name]
    with pytest.raises((CaptureError, CostmodelError), match=said) as caught:
        capture(make(), x)
    assert "\n" not in str(caught.value)
