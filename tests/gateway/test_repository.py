"""Reading a model repository: what is there, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.core import (
    BatchPolicy,
    DeviceKind,
    ModelSpec,
    QueuePolicy,
    RuntimeOptions,
    TensorSpec,
    TimeoutAction,
)
from gateway.errors import StartError
from gateway.repository.reader import has_model, model_names, read_model
from tests.gateway.onnx_models import add_and_multiply, identity, put

TENSORS = """
input { name: "x" data_type: TYPE_FP32 dims: 3 }
output { name: "y" data_type: TYPE_FP32 dims: 3 }
"""


def only(root: Path, name: str = "m") -> ModelSpec:
    listing = read_model(root, name)
    assert listing.error == ""
    (spec,) = listing.versions
    return spec


def error(root: Path, name: str = "m") -> str:
    listing = read_model(root, name)
    assert listing.versions == ()
    return listing.error


def test_model_without_config_is_described_by_its_file(tmp_path: Path) -> None:
    put(tmp_path, "m", add_and_multiply())
    spec = only(tmp_path)
    assert spec.max_batch_size == 4
    assert spec.batching.dynamic
    assert spec.inputs == (TensorSpec("a", "FP32", (2,)), TensorSpec("b", "FP32", (2,)))
    assert [output.name for output in spec.outputs] == ["sum", "product"]
    assert spec.platform == "onnxruntime_onnx"


def test_static_first_dimension_means_no_batching(tmp_path: Path) -> None:
    put(tmp_path, "m", identity(dims=(2, 3)))
    spec = only(tmp_path)
    assert spec.max_batch_size == 0
    assert spec.inputs[0].dims == (2, 3)


def test_partial_config_keeps_its_own_and_takes_the_rest_from_the_model(tmp_path: Path) -> None:
    put(tmp_path, "m", identity(), "max_batch_size: 16")
    spec = only(tmp_path)
    assert spec.max_batch_size == 16
    assert not spec.batching.dynamic
    assert spec.inputs == (TensorSpec("x", "FP32", (3,)),)


def test_declared_tensors_with_max_batch_size_zero_stay_unbatched(tmp_path: Path) -> None:
    config = """max_batch_size: 0
        input { name: "x" data_type: TYPE_FP32 dims: [-1, 3] }
        output { name: "y" data_type: TYPE_FP32 dims: [-1, 3] }"""
    put(tmp_path, "m", identity(), config)
    assert only(tmp_path).max_batch_size == 0


def test_every_datatype_has_its_kserve_name(tmp_path: Path) -> None:
    names = ["BOOL", "UINT8", "INT64", "FP16", "FP64", "BF16", "BYTES"]
    for name in names:
        put(tmp_path, name, identity(name))
        assert only(tmp_path, name).inputs[0].datatype == name


def test_batching_fields_become_the_policy(tmp_path: Path) -> None:
    config = """max_batch_size: 8
        dynamic_batching {
          preferred_batch_size: [ 8, 4 ]  max_queue_delay_microseconds: 1500
          priority_levels: 2  default_priority_level: 2
          default_queue_policy {
            timeout_action: DELAY default_timeout_microseconds: 5000 max_queue_size: 7
          }
          priority_queue_policy { key: 1 value { allow_timeout_override: true } }
        }"""
    put(tmp_path, "m", identity(), config + TENSORS)
    assert only(tmp_path).batching == BatchPolicy(
        max_batch_size=8,
        dynamic=True,
        preferred=(4, 8),
        max_delay_s=0.0015,
        priority_levels=2,
        default_level=2,
        default_queue=QueuePolicy(TimeoutAction.DELAY, 0.005, False, 7),
        level_queues={1: QueuePolicy(allow_timeout_override=True)},
    )


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ("preferred_batch_size: 0", "dynamic batching preferred size must be positive for m"),
        ("preferred_batch_size: 9", "dynamic batching preferred size must be <= max batch size"),
        (
            "priority_levels: 2 default_priority_level: 3",
            "default priority level must be in range [1, 2] for m",
        ),
        (
            "priority_levels: 1 default_priority_level: 1 priority_queue_policy { key: 2 }",
            "priority queue policy must have priority level in range [1, 1] for m",
        ),
        (
            "priority_levels: 2 default_priority_level: 1 preserve_ordering: true",
            "Only one priority level is allowed when 'preserve_ordering' is true for m",
        ),
        (
            "preserve_ordering: true default_queue_policy { timeout_action: DELAY }",
            "Queue policy can not have DELAY as timeout action when 'preserve_ordering'",
        ),
    ],
)
def test_wrong_batching_is_refused_in_tritons_words(
    tmp_path: Path, fields: str, reason: str
) -> None:
    put(tmp_path, "m", identity(), f"max_batch_size: 8 dynamic_batching {{ {fields} }}" + TENSORS)
    assert reason in error(tmp_path)


OWN = """max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: 3 }
output { name: "y" data_type: TYPE_FP32 dims: 3 }
dynamic_batching { }
parameters { key: "tidegate.%s" value { string_value: "%s" } }
"""


def test_own_parameters_are_read(tmp_path: Path) -> None:
    put(tmp_path, "m", identity(), OWN % ("pad", "64, 16,32"))
    put(tmp_path, "n", identity(), OWN % ("slo_ms", "12.5"))
    (padded,), (hurried,) = (read_model(tmp_path, name).versions for name in "mn")
    assert (padded.batching.pad_to, padded.batching.slo_s) == ((16, 32, 64), 0.0)
    assert (hurried.batching.pad_to, hurried.batching.slo_s) == ((), 0.0125)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        (
            "pad",
            "16;32",
            "parameter 'tidegate.pad' is a list of sizes above 0 like \"16,32\", not '16;32'",
        ),
        ("pad", "0", "is a list of sizes"),
        (
            "slo_ms",
            "soon",
            "parameter 'tidegate.slo_ms' is a number of milliseconds above 0, not 'soon'",
        ),
        ("slo_ms", "-1", "is a number of milliseconds"),
        ("slo_ms", "inf", "is a number of milliseconds"),
        ("slo", "1", "unknown parameter 'tidegate.slo': there are tidegate.pad, tidegate.slo_ms"),
    ],
)
def test_wrong_own_parameter_is_refused(tmp_path: Path, name: str, value: str, reason: str) -> None:
    put(tmp_path, "m", identity(), OWN % (name, value))
    assert reason in error(tmp_path)


def test_unknown_field_is_named_with_its_line(tmp_path: Path) -> None:
    put(tmp_path, "m", identity(), "max_batch_size: 4\n\nmax_bach_size: 4\n")
    assert error(tmp_path) == (
        'config.pbtxt line 3: Message type "inference.ModelConfig" has no field named '
        '"max_bach_size".'
    )


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ('name: "other"', "names the model 'other', its folder 'm'"),
        ('backend: "pytorch"', "serves no models of backend 'pytorch'"),
        ('platform: "tensorrt_plan"', "config.pbtxt must declare the inputs and outputs"),
        ('platform: "pytorch_libtorch"', "serves no models of platform 'pytorch_libtorch'"),
        (
            "model_transaction_policy { decoupled: true }",
            "the embedded engine serves no decoupled models",
        ),
        ('input { name: "x" data_type: 99 dims: 3 }', "tensor 'x' has no valid data_type"),
        ('default_model_filename: "m.json"', "cannot read 'm.json' as an ONNX model"),
        (
            "version_policy { specific { versions: 7 } }",
            "version_policy serves none of the versions present: [1]",
        ),
        ("max_batch_size: -1", "max_batch_size must not be negative"),
        (
            'input { name: "x" data_type: TYPE_FP32 dims: 3 reshape { shape: [ 2 ] } }',
            "tensor 'x' cannot be reshaped from [3] to [2]",
        ),
        (
            'input { name: "x" data_type: TYPE_FP32 dims: [-1, 4] reshape { shape: [-1, 3] } }',
            "tensor 'x' cannot be reshaped from [-1, 4] to [-1, 3]",
        ),
    ],
)
def test_what_is_not_served_is_refused_with_the_reason(
    tmp_path: Path, config: str, reason: str
) -> None:
    put(tmp_path, "m", identity(), config)
    assert reason in error(tmp_path)


def test_device_and_model_file_are_read(tmp_path: Path) -> None:
    put(tmp_path, "gpu", identity(), "instance_group { kind: KIND_GPU gpus: 1 }")
    put(tmp_path, "plan", identity(), 'platform: "tensorrt_plan" max_batch_size: 1' + TENSORS)
    assert only(tmp_path, "gpu").runtime == RuntimeOptions(DeviceKind.GPU, gpus=(1,))
    assert only(tmp_path, "plan").model_file == "model.plan"


def test_truncated_model_without_config_is_reported(tmp_path: Path) -> None:
    model = identity()
    put(tmp_path, "m", model[: len(model) // 2])
    assert "cannot read 'model.onnx' as an ONNX model" in error(tmp_path)


def test_version_folder_zero_is_no_version(tmp_path: Path) -> None:
    put(tmp_path, "m", identity(), version=0)
    assert error(tmp_path) == "no version folder: versions are whole numbers > 0 ('0' is none)"
    put(tmp_path, "m", identity(), version=2)
    assert only(tmp_path).key.version == 2
    assert read_model(tmp_path, "m").ignored == ("0",)


@pytest.mark.parametrize(
    ("policy", "served"),
    [
        ("", [10]),
        ("version_policy { latest { num_versions: 2 } }", [2, 10]),
        ("version_policy { all { } }", [1, 2, 10]),
        ("version_policy { specific { versions: [ 1, 7 ] } }", [1]),
    ],
)
def test_version_policy_chooses_by_number(tmp_path: Path, policy: str, served: list[int]) -> None:
    for version in (1, 2, 10):
        put(tmp_path, "m", identity(), policy, version)
    assert [spec.key.version for spec in read_model(tmp_path, "m").versions] == served


def test_unchanged_version_reads_equal_and_a_changed_one_does_not(tmp_path: Path) -> None:
    folder = put(tmp_path, "m", identity())
    first = only(tmp_path)
    assert only(tmp_path) == first
    (folder / "model.onnx").write_bytes(identity(dims=("n", 4)))
    assert only(tmp_path) != first


def test_one_broken_model_does_not_hide_the_others(tmp_path: Path) -> None:
    put(tmp_path, "bad", identity(), "nonsense")
    put(tmp_path, "good", identity())
    (tmp_path / ".tmp-half-written").mkdir()
    (tmp_path / "README").write_text("not a model")
    assert model_names(tmp_path) == ["bad", "good"]
    assert read_model(tmp_path, "bad").error
    assert not read_model(tmp_path, "good").error


def test_missing_repository_is_a_start_error(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="does not exist"):
        model_names(tmp_path / "nowhere")


def test_path_in_disguise_is_no_model(tmp_path: Path) -> None:
    put(tmp_path / "inside", "m", identity())
    assert has_model(tmp_path / "inside", "m")
    for name in ("../inside", "m/1", "..", ".", "", "/etc", "nope"):
        assert not has_model(tmp_path / "inside", name)
