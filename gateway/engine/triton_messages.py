"""What goes to a Triton server and comes back, as messages. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from tritonclient.grpc import service_pb2 as pb

from gateway import wire
from gateway.core import InferRequest, InferResponse, ModelKey, Override, Parameters, Tensor
from gateway.errors import InferenceFailed

# the number of the field and its wire type, 2 for bytes
_RAW_INPUT_CONTENTS = (
    pb.ModelInferRequest.DESCRIPTOR.fields_by_name["raw_input_contents"].number << 3 | 2
)


def load(name: str, override: Override | None) -> pb.RepositoryModelLoadRequest:
    """Return a request to load a model. Reads the files of an override."""
    message = pb.RepositoryModelLoadRequest(model_name=name)
    if override is not None:
        message.parameters["config"].string_param = override.config
        if override.folder is not None:
            for file in override.folder.rglob("*"):
                if file.is_file():
                    path = file.relative_to(override.folder).as_posix()
                    message.parameters[f"file:{path}"].bytes_param = file.read_bytes()
    return message


def batch(
    key: ModelKey, inputs: Sequence[Tensor], outputs: Sequence[str], parameters: Parameters
) -> bytes:
    """Return a ModelInferRequest, serialized. The arrays are copied once, into it."""
    head = pb.ModelInferRequest(model_name=key.name, model_version=str(key.version))
    wire.put_parameters(parameters, head.parameters)
    return _message(head, inputs, outputs)


def request(key: ModelKey, given: InferRequest) -> bytes:
    """Return a client's request, serialized: its id, sequence, priority and own parameters, too."""
    head = pb.ModelInferRequest(model_name=key.name, model_version=str(key.version), id=given.id)
    wire.put_parameters(given.parameters, head.parameters)
    if given.priority:
        head.parameters["priority"].uint64_param = given.priority
    if given.timeout_us:
        head.parameters["timeout"].int64_param = given.timeout_us
    if given.sequence is not None:
        number, start, end = given.sequence
        mark = {"sequence_id": number, "sequence_start": start, "sequence_end": end}
        wire.put_parameters(mark, head.parameters)
    return _message(head, given.inputs, given.outputs)


def response(key: ModelKey, given: InferRequest, message: pb.ModelInferResponse) -> InferResponse:
    """Return an answer to a forwarded request. Raises `InferenceFailed` for nonsense."""
    own = {name: wire.parameter(value) for name, value in message.parameters.items()}
    return InferResponse(given.model, key.version, given.id, tensors(key, message), own)


def tensors(key: ModelKey, message: pb.ModelInferResponse) -> list[Tensor]:
    """Return an answer's tensors as views of it. Raises `InferenceFailed` for nonsense."""
    try:
        return [
            Tensor(
                output.name, output.datatype, wire.array(output.datatype, tuple(output.shape), raw)
            )
            for output, raw in zip(message.outputs, message.raw_output_contents, strict=True)
        ]
    except ValueError as error:
        raise nonsense(key, error) from error


def nonsense(key: ModelKey, error: Exception) -> InferenceFailed:
    """Return what to say of an answer that cannot be one."""
    return InferenceFailed(f"Triton's answer for '{key.name}' makes no sense: {error}")


def _message(head: pb.ModelInferRequest, inputs: Sequence[Tensor], outputs: Sequence[str]) -> bytes:
    # protobuf would copy the arrays three times: out of them, into the message, into the bytes.
    # Its fields may come in any order and in pieces, so the contents can be put behind the rest.
    for tensor in inputs:
        head.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.data.shape)
    for name in outputs:
        head.outputs.add(name=name)
    parts: list[wire.Bytes] = [head.SerializeToString()]
    for tensor in inputs:
        parts += wire.field(_RAW_INPUT_CONTENTS, wire.contents(tensor))
    return b"".join(parts)
