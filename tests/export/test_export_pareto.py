import io

import pytest
from rich.console import Console

from export.manifest import Candidate
from export.pareto import front, worst_cosine, worst_error
from export.table import error_figure, figure, table
from tests.export.example_manifest import FAILED, FP16, FP32, INT8, SKIPPED, parity


def shown(candidates: list[Candidate], width: int) -> list[str]:
    console = Console(width=width, record=True, file=io.StringIO(), color_system="standard")
    console.print(table(candidates, "throughput"))
    return console.export_text(styles=True).splitlines()


def test_the_front_holds_what_no_other_beats_in_everything() -> None:
    assert front([FP32, FP16, INT8]) == {"onnx-fp32", "onnx-fp16", "onnx-int8"}
    inexact = FP16.model_copy(update={"parity": parity(0.5, 0.9)})
    assert front([FP32, inexact, INT8]) == {"onnx-fp32", "onnx-int8"}


def test_of_two_equal_formats_both_are_on_the_front() -> None:
    assert front([FP32, FP32.model_copy(update={"format": "twin"})]) == {"onnx-fp32", "twin"}


def test_what_failed_or_was_not_measured_is_not_on_the_front() -> None:
    fast = INT8.model_copy(update={"status": "failed"})
    unmeasured = INT8.model_copy(update={"profile": None})
    sizeless = INT8.model_copy(update={"size_bytes": None})
    for each in (fast, unmeasured, sizeless, FAILED, SKIPPED[0]):
        assert front([FP32, each]) == {"onnx-fp32"}
    assert front([]) == set()


def test_the_worst_output_speaks_for_a_format() -> None:
    assert worst_error(FP32) == 1.4e-6
    assert worst_cosine(INT8) == 0.9981
    assert worst_error(SKIPPED[0]) is None
    assert worst_cosine(SKIPPED[0]) is None


@pytest.mark.parametrize("width", [80, 100])
def test_the_table_fits_a_terminal_and_leaves_nothing_out(width: int) -> None:
    dynamic = INT8.model_copy(update={"format": "onnx-int8-dynamic", "status": "ok"})
    lines = shown([FP32, FP16, dynamic, INT8, *SKIPPED], width)

    assert not any("…" in line for line in lines)
    assert "formats (file and RAM in MB), chosen for throughput" in lines[0]
    figures = "4,444 8 2.2 0.447 12.6 17 0.41 0.989"
    assert any(figures in " ".join(line.split()) for line in lines)


@pytest.mark.parametrize("width", [80, 100, 120])
def test_without_a_metric_the_table_fits_a_narrow_terminal(width: int) -> None:
    plain = [each.model_copy(update={"metric": None}) for each in (FP32, INT8)]

    assert not any("…" in line for line in shown(plain, width))


def test_the_chosen_row_is_bold_and_ticked_and_the_fallen_are_dim_with_their_reason() -> None:
    lines = shown([FP32, INT8, FAILED, *SKIPPED], 120)
    chosen = next(line for line in lines if "onnx-int8 *" in line)
    fallen = next(line for line in lines if "tensorrt-fp32" in line)

    assert chosen.startswith("\x1b[1m✓ onnx-int8 *")
    assert not any("✓" in line for line in lines if "onnx-fp32" in line)
    assert fallen.startswith("\x1b[2m")
    assert "tensorrt-fp32, tensorrt-fp16, tensorrt-int8: skipped, there is" in fallen
    assert any("onnx-int8-dynamic: failed, output 'logits' at batch size 3" in x for x in lines)


def test_figures_have_the_digits_that_mean_something() -> None:
    said = [figure(value) for value in (0.02134, 4.1251, 99.96, 100.4, 12_345.6)]

    assert said == ["0.0213", "4.13", "100", "100", "12,346"]
    assert [error_figure(value) for value in (1.43e-6, 0.414, 151.9)] == ["1.4e-06", "0.41", "152"]
