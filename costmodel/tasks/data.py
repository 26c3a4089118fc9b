"""Real data sets for the tasks, from what a machine has: each comes with a provenance that results carry.

Images and text are looked for in this order: the folder `$COSTMODEL_DATA`; an installed
Debian package; the same package downloaded and unpacked into the cache, without root; a small real set inside a
wheel or inside Python itself. The last is another, smaller data set, and is returned under its own name.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from costmodel.errors import FileError, MissingExtra
from costmodel.tasks.debian import PackageUnavailable, unpacked

__all__ = ["Images", "Text", "digits", "fashion_mnist", "images", "python_docs", "stdlib_sources", "text"]

_FASHION = tuple(f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
_FASHION_FOLDER = Path("usr/share/datasets/fashion-mnist")
_DOCS = "python3.11.info.gz"
_DOCS_FOLDER = Path("usr/share/info")


@dataclass(frozen=True)
class Images:
    """A labelled image set: x are (n, h, w) uint8 grey levels, y are (n,) int64 class numbers."""

    name: str
    provenance: str
    digest: str
    train_x: NDArray[np.uint8]
    train_y: NDArray[np.int64]
    test_x: NDArray[np.uint8]
    test_y: NDArray[np.int64]

    @property
    def classes(self) -> int:
        return int(self.train_y.max()) + 1


@dataclass(frozen=True)
class Text:
    """A text as bytes, (n,) uint8, in the order of the source."""

    name: str
    provenance: str
    digest: str
    raw: NDArray[np.uint8]


def images() -> Images:
    """Fashion-MNIST wherever it can be had; without it, scikit-learn's digits under their own name."""
    try:
        return fashion_mnist()
    except PackageUnavailable:
        return digits()


def text() -> Text:
    """The Python 3.11 manual wherever it can be had; without it, the sources of this Python's library."""
    try:
        return python_docs()
    except PackageUnavailable:
        return stdlib_sources()


@lru_cache(maxsize=1)
def fashion_mnist() -> Images:
    """Fashion-MNIST: 60,000 + 10,000 images, (n, 28, 28), ten classes of clothes (Xiao et al. 2017, MIT licence).

    Raises PackageUnavailable when it is neither on this machine nor can be downloaded.
    """
    folder, how = _find("dataset-fashion-mnist", _FASHION_FOLDER, _FASHION, "fashion-mnist")
    train_x, train_y, test_x, test_y = (_idx(folder / name) for name in _FASHION)
    digest = _sha256(folder / name for name in _FASHION)
    return Images(
        name="Fashion-MNIST",
        provenance=f"Fashion-MNIST, 60,000 train and 10,000 test images of 28x28; {how}; sha256 {digest}",
        digest=digest,
        train_x=train_x,
        train_y=train_y.astype(np.int64),
        test_x=test_x,
        test_y=test_y.astype(np.int64),
    )


@lru_cache(maxsize=1)
def digits() -> Images:
    """scikit-learn's 1,797 handwritten digits of 8x8 (UCI), enlarged to 24x24, padded to 28x28; a fifth tests."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as missing:
        raise MissingExtra("scikit-learn", "tasks") from missing
    bunch = load_digits()
    grey = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    big = np.pad(grey.repeat(3, axis=1).repeat(3, axis=2), ((0, 0), (2, 2), (2, 2)))
    labels = bunch.target.astype(np.int64)
    order = np.random.default_rng(0).permutation(len(labels))
    test, train = order[::5], np.delete(order, np.s_[::5])
    digest = hashlib.sha256(big.tobytes() + labels.tobytes()).hexdigest()[:16]
    return Images(
        name="digits",
        provenance=f"scikit-learn digits (UCI, 1,797 images of 8x8, enlarged to 28x28): {len(train)} train, "
        f"{len(test)} test; inside the scikit-learn wheel; sha256 {digest}",
        digest=digest,
        train_x=big[train],
        train_y=labels[train],
        test_x=big[test],
        test_y=labels[test],
    )


@lru_cache(maxsize=1)
def python_docs() -> Text:
    """The manual of Python 3.11 as one info file, some 19 MB of prose and code (PSF licence)."""
    folder, how = _find("python3.11-doc", _DOCS_FOLDER, (_DOCS,), "")
    raw = np.frombuffer(_gunzip(folder / _DOCS), np.uint8)
    digest = _sha256([folder / _DOCS])
    return Text(
        "Python 3.11 manual", f"Python 3.11 manual, {_DOCS}, {raw.size:,} bytes; {how}; sha256 {digest}", digest, raw
    )


@lru_cache(maxsize=1)
def stdlib_sources() -> Text:
    """The .py files of this Python's standard library, without its tests, one after the other by path."""
    root = Path(sysconfig.get_path("stdlib"))
    skip = {"site-packages", "dist-packages", "test", "tests", "idlelib", "__pycache__"}
    files = sorted(p for p in root.rglob("*.py") if not skip.intersection(p.relative_to(root).parts))
    blob = b"\n".join(path.read_bytes() for path in files)
    digest = hashlib.sha256(blob).hexdigest()[:16]
    return Text(
        name="Python library sources",
        provenance=f"sources of the standard library of Python {sysconfig.get_python_version()}, {len(files)} files, "
        f"{len(blob):,} bytes; on this machine; sha256 {digest}",
        digest=digest,
        raw=np.frombuffer(blob, np.uint8),
    )


def _find(package: str, folder: Path, files: tuple[str, ...], subfolder: str) -> tuple[Path, str]:
    """Folder that has all `files`, and how it came to be there."""

    def has_all(where: Path) -> bool:
        return all((where / name).is_file() for name in files)

    if given := os.environ.get("COSTMODEL_DATA"):
        for place in (Path(given) / subfolder, Path(given)):
            if has_all(place):
                return place, f"in {place} ($COSTMODEL_DATA)"
    if has_all(Path("/") / folder):
        return Path("/") / folder, f"Debian package {package}, installed"
    root, version = unpacked(package, tuple(folder / name for name in files))
    return root / folder, f"Debian package {package} {version}, downloaded and unpacked"


def _gunzip(file: Path) -> bytes:
    try:
        return gzip.decompress(file.read_bytes())
    except (OSError, EOFError) as broken:
        raise FileError(file, "", f"not a whole gzip file ({broken}); fetch it again") from broken


def _idx(file: Path) -> NDArray[np.uint8]:
    """An IDX file of unsigned bytes: two zeros, type 8, rank, the sizes as big-endian 32 bit, the data."""
    blob = _gunzip(file)
    if len(blob) < 4 or blob[:3] != b"\0\0\x08":
        raise FileError(file, "header", "not an IDX file of unsigned bytes; fetch it again")
    rank = blob[3]
    shape = tuple(int(n) for n in np.frombuffer(blob, ">u4", rank, 4))
    data = np.frombuffer(blob, np.uint8, offset=4 + 4 * rank)
    if data.size != int(np.prod(shape)):
        raise FileError(file, "data", f"{data.size} bytes where its header {shape} needs {np.prod(shape)}")
    return data.reshape(shape)


def _sha256(files: Iterator[Path] | list[Path]) -> str:
    whole = hashlib.sha256()
    for file in files:
        whole.update(file.read_bytes())
    return whole.hexdigest()[:16]


def forget() -> None:
    """Drop the sets kept in memory, so that the next call looks at the machine again."""
    loaders: tuple[Callable[[], object], ...] = (fashion_mnist, digits, python_docs, stdlib_sources)
    for loader in loaders:
        loader.cache_clear()  # type: ignore[attr-defined]
