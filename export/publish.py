"""Step "publish": a finished version takes its place in the repository by one rename.

Everything is first copied into a hidden folder of the repository (same filesystem, so that a
rename is atomic). A new model appears whole: one rename of its folder. In an existing model one
rename of the version folder is the last thing that happens; docs/adr/0002 has the reasons.
"""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from export.errors import PublishError

CONFIG = "config.pbtxt"


@dataclass(frozen=True)
class PublishReport:
    """The new version; `kept` names files of the model that differ from the spec's and stayed."""

    path: Path | str
    version: int
    kept: tuple[str, ...]

    def summary(self) -> str:
        """Where the version is, in one line."""
        kept = ", ".join(self.kept)
        note = f" (kept the model's own {kept}; --replace-config writes the spec's)" if kept else ""
        return f"{self.path}{note}"


def publish(
    version_files: Iterable[Path],
    model_files: Mapping[str, bytes],
    repository: Path,
    name: str,
    *,
    changes: Callable[[str, str], list[str]],
    replace_config: bool = False,
    described: Callable[[int], Mapping[str, bytes]] = lambda version: {},
) -> PublishReport:
    """Make `version_files` the next version of model `name`; raises `PublishError`.

    `model_files` (config.pbtxt, labels, warm-up data, by path in the model's folder) belong to all
    versions: they are written where absent, and replaced only with `replace_config`.
    `changes(old, new)` lists what clients of the old config.pbtxt would notice; if anything,
    nothing is published. `described(version)` gives the files that say what the version is. Safe
    against concurrent exports: each gets a version of its own.
    """
    created = not repository.exists()
    home = repository / name
    try:
        repository.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".tidegate-", dir=repository) as hidden:
            # mkdtemp's folder is private (0700); the one inside it has ordinary permissions.
            staged = Path(hidden) / name
            _stage(version_files, model_files, staged)
            while True:
                _describe(staged, described(1))
                if _renamed(staged, home):
                    return PublishReport(home / "1", 1, ())
                if (home / CONFIG).exists():
                    present = (home / CONFIG).read_text("utf-8")
                    refuse_new_interface(name, present, model_files[CONFIG].decode(), changes)
                version = _next_version(home)
                _describe(staged, described(version))
                with contextlib.ExitStack() as undo:
                    kept = _update(home, staged, model_files, replace_config, undo)
                    if _renamed(staged / "1", home / str(version)):
                        undo.pop_all()
                        _sync(home)
                        return PublishReport(home / str(version), version, kept)
    except OSError as error:
        raise PublishError(f"cannot publish into {repository}: {error}") from error
    finally:
        if created:
            with contextlib.suppress(OSError):
                repository.rmdir()  # only succeeds if nothing was published


def _stage(version_files: Iterable[Path], model_files: Mapping[str, bytes], staged: Path) -> None:
    staged.mkdir()
    (staged / "1").mkdir()
    for file in version_files:
        shutil.copyfile(file, staged / "1" / file.name)
        _sync(staged / "1" / file.name)
    for filename, content in model_files.items():
        (staged / filename).parent.mkdir(exist_ok=True)
        (staged / filename).write_bytes(content)
        _sync(staged / filename)
    _sync(staged / "1")
    _sync(staged)


def _describe(staged: Path, files: Mapping[str, bytes]) -> None:
    for filename, content in files.items():
        (staged / "1" / filename).write_bytes(content)
        _sync(staged / "1" / filename)


def _renamed(source: Path, target: Path) -> bool:
    """Whether `source` became `target`; False if something is there already."""
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    _sync(target.parent)
    return True


def refuse_new_interface(
    name: str, present: str, new: str, changes: Callable[[str, str], list[str]]
) -> None:
    """Raise `PublishError` where clients of the `present` config.pbtxt would notice the new one."""
    if differences := changes(present, new):
        raise PublishError(
            f"model {name!r} exists with another interface, and config.pbtxt belongs to all "
            f"its versions: {'; '.join(differences)}",
            "export under another name",
        )


def _next_version(home: Path) -> int:
    taken = [int(entry.name) for entry in home.iterdir() if entry.name.isdecimal()]
    return max(taken, default=0) + 1


def next_version(repository: Path, name: str) -> int:
    """The number that the next version would have."""
    home = repository / name
    return _next_version(home) if home.is_dir() else 1


def _update(
    home: Path,
    staged: Path,
    model_files: Mapping[str, bytes],
    replace_config: bool,
    undo: contextlib.ExitStack,
) -> tuple[str, ...]:
    """Write the model's absent (or to be replaced) files; return the names of those kept.

    config.pbtxt comes last, because it may name a label file.
    """
    kept = []
    for filename in sorted(model_files, key=lambda filename: filename == CONFIG):
        present = home / filename
        before = present.read_bytes() if present.exists() else None
        if before == model_files[filename]:
            continue
        if before is not None and not replace_config:
            kept.append(filename)
            continue
        if not present.parent.exists():
            present.parent.mkdir()
            undo.callback(present.parent.rmdir)
        _place(staged / filename, model_files[filename], present)
        if before is None:
            undo.callback(present.unlink, missing_ok=True)
        else:
            undo.callback(_place, staged / filename, before, present)
    return tuple(kept)


def _place(staging: Path, content: bytes, target: Path) -> None:
    staging.write_bytes(content)
    _sync(staging)
    os.replace(staging, target)


def _sync(path: Path) -> None:
    """Put `path` on the disk: after a power cut a rename must not outlive its content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
