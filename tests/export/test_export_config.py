from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from export import choose, config_pbtxt
from export.config_pbtxt import interface_changes
from export.errors import PublishError
from export.objective import Objective
from export.spec import ExportSpec

MakeSpec = Callable[..., ExportSpec]


def render(spec: ExportSpec, **facts: Any) -> str:
    """The configuration of a version that was not measured."""
    return config_pbtxt.render(spec, choose.batching(spec, None, Objective("throughput")), **facts)


def parsed(text: str) -> Any:
    return text_format.Parse(text, pb.ModelConfig())


def test_text_round_trips_through_the_real_protobuf(make_spec: MakeSpec) -> None:
    spec = make_spec(
        inputs=[{"name": "ids", "dtype": "INT64", "dims": ["seq", 3], "range": [0, 9]}],
        outputs=[
            {"name": "y", "dtype": "FP16", "dims": [2], "labels": "names.txt"},
            {"name": "z", "dtype": "BOOL", "dims": ["seq"]},
        ],
        dynamic_batching={"preferred_batch_size": [4, 8], "max_queue_delay_microseconds": 500},
    )
    config = parsed(render(spec))

    assert (config.name, config.backend, config.max_batch_size) == ("double", "onnxruntime", 8)
    assert [(t.name, t.data_type, list(t.dims)) for t in config.input] == [
        ("ids", pb.TYPE_INT64, [-1, 3])
    ]
    assert [(t.name, t.data_type, list(t.dims), t.label_filename) for t in config.output] == [
        ("y", pb.TYPE_FP16, [2], "names.txt"),
        ("z", pb.TYPE_BOOL, [-1], ""),
    ]
    assert list(config.dynamic_batching.preferred_batch_size) == [4, 8]
    assert config.dynamic_batching.max_queue_delay_microseconds == 500


def test_empty_dynamic_batching_is_written_and_absent_is_not(make_spec: MakeSpec) -> None:
    assert parsed(render(make_spec(dynamic_batching={}))).HasField("dynamic_batching")
    assert not parsed(render(make_spec())).HasField("dynamic_batching")


def test_max_batch_size_zero_is_written(make_spec: MakeSpec) -> None:
    assert "max_batch_size: 0\n" in render(make_spec(max_batch_size=0))


def test_a_rank_0_tensor_is_one_element_reshaped_to_none(make_spec: MakeSpec) -> None:
    config = parsed(render(make_spec(outputs=[{"name": "y", "dtype": "FP32", "dims": []}])))

    assert list(config.output[0].dims) == [1]
    assert config.output[0].HasField("reshape")
    assert list(config.output[0].reshape.shape) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"max_batch_size": 4}, "max_batch_size is 8, would become 4"),
        ({"inputs": [{"name": "x", "dtype": "FP64", "dims": [4]}]}, "would become x FP64 [4]"),
        ({"outputs": [{"name": "y", "dtype": "FP32", "dims": [5]}]}, "outputs are y FP32 [4], "),
    ],
)
def test_what_clients_would_notice_is_an_interface_change(
    make_spec: MakeSpec, change: dict[str, Any], says: str
) -> None:
    (difference,) = interface_changes(render(make_spec()), render(make_spec(**change)))

    assert says in difference


def test_what_an_operator_tunes_is_no_interface_change(make_spec: MakeSpec) -> None:
    tuned = render(make_spec()) + "instance_group { count: 4 }\nversion_policy { all { } }\n"

    assert interface_changes(tuned, render(make_spec(dynamic_batching={}))) == []


def test_what_the_server_completes_is_no_interface_change(make_spec: MakeSpec) -> None:
    assert interface_changes('platform: "onnxruntime_onnx"', render(make_spec())) == []
    assert interface_changes('platform: "tensorrt_plan"', render(make_spec())) != []


def test_an_unreadable_config_is_refused_with_its_line(make_spec: MakeSpec) -> None:
    with pytest.raises(PublishError, match=r"2:1.*max_batchsize"):
        interface_changes('name: "a"\nmax_batchsize: 3', render(make_spec()))
