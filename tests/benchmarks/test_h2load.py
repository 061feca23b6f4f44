"""How benchmarks/ reads h2load, without h2load being installed."""

from pathlib import Path

import pytest

from benchmarks import compare, h2load
from benchmarks.h2load import Counts, H2loadError, Load, Target

SUMMARY = """\
starting benchmark...
spawning thread #0: 8 total client(s). Timing-based test with 0s of warm-up time and 2s of main \
duration for measurements.
Main benchmark duration is over for thread #0. Stopping all clients.
Stopped all clients for thread #0

finished in 2.02s, 8464.00 req/s, 1.06MB/s
requests: 16928 total, 16992 started, 16928 done, 16928 succeeded, 0 failed, 0 errored, 0 timeout
status codes: 16928 2xx, 0 3xx, 0 4xx, 0 5xx
traffic: 2.11MB (2217553) total, 85.13KB (87171) headers (space savings 96.27%), 2.15MB data
                     min         max         mean         sd        +/- sd
time for request:      263us    195.61ms      7.48ms     15.93ms    99.24%
"""


def test_the_summary_counts_what_was_answered() -> None:
    assert h2load.parse_summary(SUMMARY) == Counts(ok=16928, failed=0)


def test_broken_streams_are_failures() -> None:
    broken = SUMMARY.replace(
        "16928 succeeded, 0 failed, 0 errored", "16900 succeeded, 28 failed, 28 errored"
    ).replace("16928 2xx", "16900 2xx")
    assert h2load.parse_summary(broken) == Counts(ok=16900, failed=28)


@pytest.mark.parametrize("text", ["", "starting benchmark...\n", SUMMARY.partition("status")[0]])
def test_a_run_without_summary_is_an_error(text: str) -> None:
    with pytest.raises(H2loadError, match="wrote no summary"):
        h2load.parse_summary(text)


def test_the_log_gives_every_latency_and_the_time_between_first_start_and_last_end() -> None:
    lines = [
        "1795392140213262\t200\t141",
        "1795392140213000\t200\t1000",
        "1795392140214000\t-1\t99999",
        "1795392141212500\t200\t500",
    ]
    elapsed_s, latencies = h2load.parse_log(lines)
    assert elapsed_s == pytest.approx(1.0)
    assert latencies == pytest.approx([0.000141, 0.0005, 0.001])
    with pytest.raises(H2loadError, match="no answered call"):
        h2load.parse_log(["1795392140214000\t-1\t99999"])


def test_percentiles_are_nearest_rank() -> None:
    values = [float(n) for n in range(1, 101)]
    assert h2load.nearest_rank(values, 0.50) == 50.0
    assert h2load.nearest_rank(values, 0.99) == 99.0
    assert h2load.nearest_rank([7.0], 0.99) == 7.0


def test_a_message_is_framed_as_grpc_does() -> None:
    assert h2load.framed(b"abc") == b"\x00\x00\x00\x00\x03abc"


def test_64_at_once_are_8_connections_of_8_streams_in_grpc_and_64_connections_in_http_1() -> None:
    load = Load(8, 8)
    line = h2load.command(Target.infer("127.0.0.1:1", Path("body")), load, 3.0, None)
    assert " ".join(line).startswith("h2load -t 1 -c 8 -m 8 -D 3 ")
    assert line[-1] == "http://127.0.0.1:1/inference.GRPCInferenceService/ModelInfer"
    json_target = Target("http://127.0.0.1:1/predict", Path("body"), grpc=False)
    line = h2load.command(json_target, load, 3.0, None)
    assert " ".join(line).startswith("h2load -t 1 --h1 -c 64 -D 3 -H content-type: app")


def test_without_h2load_the_benchmark_names_the_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert compare.main(["--quick"]) == 1
    assert "apt install nghttp2-client" in capsys.readouterr().err
