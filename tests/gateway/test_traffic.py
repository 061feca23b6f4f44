"""Labels, shares and shadows of versions, at a real gateway with a traffic file that changes."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from tests.gateway.onnx_models import plus, put
from tests.gateway.process import Gateway, eventually, gateway, run_to_end

BOTH = "max_batch_size: 8\nversion_policy { all {} }\ndynamic_batching {}\n"
LABELS = "[models.m]\nlabels = { stable = 1, canary = 2, lost = 9 }\n"


@contextmanager
def served(folder: Path, rules: str) -> Iterator[tuple[Gateway, triton.InferenceServerClient]]:
    """A gateway over versions 1 and 2 of `m`, which add 1 and 2."""
    root = folder / "models"
    for version in (1, 2):
        put(root, "m", plus(float(version)), BOTH, version)
    file = folder / "traffic.toml"
    file.write_text(rules)
    with (
        gateway(root, "--traffic", str(file)) as running,
        triton.InferenceServerClient(running.url) as client,
    ):
        yield running, client


def replace(folder: Path, rules: str) -> None:
    """Write the file anew as an editor does."""
    (folder / "new").write_text(rules)
    (folder / "new").replace(folder / "traffic.toml")


def ask(client: triton.InferenceServerClient, version: str = "", **more: object) -> int:
    """Return the version that answered, by its answer and by what it says."""
    x = triton.InferInput("x", [1, 3], "FP32")
    x.set_data_from_numpy(np.zeros((1, 3), np.float32))
    answer = client.infer("m", [x], model_version=version, **more)
    found = int(answer.as_numpy("y")[0, 0])
    assert answer.get_response().model_version == str(found)
    return found


def test_a_label_stands_for_its_version_wherever_a_version_does(tmp_path: Path) -> None:
    with (
        served(tmp_path, LABELS) as (running, client),
        triton_http.InferenceServerClient(running.http.removeprefix("http://")) as rest,
    ):
        assert (ask(client, "stable"), ask(client, "canary"), ask(client)) == (1, 2, 2)
        assert client.is_model_ready("m", "canary")
        assert rest.is_model_ready("m", "canary")
        assert rest.get_model_metadata("m", "stable")["versions"] == ["1"]
        (stats,) = client.get_inference_statistics("m", "stable").model_stats
        assert stats.version == "1"
        x = triton_http.InferInput("x", [1, 3], "FP32")
        x.set_data_from_numpy(np.zeros((1, 3), np.float32))
        assert rest.infer("m", [x], model_version="stable").as_numpy("y")[0, 0] == 1
        with pytest.raises(InferenceServerException, match="labels are canary, lost, stable"):
            ask(client, "blue")
        with pytest.raises(InferenceServerException, match="version 9 is not found"):
            ask(client, "lost")


def test_shares_shift_while_clients_ask_and_a_faulty_file_changes_nothing(tmp_path: Path) -> None:
    with served(tmp_path, LABELS + "split = { stable = 1 }") as (running, client):
        answered: Counter[int] = Counter()
        wrong: list[str] = []
        over = threading.Event()

        def crowd() -> None:
            with triton.InferenceServerClient(running.url) as own:
                while not over.is_set():
                    try:
                        answered[ask(own)] += 1
                    except InferenceServerException as error:
                        wrong.append(str(error))

        thread = threading.Thread(target=crowd)
        thread.start()
        try:
            eventually(lambda: answered[1] > 50)
            assert answered[2] == 0
            replace(tmp_path, LABELS + "split = { stable = 50, canary = 50 }")
            eventually(lambda: answered[2] > 50)
            replace(tmp_path, LABELS + "split = { blue = 1 }")
            replace(tmp_path, "[")
            before = answered.copy()
            eventually(lambda: min(answered[each] - before[each] for each in (1, 2)) > 100)
            replace(tmp_path, LABELS + 'split = { "9" = 99, canary = 1 }')
            eventually(lambda: "99.0" in running.get("/tidegate/traffic")[1])
            before = answered.copy()
            eventually(lambda: answered[2] > before[2] + 50)
            assert answered[1] <= before[1] + 1
        finally:
            over.set()
            thread.join()
        assert wrong == []
        rules = json.loads(running.get("/tidegate/traffic")[1])["models"]["m"]
        assert rules["split"] == {"2": 1.0, "9": 99.0}
        assert ask(client, "stable") == 1


def test_sequences_and_sticky_requests_keep_to_a_version(tmp_path: Path) -> None:
    with served(tmp_path, LABELS + "split = { stable = 50, canary = 50 }") as (_, client):
        for key in ({"sequence_id": 7}, {"parameters": {"tidegate_sticky": "ann"}}):
            assert len({ask(client, **key) for _ in range(20)}) == 1
        found = {ask(client, parameters={"tidegate_sticky": str(each)}) for each in range(20)}
        assert found == {1, 2}


def test_a_shadow_sees_the_requests_and_nobody_sees_it(tmp_path: Path) -> None:
    rules = LABELS + 'split = { stable = 1 }\nshadow = { to = "canary" }'
    with served(tmp_path, rules) as (running, client):
        assert [ask(client) for _ in range(20)] == [1] * 20
        name = "tidegate_shadow_requests_total"
        eventually(lambda: running.metric(name, version="2") == 20)
        shadowed = running.metric(name, version="2", outcome="answered")
        assert running.metric("nv_inference_request_success", version="2") == shadowed
        assert shadowed > 0
        assert ask(client, "canary") == 2  # who asks for a version has no shadow
        assert running.metric(name, version="2") == 20
        assert running.stop() == 0


def test_a_gateway_does_not_start_with_a_faulty_traffic_file(tmp_path: Path) -> None:
    put(tmp_path / "models", "m", plus(1.0))
    file = tmp_path / "traffic.toml"
    code, said = run_to_end(tmp_path / "models", "--traffic", str(file))
    assert (code, "cannot read the traffic file" in said) == (1, True)
    file.write_text(LABELS + "split = { blue = 1 }")
    code, said = run_to_end(tmp_path / "models", "--traffic", str(file))
    assert (code, "'blue' is neither a label of the model nor a version" in said) == (1, True)
