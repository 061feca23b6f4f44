import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from export.errors import PublishError
from export.publish import PublishReport, publish

Snapshot = Callable[[Path], dict[str, bytes | None]]


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """A version folder, ready to publish."""
    folder = tmp_path / "built"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"graph")
    (folder / "model.onnx.data").write_bytes(b"weights")
    return folder


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "repository"


def put(
    built: Path,
    repository: Path,
    config: bytes = b"config",
    changes: list[str] | None = None,
    replace_config: bool = False,
) -> PublishReport:
    return publish(
        built.iterdir(),
        {"config.pbtxt": config, "labels.txt": b"labels of " + config},
        repository,
        "m",
        changes=lambda old, new: changes or [],
        replace_config=replace_config,
    )


def test_a_new_model_appears_whole(built: Path, repository: Path, snapshot: Snapshot) -> None:
    report = put(built, repository)

    assert report == PublishReport(repository / "m" / "1", 1, ())
    assert snapshot(repository) == {
        "m": None,
        "m/1": None,
        "m/1/model.onnx": b"graph",
        "m/1/model.onnx.data": b"weights",
        "m/config.pbtxt": b"config",
        "m/labels.txt": b"labels of config",
    }


def test_the_next_version_follows_the_highest_and_overwrites_nothing(
    built: Path, repository: Path, snapshot: Snapshot
) -> None:
    put(built, repository)
    (repository / "m" / "7").mkdir()
    (repository / "m" / "notes").mkdir()
    (repository / "m" / "1" / "model.onnx").write_bytes(b"the first")
    before = snapshot(repository)

    assert put(built, repository).version == 8

    after = snapshot(repository)
    assert before.items() <= after.items()
    assert after.keys() - before.keys() == {"m/8", "m/8/model.onnx", "m/8/model.onnx.data"}


def test_concurrent_exports_each_get_a_version_of_their_own(
    built: Path, repository: Path, snapshot: Snapshot
) -> None:
    count = 8
    together = threading.Barrier(count)

    def export(_: int) -> int:
        together.wait()
        return put(built, repository).version

    with ThreadPoolExecutor(count) as pool:
        versions = list(pool.map(export, range(count)))

    assert sorted(versions) == list(range(1, count + 1))
    assert {path.name for path in repository.iterdir()} == {"m"}
    for version in versions:
        assert (repository / "m" / str(version) / "model.onnx.data").read_bytes() == b"weights"


def test_what_an_operator_wrote_into_the_config_is_kept(built: Path, repository: Path) -> None:
    put(built, repository)
    (repository / "m" / "config.pbtxt").write_bytes(b"tuned")
    (repository / "m" / "labels.txt").unlink()

    report = put(built, repository)

    assert report.kept == ("config.pbtxt",)
    assert "kept the model's own config.pbtxt" in report.summary()
    assert (repository / "m" / "config.pbtxt").read_bytes() == b"tuned"
    assert (repository / "m" / "labels.txt").read_bytes() == b"labels of config"


def test_the_config_is_replaced_when_asked(built: Path, repository: Path) -> None:
    put(built, repository)

    report = put(built, repository, config=b"new", replace_config=True)

    assert report.kept == ()
    assert (repository / "m" / "config.pbtxt").read_bytes() == b"new"
    assert (repository / "m" / "labels.txt").read_bytes() == b"labels of new"


def test_another_interface_is_refused_and_leaves_the_repository_untouched(
    built: Path, repository: Path, snapshot: Snapshot
) -> None:
    put(built, repository)
    before = snapshot(repository)

    with pytest.raises(PublishError, match=r"'m' exists with another interface.*x is, would"):
        put(built, repository, config=b"new", changes=["x is, would become"], replace_config=True)

    assert snapshot(repository) == before


def test_a_failed_rename_puts_the_old_config_back(
    built: Path, repository: Path, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(built, repository)
    (repository / "m" / "labels.txt").unlink()
    before = snapshot(repository)

    def no_space(source: Path, target: Path) -> bool:
        if target.name.isdecimal():
            raise OSError(28, "No space left on device")
        return False

    monkeypatch.setattr("export.publish._renamed", no_space)
    with pytest.raises(PublishError, match="No space left on device"):
        put(built, repository, config=b"new", replace_config=True)

    assert snapshot(repository) == before


def test_a_file_where_the_model_would_be_is_no_model(
    built: Path, repository: Path, snapshot: Snapshot
) -> None:
    repository.mkdir(parents=True)
    (repository / "m").write_text("a file")
    before = snapshot(repository)

    with pytest.raises(PublishError, match="cannot publish into"):
        put(built, repository)

    assert snapshot(repository) == before


def test_a_repository_that_a_failed_publish_created_is_gone_again(
    repository: Path, tmp_path: Path
) -> None:
    with pytest.raises(PublishError, match="cannot publish into"):
        put(tmp_path / "not built", repository)

    assert not repository.exists()
