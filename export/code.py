"""The user's own callables: imported, called, blamed by file and line, remembered by content."""

import importlib
import importlib.util
import site
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from export.errors import AbsentError, SourceError
from export.fingerprint import sha256
from export.spec import CodeRef


def call(ref: CodeRef, *arguments: Any) -> Any:
    """Return what the callable returns; raises `SourceError` with the place where it failed.

    Raises `AbsentError` where it asks for a package that is not installed.
    """
    with _importing_from(ref.folder.resolve()):
        function = _callable(ref)
        try:
            return function(*arguments)
        except ModuleNotFoundError as error:
            raise AbsentError(f"{ref}() failed: {blame(error)}") from error
        except Exception as error:
            raise SourceError(f"{ref}() failed: {blame(error)}") from error


def blame(error: BaseException) -> str:
    """`error` in one line, with the place in the user's own code where it arose."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if is_users(frame.filename) and not frame.filename.startswith("<")
    ]
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {str(error).strip() or 'no message'}{place}"


def is_users(file: str) -> bool:
    """Whether a source file is the user's: neither installed, nor Python's, nor of this package."""
    path = Path(file)
    own = Path(__file__).parent
    return not any(path.is_relative_to(folder) for folder in (own, *_INSTALLED))


class Reading:
    """The user's files that this process imports or opens from now on."""

    def __init__(self) -> None:
        self._opened: set[str] = set()
        self._watching = True
        # An audit hook stays for good; it costs a comparison once nobody watches any more.
        sys.addaudithook(self._heard)

    def files(self, without: Path) -> dict[str, str]:
        """Hash of each such file, by its path; not of those below `without`. Ends the watch."""
        self._watching = False
        modules = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
        sources = {file for file in modules if file and file.endswith(".py")}
        found = {Path(file).absolute() for file in sources | self._opened}
        return {
            str(file): sha256(file)
            for file in sorted(found)
            if is_users(str(file)) and not file.is_relative_to(without) and _is_plain(file)
        }

    def _heard(self, event: str, details: tuple[Any, ...]) -> None:
        if not self._watching or event != "open":
            return
        path, mode, _ = details
        if isinstance(path, str) and mode is not None and set(mode) <= set("rbtU"):
            self._opened.add(path)


def _is_plain(file: Path) -> bool:
    system = any(file.is_relative_to(folder) for folder in ("/proc", "/sys", "/dev"))
    return file.suffix != ".pyc" and not system and file.is_file()


_INSTALLED = tuple(
    Path(folder)
    for folder in {
        *(sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib")),
        *site.getsitepackages(),
        site.getusersitepackages(),
    }
)


@contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _callable(ref: CodeRef) -> Callable[..., Any]:
    try:
        if not ref.module.endswith(".py"):
            module = importlib.import_module(ref.module)
        else:
            path = ref.folder.resolve() / ref.module
            if not path.is_file():
                raise SourceError(f"there is no file {path}")
            # A name of its own, so that a file called json.py shadows nothing.
            name = f"_exported_{path.stem}"
            if (known := sys.modules.get(name)) and known.__file__ == str(path):
                module = known
            else:
                found = importlib.util.spec_from_file_location(name, path)
                assert found, "a .py file has a spec"
                assert found.loader, "a .py file has a loader"
                module = importlib.util.module_from_spec(found)
                sys.modules[found.name] = module
                try:
                    found.loader.exec_module(module)
                except BaseException:
                    del sys.modules[found.name]  # half a module, which the next call would find
                    raise
    except SourceError:
        raise
    except Exception as error:
        # A file that is there lacks a package; a module that is not there is the spec's mistake.
        lacks = ref.module.endswith(".py") and isinstance(error, ModuleNotFoundError)
        kind = AbsentError if lacks else SourceError
        raise kind(f"cannot import {ref.module}: {blame(error)}") from error
    function = getattr(module, ref.function, None)
    if not callable(function):
        raise SourceError(f"{ref.module} has no function {ref.function!r}")
    return function  # type: ignore[no-any-return]
