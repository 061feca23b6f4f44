"""Ensembles answer, refuse and load alike: in Triton, embedded, and in front of a Triton."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from google.protobuf.json_format import MessageToDict
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc
from tritonclient.utils import InferenceServerException

from gateway.batching.scheduling import make_scheduler
from gateway.core import InferRequest, Tensor
from gateway.engine.triton import TritonEngine
from gateway.fleet import Fleet, Node
from gateway.lifecycle.control import RepositoryControl
from gateway.lifecycle.policy import Defaults
from gateway.lifecycle.reconciler import Reconciler
from gateway.lifecycle.triton_catalogue import TritonCatalogue
from gateway.metrics import Metrics
from gateway.placement import EngineKind
from gateway.registry import Registry
from gateway.repository.catalogue import FolderCatalogue
from gateway.response_cache import ResponseCache
from gateway.router import Router
from tests.gateway.ensembles import HEAD, X, Y, given, publish, scheduling
from tests.gateway.onnx_models import add_and_multiply, identity, put
from tests.gateway.process import eventually, gateway
from tests.triton.alike import BEFORE_TRITON, EMBEDDED, SERVERS, TRITON
from tests.triton.server import running

ONE = "instance_group { count: 1 kind: KIND_CPU }\n"
TWO_WIDE = """input { name: "x" data_type: TYPE_FP32 dims: 2 }
output { name: "s" data_type: TYPE_FP32 dims: 2 }
output { name: "p" data_type: TYPE_FP32 dims: 2 }
"""
RESHAPED = """max_batch_size: 4
input { name: "x" data_type: TYPE_FP32 dims: [1, 3] reshape { shape: [3] } }
output { name: "y" data_type: TYPE_FP32 dims: [1, 3] reshape { shape: [3] } }
"""
CHAIN = scheduling(("id", "x=x", "y=t"), ("id", "x=t", "y=y"))
SINGLE = scheduling(("id", "x=x", "y=y"))
FAULTY = {
    "ensemble stranger contains models that are not available or ambiguous: nobody": (
        "stranger",
        HEAD + X + Y + scheduling(("nobody", "x=x", "y=y")),
    ),
    "ensemble 'version_7' depends on 'id' whose required version 7 is not loaded.": (
        "version_7",
        HEAD + X + Y + scheduling(("id", "x=x", "y=y"), version=7),
    ),
    "in ensemble no_input, ensemble tensor x is mapping to non-existing input z in model id": (
        "no_input",
        HEAD + X + Y + scheduling(("id", "x=x z=x", "y=y")),
    ),
    "in ensemble no_output, ensemble tensor y is mapped from non-existing output z in model id": (
        "no_output",
        HEAD + X + Y + scheduling(("id", "x=x", "z=y")),
    ),
    "in ensemble half, input b in model two is not mapped to any ensemble tensors": (
        "half",
        HEAD + TWO_WIDE + scheduling(("two", "a=x", "sum=s product=p")),
    ),
    "in ensemble typed, ensemble tensor x: inconsistent data type: TYPE_INT32 is inferred from "
    "model typed while TYPE_FP32 is inferred from model id": (
        "typed",
        HEAD + X.replace("FP32", "INT32") + Y + SINGLE,
    ),
    "in ensemble shaped, ensemble tensor x: inconsistent shape: [-1,4] is inferred from model "
    "shaped while [-1,3] is inferred from model id": (
        "shaped",
        HEAD + X.replace("3 }", "4 }") + Y + SINGLE,
    ),
    "ensemble large allows maximum batch size 8, but it contains model id which only allows "
    "maximum batch size to be 4": ("large", HEAD.replace("4", "8") + X + Y + SINGLE),
    "circular dependency between ensembles: itself -> ... -> itself -> itself": (
        "itself",
        HEAD + X + Y + scheduling(("itself", "x=x", "y=y")),
    ),
}


def fill(root: Path) -> None:
    for name, model in (
        ("id", identity()),
        ("wide", identity(dims=("n", "k"))),
        ("two", add_and_multiply()),
        ("unbatched", identity(dims=(2, 3))),
    ):
        put(root, name, model, ONE)
    put(root, "folded", identity(), RESHAPED + ONE)
    named = Y.replace("dims: 3", 'dims: 3 label_filename: "names.txt"')
    put(root, "named", identity(), "max_batch_size: 4\n" + X + named + ONE)
    (root / "named" / "names.txt").write_text("ebb\nflood\nslack\n")
    publish(root, "names", HEAD + X + Y + scheduling(("named", "x=x", "y=y")))
    publish(root, "chain", HEAD + X + Y + CHAIN)
    publish(
        root, "nested", HEAD + X + Y + scheduling(("chain", "x=x", "y=t"), ("id", "x=t", "y=y"))
    )
    publish(root, "fork", HEAD + TWO_WIDE + scheduling(("two", "a=x b=x", "sum=s product=p")))
    loose = X.replace("3 }", "-1 }")
    publish(root, "loose", HEAD + loose + Y + CHAIN.replace('"id"', '"wide"', 1))
    publish(root, "outer_loose", HEAD + loose + Y + scheduling(("loose", "x=x", "y=y")))
    whole = HEAD.replace("max_batch_size: 4", "max_batch_size: 2")
    publish(root, "whole", whole + X + Y + scheduling(("unbatched", "x=x", "y=y")))
    publish(root, "row", HEAD.replace("max_batch_size: 4", "") + X + Y + SINGLE)
    unfolded = RESHAPED.replace("max_batch_size: 4", 'platform: "ensemble" max_batch_size: 4')
    publish(root, "unfolds", unfolded + SINGLE)
    folds = scheduling(("folded", "x=x", "y=y"))
    publish(root, "folds", unfolded.replace(" reshape { shape: [3] }", "") + folds)
    publish(root, "versions", HEAD + X + Y + SINGLE + "version_policy { all { } }\n", 1, 3)
    for name, config in FAULTY.values():
        publish(root, name, config)


SERVABLE = (
    "names",
    *("chain", "nested", "fork", "loose", "outer_loose", "whole", "row", "unfolds", "folds"),
    "versions",
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ensembles_alike")
    fill(root)
    return root


@pytest.fixture(scope="module")
def bare_triton(root: Path, real_triton: None) -> Iterator[str]:
    with running(root) as server, triton.InferenceServerClient(server.address) as client:
        for name in SERVABLE:
            client.load_model(name)
        yield server.address


@pytest.fixture(scope="module")
def embedded(root: Path) -> Iterator[str]:
    with gateway(root, "--allow-repository-control") as served:
        yield served.url
        assert served.stop() == 0


@pytest.fixture(scope="module")
def before_triton(root: Path, bare_triton: str) -> Iterator[str]:
    with gateway(root, "--allow-repository-control", "--triton", bare_triton) as served:
        yield served.url
        assert served.stop() == 0


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def address(server: str, request: pytest.FixtureRequest) -> str:
    fixtures = {TRITON: "bare_triton", EMBEDDED: "embedded", BEFORE_TRITON: "before_triton"}
    return str(request.getfixturevalue(fixtures[server]))


@pytest.fixture
def client(address: str) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(address) as connected:
        yield connected


def ones(*shape: int) -> triton.InferInput:
    return given("x", np.arange(1, 1 + np.prod(shape), dtype=np.float32).reshape(shape))


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        ("chain", (1, 3)),
        ("chain", (4, 3)),
        ("nested", (2, 3)),
        ("loose", (2, 3)),
        ("whole", (2, 3)),
        ("row", (3,)),
        ("unfolds", (2, 1, 3)),
        ("folds", (2, 1, 3)),
        ("versions", (1, 3)),
    ],
)
def test_ensemble_answers_with_its_input(
    model: str, shape: tuple[int, ...], client: triton.InferenceServerClient
) -> None:
    x = ones(*shape)
    answer = client.infer(model, [x], request_id="7", priority=1, timeout=10_000_000)
    y = answer.as_numpy("y")
    assert y.shape == shape
    np.testing.assert_array_equal(y.ravel(), np.arange(1, 1 + np.prod(shape)))
    response = answer.get_response()
    version = "3" if model == "versions" else "1"
    assert (response.model_name, response.model_version, response.id) == (model, version, "7")


def test_only_the_outputs_asked_for_come_back(client: triton.InferenceServerClient) -> None:
    x = ones(1, 2)
    answer = client.infer("fork", [x], outputs=[triton.InferRequestedOutput("p")])
    assert [each.name for each in answer.get_response().outputs] == ["p"]
    answer = client.infer("fork", [x])
    assert {each.name for each in answer.get_response().outputs} == {"s", "p"}
    np.testing.assert_array_equal(answer.as_numpy("s"), [[2, 4]])
    np.testing.assert_array_equal(answer.as_numpy("p"), [[1, 4]])


def test_classes_have_the_labels_of_the_member_that_gives_them(
    client: triton.InferenceServerClient,
) -> None:
    best = [triton.InferRequestedOutput("y", class_count=2)]
    answer = client.infer("names", [ones(1, 3)], outputs=best)
    assert answer.as_numpy("y").tolist() == [[b"3.000000:2:slack", b"2.000000:1:flood"]]


def refused(client: triton.InferenceServerClient, model: str, *shape: int, **more: Any) -> str:
    with pytest.raises(InferenceServerException) as error:
        client.infer(model, [ones(*shape)], **more)
    return f"{error.value.status()} {error.value.message()}"


_NOTE = (
    "NOTE: Setting a non-zero max_batch_size in the model config requires a batch dimension to be "
    "prepended to each input shape. If you want to specify the full shape including the batch dim "
    "in your input dims config, try setting max_batch_size to zero. See the model configuration "
    "docs for more info on max_batch_size."
)


def test_a_members_error_names_the_ensemble(client: triton.InferenceServerClient) -> None:
    shape = f"unexpected shape for input 'x' for model 'id'. Expected [-1,3], got [1,5]. {_NOTE}"
    assert refused(client, "loose", 1, 5) == (
        f"StatusCode.INVALID_ARGUMENT in ensemble 'loose', [request id: <id_unknown>] {shape}"
    )
    assert refused(client, "loose", 1, 5, request_id="9") == (
        f"StatusCode.INVALID_ARGUMENT in ensemble 'loose', [request id: 9] {shape}"
    )
    assert refused(client, "outer_loose", 1, 5, request_id="9") == (
        "StatusCode.INVALID_ARGUMENT in ensemble 'outer_loose', in ensemble 'loose', "
        f"[request id: 9] {shape}"
    )


def test_the_ensembles_own_faults_are_told_as_any_models(
    client: triton.InferenceServerClient,
) -> None:
    assert refused(client, "chain", 1, 5) == (
        "StatusCode.INVALID_ARGUMENT [request id: <id_unknown>] unexpected shape for input 'x' "
        f"for model 'chain'. Expected [-1,3], got [1,5]. {_NOTE}"
    )
    assert refused(client, "chain", 5, 3) == (
        "StatusCode.INVALID_ARGUMENT [request id: <id_unknown>] inference request batch-size must "
        "be <= 4 for 'chain'"
    )
    nowhere = [triton.InferRequestedOutput("nowhere")]
    assert refused(client, "chain", 1, 3, outputs=nowhere) == (
        "StatusCode.INVALID_ARGUMENT unexpected inference output 'nowhere' for model 'chain'"
    )


@pytest.mark.parametrize("fault", FAULTY)
def test_what_keeps_an_ensemble_from_loading_is_told_in_the_same_words(
    fault: str, client: triton.InferenceServerClient
) -> None:
    name, _ = FAULTY[fault]
    with pytest.raises(InferenceServerException) as error:
        client.load_model(name)
    assert fault in error.value.message()
    assert not client.is_model_ready(name)


def test_metadata_and_configuration_are_alike(address: str) -> None:
    with grpc.insecure_channel(address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        metadata = stub.ModelMetadata(pb.ModelMetadataRequest(name="chain"))
        config = stub.ModelConfig(pb.ModelConfigRequest(name="chain")).config
    tensor = {"datatype": "FP32", "shape": ["-1", "3"]}
    assert MessageToDict(metadata) == {
        "name": "chain",
        "versions": ["1"],
        "platform": "ensemble",
        "inputs": [{"name": "x", **tensor}],
        "outputs": [{"name": "y", **tensor}],
    }
    steps = [
        {"modelName": "id", "modelVersion": "-1", "inputMap": {"x": a}, "outputMap": {"y": b}}
        for a, b in (("x", "t"), ("t", "y"))
    ]
    assert MessageToDict(config) == {
        "name": "chain",
        "platform": "ensemble",
        "versionPolicy": {"latest": {"numVersions": 1}},
        "maxBatchSize": 4,
        "input": [{"name": "x", "dataType": "TYPE_FP32", "dims": ["3"]}],
        "output": [{"name": "y", "dataType": "TYPE_FP32", "dims": ["3"]}],
        "ensembleScheduling": {"step": steps},
        "modelTransactionPolicy": {},
    }


TWICE = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            for factor in (1, 2):
                sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("y", x * factor)]))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""


@pytest.fixture
def streaming(tmp_path: Path, real_triton: None) -> Path:
    """A decoupled model that answers twice, and an ensemble that it is a member of."""
    put(tmp_path, "id", identity(), ONE)
    publish(tmp_path, "chain", HEAD + X + Y + CHAIN)
    config = HEAD.replace('platform: "ensemble"', 'backend: "python"') + X + Y + ONE
    publish(tmp_path, "echoes", config + "model_transaction_policy { decoupled: true }\n")
    (tmp_path / "echoes" / "1" / "model.py").write_text(TWICE)
    steps = scheduling(("id", "x=x", "y=t"), ("echoes", "x=t", "y=y"))
    publish(tmp_path, "tail", HEAD + X + Y + steps)
    return tmp_path


@pytest.mark.parametrize("described_by", ["folder", "Triton"])
def test_ensembles_are_run_here_and_decoupled_ones_in_triton(
    described_by: str, streaming: Path
) -> None:
    async def story(address: str) -> None:
        engine = TritonEngine(address)
        node = Node("triton", EngineKind.TRITON, engine)
        folder = FolderCatalogue(streaming, {EngineKind.TRITON})
        told = TritonCatalogue([(node, engine)])
        registry = Registry(Metrics())
        control = RepositoryControl(folder if described_by == "folder" else told, registry)
        await control.read_all()
        assert await engine.ready_names() == []
        chain, tail = registry.find("chain").spec, registry.find("tail").spec
        assert [step.model for step in chain.steps] == ["id", "id"]
        assert (chain.decoupled, tail.decoupled, tail.forwarded) == (False, True, True)
        router = Router(registry)
        schedule = partial(make_scheduler, router, 60.0, ResponseCache(0))
        fleet = Fleet([node])
        reconciling = asyncio.create_task(
            Reconciler(registry, fleet, Defaults(), schedule, Metrics().cold_starts).run()
        )
        x = Tensor("x", "FP32", np.ones((1, 3), np.float32))
        deadline = asyncio.get_running_loop().time() + 60
        answers = [
            answer.outputs[0].data.tolist()
            async for answer in router.stream(InferRequest("tail", "", "", [x], [], deadline))
        ]
        assert answers == [[[1.0] * 3], [[2.0] * 3]]
        assert set(await engine.ready_names()) == {"tail", "echoes", "id"}
        answer = await router.infer(InferRequest("chain", "", "", [x], [], deadline))
        np.testing.assert_array_equal(answer.outputs[0].data, x.data)
        assert set(await engine.ready_names()) == {"tail", "echoes", "id"}
        await control.unload("tail")
        await control.unload("id")
        reconciling.cancel()
        await asyncio.wait([reconciling])
        await engine.close()

    with running(streaming) as server, triton.InferenceServerClient(server.address) as behind:
        asyncio.run(story(server.address))
        # Triton unloads in its own time
        eventually(
            lambda: (
                "READY" not in {each.state for each in behind.get_model_repository_index().models}
            )
        )
