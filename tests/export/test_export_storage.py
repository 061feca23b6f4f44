"""Publishing into object storage: a real S3 server, and a real gateway behind it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton

from export import publish_remote
from export.cli import main
from export.errors import PublishError
from export.publish import PublishReport
from tests.gateway.process import eventually, gateway
from tests.object_storage import Storage

ROOT = Path(__file__).parents[2]


@pytest.fixture
def built(tmp_path: Path) -> list[Path]:
    """The files of a version, weights beside the graph."""
    files = [tmp_path / "model.onnx", tmp_path / "model.onnx.data"]
    for file in files:
        file.write_bytes(file.name.encode())
    return files


def put(
    built: list[Path], storage: Storage, config: bytes = b"config", **more: Any
) -> PublishReport:
    return publish_remote.publish(
        built,
        {"config.pbtxt": config, "warmup/x": b"row"},
        storage.url,
        "m",
        **{
            "changes": lambda old, new: [],
            "described": lambda version: {"manifest.json": b"version %d" % version},
            **more,
        },
    )


def content(storage: Storage) -> dict[str, bytes]:
    storage.fs.invalidate_cache()
    root = f"{storage.bucket}/served/"
    return {path.removeprefix(root): storage.fs.cat_file(path) for path in storage.fs.find(root)}


def test_versions_follow_each_other_and_overwrite_nothing(
    built: list[Path], storage: Storage
) -> None:
    first = put(built, storage)
    second = put(built, storage, config=b"other")

    assert (first.version, second.version, second.kept) == (1, 2, ("config.pbtxt",))
    assert content(storage) == {
        "m/config.pbtxt": b"config",
        "m/warmup/x": b"row",
        **{f"m/{n}/manifest.json": b"version %d" % n for n in (1, 2)},
        **{f"m/{n}/{file.name}": file.name.encode() for n in (1, 2) for file in built},
    }
    assert put(built, storage, config=b"other", replace_config=True).kept == ()
    assert content(storage)["m/config.pbtxt"] == b"other"


def test_what_fails_half_way_is_removed(built: list[Path], storage: Storage) -> None:
    put(built, storage)
    before = content(storage)

    with pytest.raises(PublishError, match="cannot publish into"):
        put([*built, Path("nowhere.onnx")], storage, config=b"other", replace_config=True)
    with pytest.raises(PublishError, match="another interface"):
        put(built, storage, changes=lambda old, new: ["x is, would become"])

    assert content(storage) == before


def test_a_version_that_another_export_takes_meanwhile_is_left_to_it(
    built: list[Path], storage: Storage
) -> None:
    others = iter([1])

    def described(version: int) -> dict[str, bytes]:
        if next(others, None):  # somebody else is quicker, once
            storage.put("m/1/manifest.json", "theirs")
        return {"manifest.json": b"ours"}

    assert put(built, storage, described=described).version == 2
    assert content(storage)["m/1/manifest.json"] == b"theirs"


def test_a_storage_that_does_not_answer_is_an_error(built: list[Path], storage: Storage) -> None:
    storage.stop()

    with pytest.raises(PublishError, match="cannot publish into s3://"):
        put(built, storage)


def test_an_exported_model_is_served_from_storage(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    spec = ROOT / "examples" / "digits" / "digits.toml"

    assert main([str(spec), "--repository", storage.url, "--no-profile"]) == 0

    assert json.loads(content(storage)["digits/1/manifest.json"])["format"] == "onnx-fp32"
    keep = ("--repository-cache-dir", str(tmp_path / "kept"))
    with (
        gateway(None, "--repository", storage.url, *keep) as running,
        triton.InferenceServerClient(running.url) as client,
    ):
        eventually(lambda: client.is_model_ready("digits"))
        image = triton.InferInput("image", [1, 1, 8, 8], "FP32")
        image.set_data_from_numpy(np.zeros((1, 1, 8, 8), "float32"))
        assert client.infer("digits", [image]).as_numpy("logits").shape == (1, 10)
