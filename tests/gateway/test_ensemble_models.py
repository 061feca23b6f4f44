"""Ensembles of real ONNX models over gRPC: they answer as their parts do by hand."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import tritonclient.grpc as triton
from sklearn.datasets import load_digits
from tritonclient.utils import InferenceServerException

from examples.ensemble.build import build
from gateway.core import ModelSpec
from gateway.ensemble import EnsembleStep
from gateway.repository.reader import read_model
from tests.gateway.ensembles import HEAD, X, Y, given, publish, scheduling
from tests.gateway.onnx_models import identity, put
from tests.gateway.process import Gateway, gateway


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ensembles")
    build(root)
    put(root, "id", identity())
    both = HEAD + X + Y + scheduling(("id", "x=x", "y=t"), ("id", "x=t", "y=y"))
    publish(root, "twice", both + "version_policy { all { } }\n", 1, 2)
    publish(root, "nested", HEAD + X + Y + scheduling(("twice", "x=x", "y=y")))
    publish(root, "stranger", HEAD + X + Y + scheduling(("nobody", "x=x", "y=y")))
    put(root, "broken", identity()[:40], HEAD.replace('platform: "ensemble"\n', "") + X + Y)
    publish(root, "on_broken", HEAD + X + Y + scheduling(("broken", "x=x", "y=y")))
    return root


@pytest.fixture(scope="module")
def served(root: Path) -> Iterator[Gateway]:
    with gateway(root, "--allow-repository-control") as running:
        yield running
        assert running.stop() == 0


@pytest.fixture
def client(served: Gateway) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(served.url) as connected:
        yield connected


def by_hand(root: Path, scans: np.ndarray[Any, Any]) -> tuple[Any, Any]:
    """Return logits and digits as ONNX Runtime gives them, model after model."""
    value: Any = scans
    results = []
    for name in ("scale", "digits", "decide"):
        session = onnxruntime.InferenceSession(root / name / "1" / "model.onnx")
        (value,) = session.run(None, {session.get_inputs()[0].name: value})
        results.append(value)
    return results[1], results[2]


def test_an_ensemble_answers_as_its_parts_do_by_hand(
    root: Path, client: triton.InferenceServerClient
) -> None:
    digits = load_digits()
    scans = digits.images[:64].astype(np.uint8)
    answer = client.infer("reader", [given("scan", scans, "UINT8")], request_id="7")
    logits, found = by_hand(root, scans)
    np.testing.assert_allclose(answer.as_numpy("logits"), logits, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(answer.as_numpy("digit"), found)
    assert (found[:, 0] == digits.target[:64]).mean() > 0.95
    response = answer.get_response()
    assert (response.model_name, response.model_version, response.id) == ("reader", "1", "7")
    assert [output.name for output in response.outputs] == ["logits", "digit"]


def test_steps_of_concurrent_requests_are_batched_each_for_itself(
    root: Path, served: Gateway, client: triton.InferenceServerClient
) -> None:
    scans = load_digits().images.astype(np.uint8)
    names = ("scale", "digits", "decide")
    before = {name: served.metric("nv_inference_exec_count", model=name) for name in names}

    def ask(index: int) -> int:
        scan = given("scan", scans[index : index + 1], "UINT8")
        return int(client.infer("reader", [scan]).as_numpy("digit")[0, 0])

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(ask, range(200)))
    np.testing.assert_array_equal(found, by_hand(root, scans[:200])[1][:, 0])
    for name in names:
        runs = served.metric("nv_inference_exec_count", model=name) - before[name]
        assert runs < 200, f"{name} ran every request alone"
    assert served.metric("nv_inference_request_success", model="reader") >= 200


def test_only_what_is_asked_for_is_computed(
    served: Gateway, client: triton.InferenceServerClient
) -> None:
    scan = given("scan", np.zeros((1, 8, 8), np.uint8), "UINT8")
    before = served.metric("nv_inference_count", model="decide")
    answer = client.infer("reader", [scan], outputs=[triton.InferRequestedOutput("logits")])
    assert [each.name for each in answer.get_response().outputs] == ["logits"]
    assert served.metric("nv_inference_count", model="decide") == before


def test_ensembles_have_versions_and_may_be_members(client: triton.InferenceServerClient) -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert client.get_model_metadata("twice").versions == ["1", "2"]
    for model, version in (("twice", "1"), ("twice", ""), ("nested", "")):
        answer = client.infer(model, [given("x", x)], model_version=version)
        np.testing.assert_array_equal(answer.as_numpy("y"), x)
    assert answer.get_response().model_version == "1"


def test_an_explicit_load_brings_the_members_along(
    served: Gateway, client: triton.InferenceServerClient
) -> None:
    for name in ("nested", "twice", "id"):
        client.unload_model(name)
    client.load_model("nested")
    for name in ("nested", "twice", "id"):
        assert served.metric("tidegate_model_ready", model=name) >= 1, name


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("stranger", "ensemble stranger contains models that are not available or ambiguous: nob"),
        ("on_broken", "ensemble 'on_broken' depends on 'broken' which has no loaded version. "),
    ],
)
def test_an_ensemble_that_cannot_be_served_says_why(
    model: str, reason: str, client: triton.InferenceServerClient
) -> None:
    with pytest.raises(InferenceServerException) as refused:
        client.infer(model, [given("x", np.zeros((1, 3), np.float32))])
    assert reason in str(refused.value.message())
    with pytest.raises(InferenceServerException) as refused:
        client.load_model(model)
    assert reason in str(refused.value.message())
    assert not client.is_model_ready(model)
    index = {each.name: each for each in client.get_model_repository_index().models}
    assert index[model].state == "UNAVAILABLE"
    assert reason in index[model].reason


def test_a_member_that_comes_later_mends_its_ensemble(
    root: Path, client: triton.InferenceServerClient
) -> None:
    publish(root, "early", HEAD + X + Y + scheduling(("late", "x=x", "y=y")))
    client.get_model_repository_index()
    assert not client.is_model_ready("early")
    put(root, "late", identity())
    client.load_model("early")
    assert client.is_model_ready("early")
    x = np.ones((1, 3), np.float32)
    np.testing.assert_array_equal(client.infer("early", [given("x", x)]).as_numpy("y"), x)


def read(tmp_path: Path, config: str) -> ModelSpec | str:
    publish(tmp_path, "e", config)
    listing = read_model(tmp_path, "e")
    shutil.rmtree(tmp_path / "e")
    return listing.error or listing.versions[0]


def test_an_ensembles_configuration_becomes_its_steps(tmp_path: Path) -> None:
    text = HEAD + X + Y + scheduling(("a", "x=x", "y=t"), ("b", "x=t", "y=y"))
    spec = read(tmp_path, text.replace("version: -1", "version: 3", 1))
    assert isinstance(spec, ModelSpec)
    assert (spec.platform, spec.file_bytes) == ("ensemble", 0)
    assert spec.steps == (
        EnsembleStep("a", 3, {"x": "x"}, {"y": "t"}),
        EnsembleStep("b", 0, {"x": "t"}, {"y": "y"}),
    )
    bounded = text.replace("scheduling {\n", "scheduling {\nmax_inflight_requests: 2\n")
    spec = read(tmp_path, bounded)
    assert isinstance(spec, ModelSpec)
    assert [step.max_inflight for step in spec.steps] == [2, 2]


ONE = ("id", "x=x", "y=y")
W = 'output { name: "w" data_type: TYPE_FP32 dims: 3 }\n'
# What NVIDIA's tritonserver 2.51 writes in its log when it polls such a model.
FAULTS = {
    "instance group should not be specified for ensemble 'e'": (
        HEAD + X + Y + scheduling(ONE) + "instance_group { count: 1 }\n"
    ),
    "optimization should not be specified for ensemble 'e'": (
        HEAD + X + Y + scheduling(ONE) + "optimization { priority: PRIORITY_MAX }\n"
    ),
    "model_warmup can not be specified for ensemble 'e'": (
        HEAD + X + Y + scheduling(ONE) + 'model_warmup { name: "w" }\n'
    ),
    "must specify 'step' for ensemble 'e'": HEAD + X + Y + scheduling(),
    "ensemble scheduling must be set for ensemble e whose platform is ensemble": HEAD + X + Y,
    "ensemble scheduling cannot be set for model 'e' whose platform is not ensemble": (
        HEAD.replace("ensemble", "onnxruntime_onnx") + X + Y + scheduling(ONE)
    ),
    "Ensemble model 'e' must have platform type 'ensemble' and empty backend type": (
        'backend: "ensemble"\n' + HEAD + X + Y + scheduling(ONE)
    ),
    "must specify 'model_name' in step 0 of ensemble 'e'": (
        HEAD + X + Y + scheduling(("", "x=x", "y=y"))
    ),
    "must specify 'input_map' in step 1 of ensemble 'e'": (
        HEAD + X + Y + scheduling(ONE, ("id", "", "y=y"))
    ),
    "must specify 'output_map' in step 0 of ensemble 'e'": (
        HEAD + X + Y + scheduling(("id", "x=x", ""))
    ),
    "ensemble tensor 'y' can appear in an output map only once for ensemble 'e' step 1": (
        HEAD + X + Y + scheduling(ONE, ONE)
    ),
    "ensemble tensor 'y' can appear in an output map only once for ensemble 'e' step 0": (
        HEAD + X + Y + scheduling(("id", "x=x", "y=y z=y"))
    ),
    "ensemble input 'x' for ensemble e' is not used": (
        HEAD + X + Y + scheduling(("id", "x=u", "y=y"))
    ),
    "ensemble output 'w' for ensemble e' is not used": HEAD + X + Y + W + scheduling(ONE),
    "ensemble tensor 't' is unused in ensemble 'e'": (
        HEAD + X + Y + scheduling(ONE, ("id", "x=x", "y=t"))
    ),
    "output 'y' for ensemble 'e' is not written: at least one of its depending tensors, 'x', is "
    "not connected": HEAD + Y + scheduling(ONE),
    "ensemble 'e' depends on 'id' whose required version 0 is not loaded.": (
        HEAD + X + Y + scheduling(ONE, version=0)
    ),
    # Triton takes this one, and its requests are never answered
    "ensemble input 'x' for ensemble 'e' is written by step 1": (
        HEAD + X + Y + scheduling(ONE, ("id", "x=y", "y=x"))
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_an_ensembles_configuration_is_named_as_triton_names_it(
    fault: str, tmp_path: Path
) -> None:
    assert read(tmp_path, FAULTS[fault]) == fault
