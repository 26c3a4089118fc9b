"""Models by name: they build, run, and are what their names say."""

from __future__ import annotations

import doctest
import io
import json
import logging
import pickle
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

from costmodel import models
from costmodel.errors import CostmodelError, FileError, MissingExtra, UnknownName
from costmodel.methods import apply_method
from costmodel.models import (
    Loaded,
    _compat,
    _pt2,
    aliases,
    available,
    caffe,
    inputs,
    load,
    load_model,
    mobilenet_v3_small,
    own,
    resolve_alias,
    small,
)
from costmodel.models.aliases import Unresolvable, find_alias
from costmodel.models.load import split_options
from costmodel.models.step import make_step

# The eight models that the quick suite runs, at sizes for a test, and their published parameters (None: our own size).
EIGHT = {
    "timm:mobilenetv2_100": ("3x64x64", None, 3_504_872),
    "torchvision:mobilenet_v3_small": ("3x64x64", None, 2_542_856),
    "timm:vit_small_patch16_224": ("3x64x64", None, None),
    "timm:swin_tiny_patch4_window7_224": (None, None, 28_288_354),
    "timm:resnet18": ("3x64x64", None, 11_689_512),
    "transformers:bert-mini": (None, 16, 11_171_074),
    "transformers:mamba-tiny": (None, 16, None),
    "transformers:mamba2-tiny": (None, 16, None),
}


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def folded(model: nn.Module) -> int:
    """Parameters once every batch norm has become the bias of the convolution before it."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    return parameters(model) - sum(m.num_features for m in norms)


def multiply_accumulates(loaded: Loaded) -> int:
    """Of convolutions and linear layers in one forward pass, by shape: an oracle that shares nothing with costs/."""
    total = 0

    def count(module: nn.Module, _: object, out: torch.Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Conv2d):
            total += out.numel() * module.weight[0].numel()
        elif isinstance(module, nn.Linear):
            total += out.numel() * module.in_features

    for module in loaded.model.modules():
        module.register_forward_hook(count)
    # what keeps its values on meta (tables, schedules, inputs) is in memory: shapes alone are wanted here
    device = next(loaded.model.parameters()).device
    args, kwargs = pytree.tree_map_only(torch.Tensor, lambda t: t.to(device), (loaded.args, loaded.kwargs))
    with torch.no_grad():
        loaded.model.to(device)(*args, **kwargs)
    return total


@pytest.mark.parametrize("spec", EIGHT)
def test_the_eight_models_train_one_step(spec: str) -> None:
    size, seq, published = EIGHT[spec]
    batch = 1 if "swin" in spec else 2
    loaded = load_model(spec, mode="train", batch=batch, input_size=size, seq=seq)
    if published is not None:
        assert parameters(loaded.model) == published
    first = pytree.tree_leaves(loaded.inputs)[0]
    assert first.shape[0] == batch
    assert loaded.model.training
    step = make_step(loaded.model, loaded.inputs, mode="train")
    before = [p.detach().clone() for p in loaded.model.parameters()]
    assert torch.isfinite(step.run())
    assert any(not torch.equal(a, b) for a, b in zip(before, loaded.model.parameters(), strict=True))


@pytest.mark.parametrize(
    "spec", ["transformers:gpt2-tiny", "transformers:llama-tiny", "transformers:mamba-tiny", "transformers:mamba2-tiny"]
)
def test_causal_models_decode_one_token_from_a_cache(spec: str) -> None:
    loaded = load_model(spec, mode="decode", batch=2)
    assert loaded.kwargs["input_ids"].shape == (2, 1)
    step = make_step(loaded.model, loaded.inputs, mode="decode", seq=8)
    logits = step.forward().logits
    assert logits.shape[:2] == (2, 1)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize(
    ("name", "published"),
    {
        "bert-base": 109_483_778,
        "bert-large": 335_143_938,
        "distilbert": 66_955_010,
        "roberta-base": 124_647_170,
        "gpt2": 124_439_808,
        "gpt2-large": 774_030_080,
        "gpt3-xl": 2_879_554_560,
        "gpt3-2.7b": 2_651_553_280,
        "opt-1.3b": 1_315_758_080,
        "pythia-160m": 162_322_944,
        "tinyllama-1.1b": 1_100_048_384,
        "llama3.2-1b": 1_235_814_400,
        "llama2-7b": 6_738_415_616,
        "qwen2.5-0.5b": 494_032_768,
        "smollm-135m": 134_515_008,
        "mamba-130m": 129_135_360,
        "mamba-2.8b": 2_768_345_600,
        "mamba2-8b": 8_236_999_680,
        "t5-small": 60_506_624,
        "whisper-tiny": 37_760_640,
        "vit-base": 86_567_656,
        "swin-tiny": 28_288_354,
        "convnext-tiny": 28_589_128,
    }.items(),
)
def test_architectures_have_their_published_parameters_on_meta(name: str, published: int) -> None:
    loaded = load_model(f"transformers:{name}", device="meta")
    assert parameters(loaded.model) == published
    assert all(p.is_meta for p in loaded.model.parameters() if p.numel() > 1 << 16)
    kept = [b for b in loaded.model.buffers() if not b.is_meta]
    assert sum(b.nbytes for b in kept) < 1 << 26, "tables that decide what runs keep their values"


@pytest.mark.parametrize(
    ("name", "published"),
    {
        "squeezenet": (1_235_496, 418_467_520),
        "mobilenet": (4_221_032, 568_740_352),
        "mobilenet_v2": (3_488_872, 313_619_328),
        "mobilenet_v3": (5_133_694, 245_564_768),
        "shufflenet": (1_802_866, 127_061_304),
        "shufflenet_v2": (2_270_514, 144_907_992),
        "mnasnet": (4_364_352, 314_415_872),
        "proxylessnasnet": (4_064_560, 336_483_904),
        "efficientnet_b0": (5_267_540, 385_814_752),
        "regnety_400m": (4_330_568, 401_842_848),
        "googlenet": (6_998_552, 1_582_671_872),
        "alexnet": (60_965_224, 724_406_816),
        "resnet18": (11_688_872, 1_826_918_400),
        "resnet50": (25_530_472, 3_857_973_248),
        "vgg16_int8": (138_357_544, 15_470_264_320),
    }.items(),
)
def test_nets_of_ncnn_are_rebuilt_to_the_digit(name: str, published: tuple[int, int]) -> None:
    loaded = load_model(resolve_alias(name, "ncnn"), device="meta")
    assert (folded(loaded.model), multiply_accumulates(loaded)) == published


@pytest.mark.parametrize(
    ("source", "name", "spec"),
    [
        ("flower-rpi-train", "vit_tiny", "timm:vit_tiny_patch16_224"),
        ("flower-rpi-train", "swin_tiny", "timm:swin_tiny_patch4_window7_224"),
        ("flower-rpi-train", "mlpmixer_b16", "timm:mixer_b16_224"),
        ("flower-rpi-train", "efficientformer_l1", "timm:efficientformer_l1"),
        ("timm", "tf_efficientnet_b5_ns", "timm:tf_efficientnet_b5.ns_jft_in1k"),
        ("mlperf-v1.1", "mobilenet-v1-0.25-128-non-quantized", "caffe-mobilenet-v1,width=0.25"),
        ("mlperf-v0.7", "quantized-efficientnet-lite3", "timm:tf_efficientnet_lite3"),
        ("mlperf-v0.7", "mobilenet-v3-small-minimalistic_224_1.0_uint8", "timm:tf_mobilenetv3_small_minimal_100"),
        ("neusight", "gpt3_xl", "transformers:gpt3-xl,attn_implementation=eager"),
        ("zeus", "bert_base_uncased@squad", "transformers:bert-base-squad"),
        ("tflite-hosted", "Mobilenet_V1_0.75_160_quant", "caffe-mobilenet-v1,width=0.75"),
        ("paddleclas", "SwinTransformer_large_patch4_window7_224[1]", "timm:swin_large_patch4_window7_224"),
        ("paddleclas", "DLA60x_c", "timm:dla60x_c"),
        (None, "mobilenet-v2-1.4-224-quantized", "torchvision:mobilenet_v2,width_mult=1.4"),
        (None, "efficientformer_l1", "timm:efficientformer_l1"),
    ],
)
def test_aliases_resolve_to_a_spec_that_builds(source: str | None, name: str, spec: str) -> None:
    assert resolve_alias(name, source) == spec
    assert parameters(load_model(spec, device="meta").model) > 0


@pytest.mark.parametrize(
    ("source", "name", "reason"),
    [
        ("ncnn", "yolov4-tiny", "detector"),
        ("neusight", "switchxl4", "not published"),
        ("paddlelite", "MobileNetV3", "sparse"),
        ("zeus", "ncf@movielens-1m", "no installed library"),
        (None, "resnet50", "say the source"),
    ],
)
def test_what_cannot_be_rebuilt_says_why(source: str | None, name: str, reason: str) -> None:
    with pytest.raises(Unresolvable, match=reason):
        resolve_alias(name, source)


def test_a_word_that_is_no_family_is_told_how_to_be_searched_for() -> None:
    with pytest.raises(UnknownName, match=r"there are own, .*costmodel models --search conv"):
        available(["conv"])


def test_unknown_aliases_and_sources_list_near_names() -> None:
    with pytest.raises(UnknownName, match="mobilenet_v3"):
        resolve_alias("mobilenet_v4", "ncnn")
    with pytest.raises(UnknownName, match="did you mean ncnn"):
        resolve_alias("resnet50", "nccn")
    assert "patch 16" in find_alias("vision_transformer", "ncnn").note


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("timm:mobilenetv2_10", "did you mean .*mobilenetv2_100"),
        ("torchvision:resnet51", "did you mean .*resnet5"),
        ("transformers:bert-bse", "did you mean bert-base"),
        ("mlp-smal", "did you mean .*mlp-small"),
        ("mobilenetv2_100", "did you mean timm:mobilenetv2_100"),
        ("tim:resnet18", "did you mean .*timm"),
        ("timm:resnet18,num_clases=10", "resnet18"),
        ("torchvision:resnet18,num_clases=10", "resnet18"),
        ("transformers:bert-tiny,num_layer=1", "num_hidden_layers"),
        ("mlp-small,width=3", "takes widths"),
        ("timm:resnet18,10", "not key=value"),
        ("trace.json.gz", "saved trace"),
        ("nowhere/net.py:make", "no such file"),
        ("nowhere.pt2", "no such file"),
        ("transformers:./nowhere", "config.json"),
    ],
)
def test_errors_name_what_is_near_or_what_to_do(spec: str, message: str) -> None:
    with pytest.raises(CostmodelError, match=message):
        load_model(spec)


@pytest.mark.parametrize(
    ("spec", "settings", "message"),
    [
        ("timm:resnet18", {"seq": 8}, "leave --seq out"),
        ("timm:resnet18", {"mode": "decode"}, "causal"),
        ("timm:resnet18", {"input_size": "224x224"}, "channels x height x width"),
        ("timm:resnet18", {"input_size": "3x0x2"}, "not like 3x224x224"),
        ("transformers:bert-tiny", {"input_size": "3x64x64"}, "leave --input-size out"),
        ("transformers:bert-tiny", {"mode": "prefill"}, "causal"),
        ("transformers:t5-small", {"mode": "decode"}, "causal"),
        ("transformers:bert-tiny", {"seq": 513}, "512 tokens"),
        ("transformers:vit-tiny", {"input_size": "3x64x32"}, "square"),
        ("transformers:swin-tiny", {"input_size": "3x64x64"}, "window_size=2"),
        ("mlp-small", {"dtype": "int8"}, "quamba"),
        ("mlp-small", {"mode": "trian"}, "did you mean train"),
        ("mlp-small", {"batch": 0}, "at least 1"),
        ("mlp-small", {"device": "cuda"}, "cpu"),
    ],
)
def test_settings_that_a_model_lacks_are_refused(spec: str, settings: dict[str, object], message: str) -> None:
    with pytest.raises(CostmodelError, match=message):
        load_model(spec, **settings)  # type: ignore[arg-type]


def test_settings_reach_the_constructor() -> None:
    assert load_model("timm:resnet18,num_classes=7", device="meta").model.num_classes == 7
    bert = load_model("transformers:bert-tiny,num_hidden_layers=1,attn_implementation=eager", device="meta").model
    assert len(bert.bert.encoder.layer) == 1
    assert bert.config._attn_implementation == "eager"
    assert split_options("a,b=[1],c=gelu,d=true") == ("a", {"b": [1], "c": "gelu", "d": True})


def test_sizes_and_channels_are_taken() -> None:
    vit = load_model("timm:vit_tiny_patch16_224", input_size="3x64x64", batch=2)
    assert vit.args[0].shape == (2, 3, 64, 64)
    assert vit.model(*vit.args).shape == (2, 1000)
    grey = load_model("timm:resnet18", input_size="1x32x32")
    assert grey.model(*grey.args).shape == (1, 1000)
    small = load_model("transformers:vit-tiny", input_size="1x32x32")
    assert small.model(**small.kwargs).logits.shape == (1, 1000)
    assert load_model("torchvision:inception_v3", device="meta").args[0].shape == (1, 3, 299, 299)


def test_dtype_converts_model_and_floating_inputs() -> None:
    loaded = load_model("conv-small", dtype="bfloat16")
    assert loaded.model(*loaded.args).dtype is torch.bfloat16
    text = load_model("transformers:mamba2-tiny", dtype="float16", device="meta")
    assert {p.dtype for p in text.model.parameters()} == {torch.float16}
    assert text.kwargs["input_ids"].dtype is torch.int64


def test_the_seed_decides_and_the_global_generator_is_left_alone() -> None:
    state = torch.get_rng_state()
    one, same, other = (load_model("conv-small", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), same.model.parameters(), strict=True))
    assert torch.equal(one.args[0], same.args[0])
    assert not torch.equal(one.args[0], other.args[0])


@pytest.mark.parametrize(
    "spec", ["timm:mobilenetv2_100", "timm:swin_tiny_patch4_window7_224", "torchvision:regnet_y_400mf"]
)
def test_meta_shapes_are_those_of_the_real_model(spec: str) -> None:
    real, meta = load_model(spec), load_model(spec, device="meta")
    assert [(n, p.shape, p.dtype) for n, p in real.model.named_parameters()] == [
        (n, p.shape, p.dtype) for n, p in meta.model.named_parameters()
    ]
    assert all(p.is_meta for p in meta.model.parameters() if p.numel() > 1 << 16)


def test_detectors_segmenters_and_video_get_what_they_read() -> None:
    detector = load_model("torchvision:ssdlite320_mobilenet_v3_large", mode="train", batch=2, device="meta")
    assert [tuple(i.shape) for i in detector.args[0]] == [(3, 800, 800)] * 2
    segmenter = load_model("torchvision:lraspp_mobilenet_v3_large", input_size="3x64x64")
    assert segmenter.model(*segmenter.args)["out"].shape == (1, 21, 64, 64)
    assert load_model("torchvision:r3d_18", device="meta").args[0].shape == (1, 3, 16, 112, 112)


# ---------------------------------------------------------------- the user's own file

NET = """
import torch
from neighbour import WIDTH

