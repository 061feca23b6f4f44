"""The export as a list of steps; the repository changes in the last one.

capture -> optimise -> for each format: make it, ask NVIDIA's parser, verify, profile -> choose ->
publish. Steps run in processes of their own and hand each other files.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Protocol, TypeVar

from export import choose, formats, labels, onnx_graph, onnx_session, publish, release
from export.errors import AbsentError, ExportError, ParityError
from export.formats import BASE, Have, Planned
from export.manifest import Candidate, Manifest, StepFacts
from export.objective import Objective
from export.spec import ExportSpec
from export.steps import base, capture, engine, lower, optimise, preflight, profile, verify
from export.workshop import Done, Workshop

MODEL: Final = "model.onnx"

R = TypeVar("R", bound=base.Report)


class _Summarised(Protocol):
    def summary(self) -> str: ...


S = TypeVar("S", bound=_Summarised)


class Display(Protocol):
    """Shows steps as they run."""

    def running(self, name: str) -> None:
        """A step has begun."""

    def ended(self, step: StepFacts) -> None:
        """A step has ended."""


@dataclass(frozen=True)
class Options:
    """What an export does beside what its spec says."""

    profile: bool = True
    dry_run: bool = False
    replace_config: bool = False
    trust_pickle: bool = False


@dataclass(frozen=True)
class Exported:
    """The chosen format and what it was chosen from; `published` None: a dry run."""

    manifest: Manifest
    why: str
    published: publish.PublishReport | None


@dataclass(frozen=True)
class _Variant:
    """A format on its way: its file, and what is known of it."""

    candidate: Candidate
    file: Path | None = None


@dataclass
class Export:
    """One export. `run()` does it."""

    spec: ExportSpec
    workshop: Workshop
    have: Have
    display: Display
    options: Options = field(default_factory=Options)

    def __post_init__(self) -> None:
        self._steps: list[StepFacts] = []
        self._objective = Objective.parse(self.spec.objective)

    def run(self) -> Exported:
        """Publish the next version; raises `ExportError` and changes nothing."""
        planned = formats.plan(self.spec, self.have)
        self._refuse_empty(planned)
        captured = self._step("capture", self._capture())
        self.spec = captured.report.spec
        label_files = self._plain("labels", lambda: labels.read(self.spec))
        optimised = self._step(
            "optimise", (optimise.Request(source=captured.folder), optimise.Report)
        )
        self._skip(planned)
        variants = [self._variant(each, captured, optimised.folder) for each in planned]
        if self.options.profile:
            variants = self._remeasured(variants, captured)
        chosen, why = self._choose(variants)
        return self._publish(chosen, why, variants, captured, label_files.files)

    def describe(self) -> capture.Report:
        """Inputs and outputs of the model, as far as source, samples and spec say."""
        request, kind = self._capture(describe=True)
        return self._step("describe", (request, kind)).report

    # -- steps ---------------------------------------------------------------------------------

    def _capture(self, describe: bool = False) -> tuple[capture.Request, type[capture.Report]]:
        request = capture.Request(
            spec=self.spec, trust_pickle=self.options.trust_pickle, describe=describe
        )
        return request, capture.Report

    def _refuse_empty(self, planned: Sequence[Planned]) -> None:
        asked = [each for each in planned if each.format in self.spec.formats]
        if asked and all(each.skipped for each in asked):
            reasons = "; ".join(f"{each.format}: {each.skipped}" for each in asked)
            raise AbsentError(f"nothing that was asked for can be made here: {reasons}")

    def _skip(self, planned: Sequence[Planned]) -> None:
        """A line for each reason, with the formats that it keeps from being tried."""
        reasons: dict[str, list[str]] = {}
        for each in planned:
            if each.skipped:
                reasons.setdefault(each.skipped, []).append(each.format)
        for why, names in reasons.items():
            self._note(StepFacts(name=", ".join(names), status="skipped", why=why))

    def _variant(self, planned: Planned, captured: Done[capture.Report], exact: Path) -> _Variant:
        """One format made, verified and measured; what goes wrong is in its candidate.

        Of the base it is raised: every other format is made from it.
        """
        name = planned.format
        if planned.skipped:
            return _Variant(Candidate(format=name, status="skipped", why=planned.skipped))
        candidate = Candidate(format=name, status="ok")
        try:
            file = self._made(name, captured, exact)
            size_bytes = sum(each.stat().st_size for each in onnx_graph.files_of(file))
            candidate = candidate.model_copy(update={"size_bytes": size_bytes})
            self._preflight(name, file)
            verified = self._step(f"verify {name}", self._verify(name, file, captured)).report
            candidate = candidate.model_copy(
                update={"parity": verified.parity, "metric": verified.metric}
            )
            if self.options.profile:
                measured = self._step(f"profile {name}", self._profile(name, file, captured))
                candidate = candidate.model_copy(update={"profile": measured.report.profile})
        except ExportError as error:
            if name == BASE:
                raise
            ended = {"status": error.status, "why": str(error).partition("\n")[0]}
            return _Variant(candidate.model_copy(update=ended))
        return _Variant(candidate, file)

    def _made(self, name: str, captured: Done[capture.Report], exact: Path) -> Path:
        """The file of a format."""
        if name == BASE:
            return exact / MODEL
        if name == "onnx-bf16":
            again, kind = self._capture()
            asked = again.model_copy(update={"bf16": True})
            return self._step(name, (asked, kind)).folder / MODEL
        if name.startswith("tensorrt-"):
            source = self._made(formats.made_from(name), captured, exact).parent
            cache = self.workshop.folder / "timing.cache"
            build = engine.Request(source=source, spec=self.spec, timing_cache=cache)
            built = self._step(name, (build, engine.Report))
            return built.folder / built.report.file
        request = lower.Request(source=exact, format=name, calibration=_real(captured))
        return self._step(name, (request, lower.Report)).folder / MODEL

    def _preflight(self, name: str, file: Path) -> None:
        """Whether NVIDIA's parser takes the file: worth knowing, and nobody's end."""
        if file.suffix != ".onnx" or name == "onnx-int8-dynamic":  # which TensorRT never takes
            return
        if self.have.no_preflight:
            if name == BASE:
                why = self.have.no_preflight
                self._note(StepFacts(name="preflight", status="skipped", why=why))
            return
        try:
            request = preflight.Request(source=file.parent, spec=self.spec)
            self._step(f"preflight {name}", (request, preflight.Report))
        except ExportError:
            return

    def _verify(
        self, name: str, file: Path, captured: Done[capture.Report]
    ) -> tuple[verify.Request, type[verify.Report]]:
        request = verify.Request(
            spec=self.spec,
            model=file,
            precision=formats.precision(name),
            references=captured.folder / "reference",
            checks=captured.report.checks,
            labelled=captured.folder / capture.LABELLED if self.spec.metric else None,
            score=captured.report.score,
            provider=self._provider,
        )
        return request, verify.Report

    def _profile(
        self, name: str, file: Path, captured: Done[capture.Report]
    ) -> tuple[profile.Request, type[profile.Report]]:
        request = profile.Request(
            spec=self.spec, model=file, calls=_real(captured)[:1], provider=self._provider
        )
        return request, profile.Report

    @property
    def _provider(self) -> str:
        return onnx_session.CUDA if self.have.target == "gpu" else onnx_session.CPU

    # -- the end -------------------------------------------------------------------------------

    def _remeasured(
        self, variants: list[_Variant], captured: Done[capture.Report]
    ) -> list[_Variant]:
        """The variants; where the best leads by little, it and the base are measured once more."""
        alive = [v.candidate for v in self._eligible(variants) if v.candidate.status == "ok"]
        doubted = choose.doubted(alive, self._objective) if alive else ()
        return [self._again(v, captured) if v.candidate in doubted else v for v in variants]

    def _again(self, variant: _Variant, captured: Done[capture.Report]) -> _Variant:
        before, name = variant.candidate.profile, variant.candidate.format
        assert before, "only what was measured is doubted: this is a bug"
        assert variant.file, "what was measured has a file: this is a bug"
        request, kind = self._profile(name, variant.file, captured)
        once_more = request.model_copy(update={"turn": 2})
        measured = self._step(f"profile {name} again", (once_more, kind)).report.profile
        merged = choose.merged(before, measured)
        return replace(variant, candidate=variant.candidate.model_copy(update={"profile": merged}))

    def _eligible(self, variants: list[_Variant]) -> list[_Variant]:
        asked = self.spec.formats
        return [v for v in variants if not asked or v.candidate.format in asked]

    def _choose(self, variants: list[_Variant]) -> tuple[_Variant, str]:
        eligible = self._eligible(variants)
        alive = [v for v in eligible if v.candidate.status == "ok"]
        if not alive:
            reasons = "; ".join(f"{v.candidate.format}: {v.candidate.why}" for v in eligible)
            raise ParityError(f"no format that was asked for can be published: {reasons}")
        best, why = choose.choose([v.candidate for v in alive], self._objective)
        return next(v for v in alive if v.candidate is best), why

    def _publish(
        self,
        chosen: _Variant,
        why: str,
        variants: list[_Variant],
        captured: Done[capture.Report],
        label_files: Mapping[str, bytes],
    ) -> Exported:
        assert chosen.file, "what is chosen has been made: this is a bug"
        best = chosen.candidate.model_copy(update={"status": "chosen", "why": why})
        made = release.Release(
            spec=self.spec,
            captured=captured.report,
            references=captured.folder / "reference",
            chosen=best,
            candidates=tuple(best if v is chosen else v.candidate for v in variants),
            files=onnx_graph.files_of(chosen.file),
            label_files=label_files,
            on_gpu=self.have.target == "gpu",
            steps=self._steps,
        )
        if self.options.dry_run:
            return Exported(made.manifest(made.next_version()), why, None)
        published = self._plain(
            "publish", lambda: made.publish(replace_config=self.options.replace_config)
        )
        return Exported(made.manifest(published.version), why, published)

    # -- how a step is run ---------------------------------------------------------------------

    def _step(self, name: str, ask: tuple[base.Request, type[R]]) -> Done[R]:
        """Run a step in its process; its end is shown and remembered, whatever it is."""
        self.display.running(name)
        begun = time.perf_counter()
        try:
            done = self.workshop.run(*ask)
        except ExportError as error:
            self._failed(name, error, begun)
            raise
        why = done.report.summary()
        facts = StepFacts(name=name, status="ok", why=why, seconds=done.seconds, reused=done.reused)
        self._note(facts)
        return done

    def _plain(self, name: str, work: Callable[[], S]) -> S:
        """Do what needs no process of its own."""
        self.display.running(name)
        begun = time.perf_counter()
        try:
            result = work()
        except ExportError as error:
            self._failed(name, error, begun)
            raise
        seconds = time.perf_counter() - begun
        self._note(StepFacts(name=name, status="ok", why=result.summary(), seconds=seconds))
        return result

    def _failed(self, name: str, error: ExportError, begun: float) -> None:
        error.step = error.step or name
        seconds = time.perf_counter() - begun
        self._note(StepFacts(name=name, status=error.status, why=str(error), seconds=seconds))

    def _note(self, step: StepFacts) -> None:
        self._steps.append(step)
        self.display.ended(step)


def _real(captured: Done[capture.Report]) -> tuple[Path, ...]:
    """Files of the spec's own calls."""
    folder = captured.folder / "reference"
    return tuple(folder / check.file for check in captured.report.checks if check.real)
