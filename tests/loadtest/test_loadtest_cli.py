"""The whole command against a scripted server. Locust runs in its child process only."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from loadtest.cli import LOCUSTFILE, duration_s, main
from tests.loadtest.kserve_server import MODEL, TinyServer, serving

NO_METRICS = "http://127.0.0.1:9/metrics"


@pytest.fixture
def tiny() -> Iterator[TinyServer]:
    with serving(TinyServer()) as server:
        yield server


def loadtest(server: TinyServer, report_dir: Path, *more: str) -> tuple[int, dict[str, Any]]:
    arguments = ["--host", server.address, "--model", MODEL, "--metrics", NO_METRICS]
    arguments += ["--users", "4", "--duration", "1s", "--report-dir", str(report_dir)]
    code = main([*arguments, *more])
    return code, json.loads((report_dir / "result.json").read_text())


def test_a_run_reports_what_the_server_itself_has_counted(
    tiny: TinyServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, result = loadtest(tiny, tmp_path, "--batch-size", "3")
    assert code == 0
    # The probe is no part of the run.
    assert result["requests"] == tiny.served - 1 > 10
    assert result["failures"] == 0
    latency = result["latency_ms"]
    assert 0 < latency["p50"] <= latency["p95"] <= latency["p99"] <= latency["max"]
    assert result["requests_per_s"] == pytest.approx(result["requests"] / result["elapsed_s"], 1e-3)
    assert result["inferences_per_s"] == pytest.approx(3 * result["requests_per_s"], 1e-3)
    assert result["settings"]["users"] == 4
    assert 0 < result["client_cpu_share"] < 3
    assert f"ModelInfer {MODEL}" in (tmp_path / "report.html").read_text()
    printed = capsys.readouterr().out
    for word in ("throughput", "p50", "p95", "p99", "errors", "mean batch size", "report.html"):
        assert word in printed
    assert "metrics cannot be read" in printed


def test_failed_requests_are_grouped_by_status_and_text_and_fail_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(number: int) -> tuple[grpc.StatusCode, str] | None:
        return (
            (grpc.StatusCode.RESOURCE_EXHAUSTED, "the [queue] is full") if number % 5 == 0 else None
        )

    with serving(TinyServer(script=full)) as server:
        code, result = loadtest(server, tmp_path)
    assert code == 1
    (error,) = result["errors"]
    assert (error["status"], error["text"]) == ("RESOURCE_EXHAUSTED", "the [queue] is full")
    assert error["count"] == result["failures"] == server.served // 5
    assert "RESOURCE_EXHAUSTED: the [queue] is full" in capsys.readouterr().out


def test_a_fast_wrong_server_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(TinyServer(extra_rows=1)) as server:
        assert main(["--host", server.address, "--model", MODEL]) == 1
    assert "the first answer is wrong: output 'y' has shape [2, 2]" in capsys.readouterr().err


def test_no_server_and_no_model_are_one_sentence(
    tiny: TinyServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--host", "127.0.0.1:9", "--model", MODEL]) == 1
    assert "no KServe v2 gRPC server answers at 127.0.0.1:9" in capsys.readouterr().err
    assert main(["--host", tiny.address, "--model", "other"]) == 1
    complaint = capsys.readouterr().err
    assert "has no model 'other' to test: Request for unknown model: 'other'" in complaint
    assert complaint.count("\n") == 1
    assert main(["--host", tiny.address, "--model", MODEL, "--batch-size", "9"]) == 1
    assert "takes at most 8 rows" in capsys.readouterr().err


def test_ctrl_c_reports_what_was_measured_so_far(tmp_path: Path) -> None:
    under_way = threading.Event()

    def watched(number: int) -> None:
        if number == 50:
            under_way.set()

    # A shell's Ctrl-C goes to the whole process group; a runner may have left SIGINT ignored.
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from loadtest.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    with serving(TinyServer(script=watched)) as server:
        command = [sys.executable, "-c", program, "--host", server.address, "--model", MODEL]
        command += ["--metrics", NO_METRICS, "--duration", "50s", "--report-dir", str(tmp_path)]
        with subprocess.Popen(
            command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as run:
            try:
                assert under_way.wait(30)
            finally:
                os.killpg(run.pid, signal.SIGINT)
            printed, _ = run.communicate(timeout=30)
    assert run.returncode == 130, printed
    assert json.loads((tmp_path / "result.json").read_text())["requests"] >= 40
    assert b"Traceback" not in printed


def test_without_locust_the_command_says_what_to_install(tiny: TinyServer) -> None:
    program = (
        "import sys; sys.modules['locust'] = None\n"
        "from loadtest.cli import main; sys.exit(main(['--model', 'tiny']))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stderr.strip().endswith("pip install 'tidegate[loadtest]'")


@pytest.mark.parametrize("arguments", [[], ["--model", "m", "--users", "0"]])
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2


def test_durations_are_written_as_people_write_them() -> None:
    assert [duration_s(text) for text in ("15", "15s", "2m", "1h30m", "1m5s")] == [
        *(15, 15, 120, 5400, 65)
    ]
    for text in ("", "0s", "soon", "1.5s", "-3s"):
        with pytest.raises(Exception, match="is not a duration"):
            duration_s(text)


def locust(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless", *arguments]
    environment = {**os.environ, "LOADTEST_MODEL": MODEL}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=30)


def test_plain_locust_runs_the_same_user(tiny: TinyServer) -> None:
    run = locust("--host", tiny.address, "-u", "2", "-r", "2", "-t", "1s", "--stop-timeout", "5")
    assert run.returncode == 0, run.stderr
    assert f"ModelInfer {MODEL}" in run.stderr
    assert tiny.served > 10


def test_plain_locust_ends_at_once_if_it_cannot_start() -> None:
    run = locust("--host", "127.0.0.1:9", "-u", "1", "-t", "25s")
    assert run.returncode == 1
    assert "no KServe v2 gRPC server answers at 127.0.0.1:9" in run.stderr
    assert "Traceback" not in run.stderr
