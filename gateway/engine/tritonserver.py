"""Where a tritonserver is installed, and what it takes to start it. Standard library only.

`python -m gateway.engine.tritonserver` prints why `make triton` could not install one here, or
nothing where it can.
"""

from __future__ import annotations

import ctypes.util
import os
import platform
import shutil
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gateway.errors import StartError

# NVIDIA's container has it here, its own ONNX Runtime backend included.
_CONTAINER = Path("/opt/tritonserver/bin/tritonserver")
_OLDEST_GLIBC = (2, 35)
# nvidia-pytriton has stubs for Python 3.8 to 3.13, NumPy 1 wheels up to 3.12, we need 3.11
_PYTHONS = (11, 12)
_ONNX_BACKEND = Path(__file__).parent / "onnx_backend"


@dataclass(frozen=True, slots=True)
class Installation:
    """A tritonserver that can be started.

    `package` is the folder of the PyPI package's server, None for one that is complete in itself;
    `environment` is added to the process's own.
    """

    binary: Path
    package: Path | None = None
    version: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)

    def make_backends(self, folder: Path) -> None:
        """Fill an empty folder with the Python backend, and with the one for ONNX models on it."""
        assert self.package is not None, "a complete server has its own: this is a bug"
        python = folder / "python"
        shutil.copytree(self.package / "backends" / "python", python)
        stub = self.package / "python_backend_stubs" / self.version / "triton_python_backend_stub"
        shutil.copy2(stub, python)
        compiled = shutil.ignore_patterns("__pycache__")
        shutil.copytree(_ONNX_BACKEND, folder / "onnxruntime", ignore=compiled)


def find(env: Path) -> Installation:
    """Return the tritonserver in the environment of `make triton`, or else the machine's own.

    Raises `StartError` where there is none.
    """
    found = _in_environment(env)
    if found is not None:
        return found
    binary = shutil.which("tritonserver") or (str(_CONTAINER) if _CONTAINER.is_file() else "")
    if binary:
        return Installation(Path(binary))
    raise StartError(
        f"no tritonserver: there is none in '{env}' (run `make triton`), in PATH or in "
        f"{_CONTAINER.parent}"
    )


def unsupported() -> str:
    """Return why the package with tritonserver cannot be installed here; "" where it can."""
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    machine = f"{sys.platform} on {platform.machine()}"
    if machine != "linux on x86_64":
        return f"nvidia-pytriton is for linux on x86_64, this is {machine}"
    libc, version = platform.libc_ver()
    if libc != "glibc" or tuple(map(int, version.split("."))) < _OLDEST_GLIBC:
        return f"nvidia-pytriton needs glibc 2.35 or newer, this is {libc} {version}"
    if sys.version_info[0] != 3 or sys.version_info[1] not in _PYTHONS:
        return f"nvidia-pytriton and NumPy 1 go together on Python 3.11 and 3.12, this is {python}"
    if _python_library() is None:
        return (
            f"Triton's Python backend needs the shared library of Python {python} "
            f"(Debian and Ubuntu: apt install libpython{python})"
        )
    return ""


def _in_environment(env: Path) -> Installation | None:
    """Return the server of an environment that is made of the same Python as this process."""
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    packages = env.absolute() / "lib" / f"python{version}" / "site-packages"
    package = packages / "pytriton" / "tritonserver"
    binary = package / "bin" / "tritonserver"
    if not binary.is_file():
        return None
    libraries = [str(packages / "nvidia_pytriton.libs")]
    if (folder := _python_library()) is not None:
        libraries.insert(0, str(folder))
    return Installation(
        binary,
        package,
        version,
        {
            "LD_LIBRARY_PATH": os.pathsep.join(libraries),
            "PATH": f"{env.absolute() / 'bin'}{os.pathsep}{os.defpath}",
            "OMP_NUM_THREADS": "1",  # or the stubs, a process for each instance, fight for cores
        },
    )


def _python_library() -> Path | None:
    """Return the folder of the shared libpython, which the stub links."""
    name = f"libpython{sys.version_info[0]}.{sys.version_info[1]}.so.1.0"
    folder = Path(sysconfig.get_config_var("LIBDIR") or "/")
    if (folder / name).exists():
        return folder
    found = ctypes.util.find_library(f"python{sys.version_info[0]}.{sys.version_info[1]}")
    return Path("/usr/lib") if found else None


if __name__ == "__main__":
    print(unsupported())
