"""`tidegate export inspect | verify | profile | formats`: questions about files and machines."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import onnx
from rich.table import Table
from rich.text import Text

from export import cli as command_line
from export import fingerprint, formats, have, machine, onnx_graph, pipeline, workshop
from export import manifest as manifests
from export.display import Screen
from export.dtypes import KSERVE
from export.errors import ParityError, SpecError
from export.interface import as_toml
from export.manifest import Manifest
from export.onnx_graph import dim_name
from export.spec import ExportSpec, load
from export.steps import capture, profile, verify

MODEL: Final = "model.onnx"


def run(name: str, arguments: Sequence[str], screen: Screen) -> int:
    """Run one of the commands; returns its exit code."""
    parser = argparse.ArgumentParser(prog=f"tidegate export {name}", description=_DOES[name])
    _FLAGS[name](parser.add_argument)
    return _RUN[name](parser.parse_args(arguments), screen)


def _formats(args: argparse.Namespace, screen: Screen) -> int:
    here = have.here(args.target)
    facts = machine.facts()
    screen.out.print(
        Text(f"{facts.cpu}, {facts.cores} cores; GPU: {facts.gpu or 'none'}; target: {here.target}")
    )
    table = Table(box=None, pad_edge=False)
    table.add_column("format", no_wrap=True)
    table.add_column("tried by default")
    for name, why in formats.describe(here):
        table.add_row(Text(name), Text(f"no: {why}" if why else "yes" + _needs(name)))
    table.add_row(
        Text("preflight"), Text(f"no: {here.no_preflight}" if here.no_preflight else "yes")
    )
    screen.out.print(table)
    return 0


def _needs(name: str) -> str:
    return ", where the spec gives samples" if "int8" in name else ""


def _inspect(args: argparse.Namespace, screen: Screen) -> int:
    path: Path = args.path
    if path.suffix == ".toml":
        return _inspect_spec(args, screen)
    file = path / MODEL if path.is_dir() else path
    if not file.is_file():
        raise SpecError(f"{path} is no version folder, no .onnx file and no spec")
    _print_model(file, screen)
    if (file.parent / manifests.FILE).is_file():
        return _print_manifest(file.parent, screen)
    return 0


def _inspect_spec(args: argparse.Namespace, screen: Screen) -> int:
    args.spec = args.path
    spec = command_line.read_spec(args)
    command_line.require_extras(spec)
    with _shop(spec.name, args) as shop:
        options = pipeline.Options(trust_pickle=args.trust_pickle)
        export = pipeline.Export(spec, shop, have.here(spec.target), screen, options)
        described = export.describe()
    screen.out.print(Text(as_toml(described.spec.inputs, described.spec.outputs)), soft_wrap=True)
    return 0


def _print_model(file: Path, screen: Screen) -> None:
    try:
        model = onnx.load(file, load_external_data=False)
    except Exception as error:  # protobuf's errors are no family
        raise SpecError(f"{file} is no ONNX file: {error}") from None
    size = sum(each.stat().st_size for each in onnx_graph.files_of(file))
    opsets = ", ".join(f"{o.domain or 'ai.onnx'} {o.version}" for o in model.opset_import)
    screen.out.print(Text(f"{file}: {size / 1e6:,.3g} MB, opset {opsets}", "bold"), soft_wrap=True)
    for kind, values in (("input", model.graph.input), ("output", model.graph.output)):
        for value in values:
            tensor = value.type.tensor_type
            dims = [d.dim_param or d.dim_value for d in tensor.shape.dim]
            dtype = onnx.TensorProto.DataType.Name(tensor.elem_type)
            screen.out.print(Text(f"{kind} {value.name} {dtype} {dims}"), soft_wrap=True)
    counts = ", ".join(f"{name} {n}" for name, n in onnx_graph.operators(model).items())
    screen.out.print(Text(f"operators: {counts}"), soft_wrap=True)


def _print_manifest(folder: Path, screen: Screen) -> int:
    manifest = read_manifest(folder)
    screen.out.print(
        Text(
            f"{manifest.model} version {manifest.version}, {manifest.format}, made "
            f"{manifest.created} from {manifest.source.kind} {manifest.source.model}"
        ),
        soft_wrap=True,
    )
    if manifest.profile:
        _print_curve(manifest.profile, screen)
    changed = altered(folder, manifest)
    if changed:
        raise ParityError(
            f"not what was published: {', '.join(changed)}", "export the model as a new version"
        )
    screen.out.print(Text(f"{len(manifest.files)} files are as published (sha256)"))
    return 0


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a version; raises `SpecError`."""
    try:
        return Manifest.model_validate_json((folder / manifests.FILE).read_bytes())
    except (OSError, ValueError) as error:
        raise SpecError(f"cannot read {folder / manifests.FILE}: {error}") from None


def altered(folder: Path, manifest: Manifest) -> list[str]:
    """Files of the version that are missing, or other than when they were published."""
    return [
        name
        for name, facts in manifest.files.items()
        if not (folder / name).is_file() or fingerprint.sha256(folder / name) != facts.sha256
    ]


def _print_curve(measured: manifests.Profile, screen: Screen) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("batch", "p50 ms", "p99 ms", "inferences/s"):
        table.add_column(column, justify="right")
    knee = measured.knee()
    for point in measured.curve:
        style = "bold" if point is knee else ""
        cells = f"{point.batch}", f"{point.p50_ms:.3g}", f"{point.p99_ms:.3g}"
        table.add_row(*cells, f"{point.throughput:,.0f}", style=style)
    screen.out.print(table)
    screen.out.print(
        Text(
            f"knee at batch {knee.batch}; {measured.threads} threads; resident "
            f"{measured.resident_bytes / 1e6:.3g} MB, peak {measured.peak_bytes / 1e6:.3g} MB; "
            f"cold start {measured.cold_start_s * 1000:.3g} ms"
        )
    )


