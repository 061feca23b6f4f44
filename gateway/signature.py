"""Does a request fit its model? Pure; the texts are Triton's."""

from __future__ import annotations

from collections.abc import Iterable

from gateway.core import InferRequest, ModelSpec, Tensor, TensorSpec
from gateway.errors import InvalidRequest

_BATCH_NOTE = (
    "NOTE: Setting a non-zero max_batch_size in the model config requires a batch dimension to be "
    "prepended to each input shape. If you want to specify the full shape including the batch dim "
    "in your input dims config, try setting max_batch_size to zero. See the model configuration "
    "docs for more info on max_batch_size."
)


def check(request: InferRequest, spec: ModelSpec) -> None:
    """Raise `InvalidRequest` unless the model can take the request.

    Puts `request.inputs` in the model's order, so that requests of one batch line up.
    """
    inputs, wanted = request.inputs, spec.inputs
    if len(inputs) != len(wanted) or any(map(_misplaced, wanted, inputs)):
        wanted = _line_up(request, spec)
        inputs = request.inputs
    rows = -1
    for want, tensor in zip(wanted, inputs, strict=True):
        _check_tensor(request, spec, want, tensor)
        if spec.max_batch_size > 0:
            rows = _check_rows(request, spec, tensor, rows)
    if request.outputs:
        _check_outputs(request, spec)


def _misplaced(want: TensorSpec, tensor: Tensor) -> bool:
    return want.name != tensor.name


def _line_up(request: InferRequest, spec: ModelSpec) -> tuple[TensorSpec, ...]:
    """Put the inputs in the model's order; return what it wants of each of them.

    Optional inputs may be absent.
    """
    name = spec.key.name
    by_name = {tensor.name: tensor for tensor in request.inputs}
    if len(by_name) != len(request.inputs):
        names = [tensor.name for tensor in request.inputs]
        twice = next(each for each in names if names.count(each) > 1)
        raise _invalid(request, f"input '{twice}' already exists in request")
    known = {want.name for want in spec.inputs}
    for given in by_name:
        if given not in known:
            raise InvalidRequest(f"unexpected inference input '{given}' for model '{name}'")
    needed = [want.name for want in spec.inputs if not want.optional]
    missing = [want for want in needed if want not in by_name]
    if missing:
        raise _invalid(
            request,
            f"expected {len(needed)} inputs but got {len(by_name)} inputs for model '{name}'. "
            f"Got input(s) [{_quoted(by_name)}], but missing required input(s) "
            f"[{_quoted(missing)}]. Please provide all required input(s).",
        )
    present = tuple(want for want in spec.inputs if want.name in by_name)
    request.inputs = [by_name[want.name] for want in present]
    return present


def _check_tensor(request: InferRequest, spec: ModelSpec, want: TensorSpec, got: Tensor) -> None:
    name = spec.key.name
    if got.datatype != want.datatype:
        raise _invalid(
            request,
            f"inference input '{got.name}' data-type is '{got.datatype}', but model '{name}' "
            f"expects '{want.datatype}'",
        )
    if want.datatype == "BYTES" and spec.utf8_only:
        _check_text(request, got)
    shape = got.data.shape
    batched = spec.max_batch_size > 0
    if batched and not shape:
        raise _invalid(
            request,
            f"input '{got.name}' has no shape but model requires batch dimension for '{name}'",
        )
    inner = shape[1:] if batched else shape
    if inner != want.dims and not _fits(inner, want.dims):
        expected = (-1, *want.dims) if batched else want.dims
        raise _invalid(
            request,
            f"unexpected shape for input '{got.name}' for model '{name}'. "
            f"Expected {_listed(expected)}, got {_listed(shape)}. {_BATCH_NOTE if batched else ''}",
        )


def _fits(shape: tuple[int, ...], dims: tuple[int, ...]) -> bool:
    return len(shape) == len(dims) and all(
        dim in (size, -1) for size, dim in zip(shape, dims, strict=True)
    )


def _check_text(request: InferRequest, got: Tensor) -> None:
    # Found here, because inside the engine one bad element would fail its whole batch.
    try:
        for element in got.data.ravel():
            element.decode()
    except UnicodeDecodeError:
        raise _invalid(
            request,
            f"input '{got.name}' has an element that is not UTF-8; ONNX Runtime takes no other",
        ) from None


def _check_rows(request: InferRequest, spec: ModelSpec, tensor: Tensor, rows: int) -> int:
    """Return the tensor's batch size, which must be the other inputs' too (`rows`, -1 unknown)."""
    count: int = tensor.data.shape[0]
    name = spec.key.name
    if rows not in (-1, count):
        raise _invalid(
            request, f"input '{tensor.name}' batch size does not match other inputs for '{name}'"
        )
    if count > spec.max_batch_size:
        raise _invalid(
            request, f"inference request batch-size must be <= {spec.max_batch_size} for '{name}'"
        )
    return count


def _check_outputs(request: InferRequest, spec: ModelSpec) -> None:
    known = {output.name for output in spec.outputs}
    for output in request.outputs:
        if output not in known:
            raise InvalidRequest(
                f"unexpected inference output '{output}' for model '{spec.key.name}'"
            )


def _quoted(names: Iterable[str]) -> str:
    return ",".join(f"'{name}'" for name in names)


def _listed(dims: tuple[int, ...]) -> str:
    return "[" + ",".join(map(str, dims)) + "]"


def _invalid(request: InferRequest, text: str) -> InvalidRequest:
    return InvalidRequest(request.label + text)
