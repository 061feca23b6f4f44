"""Loads with a configuration or files of the client's, unloads, the index: on a real gateway."""

from __future__ import annotations

import asyncio
import json
import stat
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient as Client
from tritonclient.grpc import InferenceServerException as Refused
from tritonclient.grpc import InferInput, service_pb2_grpc
from tritonclient.grpc import service_pb2 as pb

from gateway.errors import LoadFailed
from gateway.repository import overrides
from tests.gateway.onnx_models import add_and_multiply, identity, put
from tests.gateway.process import Gateway, eventually, gateway

STEP = """step {{
  model_name: "{0}" model_version: -1
  input_map {{ key: "x" value: "{1}" }} output_map {{ key: "y" value: "{2}" }}
}}"""


def ensemble(*members: str) -> str:
    tensors = ["x", *(f"t{each}" for each in range(1, len(members))), "y"]
    steps = "".join(map(STEP.format, members, tensors, tensors[1:]))
    return f"""platform: "ensemble" max_batch_size: 4
input {{ name: "x" data_type: TYPE_FP32 dims: 3 }}
output {{ name: "y" data_type: TYPE_FP32 dims: 3 }}
ensemble_scheduling {{ {steps} }}"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the gateway keeps the files of overrides."""
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def controlled(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    root = tmp_path_factory.mktemp("models")
    for name in ("m", "sleeper", "busy", "p", "q"):
        put(root, name, identity())
    put(root, "several", identity(), "version_policy { all { } }", 1)
    put(root, "several", identity(), "", 3)
    for name, members in (("pq", "pq"), ("qq", "qq")):
        (root / name / "1").mkdir(parents=True)
        (root / name / "config.pbtxt").write_text(ensemble(*members))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(files))
        with gateway(root, "--allow-repository-control", "--idle-timeout-s", "2") as served:
            yield served
            assert served.metric("tidegate_model_in_flight") == 0
            assert served.stop() == 0
    assert not list(files.glob("tidegate-*"))


@pytest.fixture
def client(controlled: Gateway) -> Iterator[Client]:
    with Client(controlled.url) as connected:
        yield connected


def rows(count: int) -> InferInput:
    tensor = InferInput("x", [count, 3], "FP32")
    return tensor.set_data_from_numpy(np.full((count, 3), count, np.float32))


def batches_of(size: int) -> str:
    return json.dumps({"max_batch_size": size})


def largest(client: Client, name: str) -> int:
    return int(client.get_model_config(name).config.max_batch_size)


def versions(client: Client, name: str) -> dict[str, str]:
    index = client.get_model_repository_index().models
    return {model.version: model.state for model in index if model.name == name}


def ready(client: Client) -> set[str]:
    index = pb.RepositoryIndexRequest(ready=True)
    return {model.name for model in client._client_stub.RepositoryIndex(index).models}


def test_configuration_given_holds_until_a_load_without_one_or_an_unload(client: Client) -> None:
    assert largest(client, "m") == 4
    client.load_model("m", config=batches_of(2))
    assert largest(client, "m") == 2
    with pytest.raises(Refused, match="batch-size must be <= 2 for 'm'"):
        client.infer("m", [rows(3)])
    client.load_model("m", config=batches_of(7))
    client.infer("m", [rows(7)])
    client.load_model("m")
    assert largest(client, "m") == 4
    client.load_model("m", config=batches_of(2))
    client.unload_model("m")
    assert largest(client, "m") == 4
    client.infer("m", [rows(4)])


def test_model_that_slept_wakes_with_what_it_was_loaded_with(
    client: Client, controlled: Gateway
) -> None:
    client.load_model(
        "sleeper", config=batches_of(9), files={"file:5/model.onnx": identity(dims=("n", 3))}
    )
    eventually(lambda: versions(client, "sleeper") == {"5": "UNAVAILABLE"})
    assert client.infer("sleeper", [rows(9)]).get_response().model_version == "5"
    assert controlled.metric("tidegate_model_loads_total", model="sleeper") >= 2


