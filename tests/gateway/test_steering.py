"""`tidegate models`, `load`, `unload`, `pin` and the routes behind them, against a real gateway."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway import admin
from tests.gateway.onnx_models import plus, put
from tests.gateway.process import Gateway, eventually, gateway


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    root = tmp_path_factory.mktemp("repository")
    for name in ("one", "two", "three"):
        put(root, name, plus(1.0))
    put(root, "broken", b"broken", "max_batch_size: 4\n")
    with gateway(root, "--allow-repository-control") as made:
        yield made


def post(served: Gateway, path: str) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(served.http + path, data=b"", timeout=20) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def rows(served: Gateway, query: str = "") -> dict[str, Any]:
    return {
        each["name"]: each
        for each in json.loads(served.get(f"/tidegate/models{query}")[1])["models"]
    }


def test_prewarm_returns_once_the_model_is_ready(served: Gateway) -> None:
    code, model = post(served, "/tidegate/models/one/prewarm")
    assert (code, model["state"], model["copies"][0]["engine"]) == (200, "READY", "embedded")
    assert model["bytes"] == model["copies"][0]["bytes"] > 0
    assert post(served, "/tidegate/models/nobody/prewarm")[0] == 404
    assert post(served, "/tidegate/models/one/prewarm?timeout_s=x")[0] == 400
    assert post(served, "/tidegate/models/broken/prewarm")[0] == 503


def test_rows_can_be_chosen_by_name_state_and_number(served: Gateway) -> None:
    post(served, "/tidegate/models/two/prewarm")
    assert rows(served, "?state=ready&name=tw*").keys() == {"two"}
    assert len(rows(served, "?limit=1")) == 1
    assert served.get("/tidegate/models?state=odd")[0] == 400


def test_engines_say_what_they_hold(served: Gateway) -> None:
    post(served, "/tidegate/models/one/prewarm")
    (engine,) = json.loads(served.get("/tidegate/engines")[1])["engines"]
    assert (engine["name"], engine["up"]) == ("embedded", True)
    assert engine["budget_bytes"] == served.metric("tidegate_engine_budget_bytes") > 0
    held = sum(each["bytes"] for each in rows(served).values())
    assert engine["bytes"] == held == served.metric("tidegate_engine_bytes")


def test_pinned_model_is_loaded_and_comes_back_until_it_is_let_go(
    served: Gateway, capsys: pytest.CaptureFixture[str]
) -> None:
    url = ["--url", served.http]
    assert admin.pin(["three", *url]) == 0
    eventually(lambda: rows(served)["three"]["state"] == "READY")
    assert rows(served)["three"]["min_replicas"] == 1
    assert admin.models(url) == 0
    assert "three:1" in capsys.readouterr().out
    assert admin.pin(["three", "--off", *url]) == 0
    assert admin.unload(["three", *url]) == 0
    assert rows(served)["three"]["state"] == "UNAVAILABLE"
    assert admin.load(["three", *url]) == 0
    assert admin.models(["thr*", "--json", *url]) == 0
    (model,) = json.loads(capsys.readouterr().out)
    assert (model["state"], model["loads"]) == ("READY", 2)


def test_commands_say_in_one_line_why_they_fail(
    served: Gateway, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert admin.load(["nobody", "--url", served.http]) == 1
    assert "tidegate load: failed to load 'nobody'" in capsys.readouterr().err
    assert admin.models(["--url", "http://127.0.0.1:1"]) == 1
    assert "there is no gateway at http://127.0.0.1:1/" in capsys.readouterr().err
    put(tmp_path, "one", plus(1.0))
    with gateway(tmp_path) as closed:
        assert admin.pin(["one", "--url", closed.http]) == 1
        assert "--allow-repository-control" in capsys.readouterr().err
