"""The session cache: what it finds, what it makes, and what must never stop a load."""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import multiprocessing
import os
import shutil
import stat
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from gateway.engine import model_files, session_cache
from gateway.engine.session_cache import NotCached, SessionCache
from tests.gateway.onnx_models import heavy, identity, put
from tests.gateway.test_embedded import ask, engine_with, put_external, spec_of

LIMIT = 1 << 20


@pytest.fixture(autouse=True)
def _files_settle_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_cache, "SETTLED_NS", 0)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return model_file(tmp_path, "m")


def model_file(root: Path, name: str, content: bytes = b"a model") -> Path:
    folder = root / "models" / name
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(content)
    return folder / "model.onnx"


def cache_in(root: Path, max_bytes: int = LIMIT, runtime: str = "one") -> SessionCache:
    return SessionCache(root / "cache", max_bytes, runtime)


def writes(content: bytes = b"optimised", weights: int = 100) -> Callable[[Path], None]:
    """Return a build that writes so many bytes of weights."""

    def build(target: Path) -> None:
        target.write_bytes(content)
        target.with_name(session_cache.WEIGHTS).write_bytes(bytes(weights))

    return build


def never(target: Path) -> None:
    raise AssertionError("a copy was made though there is one")


def entries(root: Path) -> list[Path]:
    """Return the entries; fails where anything half-made is left."""
    found = [one for one in (root / "cache").iterdir() if one.name != "index"]
    assert not [one for one in found if one.name.startswith(".")]
    return found


def read(entry: Path) -> bytes:
    return entry.read_bytes()


def test_copy_is_found_once_it_is_made(tmp_path: Path, model: Path) -> None:
    cache = cache_in(tmp_path)
    assert cache.find(model, "", read) is None
    cache.store(model, "", writes())
    assert cache.find(model, "", read) == b"optimised"
    cache.store(model, "", never)
    # another process finds it, too
    assert cache_in(tmp_path).find(model, "", read) == b"optimised"


