"""What the gateway answers to plain HTTP on purpose otherwise: docs/compatibility.md says why."""

from __future__ import annotations

from typing import Any

_JSON = "failed to parse the request JSON buffer: "


def _fault(text: str) -> list[Any]:
    return [400, {"error": text}]


def _output(name: str, datatype: str, *data: Any) -> list[Any]:
    output = {"name": name, "datatype": datatype, "shape": [1, 3], "data": [*data]}
    return [200, {"model_name": "every", "model_version": "1", "outputs": [output]}]


REST_DIFFERENCES: dict[str, Any] = {
    "version that is no number in the path": _fault(
        "failed to get model version from specified version string 'x' (details: stol), version "
        "should be an integral value > 0"
    ),
    "body that is no JSON": _fault(_JSON + "unexpected character, expected a JSON value at 0"),
    "body that is cut": _fault(_JSON + "unexpected end of data at 1"),
    "body with a tail": _fault(_JSON + "unexpected content after document at 84"),
    "body that is no text": _fault(_JSON + "str is not valid UTF-8: surrogates not allowed at 0"),
    "binary without a length": _fault(
        _JSON + "str is not valid UTF-8: surrogates not allowed at 0"
    ),
    "FP32 as JSON": _output("y_FP32", "FP32", 0.1, 1e-45, -3.0),
    **{
        f"{datatype} {fault}": _fault(
            f"input 'x_{datatype}' has a value that {datatype} cannot hold"
        )
        for datatype, fault in (
            ("UINT8", "too large"),
            ("UINT8", "negative"),
            ("INT8", "too large"),
            ("INT64", "too large"),
        )
    },
    "gzip announced, not sent": _fault(
        "the body is not gzip: Error -3 while decompressing data: incorrect header check"
    ),
    "gzip cut": _fault("the body is not one whole gzip stream"),
    "model decoupled": [
        503,
        {
            "error": "model 'count' is not available: the embedded engine serves no decoupled "
            "models: they need --triton or --spawn-triton"
        },
    ],
}
# Where Triton has its say all the same.
SAID_BY_TRITON = frozenset({"model decoupled"})


def by_gateway(question: str, answer: Any, before_triton: bool) -> Any:
    """Return what the gateway answers where Triton answers `answer`.

    A fault in the client's JSON is the client's: 400 where Triton says 500, by the same text.
    """
    if question in REST_DIFFERENCES and not (before_triton and question in SAID_BY_TRITON):
        return REST_DIFFERENCES[question]
    code, document = answer
    return [400 if code == 500 else code, document]
