"""The best classes of an output, as Triton writes them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb

from gateway.core import DTYPES, InferRequest, Tensor
from gateway.errors import InvalidRequest
from gateway.repository.reader import read_model
from gateway.transport.calls import Calls
from gateway.transport.classification import classify
from gateway.transport.delivery import Delivery, asked_for
from gateway.transport.inference import Inference
from gateway.transport.shared_memory import SharedMemory
from tests.gateway.fakes import FakeEngine, Ok, house, spec
from tests.gateway.onnx_models import identity, put
from tests.gateway.process import gateway
from tests.simulated_loop import simulate


def best(
    values: Any, classes: int, datatype: str = "FP32", batched: bool = False, *labels: bytes
) -> Any:
    data = np.array(values, DTYPES[datatype])
    tensor = classify(Tensor("y", datatype, data), classes, batched, labels)
    assert (tensor.name, tensor.datatype) == ("y", "BYTES")
    return tensor.data.tolist()


def test_best_come_first_and_none_beyond_those_there_are() -> None:
    assert best([0.1, 0.5, 0.3], 2) == [b"0.500000:1", b"0.300000:2"]
    assert best([0.1, 0.5], 9) == [b"0.500000:1", b"0.100000:0"]


@pytest.mark.parametrize(
    ("datatype", "values", "expected"),
    [
        ("FP64", [2.123456789, -1.0, 1e10], [b"10000000000.000000:2", b"2.123457:0"]),
        ("FP32", [1e-7, 123456789.123], [b"123456792.000000:1", b"0.000000:0"]),
        ("INT8", [-128, 127], [b"127:1", b"-128:0"]),
        ("INT64", [-(2**63), 2**63 - 1], [b"9223372036854775807:1", b"-9223372036854775808:0"]),
        ("UINT64", [0, 2**64 - 1], [b"18446744073709551615:1", b"0:0"]),
        ("UINT8", [0, 255], [b"255:1", b"0:0"]),
    ],
)
def test_scores_are_written_as_triton_does(
    datatype: str, values: list[Any], expected: list[bytes]
) -> None:
    assert best(values, 2, datatype) == expected


@pytest.mark.parametrize("datatype", ["FP16", "BF16", "BOOL", "BYTES"])
def test_what_is_no_score_is_refused(datatype: str) -> None:
    tensor = Tensor("y", datatype, np.zeros(2, DTYPES[datatype]))
    with pytest.raises(InvalidRequest) as caught:
        classify(tensor, 1, False, ())
    assert str(caught.value) == (
        f"class result not available for output due to unsupported type '{datatype}'"
    )


def test_of_equal_scores_the_first_comes_first_and_what_is_no_number_last() -> None:
    assert best([1, 1, 1], 3, "INT32") == [b"1:0", b"1:1", b"1:2"]
    assert best([1.0, np.nan, np.inf], 3) == [b"inf:2", b"1.000000:0", b"nan:1"]


@given(st.lists(st.sampled_from([0.0, 1.0, -1.0, np.nan, np.inf]), min_size=1), st.integers(1, 9))
def test_the_best_few_are_the_first_of_all_in_order(values: list[float], classes: int) -> None:
    assert best(values, classes) == best(values, len(values))[:classes]


def test_each_row_is_for_itself_and_its_dimensions_are_one() -> None:
    rows = [[[0, 1], [2, 3]], [[7, 6], [5, 4]]]
    assert best(rows, 2, "INT32", True) == [[b"3:3", b"2:2"], [b"7:0", b"6:1"]]
    assert best(rows, 1, "INT32", False) == [b"7:4"]
    assert best(5, 3, "INT32") == [b"5:0"]
    assert best([4, 5], 3, "INT32", True) == [[b"4:0"], [b"5:0"]]


@pytest.mark.parametrize(
    ("shape", "batched", "expected"),
    [((0, 3), True, (0, 2)), ((2, 0), True, (2, 0)), ((0,), False, (0,))],
)
def test_nothing_has_no_classes(
    shape: tuple[int, ...], batched: bool, expected: tuple[int, ...]
) -> None:
    tensor = Tensor("y", "FP32", np.zeros(shape, np.float32))
    assert classify(tensor, 2, batched, ()).data.shape == expected


def test_a_version_that_retires_meanwhile_still_classifies_its_answer() -> None:
    async def story() -> None:
        async with house(engine=FakeEngine(runs=[Ok(2.0)])) as h:
            inference = Inference(h.admission, h.registry, Calls(), 60.0, SharedMemory(False))
            asked = InferRequest(
                "m", "", "", [Tensor("x", "FP32", np.ones((1, 2), np.float32))], [], 50.0
            )
            answer = asyncio.create_task(inference.run(asked, [Delivery("y", 1)]))
            await asyncio.sleep(1)
            h.publish(spec(version=2))
            response, _ = await answer
            assert response.outputs[0].data.tolist() == [[b"2.000000:0"]]

    simulate(story())


def test_labels_stand_behind_those_that_have_one() -> None:
    labels = (b"cat", b"", b"a:b")
    assert best([1, 2, 3, 4], 4, "INT32", False, *labels) == [
        b"4:3",
        b"3:2:a:b",
        b"2:1",
        b"1:0:cat",
    ]


@given(st.lists(st.floats(width=32), min_size=1, max_size=40), st.integers(1, 50))
def test_any_scores_have_a_descending_order(values: list[float], classes: int) -> None:
    found = [int(each.split(b":")[1]) for each in best(values, classes)]
    assert len(found) == len(set(found)) == min(classes, len(values))
    scores = np.array(values, np.float32)[found].tolist()
    numbers = [score for score in scores if score == score]
    assert numbers == sorted(numbers, reverse=True)


LABELLED = """max_batch_size: 4
input {{ name: "x" data_type: TYPE_FP32 dims: 3 }}
output {{ name: "y" data_type: TYPE_FP32 dims: 3 label_filename: "{}" }}
"""


ENSEMBLE = """platform: "ensemble" max_batch_size: 4
input {{ name: "x" data_type: TYPE_FP32 dims: 3 }}
output {{ name: "classes" data_type: TYPE_FP32 dims: 3 {} }}
ensemble_scheduling {{ step {{
  model_name: "m" model_version: -1
  input_map {{ key: "x" value: "x" }} output_map {{ key: "y" value: "classes" }}
}} }}
"""


def labelled(root: Path, file: str = "labels.txt", content: bytes | None = None) -> Any:
    put(root, "m", identity(), LABELLED.format(file))
    if content is not None:
        (root / "m" / "labels.txt").write_bytes(content)
    return read_model(root, "m")


@pytest.mark.parametrize(
    ("content", "labels"),
    [
        (b"cat\ndog\n", (b"cat", b"dog")),
        (b"cat\n\ndog", (b"cat", b"", b"dog")),
        (b"  cat \r\n\xff", (b"  cat \r", b"\xff")),
        (b"", (b"",)),
    ],
)
def test_labels_are_the_lines_of_their_file(
    tmp_path: Path, content: bytes, labels: tuple[bytes, ...]
) -> None:
    (spec,) = labelled(tmp_path, content=content).versions
    assert spec.labels == {"y": labels}


def test_labels_that_change_make_another_model(tmp_path: Path) -> None:
    before = labelled(tmp_path, content=b"cat\n").versions
    (tmp_path / "m" / "labels.txt").write_bytes(b"dog\n")
    assert read_model(tmp_path, "m").versions != before


@pytest.mark.parametrize("escape", ["/etc/passwd", "../other/labels.txt", "a/../../b", ".."])
def test_labels_come_from_the_models_own_folder(tmp_path: Path, escape: str) -> None:
    assert "leads out of the model's folder" in labelled(tmp_path, escape).error


def test_labels_that_are_missing_are_the_models_fault(tmp_path: Path) -> None:
    assert labelled(tmp_path).error == (
        "cannot read label_filename 'labels.txt': No such file or directory"
    )


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[triton.InferenceServerClient]:
    root = tmp_path_factory.mktemp("classes")
    labelled(root, content=b"cat\ndog\n")
    for name, output in (("e", ""), ("e_own", 'label_filename: "labels.txt"')):
        (root / name / "1").mkdir(parents=True)
        (root / name / "config.pbtxt").write_text(ENSEMBLE.format(output))
    (root / "e_own" / "labels.txt").write_text("own\n")
    with gateway(root) as running, triton.InferenceServerClient(running.url) as connected:
        yield connected


def test_client_gets_its_classes(client: triton.InferenceServerClient) -> None:
    x = triton.InferInput("x", [2, 3], "FP32")
    x.set_data_from_numpy(np.array([[1, 2, 3], [3, 2, 1]], np.float32))
    answer = client.infer("m", [x], outputs=[triton.InferRequestedOutput("y", class_count=2)])
    assert answer.as_numpy("y").tolist() == [
        [b"3.000000:2", b"2.000000:1:dog"],
        [b"3.000000:0:cat", b"2.000000:1:dog"],
    ]


@pytest.mark.parametrize(("ensemble", "label"), [("e", b"cat"), ("e_own", b"own")])
def test_ensemble_has_labels_of_its_own_or_of_the_member_that_writes_the_output(
    client: triton.InferenceServerClient, ensemble: str, label: bytes
) -> None:
    x = triton.InferInput("x", [1, 3], "FP32")
    x.set_data_from_numpy(np.array([[3, 2, 1]], np.float32))
    asked = triton.InferRequestedOutput("classes", class_count=1)
    answer = client.infer(ensemble, [x], outputs=[asked])
    assert answer.as_numpy("classes").tolist() == [[b"3.000000:0:" + label]]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "invalid value for 'classification' parameter, expected >= 0"),
        (-1, "invalid value for 'classification' parameter, expected >= 0"),
        ("2", "invalid value type for 'classification' parameter, expected int64_param"),
    ],
)
def test_number_of_classes_is_a_positive_int64(value: Any, text: str) -> None:
    output = pb.ModelInferRequest.InferRequestedOutputTensor(name="y")
    field = "string_param" if isinstance(value, str) else "int64_param"
    setattr(output.parameters["classification"], field, value)
    with pytest.raises(InvalidRequest) as caught:
        asked_for([output])
    assert str(caught.value) == text
