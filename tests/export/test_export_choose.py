from typing import Any

import pytest

from export import choose
from export.choose import batching
from export.errors import ProfileError
from export.manifest import Candidate, CurvePoint, OutputParity, Parity, Profile
from export.objective import Objective
from export.pareto import front
from export.spec import ExportSpec

THROUGHPUT = Objective("throughput")


def curve(*points: tuple[int, float], resident: int = 100, instances: int = 1) -> Profile:
    """(batch, milliseconds of a batch), p99 twice the median."""
    return Profile(
        curve=tuple(
            CurvePoint(batch=b, p50_ms=ms, p99_ms=2 * ms, throughput=1000 * b / ms)
            for b, ms in points
        ),
        threads=1,
        instances=instances,
        resident_bytes=resident,
        peak_bytes=2 * resident,
        cold_start_s=0.01,
    )


def candidate(name: str, profile: Profile | None, error: float = 0.0, size: int = 10) -> Candidate:
    parity = Parity(
        checks=1,
        sizes=({"batch": 1},),
        real_samples=0,
        outputs={"y": OutputParity(max_abs=error, max_rel=error, cosine=1.0)},
    )
    return Candidate(format=name, status="ok", profile=profile, parity=parity, size_bytes=size)


FP32 = candidate("onnx-fp32", curve((1, 1.0), (2, 1.6), (4, 2.0), (8, 4.0)))
# Slower alone, faster together, smaller.
INT8 = candidate("onnx-int8", curve((1, 1.2), (4, 1.5), (8, 2.0), resident=40), error=0.1, size=3)


@pytest.mark.parametrize(
    ("objective", "best"),
    [
        ("throughput", "onnx-int8"),
        ("latency", "onnx-fp32"),
        ("memory", "onnx-int8"),
        ("throughput under p99 3.5 ms", "onnx-int8"),
        ("throughput under p99 2.3 ms", "onnx-fp32"),  # int8 keeps it at no batch size
    ],
)
def test_the_objective_decides(objective: str, best: str) -> None:
    chosen, _ = choose.choose([FP32, INT8], Objective.parse(objective))

    assert chosen.format == best


def test_what_is_hardly_faster_does_not_replace_the_exact_file() -> None:
    nearly = candidate("onnx-int8", curve((8, 3.9)))

    assert choose.choose([FP32, nearly], THROUGHPUT)[0] is FP32


def test_a_lead_that_may_be_chance_is_measured_again() -> None:
    close = candidate("onnx-int8", curve((8, 3.4)))
    assert choose.doubted([FP32, close], THROUGHPUT) == (FP32, close)
    assert choose.doubted([FP32, INT8], THROUGHPUT) == ()  # twice as fast is no chance
    assert choose.doubted([FP32], THROUGHPUT) == ()
    assert choose.doubted([FP32, close], Objective("memory")) == ()


def test_of_two_measurements_the_undisturbed_one_counts() -> None:
    once, again = curve((1, 1.0), (2, 9.0), (4, 2.0)), curve((1, 3.0), (2, 1.5))

    assert [point.p50_ms for point in choose.merged(once, again).curve] == [1.0, 1.5, 2.0]


def test_a_bound_that_nothing_keeps_says_what_the_best_one_has() -> None:
    with pytest.raises(
        ProfileError, match=r"no format keeps p99 under 0\.5 ms: onnx-fp32 has 2 ms"
    ):
        choose.choose([FP32, INT8], Objective.parse("throughput under p99 0.5 ms"))


def test_what_was_not_measured_is_published_exact() -> None:
    chosen, why = choose.choose(
        [candidate("onnx-int8", None), candidate("onnx-fp32", None)], THROUGHPUT
    )

    assert (chosen.format, why) == ("onnx-fp32", "nothing was measured")


@pytest.mark.parametrize("text", ["", "speed", "throughput under 10 ms", "latency under p99 0 ms"])
def test_an_objective_that_nobody_knows_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"objective|0 ms"):
        Objective.parse(text)


def test_an_objective_reads_as_it_is_written() -> None:
    assert str(Objective.parse("throughput under p99 0.5 s")) == "throughput under p99 500 ms"


def spec(**fields: Any) -> ExportSpec:
    tensor = {"dtype": "FP32", "dims": [4]}
    return ExportSpec.model_validate(
        {
            "name": "m",
            "model": {"folder": ".", "module": "m", "function": "f"},
            "inputs": [{"name": "x", **tensor}],
            "outputs": [{"name": "y", **tensor}],
            **fields,
        }
    )


FLAT = curve((1, 1.0), (2, 2.0), (4, 4.0))
STEEP = curve((1, 1.0), (2, 1.1), (4, 1.3), (8, 2.6), instances=2)


def test_the_curve_sets_what_the_spec_leaves_open() -> None:
    chosen = batching(spec(), STEEP, THROUGHPUT)

    assert chosen.max_batch_size == 4  # 8 take twice as long
    assert chosen.dynamic is not None
    assert chosen.dynamic.preferred_batch_size == (4,)
    assert chosen.dynamic.max_queue_delay_microseconds == 130  # a tenth of the batch's own time
    assert chosen.instances == 2


def test_what_the_spec_says_of_batches_holds() -> None:
    assert batching(spec(max_batch_size=16), STEEP, THROUGHPUT).max_batch_size == 16
    assert batching(spec(dynamic_batching=False), STEEP, THROUGHPUT).dynamic is None
    given = batching(spec(dynamic_batching={"preferred_batch_size": [2]}), STEEP, THROUGHPUT)
    assert given.dynamic is not None
    assert given.dynamic.preferred_batch_size == (2,)


def test_nobody_waits_for_a_batch_that_gains_nothing() -> None:
    assert batching(spec(), FLAT, THROUGHPUT).dynamic is None
    latency = batching(spec(), STEEP, Objective("latency")).dynamic
    assert latency is not None
    assert latency.max_queue_delay_microseconds == 0


def test_a_bound_on_p99_bounds_the_batch_and_the_wait() -> None:
    chosen = batching(spec(), STEEP, Objective.parse("throughput under p99 2.3 ms"))

    assert chosen.max_batch_size == 2  # a batch of 4 has 2.6 ms
    assert chosen.dynamic is not None
    assert chosen.dynamic.max_queue_delay_microseconds == 50  # half of what is left


def test_without_a_batch_dimension_or_with_states_there_is_no_dynamic_batching() -> None:
    assert batching(spec(max_batch_size=0), STEEP, THROUGHPUT).dynamic is None
    state = {"name": "s", "dtype": "FP32", "dims": [4]}
    stateful = spec(
        inputs=[{"name": "x", "dtype": "FP32", "dims": [4]}, state],
        outputs=[{"name": "y", "dtype": "FP32", "dims": [4]}, {**state, "name": "t"}],
        sequence_batching={"states": {"s": "t"}},
        max_batch_size=8,
    )
    assert batching(stateful, STEEP, THROUGHPUT).dynamic is None


def test_the_front_holds_what_no_other_beats_in_everything() -> None:
    worse = candidate("onnx-fp16", curve((1, 2.0), (8, 5.0)), error=0.01, size=11)
    absent = Candidate(format="tensorrt-fp16", status="skipped", why="no GPU")

    assert front([FP32, INT8, worse, absent]) == {"onnx-fp32", "onnx-int8"}
    assert front([FP32, FP32.model_copy(update={"format": "twin"})]) == {"onnx-fp32", "twin"}


def test_the_knee_is_the_smallest_batch_with_nine_tenths_of_the_throughput() -> None:
    assert STEEP.knee().batch == 4
    assert FLAT.knee().batch == 1
