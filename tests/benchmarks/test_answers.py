"""Right and wrong answers, in both protocols, and the second client that looks for them."""

import json
import threading

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.checks import checking
from benchmarks.models import Cases, grpc_row, json_row
from benchmarks.open_loop import Call, report
from benchmarks.processes import Server
from tests.loadtest.kserve_server import TinyServer
from tests.loadtest.kserve_server import serving as serving_tiny

EXPECTED = np.array([[9.0, -3.0], [-2.0, 8.0]], np.float32)


@pytest.fixture
def cases() -> Cases:
    inputs: NDArray[np.float32] = np.array([[[0.25, 0.5]], [[0.75, 1.0]]], np.float32)
    return Cases("tiny", inputs, EXPECTED)


def test_another_inputs_answer_is_a_wrong_answer(cases: Cases) -> None:
    row = grpc_row(cases.grpc_response(0))
    assert cases.is_right(0, row)
    assert not cases.is_right(1, row)
    assert not cases.is_right(0, None)
    assert cases.is_right(0, EXPECTED[0] * np.float32(1 + 1e-5))


@pytest.mark.parametrize("answer", [{"y": [9.0, -3.0]}, {"y": [[9.0, -3.0]]}, [[9.0, -3.0]]])
def test_a_json_answer_may_be_an_object_or_bare_lists(cases: Cases, answer: object) -> None:
    assert cases.is_right(0, json_row(json.dumps(answer).encode()))


@pytest.mark.parametrize("body", [b"", b"{}", b'{"y": "no"}', b"<html>"])
def test_what_is_no_answer_is_a_wrong_answer(cases: Cases, body: bytes) -> None:
    assert not cases.is_right(0, json_row(body))


def test_a_json_request_has_the_same_values_as_the_grpc_request(cases: Cases) -> None:
    rows = json.loads(cases.json_request(1, nested=True))["x"]
    assert np.array_equal(np.array(rows, np.float32), cases.inputs[1])


def test_the_second_client_finds_a_server_that_answers_wrongly(cases: Cases) -> None:
    called = threading.Event()
    with (
        serving_tiny(TinyServer(script=lambda _number: called.set())) as tiny,
        checking(Server("tiny", tiny.address, 0, ()), cases, for_s=0.1) as checked,
    ):
        assert called.wait(10)
    assert checked.calls + len(checked.failures) >= 1
    assert checked.wrong == checked.calls


def test_goodput_counts_right_answers_within_the_deadline_of_when_they_were_due(
    cases: Cases,
) -> None:
    right, wrong = cases.grpc_response(0), cases.grpc_response(1)
    calls = [
        Call(0, due_s=0.0, sent_s=0.0, done_s=0.04, answer=right),
        # on time by the clock of a client that was late itself
        Call(0, due_s=0.1, sent_s=0.12, done_s=0.16, answer=right),
        Call(0, due_s=0.2, sent_s=0.2, done_s=0.21, answer=wrong),
        Call(0, due_s=1.0, sent_s=1.0, done_s=1.01, status="DEADLINE_EXCEEDED"),
    ]
    done = report(calls, cases, 0.05, arrivals=False)
    assert (done.in_time, done.late, done.wrong) == (1, 1, 1)
    assert done.statuses == {"OK": 3, "DEADLINE_EXCEEDED": 1}
    assert done.send_lag_ms["max"] == pytest.approx(20.0)
