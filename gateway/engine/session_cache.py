"""A bounded folder of optimised models, whose weights sessions map into memory."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import stat
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from gateway.engine import model_files
from gateway.engine.model_files import FileStamp

log = logging.getLogger(__name__)

FORMAT = 1  # of the folder: raise it when entries of before cannot be read any more
MODEL, WEIGHTS, MANIFEST = "model.onnx", "model.data", "entry.json"
# A stamp of a file that changed so short a time ago proves nothing: the clock of some file systems
# ticks once a second, and a second write in the same tick would look like the first.
SETTLED_NS = 2_000_000_000
LEFT_OVER_S = 3600.0  # what a killed process left half-made is removed after this
MAX_UNFIT = 3  # so many unfit copies of a model are no accident any more
MAX_INDEX_FILES = 4096  # of about 300 bytes each
# An entry has the weights once as they are and, for matrix products, once prepacked.
ROOM_FACTOR = 2

S = TypeVar("S")


class NotCached(Exception):
    """This model has no entry, and here is why; open it without the cache."""


class SessionCache:
    """Finds a model's optimised copy, and makes it.

    An entry is a folder named by a sha256 over the model's bytes (external weights included),
    `runtime` (what the copy is specific to: version, processor) and the session's options. So an
    entry can never be stale, only unused.

    Hashing 100 MB takes 55 ms, opening them 3: an index remembers the hash of each model by the
    stamps of its files (inode, size, mtime, ctime). A process that may write to a file cannot
    change its content and keep its ctime, unless both happen within one tick of the clock; hence
    stamps younger than `SETTLED_NS` are not trusted.

    Any number of processes may share the folder. An entry is made in a folder of its own and
    published by one rename, so nobody sees half of it; who comes second throws his away. Readers
    hold a shared flock on the entry while they open it, and removing needs an exclusive one. A
    session that is open needs its entry no longer: Linux keeps a mapped file until it is unmapped.
    After a power cut an entry may have lost its end: its files' sizes are checked.

    Entries are code for ONNX Runtime: a folder that others could write to is not used. All
    methods block and are safe in any thread.
    """

    def __init__(self, folder: Path, max_bytes: int, runtime: str) -> None:
        self._folder = folder
        self._index = folder / "index"
        self._max_bytes = max_bytes
        self._runtime = runtime
        self._complaints: set[str] = set()
        self._too_large: set[str] = set()
        self._unfit: Counter[str] = Counter()

    def find(self, model: Path, options: str, read: Callable[[Path], S]) -> S | None:
        """Return `read(copy)`; None where there is none, or it was unfit and is gone now.

        `read` raises what it likes. Raises `NotCached` where the folder cannot be used.
        """
        try:
            self._prepare()
            known = self._known_digest(model)
            return None if known is None else self._read(self._key(known, options), read)
        except OSError as error:
            raise _not_cached(error) from error

    def store(self, model: Path, options: str, build: Callable[[Path], None]) -> None:
        """Have a copy from now on: `build` writes MODEL and WEIGHTS where there is none yet.

        `build` raises what it likes. Raises `NotCached` with the reason where it does not work.
        """
        try:
            self._prepare()
            began_ns = time.time_ns()
            parsed = model_files.stamps(model.parent, [model.name])
            names = (model.name, *model_files.weight_files(model))
            seen = model_files.stamps(model.parent, names)
            if seen[:1] != parsed:
                raise NotCached(f"'{model}' changed while it was read")
            digest = self._known_digest(model) or model_files.digest(model.parent, names)
            key = self._key(digest, options)
            if not (self._folder / key).is_dir():
                self._make(key, model, seen, build)
            if model_files.stamps(model.parent, names) != seen:
                raise NotCached(f"'{model}' changed while it was read")
            newest = max(max(stamp.mtime_ns, stamp.ctime_ns) for stamp in seen)
            if began_ns - newest >= SETTLED_NS:
                self._remember(model, seen, digest)
        except OSError as error:
            raise _not_cached(error) from error

    def complain(self, reason: str) -> None:
        """Log why the cache does not help: each reason once, not with every load."""
        if reason not in self._complaints:
            self._complaints.add(reason)
            log.warning(
                "session cache %s: %s; models load without it, and slower", self._folder, reason
            )

    def _prepare(self) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        about = self._folder.stat()
        if about.st_uid != os.geteuid():
            raise NotCached("not used, since another user owns it")
        if about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise NotCached("not used, since other users may write to it (chmod 700 mends that)")

    def _key(self, digest: str, options: str) -> str:
        text = f"{FORMAT}\n{self._runtime}\n{options}\n{digest}"
        return hashlib.sha256(text.encode()).hexdigest()

    def _index_file(self, model: Path) -> Path:
        return self._index / hashlib.sha256(os.fsencode(model.resolve())).hexdigest()[:32]

    def _known_digest(self, model: Path) -> str | None:
        """Return a model's digest if the index has it for the files as they are now."""
        try:
            noted = json.loads(self._index_file(model).read_text())
            files = tuple(FileStamp(*stamp) for stamp in noted["files"])
            now = model_files.stamps(model.parent, [stamp.name for stamp in files])
            return str(noted["digest"]) if now == files else None
        except (OSError, ValueError, TypeError, KeyError):
            return None  # none yet, or not one of ours: it is written anew

    def _remember(self, model: Path, seen: tuple[FileStamp, ...], digest: str) -> None:
        self._index.mkdir(mode=0o700, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=self._index, prefix=".draft-", delete=False) as f:
            json.dump({"files": seen, "digest": digest}, f)
        os.replace(f.name, self._index_file(model))

    def _read(self, key: str, read: Callable[[Path], S]) -> S | None:
        """Return the session of an entry; None where it is missing or was unfit and is gone."""
        entry = self._folder / key
        try:
            held = os.open(entry, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            return None
        try:
            if not _share(held, entry):
                return None
            _check_sizes(entry)
            session = read(entry / MODEL)
            with suppress(OSError):  # a folder that may only be read serves all the same
                os.utime(held)  # last use
            return session
        # ONNX Runtime's exceptions share no root of their own
        except Exception as error:
            self._unfit[key] += 1
            log.warning("session cache: entry %s is unfit and removed: %s", entry, error)
        finally:
            os.close(held)
        _remove(entry)
        return None

    def _make(
        self, key: str, model: Path, seen: tuple[FileStamp, ...], build: Callable[[Path], None]
    ) -> None:
        size = sum(stamp.size for stamp in seen)
        if key in self._too_large or size > self._max_bytes:
            raise NotCached(f"'{model}' is larger than the cache may be")
        if self._unfit[key] >= MAX_UNFIT:
            raise NotCached(f"copies of '{model}' cannot be opened")
        if shutil.disk_usage(self._folder).free < ROOM_FACTOR * size:
            raise NotCached("the disk is full")
        draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=self._folder))
        try:
            try:
                build(draft / MODEL)
            except Exception as error:  # as above
                raise NotCached(f"cannot store '{model}': {error}") from error
            if model_files.stamps(model.parent, [stamp.name for stamp in seen]) != seen:
                raise NotCached(f"'{model}' changed while it was read")
            sizes = {file.name: file.stat().st_size for file in draft.iterdir()}
            if sum(sizes.values()) > self._max_bytes:
                self._too_large.add(key)
                raise NotCached(f"'{model}' is larger than the cache may be")
            (draft / MANIFEST).write_text(json.dumps(sizes))
            try:
                os.rename(draft, self._folder / key)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)  # published: it is not there any more
        self._tidy(made=key)

    def _tidy(self, made: str) -> None:
        """Remove what was used least recently beyond `max_bytes`, and what killed processes left.

        The entry just `made` stays, also where all others are in use and the folder is over its
        bound for this once.
        """
        entries = []
        for used, entry in _by_age(self._folder):
            if entry.name.startswith("."):
                if used < time.time() - LEFT_OVER_S:
                    shutil.rmtree(entry, ignore_errors=True)
            elif entry != self._index:
                entries.append((entry, _size(entry)))
        total = sum(size for _, size in entries)
        for entry, size in entries:
            if total <= self._max_bytes:
                break
            if entry.name != made and _remove(entry):
                total -= size
        for _, note in _by_age(self._index)[:-MAX_INDEX_FILES]:
            note.unlink(missing_ok=True)


