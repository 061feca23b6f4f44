"""Datatypes as `config.pbtxt` numbers them and as KServe names them."""

from __future__ import annotations

from tritonclient.grpc import model_config_pb2

NAMES = {
    number: {"TYPE_STRING": "BYTES"}.get(name, name.removeprefix("TYPE_"))
    for name, number in model_config_pb2.DataType.items()
}
NUMBERS = {name: number for number, name in NAMES.items()}
