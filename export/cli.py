"""`tidegate export`: command line and progress display.

Nothing here imports torch before the arguments are read, so that `--help` answers at once.
"""

import argparse
import importlib.util
import sys
import time
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from export import spec as specs
from export.errors import ExportError, SpecError

if TYPE_CHECKING:
    from export.pipeline import R

# What each part of an export imports, and the extra that brings it.
EXTRAS = {"torch": "export", "onnxscript": "export", "safetensors": "export", "onnxruntime": "cpu"}

EPILOG = """\
A table is given as the inside of a TOML table:
  tidegate export --name double --model model.py:build --max-batch-size 8 \\
    --input 'name="x", dtype="FP32", dims=[4]' --output 'name="y", dtype="FP32", dims=[4]'
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 when a version was published, 1 when nothing changed."""
    args = _parser().parse_args(argv)
    console, errors = Console(file=sys.stdout), Console(file=sys.stderr)
    try:
        spec = _read(args)
        _require_extras()
        with console.status("starting PyTorch ..."):
            from export import pipeline

        begun = time.perf_counter()
        report = pipeline.export(
            spec, _Display(console), replace_config=args.replace_config
        ).published
    except ExportError as error:
        errors.print(Text(f"tidegate export: {error}", "red"), soft_wrap=True)
        return 1
    took = time.perf_counter() - begun
    console.print(Text(f"exported {spec.name} version {report.version} in {took:.1f} s", "bold"))
    return 0


class _Display:
    """One line a step: mark, name, seconds, result."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def __call__(self, name: str, step: "Callable[[], R]") -> "R":
        begun = time.perf_counter()
        try:
            with self._console.status(f"{name} ..."):
                report = step()
        except ExportError:
            self._line("✗", "red", name, begun, "failed")
            raise
        self._line("✓", "green", name, begun, report.summary())
        return report

    def _line(self, mark: str, colour: str, name: str, begun: float, result: str) -> None:
        took = f"{time.perf_counter() - begun:5.1f} s"
        line = Text.assemble((mark, colour), f" {name:<8}{took}  ", result)
        self._console.print(line, soft_wrap=True)


def _require_extras() -> None:
    for module, extra in EXTRAS.items():
        if importlib.util.find_spec(module) is None:
            raise ExportError(f"{module} is not installed: pip install 'tidegate[{extra}]'")


def _read(args: argparse.Namespace) -> specs.ExportSpec:
    fields = specs.ExportSpec.model_fields
    flags = {key: value for key, value in vars(args).items() if key in fields and value is not None}
    if args.spec is None:
        return specs.load("", Path.cwd(), flags)
    try:
        text = args.spec.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"cannot read the spec: {error}") from None
    try:
        return specs.load(text, args.spec.parent, flags, Path.cwd())
    except SpecError as error:
        raise SpecError(f"{args.spec}: {error}") from None


def _table(text: str) -> Any:
    try:
        return tomllib.loads(f"table = {{{text}}}")["table"]
    except tomllib.TOMLDecodeError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not the inside of a TOML table: {error}"
        ) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tidegate export",
        description="Turn a trained PyTorch model into a verified version in a model repository.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("spec", nargs="?", type=Path, metavar="SPEC.toml", help="export spec; flags win over it")
    add("--name", help="model name in the repository")
    add(
        "--model",
        metavar="REF",
        help="callable that returns the nn.Module: file.py:function or module.path:function",
    )
    add("--weights", metavar="FILE", help=".safetensors, or a checkpoint of plain tensors")
    add("--weights-key", metavar="KEY", help="key of the state dict inside the checkpoint")
    add("--repository", metavar="DIR", help="model repository (default: model_repository)")
    add("--max-batch-size", type=int, metavar="N", help="0: the model has no batch dimension")
    add("--seed", type=int, metavar="N", help="seed of the parity check's inputs (default: 0)")
    add(
        "--input",
        dest="inputs",
        action="append",
        type=_table,
        metavar="TABLE",
        help="an input: name, dtype, dims, range; once per input, replacing the spec's",
    )
    add(
        "--output",
        dest="outputs",
        action="append",
        type=_table,
        metavar="TABLE",
        help="an output: name, dtype, dims, labels, atol, rtol; likewise",
    )
    add(
        "--dim-sizes",
        type=_table,
        metavar="TABLE",
        help="sizes at which named dims are checked: 'seq=[1, 3, 11]'",
    )
    add(
        "--dynamic-batching",
        type=_table,
        metavar="TABLE",
        help="'preferred_batch_size=[8], max_queue_delay_microseconds=500', or '' for defaults",
    )
    add(
        "--replace-config",
        action="store_true",
        help="overwrite an existing model's config.pbtxt and labels with the spec's",
    )
    return parser