def test_model_consists_of_the_files_given_and_of_no_others(client: Client, files: Path) -> None:
    given = {"file:7/model.onnx": identity(dims=("n", 3)), "file:labels.txt": b"one"}
    client.load_model("several", config='{"version_policy": {"all": {}}}', files=given)
    assert client.infer("several", [rows(1)]).get_response().model_version == "7"
    with pytest.raises(Refused, match="version 3 is not found"):
        client.infer("several", [rows(1)], model_version="3")
    eventually(lambda: versions(client, "several").keys() == {"7"})
    (private,) = files.glob("tidegate-*")
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    client.load_model("several")
    assert client.infer("several", [rows(1)]).get_response().model_version == "3"
    eventually(lambda: versions(client, "several").keys() == {"1", "3"})
    assert not list(private.rglob("labels.txt"))


def test_model_that_is_in_no_repository_lives_from_load_to_unload(client: Client) -> None:
    given = {"file:1/model.onnx": add_and_multiply()}
    client.load_model("fresh", config="{}", files=given)
    assert [each.name for each in client.get_model_metadata("fresh").inputs] == ["a", "b"]
    assert versions(client, "fresh") == {"1": "READY"}
    with pytest.raises(Refused, match="failed to poll from model repository"):
        client.load_model("fresh")
    assert versions(client, "fresh") == {"1": "READY"}
    client.unload_model("fresh")
    eventually(lambda: versions(client, "fresh") == {})
    with pytest.raises(Refused, match="unknown model: 'fresh' is not found"):
        client.get_model_metadata("fresh")


def test_overrides_with_files_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overrides, "MAX_OVERRIDES", 1)

    async def story() -> None:
        files = overrides.OverrideFiles()
        given = {"1/model.onnx": b"a model"}
        kept = await files.keep("{}", given)
        with pytest.raises(LoadFailed, match="the maximum"):
            await files.keep("{}", given)
        await files.discard(kept)
        await files.keep("{}", given)
        files.close()

    asyncio.run(story())


@pytest.mark.parametrize(
    ("config", "given", "says"),
    [
        ("{", {}, "parameter 'config' is no ModelConfig"),
        ("", {}, "parameter 'config' is no ModelConfig"),
        ("[]", {}, "parameter 'config' is no ModelConfig"),
        ("[" * 100_000, {}, "parameter 'config' is no ModelConfig"),
        ('{"max_bach_size": 1}', {}, "max_bach_size"),
        ('{"name": "\\ud800"}', {}, "parameter 'config' is no ModelConfig"),
        ('{"name": "other"}', {}, "names the model 'other'"),
        ('{"max_batch_size": -1}', {}, "max_batch_size must not be negative"),
        ('{"default_model_filename": "../../p/1/model.onnx"}', {}, "leads out of the model's"),
        ('{"default_model_filename": "/etc/passwd"}', {}, "leads out of the model's folder"),
        ('{"default_model_filename": "other.onnx"}', {}, "cannot read 'other.onnx'"),
        (
            '{"optimization": {"execution_accelerators": {"gpu_execution_accelerator": [{"name": '
            '"tensorrt", "parameters": {"trt_engine_cache_path": "/tmp"}}]}}}',
            {},
            "may name files of this machine",
        ),
        (
            '{"input": [{"name": "z", "data_type": "TYPE_FP32", "dims": [3]}],'
            ' "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": [3]}]}',
            {},
            "z",
        ),
        ("{}", {"file:1/model.onnx": b"no model"}, "cannot read 'model.onnx' as an ONNX model"),
        ("{}", {"file:2/other.onnx": b""}, "cannot read 'model.onnx'"),
        ("{}", {"file:labels.txt": b""}, "no version folder"),
        ("{}", {"file:1/a": b"", "file:1/a/b": b""}, "cannot keep the files given"),
        ("{}", {f"file:1/{'a' * 300}": b""}, "cannot keep the files given"),
    ],
)
def test_override_with_a_fault_is_refused_and_leaves_the_model_alone(
    config: str, given: dict[str, bytes], says: str, client: Client
) -> None:
    client.load_model("m", config=batches_of(6))
    with pytest.raises(Refused) as caught:
        client.load_model("m", config=config, files=given)
    assert str(caught.value.status()) == "StatusCode.INTERNAL"
    assert says in caught.value.message()
    assert largest(client, "m") == 6
    client.infer("m", [rows(6)])
    client.unload_model("m")


