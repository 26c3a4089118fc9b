"""Mutations: bits, chunks, values and cells of a right input, replaced by what does not belong there."""

from __future__ import annotations

import contextlib
import copy
import json
import random
from collections.abc import Iterator
from typing import Any

__all__ = ["NASTY", "mutate_bytes", "mutate_cells", "mutate_document"]

# What people and disks put where something else belongs.
NASTY: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, -2, 2, 7, 255, 1 << 31, -(1 << 31), 1 << 62, 1 << 63, 1 << 80, -(1 << 80), 10**400,
    0.0, -0.0, 0.5, -1.5, 1e-300, 1e-320, 1e300, 1e308, float("nan"), float("inf"), float("-inf"),
    "", " ", "\0", "a", "x" * 5000, "é🙂", "\ud800", "nan", "inf", "-1", "1e999", "1,5", "0x10", "1_000", "١٢",
    "__class__", "../../../etc/passwd", "/dev/zero", "$(reboot)", "{}", "[]", "aten::mm", "aten::convolution", "fp32",
    "L2", "dram", "guess", "float32", "forward", [], {}, [[]], [1, 2, 3], [-1], [0], [1 << 40, 1 << 40],
    {"a": 1}, {"value": 1},
)  # fmt: skip


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Bits flipped, chunks cut, doubled, moved, or filled with what does not belong."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        if not out:
            break
        i = rng.randrange(len(out))
        j = min(len(out), i + rng.choice((1, 1, 2, 8, 64)))
        how = rng.randrange(8)
        if how == 0:
            out[i] ^= 1 << rng.randrange(8)
        elif how == 1:
            del out[i:j]
        elif how == 2:
            out[i:i] = out[i:j] * rng.choice((1, 2, 50))
        elif how == 3:
            out = out[:i]
        elif how == 4:
            out[i:j] = rng.randbytes(j - i)
        elif how == 5:
            out[i:i] = rng.choice(
                (b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"[" * 3000, b"{" * 50, b'"', b"\n", b",", b"9" * 400)
            )
        elif how == 6:
            k = rng.randrange(len(out))
            out[k:k] = out[i:j]
        else:
            digits = [n for n, b in enumerate(out) if 48 <= b <= 57]
            if digits:
                out[rng.choice(digits)] = rng.choice(b"0123456789-.eE")
    return bytes(out)


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from _places(item, (*path, key))


def mutate_document(document: Any, rng: random.Random) -> Any:
    """A value replaced, dropped, doubled, renamed or nudged, once or a few times, at any depth."""
    document = json.loads(json.dumps(document))
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        places = list(_places(document))
        if not places:
            break
        *path, key = rng.choice(places)
        parent = document
        for step in path:
            parent = parent[step]
        value = parent[key]
        how = rng.randrange(8)
        if how <= 2:
            parent[key] = copy.deepcopy(rng.choice(NASTY))
        elif how == 3:
            del parent[key]
        elif how == 4 and isinstance(parent, dict):
            parent[rng.choice(("extra", "", key + " ", "schema"))] = parent.pop(key)
        elif how == 4:
            parent.insert(rng.randrange(len(parent) + 1), value)
        elif how == 5 and isinstance(value, (int, float)) and not isinstance(value, bool):
            with contextlib.suppress(OverflowError):
                parent[key] = rng.choice(
                    (value + 1, value - 1, -value, value * 1000, value * 2**40, float(value), str(value))
                )
        elif how == 5 and isinstance(value, list):
            rng.shuffle(value)
        elif how == 6:
            other = document
            *way, last = rng.choice(places)
            with contextlib.suppress(KeyError, IndexError, TypeError):
                for step in way:
                    other = other[step]
                parent[key] = json.loads(json.dumps(other[last]))
        else:
            parent[key] = [value] * rng.choice((0, 1, 2, 300))
    return document


def mutate_cells(text: str, rng: random.Random) -> str:
    """Cells of a table replaced, rows made longer or shorter, columns renamed or doubled."""
    rows = [line.split(",") for line in text.splitlines()]
    for _ in range(rng.choice((1, 1, 2, 6))):
        row = rng.choice(rows) if rows else []
        if not row:
            continue
        i = rng.randrange(len(row))
        how = rng.randrange(6)
        if how <= 2:
            row[i] = str(rng.choice(NASTY))
        elif how == 3:
            del row[i]
        elif how == 4:
            row.insert(i, row[i])
        else:
            rows.insert(rng.randrange(len(rows) + 1), list(row))
    return "\n".join(",".join(row) for row in rows) + "\n"
