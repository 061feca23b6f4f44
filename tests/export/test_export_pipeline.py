"""The whole way, in real processes, from a spec to a repository that a gateway serves."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnx.parser
import pytest
import tritonclient.grpc as triton

from export import machine, workshop
from export.cli import main
from export.errors import StepError
from export.steps import optimise
from tests.gateway.process import gateway

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "examples" / "digits" / "digits.toml"
ZOO = Path(__file__).with_name("zoo.py")

Snapshot = Callable[[Path], dict[str, bytes | None]]
FROM_A_FILE = """
def rows():
    here = __import__("pathlib").Path(__file__).parent
    return {"x": np.loadtxt(here / "rows.txt", dtype="float32", ndmin=2)}
"""
UNRUNNABLE = """
    <ir_version: 9, opset_import: ["": 20]>
    strange (float[n] x) => (float[n] y) { y = Nonesuch(x) }
"""


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work below the test's own folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(ROOT)


def test_a_measured_model_is_served_as_its_curve_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = tmp_path / "repository"
    spec = ROOT / "examples" / "zoo" / "dna_motif" / "dna_motif.toml"

    assert main([str(spec), "--repository", str(repository)]) == 0

    version = repository / "dna_motif" / "1"
    manifest = json.loads((version / "manifest.json").read_text())
    by_format = {each["format"]: each for each in manifest["candidates"]}
    assert by_format[manifest["format"]]["status"] == "chosen"
    assert by_format["tensorrt-fp16"]["status"] == "skipped"
    assert manifest["parity"]["real_samples"] == 256
    assert [point["batch"] for point in manifest["profile"]["curve"]][:3] == [1, 2, 4]
    assert manifest["memory_bytes"] == manifest["profile"]["resident_bytes"] > 0
    assert manifest["metric"]["value"] >= manifest["metric"]["reference"] - 0.01
    assert "<svg" in (version / "report.html").read_text()
    config = (repository / "dna_motif" / "config.pbtxt").read_text()
    assert "max_batch_size: 128\n" in config
    assert "model_warmup" in config
    assert main(["inspect", str(version)]) == 0
    assert "1 files are as published" in capsys.readouterr().out

    with gateway(repository) as running, triton.InferenceServerClient(running.url) as client:
        bases = triton.InferInput("bases", [1, 4, 100], "FP32")
        bases.set_data_from_numpy(np.zeros((1, 4, 100), "float32"))
        assert client.infer("dna_motif", [bases]).as_numpy("signal").shape == (1, 100)

    (version / "model.onnx").write_bytes(b"another")
    assert main(["verify", str(spec), str(version)]) == 4
    assert "not what was published: model.onnx" in capsys.readouterr().err


def test_a_published_version_is_verified_and_measured_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    published = ROOT / "model_repository" / "digits" / "1"

    assert main(["verify", str(DIGITS), str(published)]) == 0
    assert "computes what digits does" in capsys.readouterr().out
    assert main(["profile", str(published), "--max-batch-size", "4", "--json"]) == 0
    curve = json.loads(capsys.readouterr().out)["curve"]
    assert [point["batch"] for point in curve] == [1, 2, 4]
    assert all(0 < point["p50_ms"] <= point["p99_ms"] for point in curve)


def test_a_dry_run_publishes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    repository = tmp_path / "repository"

    flags = ["--repository", str(repository), "--dry-run", "--no-profile"]
    assert main([str(DIGITS), *flags]) == 0

    assert "would export digits version 1 as onnx-fp32" in capsys.readouterr().out
    assert not repository.exists()


def test_what_has_changed_is_done_again_and_the_rest_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model.py"
    model.write_text(ZOO.read_text())
    spec = tmp_path / "double.toml"
    text = """
name = "double"
model = "model.py:double"
max_batch_size = 8
inputs = [{ name = "x", dtype = "FP32", dims = [4] }]
outputs = [{ name = "y", dtype = "FP32", dims = [4] }]
"""
    spec.write_text(text)
    flags = [str(spec), "--repository", str(tmp_path / "r"), "--no-profile", "--resume"]

    def kept() -> set[str]:
        assert main(flags) == 0
        lines = capsys.readouterr().out.splitlines()
        return {line.split()[1] for line in lines if "  kept  " in line}

    assert kept() == set()
    assert kept() >= {"capture", "optimise", "verify"}
    model.write_text(ZOO.read_text().replace("torch.tensor(2.0)", "torch.tensor(4.0)"))
    assert kept() == set()  # other code, other weights, another file
    rows = tmp_path / "rows.txt"
    rows.write_text("1 2 3 4\n")
    model.write_text(model.read_text() + FROM_A_FILE)
    spec.write_text('samples = "model.py:rows"\n' + text)
    assert kept() == set()
    assert "capture" in kept()
    rows.write_text("5 6 7 8\n")
    assert "capture" not in kept()  # other data


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_export_leaves_nothing_behind(tmp_path: Path, number: int) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()
    command = [sys.executable, "-m", "gateway.cli", "export", str(DIGITS)]
    flags = ["--model", f"{ZOO}:slow", "--repository", str(repository)]
    with subprocess.Popen([*command, *flags], stdout=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 30
        while not (steps := list((tmp_path / "cache").rglob("log.txt"))):
            assert time.monotonic() < deadline
            time.sleep(0.05)  # until the step's process has begun
        time.sleep(0.5)
        process.send_signal(number)
        said, _ = process.communicate(timeout=20)

    assert process.returncode == 130
    assert "interrupted" in said
    assert list(repository.iterdir()) == []
    folder = str(steps[0].parent).encode()
    commands = [
        Path(f"/proc/{pid}/cmdline").read_bytes()
        for pid in os.listdir("/proc")
        if pid.isdecimal() and Path(f"/proc/{pid}/cmdline").exists()
    ]
    assert not any(folder in each for each in commands)  # the step has ended with it


def test_two_exports_of_one_model_do_not_share_a_folder(tmp_path: Path) -> None:
    parent = tmp_path / "work"
    with (
        workshop.opened("m", parent, resume=False, timeout_s=1) as first,
        workshop.opened("m", parent, resume=False, timeout_s=1) as second,
    ):
        assert first.folder == parent / "m"
        assert second.folder != first.folder
        other = second.folder
    assert not other.exists()


def test_a_full_disk_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = SimpleNamespace(free=0)
    monkeypatch.setattr("shutil.disk_usage", lambda path: full)
    onnx.save(onnx.parser.parse_model(UNRUNNABLE), tmp_path / "model.onnx")
    shop = workshop.Workshop(tmp_path, resume=False, timeout_s=30)

    with pytest.raises(StepError, match="no disk space is left in") as error:
        shop.run(optimise.Request(source=tmp_path), optimise.Report)

    assert "--work-dir" in error.value.advice


def test_what_another_machine_made_is_not_reused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source := tmp_path / "source").mkdir()
    relu = "g (float[n, 4] x) => (float[n, 4] y) { y = Relu(x) }"
    graph = f'<ir_version: 9, opset_import: ["" : 20]> {relu}'
    onnx.save(onnx.parser.parse_model(graph), source / "model.onnx")

    def reused() -> bool:
        shop = workshop.Workshop(tmp_path / "w", resume=True, timeout_s=60)
        return shop.run(optimise.Request(source=source), optimise.Report).reused

    assert [reused(), reused()] == [False, True]
    elsewhere = machine.facts().model_copy(update={"gpu": "GPU", "compute_capability": "8.9"})
    monkeypatch.setattr(machine, "facts", lambda: elsewhere)
    assert [reused(), reused()] == [False, True]