@pytest.mark.parametrize(
    "name",
    ["", "1/", "/1/x", "../x", "1/../../x", "1/./x", "x/y", "0/y", "01/y", "-1/y", "²/y", "1//y"],
)
def test_file_outside_the_models_own_folders_is_refused(name: str, client: Client) -> None:
    with pytest.raises(Refused, match=r"INVALID_ARGUMENT.*names no file of a model"):
        client.load_model("m", config="{}", files={f"file:{name}": identity()})


def test_no_request_fails_while_overrides_come_and_go_good_and_bad(
    client: Client, controlled: Gateway
) -> None:
    done = threading.Event()
    failures: list[str] = []
    answered = 0

    def ask() -> None:
        nonlocal answered
        with Client(controlled.url) as own:
            while not done.is_set():
                try:
                    own.infer("busy", [rows(1)])
                    answered += 1
                except Refused as error:
                    failures.append(str(error))

    def override(size: int, model: bytes) -> None:
        with Client(controlled.url) as own, suppress(Refused):
            own.load_model("busy", config=batches_of(size), files={"file:1/model.onnx": model})

    # it reads as a model, and fails when it is opened
    bad = identity("FP32").replace(b"Identity", b"Idxntity")
    askers = [threading.Thread(target=ask) for _ in range(4)]
    for each in askers:
        each.start()
    for size in range(1, 9):
        loads = [
            threading.Thread(target=override, args=(size + each, model))
            for each, model in enumerate((identity(), bad, identity()))
        ]
        for each in loads:
            each.start()
        if size % 4 == 0:
            client.unload_model("busy")
        for each in loads:
            each.join()
    done.set()
    for each in askers:
        each.join()
    assert failures == []
    assert answered > 50
    client.load_model("busy")
    assert largest(client, "busy") == 4


def test_ensemble_takes_with_it_the_members_that_it_alone_has(client: Client) -> None:
    for name in ("pq", "qq", "p", "q"):
        client.unload_model(name)
    client.load_model("pq")
    assert ready(client) >= {"pq", "p", "q"}
    client.unload_model("pq")
    assert ready(client) & {"pq", "p", "q"} == {"p", "q"}
    client.load_model("pq")
    client.unload_model("pq", unload_dependents=True)
    assert not ready(client) & {"pq", "p", "q"}
    client.load_model("pq")
    client.load_model("qq")
    client.unload_model("pq", unload_dependents=True)
    assert ready(client) & {"pq", "p", "qq", "q"} == {"qq", "q"}
    client.load_model("p")
    client.load_model("pq")
    client.unload_model("pq", unload_dependents=True)
    assert "p" in ready(client)
    client.infer("pq", [rows(2)])


def test_member_loaded_with_an_override_changes_its_ensembles(client: Client) -> None:
    client.load_model("qq")
    client.load_model("q", config=batches_of(2))
    with pytest.raises(Refused, match="only allows maximum batch size to be 2"):
        client.load_model("qq")
    client.load_model("q")
    client.load_model("qq")
    client.infer("qq", [rows(4)])


def test_control_is_closed_to_clients_and_the_index_is_not(tmp_path: Path) -> None:
    put(tmp_path, "m", identity())
    with gateway(tmp_path) as served, grpc.insecure_channel(served.url) as channel:
        stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for call, message in (
            (stub.RepositoryModelLoad, pb.RepositoryModelLoadRequest(model_name="m")),
            (stub.RepositoryModelUnload, pb.RepositoryModelUnloadRequest(model_name="m")),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                call(message)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            text = "explicit model load / unload is not allowed"
            assert (caught.value.details() or "").startswith(text)
        (listed,) = stub.RepositoryIndex(pb.RepositoryIndexRequest()).models
        assert (listed.name, listed.version, listed.state) == ("m", "1", "UNKNOWN")
        assert served.stop() == 0
