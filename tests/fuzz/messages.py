"""Messages that are right, nearly right, and damaged on the way."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from itertools import count

from google.protobuf.message import Message
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb

from gateway.core import DTYPES

FULL = os.environ.get("TIDEGATE_FUZZ") == "full"
SEED = int(os.environ.get("TIDEGATE_FUZZ_SEED", "0"))

FIELDS = [field.name for field in pb.InferTensorContents.DESCRIPTOR.fields]
EDGES = [0, 1, 12, 24, -1, 127, 2**31 - 1, -(2**31), 2**31, 2**32 - 1, 2**53, 2**63 - 1, -(2**63)]
SHM = ("shared_memory_region", "shared_memory_byte_size", "shared_memory_offset")
KNOWN_PARAMETERS = (
    *("priority", "timeout", "sequence_id", "sequence_start", "sequence_end", "classification"),
    *("triton_enable_empty_final_response", "binary_data", "triton_other", "own", *SHM),
)


def sized(quick: int, full: int) -> int:
    """Return how many messages a test is to send."""
    return full if FULL else quick


def request(model: str = "echo", datatype: str = "FP32", rows: int = 2) -> pb.ModelInferRequest:
    """A request that is answered: `x` of the datatype, [rows, 3]."""
    message = pb.ModelInferRequest(model_name=model, id="7")
    message.inputs.add(name="x", datatype=datatype, shape=[rows, 3])
    if datatype == "BYTES":
        message.raw_input_contents.append(b"\3\0\0\0abc" * 3 * rows)
    else:
        message.raw_input_contents.append(bytes(DTYPES[datatype].itemsize * 3 * rows))
    return message


def typed() -> pb.ModelInferRequest:
    """The same with typed contents."""
    message = pb.ModelInferRequest(model_name="echo")
    tensor = message.inputs.add(name="x", datatype="FP32", shape=[1, 3])
    tensor.contents.fp32_contents.extend([1.0, 2.0, 3.0])
    message.outputs.add(name="y")
    return message


def with_parameters() -> pb.ModelInferRequest:
    """The same with every parameter that means something."""
    message = request()
    for name in KNOWN_PARAMETERS[:5]:
        message.parameters[name].int64_param = 1
    message.outputs.add(name="y").parameters["classification"].int64_param = 2
    return message


def in_shared_memory() -> pb.ModelInferRequest:
    """The same with its tensors in a region."""
    message = pb.ModelInferRequest(model_name="echo")
    tensor = message.inputs.add(name="x", datatype="FP32", shape=[1, 3])
    for parameters in (tensor.parameters, message.outputs.add(name="y").parameters):
        parameters["shared_memory_region"].string_param = "region"
        parameters["shared_memory_byte_size"].int64_param = 12
        parameters["shared_memory_offset"].int64_param = 12
    return message


def samples() -> list[bytes]:
    """Serialized requests that mean something, to be damaged."""
    messages = [request(rows=rows) for rows in (0, 1, 5)]
    messages += [request("text", "BYTES"), request("nobody"), typed()]
    messages += [with_parameters(), in_shared_memory()]
    return [message.SerializeToString() for message in messages]


def damaged(originals: list[bytes], seed: int = SEED) -> Iterator[bytes]:
    """Yield originals with flipped bits, cut, spliced, and with numbers that are too large."""
    draw = random.Random(seed)
    damages: list[Callable[[bytearray], None]] = [
        # these leave a message that can be parsed, most of the time
        *[lambda data: data.extend(draw.choice(originals))] * 3,
        *[lambda data: data.extend(_field(draw))] * 6,
        *[lambda data: _flip(data, draw)] * 4,
        lambda data: data.__delitem__(slice(draw.randrange(len(data) + 1), None)),
        lambda data: data.__delitem__(slice(*_span(data, draw))),
        lambda data: data.extend(data[slice(*_span(data, draw))]),
        lambda data: _insert(data, draw, _varint(draw.choice(EDGES))),
        lambda data: _overwrite(data, draw, _varint(draw.choice(EDGES))),
        lambda data: _insert(data, draw, b"\xff" * draw.randrange(1, 12)),
        lambda data: _insert(data, draw, draw.choice(originals)),
        lambda data: _insert(data, draw, draw.randbytes(draw.randrange(1, 40))),
    ]
    for number in count():
        data = bytearray(originals[number % len(originals)])
        for _ in range(draw.choice((1, 1, 1, 1, 2, 5))):
            draw.choice(damages)(data)
        yield bytes(data)


def _field(draw: random.Random) -> bytes:
    """Return a field of a low number with whatever contents, well-formed."""
    kind = draw.choice((0, 1, 2, 5))
    contents = {
        0: _varint(draw.choice(EDGES)),
        1: draw.randbytes(8),
        2: bytes([size := draw.randrange(20)]) + draw.choice((bytes(size), draw.randbytes(size))),
        5: draw.randbytes(4),
    }
    return bytes([draw.randrange(1, 9) << 3 | kind]) + contents[kind]


def _flip(data: bytearray, draw: random.Random) -> None:
    for _ in range(draw.choice((1, 1, 2, 8)) if data else 0):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)


def _span(data: bytearray, draw: random.Random) -> tuple[int, int]:
    start = draw.randrange(len(data) + 1)
    return start, start + draw.randrange(1, 16)


def _insert(data: bytearray, draw: random.Random, what: bytes) -> None:
    at = draw.randrange(len(data) + 1)
    data[at:at] = what


def _overwrite(data: bytearray, draw: random.Random, what: bytes) -> None:
    at = draw.randrange(len(data) + 1)
    data[at : at + len(what)] = what


def _varint(number: int) -> bytes:
    number &= 2**64 - 1
    encoded = bytearray()
    while number >= 0x80:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])


_NUMBERS = st.one_of(st.integers(-3, 9), st.sampled_from(EDGES))
_TEXTS = st.one_of(st.text(max_size=8), st.sampled_from(["", "x", "y", "region", "\0", "a" * 3000]))
_DATATYPES = st.one_of(st.sampled_from([*DTYPES, "FP31", ""]), st.text(max_size=4))
_SHAPES = st.one_of(
    st.sampled_from([[1, 3], [2, 3], [0, 3], [3], []]),
    st.lists(_NUMBERS.map(lambda number: max(number, -(2**63))), max_size=5),
    st.just([1] * 70),
).map(lambda dims: [dim for dim in dims if -(2**63) <= dim < 2**63])


@st.composite
def requests(draw: st.DrawFn) -> pb.ModelInferRequest:
    """A request of the right form, with contents that may or may not fit."""
    message = pb.ModelInferRequest(
        model_name=draw(st.sampled_from(["echo", "echo", "text", "nobody", ""])),
        model_version=draw(st.one_of(st.sampled_from(["", "1", "0", "-1", "1.0", "9" * 30]))),
        id=draw(_TEXTS),
    )
    _put_parameters(draw, message.parameters)
    for _ in range(draw(st.sampled_from([1, 1, 1, 0, 2, 3]))):
        tensor = message.inputs.add(
            name=draw(st.one_of(st.just("x"), _TEXTS)), datatype=draw(_DATATYPES)
        )
        tensor.shape.extend(draw(_SHAPES))
        if draw(st.booleans()):
            _put_contents(draw, tensor.contents)
        _put_parameters(draw, tensor.parameters)
    for _ in range(draw(st.sampled_from([1, 1, 1, 0, 2]))):
        message.raw_input_contents.append(
            draw(st.one_of(st.just(bytes(12)), st.just(bytes(24)), st.binary(max_size=40)))
        )
    for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
        output = message.outputs.add(name=draw(st.one_of(st.just("y"), _TEXTS)))
        _put_parameters(draw, output.parameters)
    return message


def _put_parameters(draw: st.DrawFn, parameters: Message) -> None:
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        value = parameters[draw(st.one_of(st.sampled_from(KNOWN_PARAMETERS), _TEXTS))]  # type: ignore[index]
        kind = draw(st.sampled_from(["int64", "uint64", "string", "bool", "double", ""]))
        if kind in ("int64", "uint64"):
            number = draw(_NUMBERS) & (2**64 - 1)
            signed = number - 2**64 if kind == "int64" and number >= 2**63 else number
            setattr(value, f"{kind}_param", signed)
        elif kind == "string":
            value.string_param = draw(_TEXTS)
        elif kind == "bool":
            value.bool_param = draw(st.booleans())
        elif kind == "double":
            value.double_param = draw(st.floats())


def _put_contents(draw: st.DrawFn, contents: pb.InferTensorContents) -> None:
    field = draw(st.sampled_from([*FIELDS, "fp32_contents", "fp32_contents"]))
    values = draw(st.sampled_from([3, 3, 6, 0, 1, 50])) * [
        b"abc" if field == "bytes_contents" else draw(st.sampled_from([0, 1, 100]))
    ]
    getattr(contents, field).extend(values)
