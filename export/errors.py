"""What can go wrong in an export. Each message is a sentence for the person who ran it."""

from typing import ClassVar, Final, Literal


class ExportError(Exception):
    """The export stopped, and the model repository is as it was.

    `advice` says what to try, `step` where it was (set by the pipeline). `exit_code` is the
    command's (docs/export.md has the table).
    """

    exit_code: ClassVar[int] = 1
    status: ClassVar[Literal["failed", "skipped"]] = "failed"  # of the step that ends with it

    def __init__(self, why: str, advice: str = "") -> None:
        super().__init__(why)
        self.advice = advice
        self.step = ""


class SpecError(ExportError):
    """The export spec does not say, or contradicts, what to export."""

    exit_code = 2


class SourceError(ExportError):
    """The trained model cannot be built, or is not what the spec says it is."""


class SampleError(ExportError):
    """The example, calibration or labelled data do not fit the model."""


class ConversionError(ExportError):
    """The model could not be turned into a valid file of this format with the requested dims."""


class PointlessError(ExportError):
    """A format would gain nothing for this model: it is skipped."""

    status = "skipped"


class ParityError(ExportError):
    """The file does not compute what the PyTorch model computes."""

    exit_code = 4


class ProfileError(ExportError):
    """The file could not be measured."""


class PublishError(ExportError):
    """The finished version could not take its place in the repository."""


class AbsentError(ExportError):
    """What was asked for needs something that this machine does not have."""

    exit_code = 3


class StepError(ExportError):
    """A step's process ended without an answer: out of time, out of memory, crashed."""


BY_NAME: Final = {
    error.__name__: error
    for error in (
        ExportError,
        SpecError,
        SourceError,
        SampleError,
        ConversionError,
        PointlessError,
        ParityError,
        ProfileError,
        PublishError,
        AbsentError,
        StepError,
    )
}
