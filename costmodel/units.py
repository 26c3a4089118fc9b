"""The only number formatter: SI values inside, people's units at the edge."""

from __future__ import annotations

import math

__all__ = ["count", "duration", "flops", "joules", "percent", "seconds", "size"]

_TIME = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
_SI = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
_IEC = ((2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "B"))


def _scaled(value: float, steps: tuple[tuple[float, str], ...], gap: str = " ") -> str:
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return f"0{gap}{steps[-1][1]}".rstrip()
    factor, unit = next((step for step in steps if abs(value) >= step[0] * 0.9995), steps[-1])
    scaled = value / factor
    digits = 0 if abs(scaled) >= 99.95 else 1 if abs(scaled) >= 9.995 else 2
    return f"{scaled:.{digits}f}{gap}{unit}".rstrip()


def seconds(value: float) -> str:
    """Time for people.

    >>> seconds(0.01234), seconds(5.6e-5), seconds(12.0)
    ('12.3 ms', '56.0 µs', '12.0 s')
    """
    return _scaled(value, _TIME)


def duration(value: float) -> str:
    """Time for people, of jobs that may take hours.

    >>> duration(52_496), duration(754), duration(0.01234)
    ('14.6 h', '12.6 min', '12.3 ms')
    """
    if not math.isfinite(value) or abs(value) < 120.0:
        return seconds(value)
    return _scaled(value, ((3600.0, "h"), (60.0, "min"))) if abs(value) >= 7200.0 else _scaled(value, ((60.0, "min"),))


def size(value: float) -> str:
    """Bytes for people, in powers of 1024.

    >>> size(1536), size(15_711 * 2**20)
    ('1.50 KiB', '15.3 GiB')
    """
    return _scaled(value, _IEC)


def flops(value: float) -> str:
    """Floating-point operations for people (one multiply-add is two).

    >>> flops(1.484e9)
    '1.48 GFLOP'
    """
    return _scaled(value, tuple((f, p + "FLOP") for f, p in _SI))


def joules(value: float) -> str:
    """Energy for people.

    >>> joules(0.25)
    '250 mJ'
    """
    return _scaled(value, ((1e6, "MJ"), (1e3, "kJ"), (1.0, "J"), (1e-3, "mJ"), (1e-6, "µJ")))


def count(value: float) -> str:
    """A plain count for people.

    >>> count(2787), count(64_051), count(12)
    ('2,787', '64,051', '12')
    """
    return f"{value:,.0f}"


def percent(share: float, digits: int = 1) -> str:
    """A share as per cent.

    >>> percent(0.0312)
    '3.1 %'
    """
    return f"{100 * share:.{digits}f} %"
