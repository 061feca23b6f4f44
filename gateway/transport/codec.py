"""KServe v2 messages <-> the gateway's nouns. Pure; error texts are Triton's."""

from __future__ import annotations

from tritonclient.grpc import service_pb2 as pb

from gateway import wire
from gateway.core import InferRequest, InferResponse, Parameters
from gateway.transport import contents, parameters
from gateway.transport.delivery import NOTHING_PLACED, Placed, Regions


def decode(message: pb.ModelInferRequest, deadline: float, regions: Regions) -> InferRequest:
    """Return the request. Arrays of raw contents are views of the message's bytes, uncopied.

    Those that lie in `regions` are copied. Raises `InvalidRequest`, and for regions `NotFound`.
    """
    request = InferRequest(
        message.model_name,
        message.model_version,
        message.id,
        contents.read(message, regions),
        # asked for twice, an output is sent once
        list(dict.fromkeys([output.name for output in message.outputs])) if message.outputs else [],
        deadline,
    )
    if message.parameters:
        parameters.take(message.parameters, request)
    return request


def encode(response: InferResponse, placed: Placed = NOTHING_PLACED) -> bytes:
    """Return the serialized message: every output raw, in order; nothing for those `placed`.

    All but the id and the contents is the same for every answer of one shape: it is serialized
    once, and the rest appended as fields of their own, as protobuf's wire format allows. Each
    output is copied once, into the message; a small one on its way there, too.
    """
    layout = (
        response.model,
        response.version,
        tuple([(tensor.name, tensor.datatype, tensor.data.shape) for tensor in response.outputs]),
    )
    head = _heads.get(layout)
    if head is None:
        head = _head(layout)
    if response.parameters:
        head += _parameters(response.parameters)
    parts: list[wire.Bytes] = [head]
    if response.id:
        parts += wire.field(_ID, response.id.encode())
    for tensor in response.outputs:
        data = tensor.data
        content: wire.Bytes
        if placed and tensor.name in placed:
            content = b""
        elif data.nbytes < VIEW_BYTES and tensor.datatype != "BYTES":
            content = data.tobytes()
        else:
            content = wire.contents(tensor)
        parts += wire.field(_RAW_OUTPUT_CONTENTS, content)
    return b"".join(parts)


_Layout = tuple[str, int, tuple[tuple[str, str, tuple[int, ...]], ...]]

VIEW_BYTES = 4096  # below, a copy is cheaper than a view
MAX_HEADS = 1024  # a model whose outputs vary in shape must not fill the memory with them
_heads: dict[_Layout, bytes] = {}
_FIELDS = pb.ModelInferResponse.DESCRIPTOR.fields_by_name
_LENGTH_DELIMITED = 2  # protobuf's wire type of strings, bytes and messages
_ID = _FIELDS["id"].number << 3 | _LENGTH_DELIMITED
_RAW_OUTPUT_CONTENTS = _FIELDS["raw_output_contents"].number << 3 | _LENGTH_DELIMITED


def _head(layout: _Layout) -> bytes:
    model, version, outputs = layout
    message = pb.ModelInferResponse(model_name=model, model_version=str(version))
    for name, datatype, shape in outputs:
        message.outputs.add(name=name, datatype=datatype, shape=shape)
    if len(_heads) >= MAX_HEADS:
        _heads.clear()
    head: bytes = message.SerializeToString()
    _heads[layout] = head
    return head


def _parameters(given: Parameters) -> bytes:
    message = pb.ModelInferResponse()
    wire.put_parameters(given, message.parameters)
    serialized: bytes = message.SerializeToString()
    return serialized