def tensor(batch=1, width=WIDTH):
    return torch.nn.Linear(4, width), torch.randn(batch, 4)

def keywords(batch=1, seq=5):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Embedding(9, 3)
        def forward(self, *, ids):
            return self.table(ids)
    return Net(), {"ids": torch.zeros(batch, seq, dtype=torch.long)}

def two():
    return torch.nn.Bilinear(2, 3, 4), (torch.randn(1, 2), torch.randn(1, 3))

def wrong():
    return torch.nn.Linear(2, 2)

def breaks():
    raise RuntimeError("no data")
"""


@pytest.fixture
def net(tmp_path: Path) -> str:
    (tmp_path / "neighbour.py").write_text("WIDTH = 6\n")
    (tmp_path / "net.py").write_text(NET)
    return str(tmp_path / "net.py")


def test_file_door_takes_tensor_tuple_and_dict(net: str) -> None:
    plain = load_model(f"{net}:tensor,width=3", batch=2)
    assert plain.model(*plain.args).shape == (2, 3)
    assert load_model(f"{net}:tensor").model.out_features == 6
    text = load_model(f"{net}:keywords", seq=7)
    assert (text.task, text.model(**text.kwargs).shape) == ("text", (1, 7, 3))
    pair = load_model(f"{net}:two", dtype="float64")
    assert pair.model(*pair.args).dtype is torch.float64


@pytest.mark.parametrize(
    ("function", "settings", "message"),
    [
        ("", {}, "say which function: .*net.py:tensor"),
        (":tensr", {}, "did you mean tensor"),
        (":tensor,wdth=3", {}, "did you mean width"),
        (":two", {"batch": 2}, "no parameter 'batch'"),
        (":tensor", {"seq": 2}, "no parameter 'seq'"),
        (":wrong", {}, "must return .*not a Linear"),
        (":breaks", {}, "RuntimeError: no data"),
    ],
)
def test_file_door_says_what_is_wrong(net: str, function: str, settings: dict[str, int], message: str) -> None:
    with pytest.raises(CostmodelError, match=message):
        load_model(net + function, **settings)  # type: ignore[arg-type]


def test_a_file_that_does_not_parse_names_the_line(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("x = 1\ndef f(:\n")
    with pytest.raises(FileError, match=r"line 2: does not parse"):
        load_model(f"{broken}:f")


# ---------------------------------------------------------------- torch.export programs


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pt2") / "conv.pt2"
    loaded = load_model("conv-small", batch=2)
    torch.export.save(torch.export.export(loaded.model, loaded.args), path)
    return path


def test_pt2_round_trip_computes_the_same_and_trains(program: Path) -> None:
    source, loaded = load_model("conv-small", batch=2), load_model(str(program))
    torch.testing.assert_close(loaded.args[0], source.args[0])
    torch.testing.assert_close(loaded.model(*loaded.args), source.model(*source.args))
    assert loaded.task == "image"
    step = make_step(loaded.model, loaded.inputs, mode="train")
    assert torch.isfinite(step.run())
    with pytest.raises(CostmodelError, match="leave --batch out"):
        load_model(str(program), batch=3)


@pytest.mark.parametrize(
    ("text", "allowed"),
    {
        "Mul(Integer(2), Symbol('s26', positive=True, integer=True))": True,
        "s0 + 2*FloorDiv(s1, 4) >= 3": True,
        "S('print(1)')": False,
        "S('exit')": False,
        "Symbol('a b')": False,
        "exit()": False,
        "().__class__": False,
        "[x for x in y]": False,
        "lambda: 0": False,
        "Pow(10, 1000000000)": False,
        "10**1000000000": False,
        "(" * 9000: False,
    }.items(),
)
def test_shape_expressions_are_arithmetic_or_refused(text: str, allowed: bool) -> None:
    assert _pt2.is_arithmetic(text) is allowed


def test_pt2_with_dynamic_shapes_loads(tmp_path: Path) -> None:
    path = tmp_path / "dynamic.pt2"
    loaded = load_model("conv-small", batch=4)
    batch = torch.export.Dim("batch", min=1, max=16)
    torch.export.save(torch.export.export(loaded.model, loaded.args, dynamic_shapes=({0: 2 * batch},)), path)
    again = load_model(str(path))
    assert again.model(*again.args).shape == (4, 10)


def rewrite(program: Path, to: Path, edit: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    """Copy an archive with some members replaced (by the name without the folder) or added."""
    with zipfile.ZipFile(program) as old, zipfile.ZipFile(to, "w", compression) as new:
        folder = old.namelist()[0].partition("/")[0]
        for name in old.namelist():
            member = name.partition("/")[2]
            new.writestr(name, edit.pop(member) if member in edit else old.read(name))
        for member, data in edit.items():
            new.writestr(f"{folder}/{member}", data)
    return to


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path(MARK),)


MARK = "/nonexistent"


def model_json(program: Path, old: str, new: str) -> dict[str, bytes]:
    with zipfile.ZipFile(program) as archive:
        name = next(n for n in archive.namelist() if "/models/" in n)
        text = archive.read(name).decode()
    assert old in text
    return {name.partition("/")[2]: text.replace(old, new, 1).encode()}


def hostile(program: Path, kind: str) -> dict[str, bytes]:
    stream = io.BytesIO()
    torch.save((Bomb(),), stream)
    if kind == "sample inputs":
        return {"data/sample_inputs/model.pt": stream.getvalue()}
    if kind == "opaque constant":
        return {"data/constants/opaque_obj_0": pickle.dumps(Bomb())}
    if kind == "legacy weights":
        return {"data/weights/model.pt": stream.getvalue()}
    if kind == "compiled library":
        return {"data/aotinductor/model/x.so": b"\x7fELF"}
    if kind == "path traversal":
        return {"../../escape": b""}
    if kind == "pickled weight":
        with zipfile.ZipFile(program) as archive:
            name = next(n for n in archive.namelist() if n.endswith("weights_config.json"))
            config = json.loads(archive.read(name))
        first = next(iter(config["config"].values()))
        first["use_pickle"] = True
        return {
            "data/weights/model_weights_config.json": json.dumps(config).encode(),
            "data/weights/weight_0": stream.getvalue(),
        }
    if kind == "os.system as an op":
        return model_json(program, '"torch.ops.aten.relu.default"', '"torch.os.system"')
    if kind == "code as a name":
        return model_json(program, '"name": "input"', f"\"name\": \"x=__import__('os').mkdir('{MARK}')\"")
    assert kind == "code as a shape"
    return model_json(
        program, '{"as_int": 2}', f'{{"as_expr": {{"expr_str": "__import__(\'os\').mkdir(\'{MARK}\')"}}}}'
    )


HOSTILE = {
    "sample inputs": "more than tensors",
    "opaque constant": "not plain data",
    "legacy weights": "not plain data",
    "compiled library": "compiled code",
    "path traversal": "outside the archive",
    "pickled weight": "stored as a pickle",
    "os.system as an op": "not a registered operator",
    "code as a name": "is not a name",
    "code as a shape": "not an arithmetic expression",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_pt2_with_anything_to_execute_is_refused(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    mark = tmp_path / "executed"
    monkeypatch.setitem(globals(), "MARK", str(mark))
    path = rewrite(program, tmp_path / "hostile.pt2", hostile(program, kind))
    with pytest.raises(FileError, match=HOSTILE[kind]):
        load_model(str(path))
    assert not mark.exists()


@pytest.mark.parametrize("kind", ["empty", "text", "cut", "compressed", "other zip"])
def test_damaged_pt2_is_one_clear_error(program: Path, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "damaged.pt2"
    data = program.read_bytes()
    if kind == "compressed":
        rewrite(program, path, {}, zipfile.ZIP_DEFLATED)
    elif kind == "other zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a/archive_version", "0")
    else:
        path.write_bytes({"empty": b"", "text": b"not a zip", "cut": data[: len(data) // 2]}[kind])
    with pytest.raises(FileError, match=r"damaged\.pt2"):
        load_model(str(path))


# ---------------------------------------------------------------- checkpoints, libraries, listing


def test_checkpoint_folder_round_trip_reads_safetensors_only(tmp_path: Path) -> None:
    saved = load_model("transformers:mamba-tiny,num_hidden_layers=1", seq=4)
    saved.model.save_pretrained(tmp_path)
    again = load_model(f"transformers:{tmp_path}", seq=4)
    with torch.no_grad():
        torch.testing.assert_close(again.model(**saved.kwargs).logits, saved.model(**saved.kwargs).logits)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(FileError, match="safetensors"):
        load_model(f"transformers:{tmp_path}")
    config = json.loads((tmp_path / "config.json").read_text()) | {"auto_map": {"AutoModel": "evil.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(FileError, match="code of its own"):
        load_model(f"transformers:{tmp_path}")


def test_a_missing_library_says_the_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    real = _compat.import_module

    def absent(name: str) -> object:
        if name == "timm":
            raise ModuleNotFoundError("No module named 'timm'", name="timm")
        return real(name)

    monkeypatch.setattr(_compat, "import_module", absent)
    with pytest.raises(MissingExtra, match=r"pip install 'costmodel\[models\]'"):
        load_model("timm:resnet18")
    assert available(["timm"]) == {"timm": []}


@pytest.mark.parametrize("module", [aliases, caffe, inputs, load, mobilenet_v3_small, small])
def test_examples_in_docstrings(module: ModuleType) -> None:
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


def test_available_lists_every_family_and_own_names_are_found_by_file() -> None:
    listed = available()
    assert set(listed) == {"own", "timm", "torchvision", "transformers"}
    assert {"mlp-small", "conv-small", "caffe-resnet50"} <= set(listed["own"])
    assert len(listed["timm"]) > 1000
    assert "mamba2-8b" in listed["transformers"]
    with pytest.raises(UnknownName):
        available(["keras"])


def test_mobilenet_v3_small_is_torchvisions_and_mobiletl_takes_it() -> None:
    ours, theirs = (
        load_model(s, input_size="3x64x64") for s in ("mobilenet-v3-small", "torchvision:mobilenet_v3_small")
    )
    state = dict(zip(ours.model.state_dict(), theirs.model.state_dict().values(), strict=True))
    ours.model.load_state_dict(state)
    with torch.no_grad():
        torch.testing.assert_close(ours.model(*ours.args), theirs.model(*ours.args))
    ten = load_model("mobilenet-v3-small,num_classes=10", device="meta")
    assert multiply_accumulates(ten) == 55_496_640  # METHODS.md §2: 55.497 M, its forward
    tuned = apply_method("mobiletl:blocks=3", ours.model, ours.args)
    assert sum(type(m).__name__ == "SqueezeExcite" and hasattr(m, "reduce") for m in tuned.modules()) == 3


def test_a_file_in_the_folder_is_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "added_net.py").write_text(
        "import torch\ndef added_net(width=2):\n    return torch.nn.Conv2d(3, width, 1)\n"
    )
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(tmp_path)])
    own._models.cache_clear()
    try:
        assert load_model("added-net,width=5", input_size="3x8x8").model.out_channels == 5
    finally:
        own._models.cache_clear()


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n == "caffe-alexnet" else n for n in own.names()]
)
def test_models_of_our_own_run_and_differentiate(name: str) -> None:
    size = None if name in {"mlp-small", "caffe-alexnet"} else "3x64x64"
    loaded = load_model(name, batch=2, input_size=size, mode="train")
    make_step(loaded.model, loaded.inputs, mode="train").run()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in loaded.model.parameters())


def test_mamba_says_nothing_about_cuda_kernels(caplog: pytest.LogCaptureFixture) -> None:
    loaded = load_model("transformers:mamba-tiny", seq=4)
    with caplog.at_level(logging.WARNING), torch.no_grad():
        loaded.model(**loaded.kwargs)
    assert not [r for r in caplog.records if "kernel" in r.getMessage().lower()]


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("ResNet-50", "timm:resnet50"),
        ("resnet50_v1", "timm:resnet50"),
        ("vit-b-16", "torchvision:vit_b_16"),
        ("ViT_Tiny", "timm:vit_tiny_patch16_224"),
        ("bert-base-uncased", "transformers:bert-base"),
        ("MobileNetV2", "torchvision:mobilenet_v2"),
    ],
)
def test_names_that_people_write(name: str, spec: str) -> None:
    assert resolve_alias(name) == spec
