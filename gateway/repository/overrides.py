"""What clients had models loaded with, kept for as long as they may be loaded again."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from gateway.core import Override
from gateway.errors import InvalidRequest, LoadFailed

MAX_OVERRIDES = 256  # with files: each has them on disk for as long as it holds

Files = Mapping[str, bytes]
"""Contents by name, as parameters `file:NAME` have them: "1/model.onnx"."""


class OverrideFiles:
    """A folder that nobody else may enter. It is made for the first file, and gone once closed."""

    def __init__(self) -> None:
        self._root: Path | None = None
        self._kept = 0

    async def keep(self, config: str, files: Files) -> Override:
        """Return an override whose files are on disk.

        Raises `InvalidRequest` for a name that is none, and `LoadFailed` where the disk is full.
        """
        for name in files:
            _check_name(name)
        if not files:
            return Override(config, None)
        if self._kept == MAX_OVERRIDES:
            raise LoadFailed(f"{MAX_OVERRIDES} models are loaded with files given, the maximum")
        self._kept += 1
        try:
            return Override(config, await asyncio.to_thread(self._write, files))
        except BaseException:
            self._kept -= 1
            raise

    async def discard(self, override: Override | None) -> None:
        """Remove an override's files."""
        if override is not None and override.folder is not None:
            self._kept -= 1
            await asyncio.to_thread(shutil.rmtree, override.folder, ignore_errors=True)

    def close(self) -> None:
        """Remove all files."""
        if self._root is not None:
            shutil.rmtree(self._root, ignore_errors=True)

    def _write(self, files: Files) -> Path:
        try:
            if self._root is None:
                self._root = Path(tempfile.mkdtemp(prefix="tidegate-"))
            folder = Path(tempfile.mkdtemp(dir=self._root))
        except OSError as error:
            raise _not_kept(error) from None
        try:
            for name, content in files.items():
                file = folder / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise _not_kept(error) from None
        return folder


def _check_name(name: str) -> None:
    """Raise `InvalidRequest` unless a file lies in a version's folder, or beside them."""
    parts = name.split("/")
    version, *rest = parts
    plain = all(part not in ("", ".", "..") and "\0" not in part for part in parts)
    number = version.isascii() and version.isdecimal() and not version.startswith("0")
    if not plain or (rest and not number) or PurePosixPath(name).is_absolute():
        raise InvalidRequest(
            f"load parameter 'file:{name}' names no file of a model: 'file:1/model.onnx' would"
        )


def _not_kept(error: OSError) -> LoadFailed:
    return LoadFailed(f"cannot keep the files given: {error.strerror}")
