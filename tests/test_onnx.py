"""ONNX files run in torch to the values of the model that was exported, cost what it costs, and name what they miss."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from costmodel.capture import capture
from costmodel.errors import CostmodelError, FileError, UnknownName
from costmodel.lower import lower
from costmodel.models import load_model

onnx = pytest.importorskip("onnx", reason="the extra costmodel[onnx]")


def export(model: nn.Module, inputs: Any, path: Path, **options: Any) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model.eval(), inputs, str(path), dynamo=False, **options)
    return path


def flops(model: nn.Module, inputs: Any) -> int:
    lowered = lower(capture(model, inputs).check())
    assert lowered.unpriced == {}
    return sum(c.flops for c in lowered.costs)


class Block(nn.Module):
    """What a transformer exports to: shape arithmetic, masks, layer norm, attention written out."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(self.norm(x)).view(b, n, 3, 4, c // 4).permute(2, 0, 3, 1, 4).unbind(0)
        mask = torch.tril(torch.ones(n, n, dtype=torch.bool))
        a = (q @ k.transpose(-2, -1) * (c // 4) ** -0.5).masked_fill(~mask, float("-inf")).softmax(-1)
        return x + F.gelu(self.out((a @ v).transpose(1, 2).reshape(b, n, c)))


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.block, self.head = nn.Embedding(50, 32), Block(), nn.Linear(32, 50)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.block(self.embed(ids)))


class Resampled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.conv = nn.ConvTranspose2d(3, 4, 2, 2), nn.Conv2d(4, 8, 3, padding=1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        y = F.interpolate(self.conv(self.up(x)), scale_factor=2, mode="bilinear", align_corners=False)
        a, b = y.chunk(2, 1)
        y = torch.cat([a * b.sigmoid(), F.pad(a, (1, 1, 0, 0))[..., 1:-1]], 1)
        return F.avg_pool2d(y, 2).mean((2, 3)) + y.amax((2, 3)) + F.hardswish(y[:, :, ::2, 0]).sum(-1)


ZOO: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "convolutions": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU6(), nn.Conv2d(8, 8, 3, groups=8), nn.Hardswish(),
            nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10), nn.Softmax(-1),
        ),
        torch.randn(2, 3, 32, 32),
    ),
    "attention": (Block, torch.randn(2, 9, 32)),
    "tokens": (Tokens, torch.randint(50, (2, 9))),
    "resampling": (Resampled, torch.randn(2, 3, 8, 8)),
    "group norm": (
        lambda: nn.Sequential(nn.Conv1d(4, 8, 3), nn.GroupNorm(2, 8), nn.SiLU(), nn.PReLU()), torch.randn(2, 4, 16)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ZOO)
def test_a_file_computes_what_its_model_computes_and_trains(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    make, x = ZOO[name]
    model = make()
    loaded = load_model(str(export(model, (x,), tmp_path / "m.onnx")))
    with torch.no_grad():
        assert torch.allclose(loaded.model.eval()(x), model.eval()(x), atol=1e-5)
    matmuls = [
        sum(c.flops for c in lower(capture(m, x)).costs if c.kind.startswith(("gemm", "bmm", "conv", "gemv")))
        for m in (loaded.model, model)
    ]
    assert matmuls[0] == matmuls[1], "products cost the same by either door"
    assert flops(loaded.model, x) > 0
    capture(loaded.model, x, mode="train").check()


def test_a_recurrence_has_its_shape_and_cost(tmp_path: Path) -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(8, 16, bidirectional=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.lstm(x)[0]

    model, x = Last(), torch.randn(5, 2, 8)
    loaded = load_model(str(export(model, (x,), tmp_path / "m.onnx")))
    assert loaded.model(x).shape == model(x).shape
    capture(model, x)  # torch 2.13: see test_capture
    assert flops(loaded.model, x) == pytest.approx(flops(model, x), rel=0.02)


def test_open_sizes_are_batch_tokens_and_options(tmp_path: Path) -> None:
    path = export(
        Tokens(), (torch.randint(50, (1, 4)),), tmp_path / "m.onnx",
        input_names=["ids"], dynamic_axes={"ids": {0: "batch", 1: "length"}},
    )  # fmt: skip
    assert load_model(str(path), batch=3, seq=7).args[0].shape == (3, 7)
    loaded = load_model(f"{path},length=5", batch=2)
    assert loaded.model(*loaded.args).shape == (2, 5, 50)
    short, long = (flops(load_model(str(path), seq=n).model, load_model(str(path), seq=n).args) for n in (8, 16))
    assert 2 < long / short < 4, "one file, several traces"
    with pytest.raises(UnknownName, match=r"no open size of .* named 'height'"):
        load_model(f"{path},height=5")
    fixed = export(Block(), (torch.randn(1, 4, 32),), tmp_path / "f.onnx")
    with pytest.raises(CostmodelError, match="exported with batch 1"):
        load_model(str(fixed), batch=4)


def graph_of(nodes: list[Any], path: Path, *, shape: list[int] | None = None, initializers: Any = ()) -> Path:
    h, kind = onnx.helper, onnx.TensorProto.FLOAT
    ends = [h.make_tensor_value_info(n, kind, s) for n, s in (("x", [1, 4]), ("y", shape or [1, 4]))]
    graph = h.make_graph(nodes, "g", ends[:1], ends[1:], list(initializers))
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 17), h.make_opsetid("my", 1)]), path)
    return path


def test_an_unknown_operator_is_a_gap_by_name(tmp_path: Path) -> None:
    node = onnx.helper.make_node("Warp", ["x"], ["y"], domain="my")
    loaded = load_model(str(graph_of([node], tmp_path / "m.onnx")))
    assert dict(lower(capture(loaded.model, loaded.inputs).check()).unpriced) == {"onnx::Warp": 1}


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([("Warp", ["x"], ["z"]), ("Relu", ["z"], ["y"])], r"Warp: has no torch form here and no known shape"),
        ([("If", ["x"], ["y"])], r"If: is control flow"),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(nodes: list[Any], message: str, tmp_path: Path) -> None:
    made = [onnx.helper.make_node(k, i, o, domain="my" if k == "Warp" else "") for k, i, o in nodes]
    with pytest.raises(FileError, match=message) as caught:
        load_model(str(graph_of(made, tmp_path / "m.onnx")))
    assert "\n" not in str(caught.value)


def test_external_weights_stay_closed(tmp_path: Path) -> None:
    weight = onnx.TensorProto(name="w", dims=[4, 4096], data_type=1, data_location=1)
    weight.external_data.add(key="location", value="../../etc/passwd")
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    path = graph_of([node], tmp_path / "m.onnx", shape=[1, 4096], initializers=[weight])
    loaded = load_model(str(path))
    assert flops(loaded.model, loaded.inputs) == 2 * 4 * 4096
    weight.dims[0] = 1 << 60
    with pytest.raises(FileError, match="no size of a weight"):
        load_model(str(graph_of([node], tmp_path / "big.onnx", shape=[1, 4096], initializers=[weight])))


@pytest.mark.parametrize("damage", [b"", b"not a model", b"\x08" * 100])
def test_damaged_files_end_in_one_line(damage: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(damage)
    with pytest.raises(FileError, match=r"m\.onnx") as caught:
        load_model(str(path))
    assert "\n" not in str(caught.value)


def test_without_onnx_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(CostmodelError, match=r"onnx is not installed; run: pip install 'costmodel\[onnx\]'"):
        load_model(str(tmp_path / "m.onnx"))
