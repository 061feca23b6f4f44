"""What can go wrong in an export. Each message is a sentence for the person who ran it."""


class ExportError(Exception):
    """The export stopped, and the model repository is as it was."""


class SpecError(ExportError):
    """The export spec does not say, or contradicts, what to export."""


class SourceError(ExportError):
    """The trained model cannot be built, or is not what the spec says it is."""


class ConversionError(ExportError):
    """PyTorch could not turn the model into a valid ONNX file with the requested dims."""


class ParityError(ExportError):
    """The ONNX file does not compute what the PyTorch model computes."""


class PublishError(ExportError):
    """The finished version could not take its place in the repository."""
