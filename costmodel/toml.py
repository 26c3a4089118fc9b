"""Writing TOML: the standard library only reads it. What is written reads back equal."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["dumps"]

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def dumps(document: Mapping[str, Any]) -> str:
    """A document of dicts, lists, strings, numbers and booleans as TOML, tables in the order of the keys.

    A table of plain values below the top is written on one line, a list of tables as ``[[…]]``.

    >>> print(dumps({"name": "pi", "cpu": [{"clock_hz": {"value": 1.5e9, "kind": "guess"}}], "sources": {"me": "I"}}))
    name = "pi"
    <BLANKLINE>
    [[cpu]]
    clock_hz = { value = 1500000000.0, kind = "guess" }
    <BLANKLINE>
    [sources]
    me = "I"
    <BLANKLINE>

    Raises:
        TypeError: a value that TOML has no form for.
    """
    lines: list[str] = []
    _table(document, (), lines)
    return "\n".join(lines).lstrip("\n") + "\n"


def _table(table: Mapping[str, Any], path: tuple[str, ...], lines: list[str]) -> None:
    below = {key: value for key, value in table.items() if _is_table(value, top=not path)}
    for key, value in table.items():
        if key not in below:
            lines.append(f"{_key(key)} = {_value(value)}")
    for key, value in below.items():
        place = (*path, key)
        name = ".".join(map(_key, place))
        if isinstance(value, Mapping):
            lines += ["", f"[{name}]"]
            _table(value, place, lines)
        else:
            for item in value:
                lines += ["", f"[[{name}]]"]
                _table(item, place, lines)


def _is_table(value: Any, top: bool) -> bool:
    """Whether a value gets lines of its own: a table that holds tables, or is at the top, or a list of such."""
    if isinstance(value, Mapping):
        return top or any(isinstance(item, (Mapping, list, tuple)) for item in value.values())
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(item, Mapping) for item in value)


def _key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _string(key)


def _string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        inside = ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items())
        return f"{{ {inside} }}" if inside else "{}"
    if isinstance(value, Sequence):
        return f"[{', '.join(map(_value, value))}]"
    raise TypeError(f"TOML has no form for {type(value).__name__}")