def _by_age(folder: Path) -> list[tuple[float, Path]]:
    """Return what is in a folder, with the time of its last use, the oldest first."""
    found = []
    with suppress(FileNotFoundError):
        for path in folder.iterdir():
            with suppress(OSError):  # somebody else removed it
                found.append((path.stat().st_mtime, path))
    return sorted(found)


def _size(entry: Path) -> int:
    with suppress(OSError):
        return sum(file.stat().st_size for file in entry.iterdir())
    return 0


def _share(held: int, entry: Path) -> bool:
    """Keep an entry from being removed until `held` is closed; False if it is going already."""
    try:
        fcntl.flock(held, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(held), entry.stat())
    except (BlockingIOError, FileNotFoundError):
        return False


def _check_sizes(entry: Path) -> None:
    sizes = json.loads((entry / MANIFEST).read_text())
    for name, size in sizes.items():
        if (entry / name).stat().st_size != size:
            raise ValueError(f"{name} has not its {size} bytes")


def _remove(entry: Path) -> bool:
    """Remove an entry, unless a process is opening it at this moment."""
    try:
        held = os.open(entry, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        trash = entry.with_name(f".trash-{entry.name}-{os.getpid()}-{time.monotonic_ns()}")
        os.rename(entry, trash)
    except OSError:  # in use, or removed by somebody else
        return False
    finally:
        os.close(held)
    shutil.rmtree(trash, ignore_errors=True)
    return True


def _not_cached(error: OSError) -> NotCached:
    where = f" ({error.filename})" if error.filename else ""
    return NotCached(f"{error.strerror or error}{where}")
