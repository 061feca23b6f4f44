"""What `sequence_batching` in `config.pbtxt` becomes, and which of it is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.core import ModelSpec
from gateway.repository.reader import read_model
from gateway.sequence import ControlKind
from tests.gateway.onnx_models import identity, put, running_sum
from tests.gateway.test_stateful_models import sums


def read(root: Path, model: bytes, config: str) -> ModelSpec | str:
    put(root, "m", model, config)
    listing = read_model(root, "m")
    return listing.versions[0] if listing.versions else listing.error


def test_what_clients_do_not_give_is_no_input_when_the_model_is_read(tmp_path: Path) -> None:
    config = "max_batch_size: 4\n" + sums()[sums().index("sequence_batching") :]
    spec = read(tmp_path, running_sum(), config)
    assert isinstance(spec, ModelSpec)
    assert [tensor.name for tensor in spec.inputs] == ["x"]
    assert [tensor.name for tensor in spec.outputs] == ["total", "seen", "name"]
    assert spec.sequence is not None
    assert [control.kind for control in spec.sequence.controls] == [
        ControlKind.START,
        ControlKind.END,
        ControlKind.READY,
        ControlKind.CORRID,
    ]
    assert (spec.sequence.max_idle_s, spec.sequence.slots) == (1.0, 4)


_START = "control_input { name: 'start' control { kind: CONTROL_SEQUENCE_START VALUES } }"
_CORRID = "control_input { name: 'corrid' control { kind: CONTROL_SEQUENCE_CORRID VALUES } }"
_STATE = "state { input_name: 's' output_name: 't' data_type: TYPE_FP32 dims: 3 initial_state {X} }"


@pytest.mark.parametrize(
    ("batching", "text"),
    [
        (
            _START.replace("'start'", "''").replace("VALUES", "int32_false_true: [0, 1]"),
            "sequence batching control tensor must have a name for m",
        ),
        (
            2 * _START.replace("VALUES", "int32_false_true: [0, 1]"),
            "sequence batching control tensor 'start' is specified for multiple control kinds "
            "for m",
        ),
        (
            _START.replace("VALUES", ""),
            "sequence batching must specify either 'int32_false_true', 'fp32_false_true' or "
            "'bool_false_true' for CONTROL_SEQUENCE_START for m",
        ),
        (
            _START.replace("VALUES", "int32_false_true: [0, 1] fp32_false_true: [0, 1]"),
            "sequence batching specifies more than one from 'int32_false_true', "
            "'fp32_false_true' and 'bool_false_true' for CONTROL_SEQUENCE_START for m",
        ),
        (
            _START.replace("VALUES", "bool_false_true: [true]"),
            "sequence batching control 'bool_false_true' must have exactly 2 entries for "
            "CONTROL_SEQUENCE_START for m",
        ),
        (
            _CORRID.replace("VALUES", "data_type: TYPE_FP32"),
            "unexpected data type for control CONTROL_SEQUENCE_CORRID for m. Allowed data types "
            "are TYPE_UINT64, TYPE_INT64, TYPE_UINT32, TYPE_INT32 and TYPE_STRING",
        ),
        (
            "oldest { preferred_batch_size: 0 }",
            "sequence batching preferred batch size must be positive for m",
        ),
        (
            "oldest { preferred_batch_size: 5 }",
            "sequence batching preferred batch size must be <= max batch size for m",
        ),
        (
            "direct { minimum_slot_utilization: 1.5 }",
            "sequence batching minimum slot utilization must be in range (0.0, 1.0] for m",
        ),
        (
            _STATE.replace("X", "name: 'n' data_type: TYPE_INT32 dims: 3 zero_data: true"),
            "The data type used for 'initial_state' field of state 's' does not match the state "
            "data type.",
        ),
        (
            _STATE.replace("X", "data_type: TYPE_FP32 dims: 3 zero_data: true"),
            "Field 'name' must be set when using initial_state for state input 's'.",
        ),
        (
            _STATE.replace("X", "name: 'n' data_type: TYPE_FP32 dims: 2 zero_data: true"),
            "'initial_state' dim for input name 's' doesn't match 'state' dim description. 2 != 3",
        ),
        (
            _STATE.replace("X", "name: 'n' data_type: TYPE_FP32 dims: 3"),
            "initial_state setting expects state's' to have state_data set",
        ),
        (
            _STATE.replace("X", "name: 'n' data_type: TYPE_FP32 dims: 3 data_file: '../../x'"),
            "data_file '../../x' is outside the folder 'initial_state'",
        ),
        (
            _STATE.replace("X", "name: 'n' data_type: TYPE_FP32 dims: 3 data_file: 'none'"),
            "cannot read 'initial_state/none': No such file or directory",
        ),
        (
            "iterative_sequence: true",
            "the embedded engine serves no iterative sequences: an ONNX model answers a request "
            "once, and asks for no other run of it",
        ),
    ],
)
def test_configuration_that_contradicts_itself_is_refused(
    tmp_path: Path, batching: str, text: str
) -> None:
    tensors = 'input { name: "x" data_type: TYPE_FP32 dims: 3 }\n'
    tensors += 'output { name: "y" data_type: TYPE_FP32 dims: 3 }\n'
    config = f"max_batch_size: 4\n{tensors}sequence_batching {{ {batching} }}"
    assert read(tmp_path, identity(), config) == text


@pytest.mark.parametrize(
    ("strategy", "policy", "slots"),
    [
        ("direct { }", (8, (8,), 0.0), 8),
        ("direct { max_queue_delay_microseconds: 1000 }", (8, (8,), 0.0), 8),
        (
            "direct { max_queue_delay_microseconds: 1000 minimum_slot_utilization: 0.7 }",
            (8, (6, 7, 8), 0.001),
            8,
        ),
        ("oldest { }", (8, (8,), 0.0), 8),
        (
            "oldest { max_candidate_sequences: 90 preferred_batch_size: [ 4, 2 ] "
            "max_queue_delay_microseconds: 500 }",
            (8, (2, 4), 0.0005),
            90,
        ),
    ],
)
def test_strategy_becomes_a_batch_policy(
    tmp_path: Path, strategy: str, policy: tuple[int, tuple[int, ...], float], slots: int
) -> None:
    spec = read(tmp_path, running_sum(), sums("INT64", strategy, 8))
    assert isinstance(spec, ModelSpec)
    assert spec.sequence is not None
    batching = spec.batching
    assert (batching.max_batch_size, batching.preferred, batching.max_delay_s) == policy
    assert (batching.dynamic, spec.sequence.slots) == (True, slots)
