"""Step "publish" into object storage: any URL that fsspec knows, such as s3://bucket/models.

Object storage has no rename. A version is claimed by creating its manifest, which only one can do;
the model file comes last, and a gateway takes a new version up once two listings agree. What fails
half-way is removed.
"""

import contextlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from export import manifest as manifests
from export.errors import AbsentError, PublishError
from export.publish import CONFIG, PublishReport, refuse_new_interface


def publish(
    version_files: Iterable[Path],
    model_files: Mapping[str, bytes],
    repository: str,
    name: str,
    *,
    changes: Callable[[str, str], list[str]],
    replace_config: bool = False,
    described: Callable[[int], Mapping[str, bytes]],
) -> PublishReport:
    """As `publish.publish`, with a URL as repository; raises `PublishError`, `AbsentError`."""
    storage, home = _opened(repository, name)
    with _errors(repository), contextlib.ExitStack() as undo:
        config = f"{home}/{CONFIG}"
        if storage.exists(config):
            present = storage.cat_file(config).decode()
            refuse_new_interface(name, present, model_files[CONFIG].decode(), changes)
        version = _claimed(storage, home, described, undo)
        kept = _update(storage, home, model_files, replace_config, undo)
        for filename, content in described(version).items():
            _put(storage, f"{home}/{version}/{filename}", content, undo)
        # The file that an engine opens comes last, behind the weights that it names.
        for file in sorted(version_files, key=lambda file: file.suffix in (".onnx", ".plan")):
            target = f"{home}/{version}/{file.name}"
            undo.callback(_removed, storage, target)
            storage.put_file(str(file), target)
        undo.pop_all()
    return PublishReport(f"{repository.rstrip('/')}/{name}/{version}", version, kept)


def next_version(repository: str, name: str) -> int:
    """The number that the next version would have; raises `PublishError`."""
    storage, home = _opened(repository, name)
    with _errors(repository):
        return _next(storage, home)


def _opened(repository: str, name: str) -> tuple[Any, str]:
    try:
        import fsspec

        storage, root = fsspec.core.url_to_fs(repository)
    except ImportError as error:
        raise AbsentError(f"{repository}: {error}", "pip install 'tidegate[remote]'") from None
    except ValueError as error:
        raise PublishError(f"{repository}: {error}") from None
    return storage, f"{root.rstrip('/')}/{name}"


@contextlib.contextmanager
def _errors(repository: str) -> Any:
    try:
        yield
    except PublishError:
        raise
    except Exception as error:  # each kind of storage has its own
        words = str(error).strip() or type(error).__name__
        raise PublishError(f"cannot publish into {repository}: {words}") from error


def _next(storage: Any, home: str) -> int:
    storage.invalidate_cache()
    paths = storage.find(home) if storage.exists(home) else []
    folders = {path.removeprefix(home).strip("/").partition("/")[0] for path in paths}
    return max((int(each) for each in folders if each.isdecimal()), default=0) + 1


def _claimed(
    storage: Any,
    home: str,
    described: Callable[[int], Mapping[str, bytes]],
    undo: contextlib.ExitStack,
) -> int:
    while True:
        version = _next(storage, home)
        path = f"{home}/{version}/{manifests.FILE}"
        with contextlib.suppress(FileExistsError):  # another export was quicker
            storage.pipe_file(path, described(version)[manifests.FILE], mode="create")
            undo.callback(_removed, storage, path)
            return version


def _update(
    storage: Any,
    home: str,
    model_files: Mapping[str, bytes],
    replace_config: bool,
    undo: contextlib.ExitStack,
) -> tuple[str, ...]:
    """As `publish._update`: write what is absent or to be replaced; the names of those kept."""
    kept = []
    for filename in sorted(model_files, key=lambda filename: filename == CONFIG):
        path = f"{home}/{filename}"
        before = storage.cat_file(path) if storage.exists(path) else None
        if before == model_files[filename]:
            continue
        if before is not None and not replace_config:
            kept.append(filename)
            continue
        if before is None:
            _put(storage, path, model_files[filename], undo)
        else:
            undo.callback(storage.pipe_file, path, before)
            storage.pipe_file(path, model_files[filename])
    return tuple(kept)


def _put(storage: Any, path: str, content: bytes, undo: contextlib.ExitStack) -> None:
    undo.callback(_removed, storage, path)
    storage.pipe_file(path, content)


def _removed(storage: Any, path: str) -> None:
    with contextlib.suppress(Exception):  # the first error is the one to be told
        storage.rm_file(path)
