"""Repositories in object storage: a real gateway, and a real S3 server on this machine."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from gateway.errors import RepositoryError, StartError
from gateway.repository.mirror import Mirror
from gateway.repository.reader import read_model
from tests.gateway.onnx_models import plus
from tests.gateway.process import Gateway, eventually, gateway, run_to_end
from tests.object_storage import Storage
from tests.triton.server import why_not

CONFIG = """platform: "onnxruntime_onnx"
max_batch_size: 4
input [ { name: "x" data_type: TYPE_FP32 dims: [ 3 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 3 ] } ]
instance_group [ { count: 1 kind: KIND_CPU } ]
"""


def put_model(
    storage: Storage, name: str, constant: float, version: int = 1, config: str = CONFIG
) -> None:
    if config:
        storage.put(f"{name}/config.pbtxt", config)
    storage.put(f"{name}/{version}/model.onnx", plus(constant))


@contextmanager
def served(storage: Storage, cache: Path, *flags: str) -> Iterator[Gateway]:
    keep = ("--repository-cache-dir", str(cache), "--allow-repository-control")
    with gateway(None, "--repository", storage.url, *keep, *flags) as running:
        yield running


def ask(running: Gateway, model: str = "m") -> float:
    x = triton.InferInput("x", [1, 3], "FP32")
    x.set_data_from_numpy(np.zeros((1, 3), np.float32))
    with triton.InferenceServerClient(running.url) as client:
        return float(client.infer(model, [x], client_timeout=20).as_numpy("y")[0, 0])


def mirror(storage: Storage, cache: Path, max_bytes: int = 10**9) -> Mirror:
    made = Mirror(storage.url, cache, max_bytes)
    made.open()
    return made


def test_weights_come_with_the_first_load_and_stay(storage: Storage, tmp_path: Path) -> None:
    put_model(storage, "m", 5.0)
    put_model(storage, "other", 6.0)
    with served(storage, tmp_path / "cache") as running:
        assert storage.fetches("m/1/model.onnx") == 0
        assert ask(running) == 5.0
        assert (storage.fetches("m/1/model.onnx"), storage.fetches("other/1/model.onnx")) == (1, 0)
        assert running.metric("tidegate_cold_start_seconds_count", phase="fetch") == 1
        assert running.metric("tidegate_cold_start_seconds_sum", phase="fetch") > 0
    storage.stop()  # what is here is served without it
    with served(storage, tmp_path / "cache") as running:
        assert ask(running) == 5.0
        with pytest.raises(InferenceServerException, match="cannot fetch 'other/1/model"):
            ask(running, "other")


def test_a_model_that_is_described_by_its_file_is_served(storage: Storage, tmp_path: Path) -> None:
    put_model(storage, "m", 5.0, config="")
    with served(storage, tmp_path / "cache") as running:
        assert ask(running) == 5.0


def test_new_models_and_versions_are_taken_up_and_deleted_ones_leave(
    storage: Storage, tmp_path: Path
) -> None:
    put_model(storage, "m", 5.0)
    with served(storage, tmp_path / "cache", "--repository-refresh-s", "0.2") as running:
        assert ask(running) == 5.0
        put_model(storage, "m", 7.0, version=2)
        eventually(lambda: ask(running) == 7.0)  # none of these fails
        put_model(storage, "new", 8.0)
        with triton.InferenceServerClient(running.url) as client:
            client.load_model("new")
            assert ask(running, "new") == 8.0
            storage.fs.rm(f"{storage.bucket}/served/new", recursive=True)
            eventually(lambda: "new" not in str(client.get_model_repository_index()))
            with pytest.raises(InferenceServerException, match="'new' is not found"):
                ask(running, "new")


def test_a_manifest_says_before_the_first_load_what_a_version_takes(
    storage: Storage, tmp_path: Path
) -> None:
    put_model(storage, "m", 5.0)
    storage.put("m/1/manifest.json", '{"memory_bytes": 123456789}')
    held = mirror(storage, tmp_path)
    (version,) = read_model(held.folder, "m").versions
    assert version.placement.memory_bytes == 123456789
    storage.put("m/1/manifest.json", '{"memory_bytes": "much"}')
    assert held.sync() == {"m"}
    assert "manifest.json: 'memory_bytes' is no number" in read_model(held.folder, "m").error


def test_damaged_weights_are_fetched_anew(storage: Storage, tmp_path: Path) -> None:
    put_model(storage, "m", 5.0)
    first = mirror(storage, tmp_path)
    assert first.fetch("m/1") > 0
    assert first.fetch("m/1") == 0
    file = first.folder / "m" / "1" / "model.onnx"
    whole, stat = file.read_bytes(), file.stat()
    for again in (first, mirror(storage, tmp_path)):
        file.write_bytes(b"?" * len(whole))
        os.utime(file, ns=(stat.st_mtime_ns, stat.st_mtime_ns))
        assert again.fetch("m/1") == len(whole)
        assert file.read_bytes() == whole


def test_the_cache_is_bounded_and_keeps_what_was_fetched_last(
    storage: Storage, tmp_path: Path
) -> None:
    for name in ("a", "b", "c"):
        put_model(storage, name, 1.0)
    size = len(plus(1.0))
    held = mirror(storage, tmp_path, 2 * size)

    def here() -> set[str]:
        files = held.folder.glob("*/1/model.onnx")
        return {file.parts[-3] for file in files if file.stat().st_blocks}

    for name, kept in (("a", "a"), ("b", "ab"), ("a", "ab"), ("c", "ac")):
        held.fetch(f"{name}/1")
        assert here() == set(kept)
        time.sleep(0.01)
    for name in ("a", "b", "c"):  # holes say how large they are
        assert (held.folder / name / "1" / "model.onnx").stat().st_size == size
    assert mirror(storage, tmp_path, 2 * size).fetch("c/1") == 0


def test_a_new_version_counts_once_it_has_been_found_twice_alike(
    storage: Storage, tmp_path: Path
) -> None:
    put_model(storage, "m", 5.0)
    held = mirror(storage, tmp_path)
    storage.put("m/2/model.onnx", b"half")
    assert held.sync() == set()
    storage.put("m/2/model.onnx", plus(7.0))
    assert held.sync() == set()
    assert held.sync() == {"m"}
    assert held.sync() == set()


def test_a_version_that_changes_while_it_is_fetched_is_not_taken(
    storage: Storage, tmp_path: Path
) -> None:
    put_model(storage, "m", 5.0)
    held = mirror(storage, tmp_path)
    storage.put("m/1/model.onnx", plus(5.0) + b"more")
    with pytest.raises(RepositoryError, match="it is changing"):
        held.fetch("m/1")
    assert held.sync() == {"m"}
    assert held.fetch("m/1") > 0


def test_names_that_lead_out_of_the_folder_are_left_alone(storage: Storage, tmp_path: Path) -> None:
    put_model(storage, "m", 5.0)
    storage.put("m/../../out", b"?")
    storage.put("m/1/.hidden", b"?")
    held = mirror(storage, tmp_path)
    found = {file.name for file in tmp_path.rglob("*") if file.is_file()}
    assert found == {"config.pbtxt", "model.onnx", "state.json"}
    assert held.fetch("m/1") > 0


def test_a_gateway_does_not_start_without_its_storage(storage: Storage, tmp_path: Path) -> None:
    code, said = run_to_end(
        tmp_path, "--repository", "s3://nowhere/x", "--repository-cache-dir", str(tmp_path)
    )
    assert (code, "cannot read s3://nowhere/x" in said) == (1, True)
    with pytest.raises(StartError, match="odd://x"):
        Mirror("odd://x", tmp_path, 0)


@pytest.mark.skipif(bool(why_not()), reason=why_not() or "there is one")
def test_a_triton_of_our_own_serves_it_too(storage: Storage, tmp_path: Path) -> None:
    put_model(storage, "m", 5.0)
    with served(storage, tmp_path / "cache", "--spawn-triton", "1") as running:
        assert ask(running) == 5.0
        assert running.stop() == 0
