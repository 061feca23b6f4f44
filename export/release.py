"""What is published beside the model file: configuration, manifest, report, warm-up data."""

import datetime
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from export import choose, config_pbtxt, fingerprint, machine, publish, publish_remote, reference
from export import manifest as manifests
from export.config_pbtxt import WarmUp
from export.manifest import Candidate, FileFacts, Manifest, Source, StepFacts
from export.objective import Objective
from export.report import render
from export.spec import ExportSpec
from export.steps import capture
from export.tensorrt_engine import by_capability

REPORT = "report.html"


@dataclass(frozen=True)
class Release:
    """A version that is ready: `files` are its own, `references` the folder of its answers."""

    spec: ExportSpec
    captured: capture.Report
    references: Path
    chosen: Candidate
    candidates: tuple[Candidate, ...]
    files: tuple[Path, ...]
    label_files: Mapping[str, bytes]
    on_gpu: bool
    steps: Sequence[StepFacts]

    def manifest(self, version: int) -> Manifest:
        """Everything that is known of it, under this number."""
        parity, profile = self.chosen.parity, self.chosen.profile
        assert parity, "what is published has been verified: this is a bug"
        model = self.spec.model
        return Manifest(
            model=self.spec.name,
            version=version,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            format=self.chosen.format,
            objective=str(Objective.parse(self.spec.objective)),
            memory_bytes=profile.resident_bytes if profile else None,
            source=Source(
                kind=self.captured.kind,
                model=model.name if isinstance(model, Path) else str(model),
                files=self.captured.files,
            ),
            files=self._facts,
            tools=fingerprint.versions(),
            machine=machine.facts(),
            parity=parity,
            metric=self.chosen.metric,
            profile=profile,
            candidates=self.candidates,
            steps=tuple(self.steps),
        )

    def publish(self, *, replace_config: bool) -> publish.PublishReport:
        """Put it into the repository; raises `PublishError`."""
        put = publish.publish if isinstance(self.spec.repository, Path) else publish_remote.publish
        return put(
            self._files,
            self._model_files(),
            self.spec.repository,  # type: ignore[arg-type]  # a folder or a URL, as `put` is
            self.spec.name,
            changes=config_pbtxt.interface_changes,
            replace_config=replace_config,
            described=self._described,
        )

    @property
    def _files(self) -> tuple[Path, ...]:
        """All that the version holds: with engines of other machines where it is an engine."""
        return self.files + (self.spec.tensorrt.engines if self._is_engine else ())

    @functools.cached_property
    def _facts(self) -> dict[str, FileFacts]:
        # Once: the manifest is written for each number that is tried, and weights may be gigabytes.
        return {
            file.name: FileFacts(sha256=fingerprint.sha256(file), bytes=file.stat().st_size)
            for file in self._files
        }

    @property
    def _is_engine(self) -> bool:
        return self.chosen.format.startswith("tensorrt")

    def next_version(self) -> int:
        """The number that it would get now."""
        if isinstance(self.spec.repository, Path):
            return publish.next_version(self.spec.repository, self.spec.name)
        return publish_remote.next_version(self.spec.repository, self.spec.name)

    def _described(self, version: int) -> dict[str, bytes]:
        manifest = self.manifest(version)
        return {
            manifests.FILE: manifest.model_dump_json(indent=2).encode() + b"\n",
            REPORT: render(manifest).encode(),
        }

    def _model_files(self) -> dict[str, bytes]:
        warm_up = self._warm_up()
        objective = Objective.parse(self.spec.objective)
        config = config_pbtxt.render(
            self.spec,
            choose.batching(self.spec, self.chosen.profile, objective),
            backend="tensorrt" if self._is_engine else "onnxruntime",
            on_gpu=self.on_gpu,
            warm_up=warm_up,
            cc_files=by_capability(self._files),
        )
        data = warm_up.files() if warm_up else {}
        return {
            publish.CONFIG: config.encode(),
            **self.label_files,
            **{f"warmup/{name}": content for name, content in data.items()},
        }

    def _warm_up(self) -> WarmUp | None:
        """The first real call's first row; None without samples, and where the server has state."""
        real = next((check for check in self.captured.checks if check.real), None)
        if real is None or self.spec.sequence_batching:
            return None
        inputs, _ = reference.read(self.references / real.file)
        if self.spec.batch_limit:
            inputs = {name: array[0] for name, array in inputs.items()}
        return WarmUp(1 if self.spec.batch_limit else 0, inputs)
