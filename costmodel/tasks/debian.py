"""Files out of a Debian package without root: download, unpack into the cache, use from there."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from platformdirs import user_cache_path

from costmodel.errors import CostmodelError

__all__ = ["PackageUnavailable", "unpacked"]

_PATIENCE_S = 180.0
_APT = ("-q", "-o", "Acquire::Retries=0", "-o", "Acquire::http::Timeout=10", "-o", "Acquire::https::Timeout=10")


class PackageUnavailable(CostmodelError):
    """A Debian package that cannot be had here: offline, or not a Debian machine."""

    def __init__(self, package: str, why: str) -> None:
        super().__init__(
            f"Debian package {package} cannot be had: {why}; put its files into a folder and name it in COSTMODEL_DATA"
        )


def unpacked(package: str, files: tuple[Path, ...]) -> tuple[Path, str]:
    """Root folder under which `files` of `package` lie, and the package's version; downloads it the first time.

    `files` are paths relative to "/". Nothing is installed and no root is needed. An interrupted download leaves
    nothing behind: the unpacked tree is moved into its place as a whole.

    Raises PackageUnavailable, which says why.
    """
    shelf = user_cache_path("costmodel") / "debian"
    for home in sorted(shelf.glob(f"{package}_*"), reverse=True):
        if all((home / file).is_file() for file in files):
            return home, home.name.split("_")[1]
    if os.environ.get("COSTMODEL_OFFLINE"):
        raise PackageUnavailable(package, "COSTMODEL_OFFLINE is set")
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise PackageUnavailable(package, f"there is no {tool} on this machine")
    shelf.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=shelf, prefix=".part-") as part:
        archive = _download(package, Path(part))
        tree = Path(part) / "tree"
        _call(package, ["dpkg-deb", "-x", str(archive), str(tree)], Path(part))
        missing = [str(file) for file in files if not (tree / file).is_file()]
        if missing:
            raise PackageUnavailable(package, f"{archive.name} has no {missing[0]}")
        home = shelf / "_".join(archive.stem.replace("%3a", ":").split("_")[:2])
        shutil.rmtree(home, ignore_errors=True)
        tree.rename(home)
    return home, home.name.split("_")[1]


def _download(package: str, folder: Path) -> Path:
    """The package's archive, by the machine's package lists or, where there are none, by lists of our own."""
    try:
        _call(package, ["apt-get", *_APT, "download", package], folder)
    except PackageUnavailable:
        # a fresh image has no lists, and to fetch them into the system's place takes root
        own = [f"Dir::State={folder}/state", f"Dir::Cache={folder}/cache", "Dir::State::status=/var/lib/dpkg/status"]
        for sub in ("state/lists/partial", "cache/archives/partial"):
            (folder / sub).mkdir(parents=True)
        options = [*_APT, *(word for setting in own for word in ("-o", setting))]
        _call(package, ["apt-get", *options, "update"], folder)
        _call(package, ["apt-get", *options, "download", package], folder)
    found = sorted(folder.glob("*.deb"))
    if not found:
        raise PackageUnavailable(package, "apt-get download left no file")
    return found[0]


def _call(package: str, command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=_PATIENCE_S, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired as late:
        raise PackageUnavailable(package, f"`{command[0]}` took more than {_PATIENCE_S:.0f} s") from late
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("E:")] or [done.stderr.strip()]
        raise PackageUnavailable(package, f"`{' '.join(command[:1] + command[-2:])}`: {errors[0] or 'failed'}")
