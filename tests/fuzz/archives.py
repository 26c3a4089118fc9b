"""Broken and hostile `.pt2` archives: what `fuzz.py` sends through the door of exported programs.

A member is changed and the archive packed again with right checksums, so that the damage arrives behind the zip
reader; or the packed bytes themselves are cut and flipped. One archive in six carries something that would run, write,
read or fill the memory if anything looked at it the wrong way; `listen.watched` reports whatever did.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import warnings
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .mutate import mutate_bytes, mutate_document

__all__ = ["make_pt2", "pack", "programs"]

Members = dict[str, bytes]
_BOMB_BYTES = 1 << 28
_PICKLE_PLACES = (
    "data/sample_inputs/model.pt", "data/constants/opaque_obj_0", "data/constants/custom_obj_0",
    "data/weights/model.pt", "data/weights/weight_0", "extra/x.pt", "models/model.json",
)  # fmt: skip


# Inputs that are right, to start from


class _Attention(nn.Module):
    """Tokens to logits, with a shape that depends on the batch: symbols get into the file."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.qkv = nn.Linear(8, 24)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 11)

    def forward(self, tokens: torch.Tensor, *, scale: float = 1.0) -> dict[str, torch.Tensor]:
        x = self.embedding(tokens)
        q, k, v = self.qkv(x).view(tokens.shape[0], -1, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(tokens.shape[0] * 5, 8)
        return {"logits": self.head(self.norm(y)) * scale}


@cache
def programs() -> tuple[Members, ...]:
    """The members, without their folder, of four archives that `torch.export.save` wrote."""
    conv = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 7 * 7, 3)
    )
    mlp = nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Dropout(0.1), nn.Linear(5, 2, bias=False))
    batch = torch.export.Dim("batch", min=1, max=64)
    tokens = torch.zeros(3, 5, dtype=torch.long)
    exported = (
        torch.export.export(conv.eval(), (torch.zeros(2, 3, 16, 16),)),
        torch.export.export(conv.train(), (torch.zeros(2, 3, 16, 16),)),
        torch.export.export(mlp.eval(), (torch.zeros(4, 6),), dynamic_shapes=({0: 2 * batch},)),
        torch.export.export(_Attention().eval(), (tokens,), {"scale": 2.0}, dynamic_shapes=({0: batch}, None)),
    )
    found = []
    for program in exported:
        stream = io.BytesIO()
        torch.export.save(program, stream)
        with zipfile.ZipFile(stream) as archive:
            found.append({name.partition("/")[2]: archive.read(name) for name in archive.namelist()})
    return tuple(found)


