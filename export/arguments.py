"""Named arrays as a call of forward(), and what it returns as named arrays. Pure."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from export.errors import SourceError
from export.tensors import InputSpec


def places(inputs: Sequence[InputSpec], parameters: Sequence[str]) -> tuple[str, ...]:
    """Where each input goes: a path that begins with a parameter of forward(), or its number.

    An input without `argument` goes to the parameter of its name, else to the next one that
    nobody has. Raises `SourceError` where two meet.
    """
    taken = {_root(tensor.argument) for tensor in inputs if tensor.argument}
    taken |= {tensor.name for tensor in inputs if not tensor.argument and tensor.name in parameters}
    free = iter([name for name in parameters if name not in taken])
    chosen = []
    for position, tensor in enumerate(inputs):
        if tensor.argument:
            chosen.append(tensor.argument)
        elif tensor.name in parameters:
            chosen.append(tensor.name)
        else:
            chosen.append(next(free, str(position)))
    for place in chosen:
        if chosen.count(place) > 1:
            raise SourceError(f"two inputs go to {place!r} of forward({', '.join(parameters)})")
    return tuple(chosen)


def arranged(
    values: Sequence[Any], where: Sequence[str], by_position: Sequence[str] = ()
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments with each value in its place (see `places`).

    Parameters in `by_position` are passed so, in this order, and not by name.
    """
    tree: dict[str, Any] = {}
    for value, place in zip(values, where, strict=True):
        *parents, last = re.findall(r"\w+|\[\d+\]", place)
        node = tree
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = value
    positional = sorted((int(name), value) for name, value in tree.items() if name.isdecimal())
    keywords = {name: _built(value) for name, value in tree.items() if not name.isdecimal()}
    first = tuple(keywords.pop(name) for name in by_position if name in keywords)
    return first + tuple(_built(value) for _, value in positional), keywords


def _built(node: Any) -> Any:
    if not isinstance(node, dict):
        return node
    if all(name.startswith("[") for name in node):
        return tuple(_built(node[name]) for name in sorted(node, key=lambda n: int(n[1:-1])))
    return {name: _built(value) for name, value in node.items()}


def _root(argument: str) -> str:
    return re.split(r"[.\[]", argument)[0]


def leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(path, leaf) of nested dicts, tuples and lists, in `InputSpec.argument`'s notation."""
    if isinstance(value, Mapping):
        for key, child in value.items():
            yield from leaves(child, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, tuple | list):
        for index, child in enumerate(value):
            yield from leaves(child, f"{prefix}[{index}]")
    else:
        yield prefix, value


def name_of(path: str) -> str:
    """A path as a tensor's name: "batch.ids" -> "batch_ids", "pair[0]" -> "pair_0"."""
    return re.sub(r"\W+", "_", path).strip("_")
