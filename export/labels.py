"""Step "labels": the class names of the outputs, checked against the outputs' sizes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from export.errors import SpecError
from export.spec import ExportSpec
from export.tensors import OutputSpec


@dataclass(frozen=True)
class LabelReport:
    """Content of each label file by the name that `config.pbtxt` gives it."""

    files: Mapping[str, bytes]

    def summary(self) -> str:
        """Which files were read, in one line."""
        return ", ".join(self.files) or "none"


def read(spec: ExportSpec) -> LabelReport:
    """Label files of all outputs; raises `SpecError` where one does not fit its output."""
    files: dict[str, bytes] = {}
    for output in spec.outputs:
        if output.labels is None:
            continue
        content = _content(output, output.labels)
        if files.setdefault(output.labels.name, content) != content:
            raise SpecError(f"two different label files are called {output.labels.name}")
    return LabelReport(files)


def _content(output: OutputSpec, path: Path) -> bytes:
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"labels of output {output.name!r}: {error}") from None
    sizes = [dim for dim in output.dims if isinstance(dim, int)]
    lines = text.splitlines()
    if len(sizes) == len(output.dims) and len(lines) != math.prod(sizes):
        raise SpecError(
            f"labels of output {output.name!r}: {path.name} has {len(lines)} lines "
            f"for {math.prod(sizes)} classes"
        )
    return text.encode()
