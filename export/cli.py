"""`tidegate export`: the command line.

Nothing here imports torch or onnxruntime before the arguments are read, so that `--help` answers
at once.
"""

import argparse
import importlib.util
import signal
import sys
import time
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from export import spec as specs
from export.display import Screen
from export.errors import AbsentError, ExportError, SpecError

# What each kind of source needs, and the extra that brings it.
TORCH = {"torch": "export", "onnxscript": "export", "safetensors": "export"}
ALWAYS = {"onnxruntime": "cpu"}
STEP_TIMEOUT_S = 1800.0

EPILOG = """\
further commands, each with its own --help:
  tidegate export inspect FILE|FOLDER|SPEC   inputs, outputs, operators; a version's manifest
  tidegate export verify SPEC VERSION        a published version against the spec's model
  tidegate export profile VERSION|FILE       latency, throughput, memory, cold start of a file
  tidegate export formats                    which formats make sense on this machine, and why not

a table is given as the inside of a TOML table:
  tidegate export --name double --model model.py:build --max-batch-size 8 \\
    --input 'name="x", dtype="FP32", dims=[4]' --output 'name="y", dtype="FP32", dims=[4]'

exit codes: 0 published, 1 a step failed, 2 the spec or the command line is at fault, 3 this machine
lacks what was asked for, 4 no format computes what the model does, 130 interrupted
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code (see `EPILOG`)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    screen = Screen(Console(file=sys.stdout), Console(file=sys.stderr))
    previous = _end_on_sigterm()
    try:
        if arguments and arguments[0] in ("inspect", "verify", "profile", "formats"):
            from export import commands

            return commands.run(arguments[0], arguments[1:], screen)
        return _export(_parser().parse_args(arguments), screen)
    except ExportError as error:
        screen.failed(error)
        return error.exit_code
    except KeyboardInterrupt:
        screen.still()
        screen.out.print(Text("interrupted; the repository is as it was", "red"))
        return 130
    finally:
        screen.still()
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)


def _end_on_sigterm() -> Any:
    """Have SIGTERM end an export as Ctrl-C does: steps killed, nothing half-published."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    try:
        return signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not the main thread: whoever runs us looks after signals
        return None


def _export(args: argparse.Namespace, screen: Screen) -> int:
    spec = read_spec(args)
    require_extras(spec)
    from export import have, pipeline, workshop

    begun = time.perf_counter()
    options = pipeline.Options(
        profile=not args.no_profile,
        dry_run=args.dry_run,
        replace_config=args.replace_config,
        trust_pickle=args.trust_pickle,
    )
    with workshop.opened(
        spec.name, args.work_dir, resume=args.resume, timeout_s=args.step_timeout_s
    ) as shop:
        export = pipeline.Export(spec, shop, have.here(spec.target), screen, options)
        if spec.samples and not spec.inputs and not args.yes:
            _confirm(export, screen)
        exported = export.run()
    took = time.perf_counter() - begun
    manifest = exported.manifest
    if len(manifest.candidates) > 1 and manifest.profile:
        from export.table import table

        screen.out.print(table(manifest.candidates, manifest.objective))
    verb = "exported" if exported.published else "would export"
    screen.out.print(
        Text(
            f"{verb} {manifest.model} version {manifest.version} as {manifest.format} "
            f"({exported.why}) in {took:.1f} s",
            "bold",
        ),
        soft_wrap=True,
    )
    return 0


def _confirm(export: Any, screen: Screen) -> None:
    """Show inputs that were inferred from calls; go on when somebody says that they are right."""
    from export.interface import as_toml

    described = export.describe()
    screen.out.print(Text(as_toml(described.spec.inputs, described.spec.outputs)), soft_wrap=True)
    export.spec = described.spec
    if not described.inferred:
        return
    if not sys.stdin.isatty():
        raise SpecError(
            "these inputs were inferred, and nobody can be asked here whether they are right",
            "copy them into the spec, or say --yes",
        )
    if input("are these right? [y/N] ").strip().lower() not in ("y", "yes"):
        raise SpecError("the inferred inputs are not right", "copy them into the spec, mended")


def require_extras(spec: specs.ExportSpec) -> None:
    """Raise `AbsentError` with the command that installs what the spec's source needs."""
    torch = not (isinstance(spec.model, Path) and spec.model.suffix == ".onnx")
    for module, extra in {**(TORCH if torch else {}), **ALWAYS}.items():
        if importlib.util.find_spec(module) is None:
            raise AbsentError(f"{module} is not installed", f"pip install 'tidegate[{extra}]'")


def read_spec(args: argparse.Namespace) -> specs.ExportSpec:
    """The spec file with the flags over it; raises `SpecError`."""
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
        raise SpecError(f"{args.spec}: {error}", error.advice) from None


def _table(text: str) -> Any:
    try:
        return tomllib.loads(f"table = {{{text}}}")["table"]
    except tomllib.TOMLDecodeError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not the inside of a TOML table: {error}"
        ) from None


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tidegate export",
        description="Turn a trained model into a verified, measured version in a model repository.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("spec", nargs="?", type=Path, metavar="SPEC.toml", help="export spec; flags win over it")
    add_spec_flags(add)
    add("--dry-run", action="store_true", help="do everything but publish")
    add("--resume", action="store_true", help="keep the steps of an earlier run that still hold")
    add("--no-profile", action="store_true", help="measure nothing; the float32 file is published")
    add("--yes", action="store_true", help="take inputs that were inferred from samples as right")
    add(
        "--replace-config",
        action="store_true",
        help="overwrite an existing model's config.pbtxt, labels and warm-up data",
    )
    add_run_flags(add)
    return parser


def add_run_flags(add: Callable[..., Any]) -> None:
    """Flags of whatever runs steps."""
    add("--trust-pickle", action="store_true", help="load pickles, which can run any code in them")
    add("--work-dir", type=Path, metavar="DIR", help="default: ~/.cache/tidegate/export")
    add(
        "--step-timeout-s",
        type=float,
        default=STEP_TIMEOUT_S,
        metavar="S",
        help="end a step that takes longer (default: %(default)g)",
    )


def add_spec_flags(add: Callable[..., Any]) -> None:
    """The spec's keys as flags."""
    add("--name", help="model name in the repository")
    add(
        "--model",
        metavar="REF",
        help="file.py:function or module:function that returns the nn.Module; or a .pt2, "
        "TorchScript or .onnx file; or a Hugging Face folder",
    )
    add("--weights", metavar="FILE", help=".safetensors, or a checkpoint of plain tensors")
    add("--weights-key", metavar="KEY", help="key of the state dict inside the checkpoint")
    add(
        "--repository",
        metavar="DIR|URL",
        help="model repository: a folder or s3://bucket/path (default: model_repository)",
    )
    add("--max-batch-size", type=int, metavar="N", help="0: the model has no batch dimension")
    add("--seed", type=int, metavar="N", help="seed of the parity check's inputs (default: 0)")
    add("--samples", metavar="REF", help="real inputs: file.py:function, or a .npz file")
    add(
        "--formats", type=_listed, metavar="A,B", help=f"try these only: {', '.join(specs.FORMATS)}"
    )
    add("--target", choices=("cpu", "gpu"), help="default: gpu where there is one")
    add(
        "--objective",
        metavar="WHAT",
        help="latency, throughput, memory, or e.g. 'throughput under p99 10 ms'",
    )
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
