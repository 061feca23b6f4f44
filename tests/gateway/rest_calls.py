"""Plain HTTP requests to a gateway."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

from tests.gateway.process import Gateway

INFER = "/v2/models/identity_FP32/infer"


def ask(
    served: Gateway, method: str, path: str, body: Any = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Return code, headers and body of an answer."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(served.http + path, data, named, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, {k.lower(): v for k, v in error.headers.items()}, error.read()


def error_of(answer: tuple[int, dict[str, str], bytes]) -> tuple[int, str]:
    code, _, body = answer
    return code, json.loads(body)["error"]


def question(**given: Any) -> dict[str, Any]:
    shaped = {"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}
    return {"inputs": [shaped], **given}