def test_model_hashed_before_is_not_read_again(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache_in(tmp_path).store(model, "", writes())
    monkeypatch.setattr(model_files, "digest", never)
    assert cache_in(tmp_path).find(model, "", read) == b"optimised"


def test_same_content_elsewhere_shares_the_entry(tmp_path: Path, model: Path) -> None:
    cache = cache_in(tmp_path)
    cache.store(model, "", writes())
    twin = model_file(tmp_path, "twin")
    cache.store(twin, "", never)
    assert cache.find(twin, "", read) == b"optimised"
    assert len(entries(tmp_path)) == 1


def test_other_options_runtime_or_content_never_share_an_entry(tmp_path: Path, model: Path) -> None:
    cache = cache_in(tmp_path)
    cache.store(model, "", writes())
    assert cache.find(model, "graph=2", read) is None
    assert cache_in(tmp_path, runtime="another processor").find(model, "", read) is None
    about = model.stat()
    model.write_bytes(b"A MODEL")  # of the same size, and with its old time put back
    os.utime(model, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert cache.find(model, "", read) is None
    cache.store(model, "", writes(b"another"))
    assert cache.find(model, "", read) == b"another"


def test_file_written_a_moment_ago_is_not_taken_for_known(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_cache, "SETTLED_NS", 3600 * 10**9)
    cache = cache_in(tmp_path)
    cache.store(model, "", writes())
    assert cache.find(model, "", read) is None
    cache.store(model, "", never)  # hashed anew: the content is the same


def test_model_that_changes_while_its_copy_is_made_gets_none(tmp_path: Path, model: Path) -> None:
    def build(target: Path) -> None:
        writes()(target)
        model.write_bytes(b"replaced")

    with pytest.raises(NotCached, match="changed while it was read"):
        cache_in(tmp_path).store(model, "", build)
    assert entries(tmp_path) == []


def test_reader_never_sees_half_an_entry(tmp_path: Path, model: Path) -> None:
    cache = cache_in(tmp_path)

    def build(target: Path) -> None:
        target.write_bytes(b"half")
        assert cache.find(model, "", read) is None
        writes()(target)

    cache.store(model, "", build)
    assert cache.find(model, "", read) == b"optimised"


def test_loser_of_a_race_throws_its_copy_away(tmp_path: Path, model: Path) -> None:
    cache = cache_in(tmp_path)

    def build(target: Path) -> None:
        cache.store(model, "", writes(b"winner"))
        writes(b"loser")(target)

    cache.store(model, "", build)
    assert cache.find(model, "", read) == b"winner"
    assert len(entries(tmp_path)) == 1


def test_processes_may_make_and_evict_the_same_entries_at_once(tmp_path: Path) -> None:
    models = [model_file(tmp_path, str(i), bytes([i])) for i in range(4)]
    context = multiprocessing.get_context("spawn")
    with context.Pool(3) as pool:
        found = pool.starmap(_open_all, [(tmp_path, models, seed) for seed in range(3)])
    assert all(found)
    assert len(entries(tmp_path)) <= 2


def _open_all(root: Path, models: list[Path], seed: int) -> bool:
    """Store and find models in some order, in a cache with room for two; were all right?"""
    session_cache.SETTLED_NS = 0
    cache = cache_in(root, max_bytes=2500)
    for i in np.random.default_rng(seed).integers(0, len(models), 60):
        cache.store(models[i], "", writes(bytes([i]) * 10, weights=1000))
        content = cache.find(models[i], "", read)
        # None: another process has evicted it at this moment
        if content not in (None, bytes([i]) * 10):
            return False
    return True


@pytest.mark.parametrize("harm", ["weights", "manifest", "refused"])
def test_corrupt_entry_is_removed_and_made_anew(
    tmp_path: Path, model: Path, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    cache = cache_in(tmp_path)
    cache.store(model, "", writes())
    (entry,) = entries(tmp_path)
    if harm == "weights":
        os.truncate(entry / session_cache.WEIGHTS, 50)
    if harm == "manifest":
        (entry / session_cache.MANIFEST).unlink()

    def refuse(entry: Path) -> bytes:
        raise RuntimeError("no protobuf")

    assert cache.find(model, "", refuse if harm == "refused" else read) is None
    assert "is unfit and removed" in caplog.text
    assert entries(tmp_path) == []
    cache.store(model, "", writes())
    assert cache.find(model, "", read) == b"optimised"


def test_model_whose_copies_never_open_gets_no_more_of_them(tmp_path: Path, model: Path) -> None:
    def refuse(entry: Path) -> bytes:
        raise RuntimeError("no protobuf")

    cache = cache_in(tmp_path)
    for _ in range(session_cache.MAX_UNFIT):
        cache.store(model, "", writes())
        assert cache.find(model, "", refuse) is None
    with pytest.raises(NotCached, match="cannot be opened"):
        cache.store(model, "", never)


def test_least_recently_used_is_evicted(tmp_path: Path) -> None:
    cache = cache_in(tmp_path, max_bytes=2500)
    a, b, c = (model_file(tmp_path, name, name.encode()) for name in "abc")
    cache.store(a, "", writes(weights=1000))
    cache.store(b, "", writes(weights=1000))
    for age, entry in enumerate(entries(tmp_path)):
        os.utime(entry, (time.time() - 10 - age,) * 2)
    assert cache.find(a, "", read) is not None
    cache.store(c, "", writes(weights=1000))
    assert cache.find(b, "", read) is None
    assert cache.find(a, "", read) is not None
    assert cache.find(c, "", read) is not None


def test_entry_that_is_being_opened_is_not_evicted(tmp_path: Path) -> None:
    cache = cache_in(tmp_path, max_bytes=1500)
    a, b = (model_file(tmp_path, name, name.encode()) for name in "ab")
    cache.store(a, "", writes(weights=1000))

    def read_slowly(entry: Path) -> bytes:
        cache_in(tmp_path, max_bytes=1500).store(b, "", writes(weights=1000))
        return read(entry)

    assert cache.find(a, "", read_slowly) == b"optimised"
    assert len(entries(tmp_path)) == 2


def test_entry_that_is_being_removed_is_not_opened(tmp_path: Path, model: Path) -> None:
    cache = cache_in(tmp_path)
    cache.store(model, "", writes())
    (entry,) = entries(tmp_path)
    held = os.open(entry, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert cache.find(model, "", read) is None
    finally:
        os.close(held)
    assert cache.find(model, "", read) == b"optimised"


def test_model_larger_than_the_cache_is_tried_once(tmp_path: Path, model: Path) -> None:
    cache = cache_in(tmp_path, max_bytes=50)
    with pytest.raises(NotCached, match="larger than the cache"):
        cache.store(model, "", writes(weights=1000))
    with pytest.raises(NotCached, match="larger than the cache"):
        cache.store(model, "", never)
    assert entries(tmp_path) == []


def test_what_killed_processes_left_is_removed(tmp_path: Path, model: Path) -> None:
    old, young = tmp_path / "cache" / ".draft-old", tmp_path / "cache" / ".draft-young"
    for left in (old, young):
        left.mkdir(parents=True)
    os.utime(old, (time.time() - 2 * session_cache.LEFT_OVER_S,) * 2)
    (tmp_path / "cache").chmod(0o700)
    cache_in(tmp_path).store(model, "", writes())
    assert not old.exists()
    assert young.exists()


def test_cache_folder_is_private(tmp_path: Path, model: Path) -> None:
    cache_in(tmp_path).store(model, "", writes())
    assert stat.S_IMODE((tmp_path / "cache").stat().st_mode) == 0o700


def test_folder_that_others_may_write_to_is_not_used(tmp_path: Path, model: Path) -> None:
    cache = cache_in(tmp_path)
    cache.store(model, "", writes())
    (tmp_path / "cache").chmod(0o770)
    with pytest.raises(NotCached, match="other users may write to it"):
        cache.find(model, "", read)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_folder_of_another_user_is_not_used(tmp_path: Path, model: Path) -> None:
    (tmp_path / "cache").mkdir(mode=0o700)
    os.chown(tmp_path / "cache", 12345, -1)
    with pytest.raises(NotCached, match="another user owns it"):
        cache_in(tmp_path).store(model, "", writes())


def test_index_that_is_not_one_is_written_anew(tmp_path: Path, model: Path) -> None:
    cache = cache_in(tmp_path)
    cache.store(model, "", writes())
    (note,) = (tmp_path / "cache" / "index").iterdir()
    for nonsense in ("", "[]", json.dumps({"files": 3, "digest": ""}), "\0"):
        note.write_text(nonsense)
        assert cache.find(model, "", read) is None
        cache.store(model, "", never)
        assert cache.find(model, "", read) == b"optimised"


# --- with the engine


def test_second_load_maps_a_copy_and_answers_the_same(tmp_path: Path) -> None:
    put(tmp_path / "repository", "m", heavy(8))
    spec = spec_of(tmp_path / "repository")
    x = np.random.default_rng(0).random((2, 1024), np.float32)

    async def story() -> None:
        async with engine_with(spec, tmp_path / "cache") as engine:
            plain = await ask(engine, spec, x=x)
            assert not _maps(tmp_path)
            await engine.stored()
            assert _maps(tmp_path), "the running model has not taken over the copy"
            np.testing.assert_array_equal(await ask(engine, spec, x=x), plain)
        assert not _maps(tmp_path)
        async with engine_with(spec, tmp_path / "cache") as engine:
            assert _maps(tmp_path)
            np.testing.assert_array_equal(await ask(engine, spec, x=x), plain)

    asyncio.run(story())


def test_open_session_outlives_its_entry(tmp_path: Path) -> None:
    put_external(tmp_path / "repository", "m", heavy(8))
    spec = spec_of(tmp_path / "repository")
    x = np.ones((1, 1024), np.float32)

    async def story() -> None:
        async with engine_with(spec, tmp_path / "cache") as engine:
            await engine.stored()
            before = await ask(engine, spec, x=x)
            for entry in entries(tmp_path):
                session_cache._remove(entry)
            assert entries(tmp_path) == []
            np.testing.assert_array_equal(await ask(engine, spec, x=x), before)

    asyncio.run(story())


def test_small_models_are_not_cached(tmp_path: Path) -> None:
    put(tmp_path / "repository", "m", identity())
    spec = spec_of(tmp_path / "repository")

    async def story() -> None:
        async with engine_with(spec, tmp_path / "cache") as engine:
            await engine.stored()

    asyncio.run(story())
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("fault", ["a file", "full", "corrupt"])
def test_useless_cache_never_stops_a_load_and_is_logged_once(
    tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path / "repository", "m", heavy(2))
    spec = spec_of(tmp_path / "repository")
    if fault == "a file":
        (tmp_path / "cache").write_bytes(b"")
    if fault == "full":
        usage = SimpleNamespace(free=1000)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)

    async def story() -> None:
        async with engine_with(spec, tmp_path / "cache") as engine:
            await engine.stored()
            if fault == "corrupt":
                (entry,) = entries(tmp_path)
                data = entry / session_cache.WEIGHTS
                data.unlink()
                (entry / session_cache.MODEL).write_bytes(b"nonsense")
            for _ in range(2):
                await engine.unload(spec.key)
                await engine.load(spec)
                x = np.ones((1, 1024), np.float32)
                assert (await ask(engine, spec, x=x)).shape == (1, 512)
                await engine.stored()

    asyncio.run(story())
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    said = {"a file": "Not a directory", "full": "the disk is full", "corrupt": "is unfit"}
    assert said[fault] in warnings[0] or "File exists" in warnings[0]


def _maps(root: Path) -> bool:
    """Whether this process maps weights of the cache in `root`."""
    return str(root / "cache") in Path("/proc/self/maps").read_text()
