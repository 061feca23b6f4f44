"""The main job, end to end: export, serve, call, load-test, sleep. `make demo` runs it.

Every figure comes from the running system.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tritonclient.grpc as triton
from prometheus_client.parser import text_string_to_metric_families

from examples.digits.data import held_out

Array = npt.NDArray[Any]

HERE = Path(__file__).parent
OUTPUT = Path("demo-report")
REPOSITORY = OUTPUT / "model_repository"
IDLE_S = 4
LOAD_S = 15
LEAST_ACCURACY = 0.98


def main() -> None:
    """Run every step; exit 1 at the first one that fails."""
    shutil.rmtree(OUTPUT, ignore_errors=True)
    OUTPUT.mkdir()
    export()
    with gateway() as (url, http), triton.InferenceServerClient(url) as client:
        call_cold_and_warm(client)
        measure_accuracy(client)
        load_test(url, http)
        sleep_when_idle(client, http)
    say("report", f"{OUTPUT / 'loadtest' / 'report.html'} (and result.json beside it)")


def say(step: str, text: str) -> None:
    """Print one step's line."""
    print(f"{step:<10} {text}", flush=True)


def export() -> None:
    """Export the trained digits model into a repository of the demo's own."""
    started = time.perf_counter()
    spec = HERE / "digits.toml"
    tidegate("export", str(spec), "--repository", str(REPOSITORY), log="export.log")
    took = time.perf_counter() - started
    size = (REPOSITORY / "digits" / "1" / "model.onnx").stat().st_size
    say("export", f"digits version 1, {size / 1e3:.0f} kB, verified, in {took:.1f} s")


def tidegate(*arguments: str, log: str) -> None:
    """Run a tidegate command; on failure show what it printed and exit."""
    file = OUTPUT / log
    with file.open("w") as output:
        command = [sys.executable, "-m", "gateway.cli", *arguments]
        code = subprocess.run(command, stdout=output, stderr=output, check=False).returncode
    if code != 0:
        sys.exit(f"tidegate {' '.join(arguments)} failed:\n{file.read_text()}")


@contextmanager
def gateway() -> Iterator[tuple[str, str]]:
    """Start `tidegate serve` on free ports; yield its gRPC address and its HTTP URL."""
    log = OUTPUT / "gateway.log"
    started = time.perf_counter()
    with log.open("w") as output:
        command = [sys.executable, "-m", "gateway.cli", "serve", "--port", "0", "--http-port", "0"]
        command += ["--repository", str(REPOSITORY), "--idle-timeout-s", str(IDLE_S)]
        process = subprocess.Popen(command, stderr=output)
    try:
        while not (found := re.search(r"gRPC on (\S+), HTTP on (\S+)", log.read_text())):
            if process.poll() is not None or time.perf_counter() - started > 60:
                sys.exit(f"the gateway did not start:\n{log.read_text()}")
            time.sleep(0.05)
        say("serve", f"gRPC on {found[1]} after {time.perf_counter() - started:.1f} s, model cold")
        yield found[1], f"http://{found[2]}"
        process.terminate()
        if (code := process.wait(timeout=60)) != 0:
            sys.exit(f"the gateway ended with exit code {code}:\n{log.read_text()}")
        say("stop", "SIGTERM, drained, exit code 0")
    finally:
        if process.poll() is None:
            process.kill()


def classify(client: triton.InferenceServerClient, images: Array) -> Array:
    """Return the class of each image. float32 [n, 1, 8, 8] -> int64 [n], n <= 64."""
    image = triton.InferInput("image", list(images.shape), "FP32")
    image.set_data_from_numpy(images)
    logits: Array = client.infer("digits", [image]).as_numpy("logits")
    classes: Array = logits.argmax(axis=1)
    return classes


def call_cold_and_warm(client: triton.InferenceServerClient) -> None:
    """Call once while the model is on disk, then while it is in memory."""
    images, _ = held_out()

    def call_ms() -> float:
        started = time.perf_counter()
        classify(client, images[:1])
        return (time.perf_counter() - started) * 1e3

    client.is_server_live()  # connects, so that the cold call is not the connection's
    cold = call_ms()
    warm = float(np.median([call_ms() for _ in range(100)]))
    say("call", f"cold {cold:.1f} ms (loads the model), warm {warm:.2f} ms (median of 100)")


def measure_accuracy(client: triton.InferenceServerClient) -> None:
    """Classify every held-out digit through gRPC."""
    images, labels = held_out()
    right = sum(
        int((classify(client, images[at : at + 64]) == labels[at : at + 64]).sum())
        for at in range(0, len(images), 64)
    )
    accuracy = right / len(images)
    say("accuracy", f"{accuracy:.2%} on {len(images)} held-out digits through gRPC")
    if accuracy < LEAST_ACCURACY:
        sys.exit(f"that is less than {LEAST_ACCURACY:.0%}")


def load_test(url: str, http: str) -> None:
    """Let 32 Locust users call the model, one image a request."""
    tidegate(
        *("loadtest", "--model", "digits", "--users", "32", "--duration", f"{LOAD_S}s"),
        *("--host", url, "--metrics", f"{http}/metrics"),
        *("--report-dir", str(OUTPUT / "loadtest")),
        log="loadtest.log",
    )
    result = json.loads((OUTPUT / "loadtest" / "result.json").read_text())
    latency = result["latency_ms"]
    say(
        "load test",
        f"{result['requests_per_s']:,.0f} requests/s for {LOAD_S} s, p50 {latency['p50']:.1f} ms, "
        f"p95 {latency['p95']:.1f} ms, p99 {latency['p99']:.1f} ms, {result['failures']} errors, "
        f"mean batch {result['mean_batch_rows']:.1f}",
    )


def sleep_when_idle(client: triton.InferenceServerClient, http: str) -> None:
    """Wait until the idle model is unloaded; compare the gateway's memory."""
    before = resident_bytes(http)
    started = time.perf_counter()
    while client.get_model_repository_index().models[0].state != "UNAVAILABLE":
        if time.perf_counter() - started > IDLE_S + 30:
            sys.exit("the idle model was not unloaded")
        time.sleep(0.1)
    waited = time.perf_counter() - started
    after = resident_bytes(http)
    say(
        "sleep",
        f"unloaded after {waited:.1f} s without a request; gateway memory {before / 1e6:.1f} MB "
        f"-> {after / 1e6:.1f} MB (the model is small; `make test` sees 200 MB come back)",
    )


def resident_bytes(http: str) -> float:
    """Return the gateway's resident memory, from its own metrics."""
    with urllib.request.urlopen(f"{http}/metrics", timeout=10) as response:
        text = response.read().decode()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "process_resident_memory_bytes":
                return sample.value
    raise AssertionError("the gateway publishes no process_resident_memory_bytes: this is a bug")


if __name__ == "__main__":
    main()
