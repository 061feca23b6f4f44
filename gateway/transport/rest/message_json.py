"""A protobuf message as Triton writes it in JSON. Pure.

Unlike protobuf's own mapping: names as in the .proto file, whole numbers of 64 bits as numbers, and
every field that has a default. Fields that can be absent, messages above all, are left out then.
"""

from __future__ import annotations

import base64
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

# there are two classes of each, protobuf's in Python and in C
Descriptor = Any
Field = Any

_BYTES = FieldDescriptor.TYPE_BYTES
_JSON_TYPES = {
    FieldDescriptor.CPPTYPE_BOOL: "boolean",
    FieldDescriptor.CPPTYPE_FLOAT: "number",
    FieldDescriptor.CPPTYPE_DOUBLE: "number",
    FieldDescriptor.CPPTYPE_STRING: "string",
    FieldDescriptor.CPPTYPE_ENUM: "string",
}  # all others are whole numbers


def to_json(message: Message) -> dict[str, Any]:
    """Return the message as what JSON is made of."""
    document: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if entry := _map_entry(field):
            of = entry.fields_by_name["value"]
            document[field.name] = {str(key): _value(of, value[key]) for key in value}
        elif field.is_repeated:
            document[field.name] = [_value(field, each) for each in value]
        elif not field.has_presence or message.HasField(field.name):
            document[field.name] = _value(field, value)
    return document


def schema(descriptor: Descriptor, components: dict[str, Any]) -> dict[str, Any]:
    """Return a reference to the JSON schema of such a message, which is put into `components`."""
    name = descriptor.full_name.removeprefix("inference.")
    if name not in components:
        properties: dict[str, Any] = {}
        components[name] = {"type": "object", "properties": properties}
        for field in descriptor.fields:
            properties[field.name] = _field_schema(field, components)
    return {"$ref": f"#/components/schemas/{name}"}


def _field_schema(field: Field, components: dict[str, Any]) -> dict[str, Any]:
    if entry := _map_entry(field):
        of = entry.fields_by_name["value"]
        return {"type": "object", "additionalProperties": _value_schema(of, components)}
    if field.is_repeated:
        return {"type": "array", "items": _value_schema(field, components)}
    return _value_schema(field, components)


def _value_schema(field: Field, components: dict[str, Any]) -> dict[str, Any]:
    if field.message_type is not None:
        return schema(field.message_type, components)
    document: dict[str, Any] = {"type": _JSON_TYPES.get(field.cpp_type, "integer")}
    if field.enum_type is not None:
        document["enum"] = [value.name for value in field.enum_type.values]
    elif field.type == _BYTES:
        document["contentEncoding"] = "base64"
    return document


def _value(field: Field, value: Any) -> Any:
    if field.message_type is not None:
        return to_json(value)
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return known.name if known else value
    if field.type == _BYTES:
        return base64.b64encode(value).decode()
    return value


def _map_entry(field: Field) -> Descriptor | None:
    entry = field.message_type
    return entry if entry is not None and entry.GetOptions().map_entry else None
