"""A repository in object storage as a folder: described at once, its weights when they are needed.

All of it blocks: it is called in threads. fsspec and what it needs for a kind of storage is an
extra, imported only where a URL is served.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from gateway.errors import RepositoryError, StartError
from gateway.repository import manifest

log = logging.getLogger(__name__)

_STATE, _MODELS = "state.json", "models"


@dataclass(frozen=True, slots=True)
class Stored:
    """One object: what the storage says of it, and the sha256 of its content where that is here."""

    size: int
    tag: str
    modified_ns: int
    sha256: str = ""


class Mirror:
    """A copy of the repository at `url` below `cache_dir`.

    `folder` is a model repository like any other. A file of a version that has not been fetched is
    a hole of the object's size and time, so that what is read off the folder is right; `fetch`
    fills it. At most `max_bytes` of content are kept (but always the version that was fetched
    last): those of the versions that were fetched least lately become holes again.
    """

    def __init__(self, url: str, cache_dir: Path, max_bytes: int) -> None:
        self._url = url
        self._fs, self._root = _open(url)
        self._home = cache_dir / hashlib.sha256(url.encode()).hexdigest()[:16]
        self.folder = self._home / _MODELS
        self._max_bytes = max_bytes
        self._lock = threading.RLock()
        self._files: dict[str, Stored] = {}
        self._used: dict[str, float] = {}  # of each version, when it was last fetched
        self._checked: dict[str, tuple[int, ...]] = {}
        self._unsettled: dict[str, dict[str, Stored]] = {}

    def open(self) -> None:
        """Take up what is here from before, and read the storage.

        Raises `StartError` where it does not answer and nothing is here.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(self._home / "tmp", ignore_errors=True)
            (self._home / "tmp").mkdir()
            known = (self._home / _STATE).exists()
            if known:
                state = json.loads((self._home / _STATE).read_text())
                self._files = {name: Stored(**told) for name, told in state["files"].items()}
                self._used = state["used"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StartError(f"cannot use the repository's cache {self._home}: {error}") from None
        try:
            self.sync(settle=False)
        except RepositoryError as error:
            if not known:
                raise StartError(str(error)) from None
            log.error("%s; going on with what is here", error)

    def sync(self, model: str = "", *, settle: bool = True) -> set[str]:
        """Read the storage anew, of one model or of all; return the names of models that changed.

        With `settle` a new version counts once it has been found twice with the same files: before,
        it may be on its way. Raises `RepositoryError` where the storage does not answer.
        """
        found = self._listed(model)
        with self._lock:
            if settle:
                found = self._settled(found)
            gone = {name for name in self._files if _below(name, model)} - found.keys()
            changed = {
                name for name, stored in found.items() if _other(self._files.get(name), stored)
            }
        # not under the lock: a load need not wait for this
        contents = self._contents([name for name in changed if _describes(name)])
        with self._lock:
            for name in gone:
                del self._files[name]
                (self.folder / name).unlink(missing_ok=True)
            for name in sorted(changed):
                if name in contents:
                    self._put(name, found[name], contents[name])
                else:
                    self._make_hole(name, found[name])
            self._sweep({_parent(name) for name in gone})
            if gone or changed:
                self._save()
        return {name.split("/")[0] for name in gone | changed}

    def fetch(self, version: str) -> int:
        """Have the content of a version ("m/3") here, as the storage has it; return bytes fetched.

        What is here already is checked by its hash, once after each start and after each change.
        Raises `RepositoryError`.
        """
        fetched = 0
        for name, stored in self._of(version).items():
            if not self._is_whole(name, stored):
                self._download(name, stored)
                fetched += stored.size
        with self._lock:
            self._used[version] = time.time()
            if fetched:
                self._evict(keep=version)
                self._save()
        return fetched

    def _of(self, version: str) -> dict[str, Stored]:
        with self._lock:
            return {n: stored for n, stored in self._files.items() if n.startswith(f"{version}/")}

    def _listed(self, model: str) -> dict[str, Stored]:
        prefix = f"{self._root}/{model}" if model else self._root
        with _storage_errors(f"cannot read {self._url}"):
            try:
                listed: Mapping[str, Any] = self._fs.find(prefix, detail=True)
            except FileNotFoundError:
                listed = {}
            if not model and not listed and not self._fs.exists(self._root):
                raise RepositoryError(f"cannot read {self._url}: there is nothing")
        found = {}
        for path, told in listed.items():
            name = path.removeprefix(self._root).lstrip("/")
            parts = name.split("/")
            if len(parts) < 2 or any(part in ("", ".", "..") or part[0] == "." for part in parts):
                continue
            if _below(name, model):
                found[name] = _stored(told)
        return found

    def _settled(self, found: dict[str, Stored]) -> dict[str, Stored]:
        """Return what is found without new versions that were not there, or were other, before."""
        versions: defaultdict[str, dict[str, Stored]] = defaultdict(dict)
        for name, stored in found.items():
            if version := _version(name):
                versions[version][name] = stored
        known = {_version(name) for name in self._files}
        new = {version: files for version, files in versions.items() if version not in known}
        waiting = {v: files for v, files in new.items() if self._unsettled.get(v) != files}
        self._unsettled = waiting
        return {name: stored for name, stored in found.items() if _version(name) not in waiting}

    def _contents(self, names: Collection[str]) -> dict[str, bytes]:
        if not names:
            return {}
        with _storage_errors(f"cannot read {self._url}"):
            found = self._fs.cat([f"{self._root}/{name}" for name in names])
        if isinstance(found, bytes):  # of one
            return dict.fromkeys(names, found)
        return {path.removeprefix(self._root).lstrip("/"): data for path, data in found.items()}

    def _put(self, name: str, stored: Stored, content: bytes) -> None:
        with self._temporary() as file:
            file.write_bytes(content)
            self._place(name, stored, file)
        self._files[name] = replace(stored, sha256=hashlib.sha256(content).hexdigest())

    def _make_hole(self, name: str, stored: Stored) -> None:
        with self._temporary() as file:
            with file.open("wb") as hole:
                hole.truncate(stored.size)
            self._place(name, stored, file)
        self._files[name] = replace(stored, sha256="")

    def _download(self, name: str, stored: Stored) -> None:
        with self._temporary() as file:
            with _storage_errors(f"cannot fetch '{name}' of {self._url}"):
                self._fs.get_file(f"{self._root}/{name}", str(file))
            size = file.stat().st_size
            if size != stored.size:
                raise RepositoryError(
                    f"'{name}' of {self._url} has {size} bytes, not {stored.size}: it is changing"
                )
            digest = _sha256(file)
            if stored.sha256 and stored.sha256 != digest:
                log.warning("%s was damaged, and has been fetched anew", self.folder / name)
            with self._lock:
                self._place(name, stored, file)
                self._files[name] = replace(stored, sha256=digest)
                self._checked[name] = _signature(self.folder / name)

    def _is_whole(self, name: str, stored: Stored) -> bool:
        """Return whether the content that is here is what was fetched."""
        if not stored.sha256:
            return False
        file = self.folder / name
        try:
            signature = _signature(file)
            if self._checked.get(name) == signature:
                return True
            if _sha256(file) != stored.sha256:
                return False
        except OSError:
            return False
        self._checked[name] = signature
        return True

    def _evict(self, keep: str) -> None:
        held: defaultdict[str, list[str]] = defaultdict(list)
        for name, stored in self._files.items():
            if stored.sha256 and not _describes(name):
                held[_version(name)].append(name)
        total = sum(self._files[name].size for names in held.values() for name in names)
        for version in sorted(held.keys() - {keep}, key=lambda each: self._used.get(each, 0.0)):
            if total <= self._max_bytes:
                break
            for name in held[version]:
                total -= self._files[name].size
                self._make_hole(name, self._files[name])
            log.info("%s has left the repository's cache", version)

    @contextmanager
    def _temporary(self) -> Iterator[Path]:
        """Give a file of its own, on the same file system; what is left of it at the end goes."""
        handle, name = tempfile.mkstemp(dir=self._home / "tmp")
        os.close(handle)
        try:
            yield Path(name)
        finally:
            Path(name).unlink(missing_ok=True)

    def _place(self, name: str, stored: Stored, file: Path) -> None:
        target = self.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        file.chmod(0o644)
        os.utime(file, ns=(stored.modified_ns, stored.modified_ns))
        file.replace(target)

    def _sweep(self, folders: set[str]) -> None:
        """Remove folders that have become empty."""
        for name in folders:
            folder = self.folder / name
            while folder != self.folder and folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
                folder = folder.parent

    def _save(self) -> None:
        state = {
            "url": self._url,
            "files": {name: asdict(stored) for name, stored in self._files.items()},
            "used": self._used,
        }
        with self._temporary() as file:
            file.write_text(json.dumps(state))
            file.replace(self._home / _STATE)


def _open(url: str) -> tuple[Any, str]:
    """Return the storage and the path in it. Raises `StartError` where its library is missing."""
    try:
        import fsspec

        fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)
    except ImportError as error:
        raise StartError(
            f"{url} needs the extra 'remote', pip install 'tidegate[remote]': {error}"
        ) from None
    except ValueError as error:
        raise StartError(f"{url}: {error}") from None
    return fs, str(root).rstrip("/")