def pack(members: Members, compression: int = zipfile.ZIP_STORED, folder: str = "m") -> bytes:
    """An archive of these members, checksums right."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(f"{folder}/{name}" if folder else name, data)
    return stream.getvalue()


# What would run, read, write or swell


class _Runs:
    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call[0], self.call[1:]


def _pickles(mark: str) -> list[bytes]:
    """Payloads that make the file `mark` when unpickled."""
    calls = [
        (Path.touch, Path(mark)),
        (os.system, f"touch {mark}"),
        (eval, f"open({mark!r}, 'w')"),
        (os.mkdir, mark),
        (__import__, "antigravity"),
    ]
    found = []
    for call in calls:
        stream = io.BytesIO()
        torch.save({"x": torch.zeros(2), "y": _Runs(*call)}, stream)
        found += [stream.getvalue(), pickle.dumps(_Runs(*call))]
    return found


def _hostile_text(mark: str) -> list[str]:
    """Strings that run, if a reader takes them for a name, an op, or an expression."""
    code = f"__import__('os').mkdir({mark!r})"
    return [
        code, f"S({code!r})", f"Symbol({code!r})", f"Function({code!r})(1)", f"x={code}", f"x\n{code}\n", f"x;{code}",
        f"{{{code}}}", f"lambda: {code}", f"Pow(2, {10**9})", "9**9**9**9", "factorial(10**9)", "(" * 5000,
        "Symbol('x')" * 900,
        "torch.os.system", "torch.ops.aten.from_file.default", "torch.ops.aten.save.default", "torch.ops.load_library",
        "torch.ops.aten.relu.default.__globals__", "torch.ops.aten._print.default", "torch.ops.debugprims.load_tensor",
        "builtins.exec", "_operator.attrgetter", "_operator.methodcaller", "torch._C._functorch.tls_set_vmap_excluded",
        "torch.ops.higher_order.cond", "math.factorial", "torch.sym_max", "os.system", "torch.load", "torch.hub.load",
        "../../" + mark, mark, "file://" + mark, "weight_0/../../../etc/passwd", "\0", "", "a" * 100_000,
    ]  # fmt: skip


def _from_file(model: Any, mark: str, rng: random.Random) -> None:
    """Turn a node into one that maps a file of the machine, and makes it where it is not."""
    node = rng.choice(model["graph_module"]["graph"]["nodes"])
    node["target"] = rng.choice(("torch.ops.aten.from_file.default", "torch.ops.aten.from_file.out"))
    arguments = {"filename": {"as_string": mark}, "shared": {"as_bool": True}, "size": {"as_int": 64}}
    node["inputs"] = [{"name": k, "arg": v, "kind": 1} for k, v in arguments.items()]


@cache
def _bomb() -> bytes:
    """An archive of 256 KiB that unpacks to 256 MiB of JSON."""
    return pack({**programs()[0], "models/model.json": b"[" * _BOMB_BYTES}, zipfile.ZIP_DEFLATED)


def _hostile(rng: random.Random, members: Members, mark: str) -> bytes:
    how = rng.randrange(9)
    if how == 0:
        members[rng.choice(_PICKLE_PLACES)] = rng.choice(_pickles(mark))
        config = json.loads(members["data/weights/model_weights_config.json"])
        if rng.random() < 0.5 and config["config"]:
            rng.choice(list(config["config"].values()))["use_pickle"] = rng.choice((True, 1, "yes", None))
            members["data/weights/model_weights_config.json"] = json.dumps(config).encode()
    elif how == 1:
        name = rng.choice(("../../" + mark, mark, "..\\x", "data/../../x", "extra/../../x", "data/aotinductor/m/x.so"))
        return pack({**members, name: b"x"}, folder=rng.choice(("m", "", "..", "/tmp")))
    elif how == 2:
        return _bomb() if rng.random() < 0.3 else pack(members, rng.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)))
    elif how == 3:  # headers that lie about sizes
        data = bytearray(pack(members))
        at = data.rfind(b"PK\x01\x02", 0, rng.randrange(1, len(data)))
        if at >= 0:
            field = at + 20 + 4 * rng.randrange(2)
            data[field : field + 4] = rng.choice((b"\xff\xff\xff\xff", b"\xfe\xff\xff\x7f", b"\0\0\0\0", b"\0\0\0\x40"))
        return bytes(data)
    elif how == 4:
        model = json.loads(members["models/model.json"])
        _from_file(model, mark, rng)
        members["models/model.json"] = json.dumps(model).encode()
    elif how == 5:  # the same member twice: readers differ on which they take
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            stream = io.BytesIO(pack(members))
            with zipfile.ZipFile(stream, "a") as archive:
                archive.writestr("m/data/sample_inputs/model.pt", rng.choice(_pickles(mark)))
            return stream.getvalue()
    else:
        name = rng.choice([n for n in members if n.endswith(".json")])
        document = json.loads(members[name])
        strings = [(parent, key) for parent, key, value in _leaves(document) if isinstance(value, str)]
        for parent, key in rng.sample(strings, min(len(strings), rng.choice((1, 1, 3)))):
            parent[key] = rng.choice(_hostile_text(mark))
        members[name] = json.dumps(document).encode()
    return pack(members)


def _leaves(value: Any) -> Iterator[tuple[Any, Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield value, key, item
        yield from _leaves(item)


def make_pt2(rng: random.Random, folder: Path) -> tuple[str, bytes]:
    """One broken archive; what it would run makes a file named ``mark`` in `folder`."""
    members = dict(rng.choice(programs()))
    how = rng.random()
    if how < 0.15:
        return "p.pt2", mutate_bytes(pack(members), rng)
    if how < 0.35:
        return "p.pt2", _hostile(rng, members, str(folder / "mark"))
    name = rng.choice(list(members))
    if how < 0.45:
        members[name] = mutate_bytes(members[name], rng)
    elif how < 0.5:
        del members[name]
    else:
        name = "models/model.json" if rng.random() < 0.8 else rng.choice([n for n in members if n.endswith(".json")])
        document = json.loads(members[name])
        graph = document.get("graph_module", {}).get("graph")
        if graph and rng.random() < 0.7:  # where the program is, and not what it says about where it came from
            part = rng.choice(("nodes", "inputs", "outputs", "tensor_values", "sym_int_values"))
            graph[part] = mutate_document(graph[part], rng)
        else:
            document = mutate_document(document, rng)
        members[name] = json.dumps(document).encode()
    return "p.pt2", pack(members)