def _verify(args: argparse.Namespace, screen: Screen) -> int:
    spec = command_line.read_spec(args)
    command_line.require_extras(spec)
    file = _model_file(args.version)
    precision = args.precision
    if precision is None and (file.parent / manifests.FILE).is_file():
        manifest = read_manifest(file.parent)
        precision = formats.precision(manifest.format)
        if changed := altered(file.parent, manifest):
            raise ParityError(f"not what was published: {', '.join(changed)}")
    with _shop(spec.name, args) as shop:
        screen.running("capture")
        captured = shop.run(
            capture.Request(spec=spec, trust_pickle=args.trust_pickle), capture.Report
        )
        request = verify.Request(
            spec=captured.report.spec,
            model=file.resolve(),
            precision=precision or "fp32",
            references=captured.folder / "reference",
            checks=captured.report.checks,
            labelled=captured.folder / capture.LABELLED if spec.metric else None,
            score=captured.report.score,
        )
        screen.running("verify")
        report = shop.run(request, verify.Report).report
    screen.still()
    screen.out.print(
        Text(f"{file} computes what {spec.name} does: {report.summary()}"), soft_wrap=True
    )
    return 0


def _profile(args: argparse.Namespace, screen: Screen) -> int:
    file = _model_file(args.path)
    spec = _spec_of(file, args)
    with _shop(spec.name, args) as shop:
        screen.running("profile")
        request = profile.Request(spec=spec, model=file.resolve(), threads=args.threads)
        measured = shop.run(request, profile.Report).report.profile
    screen.still()
    if args.json:
        screen.out.print(Text(measured.model_dump_json(indent=2)), soft_wrap=True)
    else:
        _print_curve(measured, screen)
    return 0


def _spec_of(file: Path, args: argparse.Namespace) -> ExportSpec:
    """Inputs and outputs as the file itself has them, the ranges of integers from the flags."""
    model = onnx.load(file, load_external_data=False)
    ranges = dict(each.split("=", 1) for each in args.range or ())
    skip = 0 if args.max_batch_size == 0 else 1
    tables: dict[str, list[dict[str, Any]]] = {"inputs": [], "outputs": []}
    for kind, values in (("inputs", model.graph.input), ("outputs", model.graph.output)):
        for value in values:
            dims = [
                d.dim_value or dim_name(d.dim_param, f"{value.name}_dim_{axis}")
                for axis, d in enumerate(value.type.tensor_type.shape.dim)
            ][skip:]
            numpy = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            table: dict[str, Any] = {"name": value.name, "dtype": _kserve(numpy.name), "dims": dims}
            if kind == "inputs" and numpy.kind in "iu":
                low, _, high = ranges.get(value.name, "0,1").partition(",")
                table["range"] = [float(low), float(high or low)]
            tables[kind].append(table)
    return load("", Path.cwd(), {
        "name": "profile", "model": str(file.resolve()), "max_batch_size": args.max_batch_size,
        **tables,
    })  # fmt: skip


def _kserve(numpy: str) -> str:
    if numpy not in KSERVE:
        raise SpecError(f"a tensor of {numpy} cannot be made up")
    return str(KSERVE[numpy])


def _model_file(path: Path) -> Path:
    file = path / MODEL if path.is_dir() else path
    if not file.is_file():
        raise SpecError(f"there is no model file {file}")
    return file


def _shop(name: str, args: argparse.Namespace) -> Any:
    return workshop.opened(
        f"{name}.asked", args.work_dir, resume=False, timeout_s=args.step_timeout_s
    )


def _flags_formats(add: Callable[..., Any]) -> None:
    add("--target", choices=("cpu", "gpu"), help="default: gpu where there is one")


def _flags_inspect(add: Callable[..., Any]) -> None:
    add("path", type=Path, help="a version's folder, an .onnx file, or a spec")
    command_line.add_run_flags(add)


def _flags_verify(add: Callable[..., Any]) -> None:
    add("spec", type=Path, metavar="SPEC.toml")
    add("version", type=Path, help="a version's folder, or an .onnx file")
    add("--precision", choices=("fp32", "fp16", "bf16", "int8"), help="default: the manifest's")
    command_line.add_run_flags(add)


def _flags_profile(add: Callable[..., Any]) -> None:
    add("path", type=Path, help="a version's folder, or an .onnx file")
    add("--max-batch-size", type=int, default=64, metavar="N", help="0: it has no batch dimension")
    add("--threads", type=int, default=0, metavar="N", help="default: one a core but one")
    add("--range", action="append", metavar="INPUT=LOW,HIGH", help="of an integer input's values")
    add("--json", action="store_true", help="print the figures as JSON")
    command_line.add_run_flags(add)


_DOES: Final = {
    "formats": "Say which formats make sense on this machine, and why the others do not.",
    "inspect": "Show the inputs and outputs of a file, a published version or a spec's model.",
    "verify": "Hold a file to a spec's trained model; exit code 4 where the two differ.",
    "profile": "Measure latency, throughput, memory and cold start of a file on this machine.",
}
_FLAGS: Final[dict[str, Callable[..., None]]] = {
    "formats": _flags_formats,
    "inspect": _flags_inspect,
    "verify": _flags_verify,
    "profile": _flags_profile,
}
_RUN: Final[dict[str, Callable[[argparse.Namespace, Screen], int]]] = {
    "formats": _formats,
    "inspect": _inspect,
    "verify": _verify,
    "profile": _profile,
}