@contextmanager
def _storage_errors(doing: str) -> Iterator[None]:
    """Have whatever a storage's library raises come out as `RepositoryError`."""
    try:
        yield
    except RepositoryError:
        raise
    # the libraries' errors share no root of their own
    except Exception as error:
        raise RepositoryError(f"{doing}: {type(error).__name__}: {error}") from error


def _stored(told: Mapping[str, Any]) -> Stored:
    when = told.get("LastModified") or told.get("mtime") or told.get("created") or 0.0
    seconds = when.timestamp() if isinstance(when, datetime) else float(when)
    modified_ns = int(seconds * 1e9)
    tag = str(told.get("ETag") or told.get("etag") or modified_ns).strip('"')
    return Stored(int(told.get("size") or 0), tag, modified_ns)


def _other(before: Stored | None, now: Stored) -> bool:
    return before is None or replace(before, sha256="") != now


def _version(name: str) -> str:
    """Return the version folder that a file is in ("m/3"); "" for one of the model's own."""
    parts = name.split("/")
    return "/".join(parts[:2]) if len(parts) > 2 and parts[1].isdecimal() else ""


def _describes(name: str) -> bool:
    """Whether a file says what a model is like, and is wanted before its weights."""
    return not _version(name) or Path(name).name == manifest.FILE


def _below(name: str, model: str) -> bool:
    return not model or name.startswith(f"{model}/")


def _parent(name: str) -> str:
    return name.rpartition("/")[0]


def _signature(file: Path) -> tuple[int, ...]:
    told = file.stat()
    return told.st_ino, told.st_size, told.st_mtime_ns, told.st_ctime_ns


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
