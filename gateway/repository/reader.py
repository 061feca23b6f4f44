"""Read a Triton model repository: what is there, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from gateway.core import ModelSpec, Override
from gateway.errors import RepositoryError, StartError
from gateway.placement import EngineKind
from gateway.repository import config_pbtxt, ensemble_config, manifest, own_parameters
from gateway.repository.complete import complete, needs_model, spell_out
from gateway.repository.labels import read_labels
from gateway.repository.model_spec import model_file, model_spec


@dataclass(frozen=True, slots=True)
class ModelListing:
    """One model folder as read: its servable versions, ascending, or why there are none.

    `ignored` are folders that look like versions and are not.
    """

    name: str
    versions: tuple[ModelSpec, ...]
    error: str = ""
    ignored: tuple[str, ...] = ()


def model_names(root: Path) -> list[str]:
    """Return the names of a repository's models. Raises `StartError` where it is no folder."""
    if not root.is_dir():
        raise StartError(f"the model repository '{root}' does not exist or is not a folder")
    return [folder.name for folder in sorted(root.iterdir()) if has_model(root, folder.name)]


def has_model(root: Path, name: str) -> bool:
    """Return whether `name` is a model folder; a path in disguise ("../x") never is."""
    if not name or name.startswith(".") or Path(name).name != name:
        return False
    try:
        return (root / name).is_dir()
    except OSError:  # a name that no file system takes
        return False


def read_model(
    root: Path,
    name: str,
    kinds: Collection[EngineKind] = frozenset({EngineKind.EMBEDDED}),
    override: Override | None = None,
) -> ModelListing:
    """Return one model as it is on disk now; a fault in its files becomes `error`.

    `kinds` are those of the engines that there are.
    """
    folder = root / name
    if override is not None and override.folder is not None:
        folder = override.folder
    ignored: tuple[str, ...] = ()
    try:
        numbers, ignored = _version_folders(folder)
        if override is not None:
            config = config_pbtxt.parse_json(override.config)
            _check_inside(config)
        else:
            config = _read_config(folder / "config.pbtxt")
        if not numbers:
            seen = f" ('{ignored[0]}' is none)" if ignored else ""
            raise RepositoryError(f"no version folder: versions are whole numbers > 0{seen}")
        kind = _kind(config, kinds)
        _finish(config, name, folder / str(numbers[-1]))
        labels = read_labels(config, folder)
        specs = tuple(
            replace(_spec(folder, number, config, kind, override), labels=labels)
            for number in _by_policy(config, numbers)
        )
    except RepositoryError as error:
        return ModelListing(name, (), str(error), ignored)
    except OSError as error:
        return ModelListing(name, (), f"cannot read the model's files: {error}", ignored)
    return ModelListing(name, specs, "", ignored)


def lacks_description(folder: Path) -> bool:
    """Return whether a model's configuration leaves something for its file to say."""
    try:
        return needs_model(_read_config(folder / "config.pbtxt"))
    except (RepositoryError, OSError):
        return False  # whoever reads the model says so


def newest_version(folder: Path) -> int | None:
    """Return the highest version number in a model's folder; None without one."""
    try:
        numbers, _ = _version_folders(folder)
    except OSError:
        return None
    return numbers[-1] if numbers else None


def _version_folders(folder: Path) -> tuple[list[int], tuple[str, ...]]:
    """Return the version numbers, ascending, and folders whose number is not one (0, 007)."""
    numbers, ignored = [], []
    for child in folder.iterdir():
        if child.is_dir() and child.name.isdecimal():
            if child.name.isascii() and not child.name.startswith("0"):
                numbers.append(int(child.name))
            else:
                ignored.append(child.name)
    return sorted(numbers), tuple(sorted(ignored))


def _read_config(file: Path) -> config_pbtxt.ModelConfig:
    try:
        text = file.read_text()
    except FileNotFoundError:
        text = ""
    except (OSError, UnicodeDecodeError) as error:
        raise RepositoryError(f"cannot read config.pbtxt: {error}") from None
    return config_pbtxt.parse(text, file)


def _check_inside(config: config_pbtxt.ModelConfig) -> None:
    """Raise `RepositoryError` where a client's configuration reaches for another folder's files."""
    names = [config.default_model_filename, *config.cc_model_filenames.values()]
    names += [output.label_filename for output in config.output]
    for sample in config.model_warmup:
        names += [tensor.input_data_file for tensor in sample.inputs.values()]
    for name in names:
        if name.startswith("/") or ".." in name.split("/"):
            raise RepositoryError(f"'{name}' leads out of the model's folder")
    accelerators = config.optimization.execution_accelerators
    for each in (
        *accelerators.gpu_execution_accelerator,
        *accelerators.cpu_execution_accelerator,
    ):
        files = [key for key in each.parameters if key.startswith("trt_") or "table" in key]
        if files:
            raise RepositoryError(
                f"parameter '{files[0]}' of an accelerator may name files of this machine: "
                "only the repository's own configuration has it"
            )


def _kind(config: config_pbtxt.ModelConfig, kinds: Collection[EngineKind]) -> EngineKind:
    """Return the kind of engine that is to run a model: this process where it can."""
    asked = own_parameters.placement(config).engine
    if asked is not None:
        if asked not in kinds:
            raise RepositoryError(
                f"parameter '{own_parameters.ENGINE}' asks for '{asked}', and there is no such "
                "engine"
            )
        kinds = {asked}
    if EngineKind.EMBEDDED not in kinds:
        return EngineKind.TRITON
    try:
        config_pbtxt.check_embedded(config)
    except RepositoryError:
        if EngineKind.TRITON not in kinds:
            raise
        return EngineKind.TRITON
    return EngineKind.EMBEDDED


def _finish(config: config_pbtxt.ModelConfig, name: str, folder: Path) -> None:
    """Check a configuration and fill in, in place, what it leaves to the newest version's file."""
    file = None
    if needs_model(config) and not ensemble_config.is_ensemble(config):
        file = folder / model_file(config)
        if not config_pbtxt.is_onnx(config):
            raise RepositoryError(
                "config.pbtxt must declare the inputs and outputs: they are read from the files "
                "of ONNX models only"
            )
    complete(config, name, file)
    config_pbtxt.check(config, name)
    spell_out(config)


def _by_policy(config: config_pbtxt.ModelConfig, numbers: list[int]) -> list[int]:
    """Return the versions that `version_policy` serves (default: the latest one)."""
    policy = config.version_policy
    if policy.HasField("all"):
        return numbers
    if policy.HasField("specific"):
        chosen = [number for number in numbers if number in policy.specific.versions]
        if not chosen:
            raise RepositoryError(f"version_policy serves none of the versions present: {numbers}")
        return chosen
    count = policy.latest.num_versions if policy.HasField("latest") else 1
    return numbers[-max(1, count) :]


def _spec(
    folder: Path,
    number: int,
    config: config_pbtxt.ModelConfig,
    kind: EngineKind,
    override: Override | None,
) -> ModelSpec:
    path = folder / str(number)
    stats = [file.stat() for file in path.rglob("*") if file.is_file()]
    spec = model_spec(
        config,
        number,
        path,
        file_bytes=sum(stat.st_size for stat in stats),
        modified_ns=max((stat.st_mtime_ns for stat in stats), default=0),
        kind=kind,
        override=override,
    )
    told = manifest.read(path)
    placement = spec.placement
    if told.memory_bytes is not None and placement.memory_bytes is None:
        placement = replace(placement, memory_bytes=told.memory_bytes)
    return replace(
        spec, placement=placement, batching=replace(spec.batching, expected=told.batches)
    )
