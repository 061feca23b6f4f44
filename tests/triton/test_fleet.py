"""Two real Triton servers behind one gateway: one may die, and nobody notices."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from tests.gateway.onnx_models import identity, put
from tests.gateway.process import eventually, gateway
from tests.triton.server import running

pytestmark = pytest.mark.usefixtures("real_triton")

ONE = "instance_group { count: 1 kind: KIND_CPU }\nmax_batch_size: 8\ndynamic_batching {}\n"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    put(tmp_path, "m", identity(), ONE)
    return tmp_path


def ask(
    client: triton.InferenceServerClient, value: float, timeout_s: float = 30.0, model: str = "m"
) -> float:
    x = triton.InferInput("x", [1, 3], "FP32")
    x.set_data_from_numpy(np.full((1, 3), value, np.float32))
    return float(client.infer(model, [x], client_timeout=timeout_s).as_numpy("y")[0, 0])


class Crowd:
    """Threads that ask, each its own numbers, until told to stop; what went wrong is kept."""

    def __init__(self, url: str, size: int) -> None:
        self.wrong: list[str] = []
        self.answered = 0
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(url, index)) for index in range(size)
        ]

    def __enter__(self) -> Crowd:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, url: str, index: int) -> None:
        with triton.InferenceServerClient(url) as client:
            value = float(index)
            while not self._over.is_set():
                value += 1000.0
                try:
                    if ask(client, value) != value:
                        self.wrong.append("another's answer")
                    self.answered += 1
                except InferenceServerException as error:
                    self.wrong.append(str(error))


def test_nobody_notices_that_one_of_two_tritons_was_killed(repository: Path) -> None:
    with (
        running(repository) as first,
        running(repository) as second,
        gateway(repository, "--triton", f"{first.address},{second.address}") as served,
        Crowd(served.url, 64) as crowd,
    ):
        eventually(lambda: crowd.answered > 500)
        holder = next(
            each
            for each in (first, second)
            if triton.InferenceServerClient(each.address).is_model_ready("m")
        )
        os.kill(holder.pid, signal.SIGKILL)
        before = crowd.answered
        eventually(lambda: crowd.answered > before + 500)
    assert crowd.wrong == []


def test_requests_wait_for_the_only_triton_or_are_refused_at_their_deadlines(
    repository: Path,
) -> None:
    with (
        running(repository) as server,
        gateway(repository, "--triton", server.address) as served,
        triton.InferenceServerClient(served.url) as client,
    ):
        assert ask(client, 1.0) == 1.0
        os.kill(server.pid, signal.SIGSTOP)
        try:
            with pytest.raises(InferenceServerException, match=r"(?i)deadline"):
                ask(client, 2.0, timeout_s=1.0)
        finally:
            os.kill(server.pid, signal.SIGCONT)
        assert ask(client, 3.0) == 3.0
        with suppress(ProcessLookupError):
            os.kill(server.pid, signal.SIGKILL)
        with pytest.raises(InferenceServerException, match=r"(?i)deadline"):
            ask(client, 4.0, timeout_s=1.0)


def test_nobody_fails_where_one_of_two_tritons_stops_to_answer(repository: Path) -> None:
    with (
        running(repository) as first,
        running(repository) as second,
        gateway(repository, "--triton", f"{first.address},{second.address}") as served,
        triton.InferenceServerClient(first.address) as one,
        triton.InferenceServerClient(second.address) as other,
        Crowd(served.url, 8) as crowd,
    ):
        eventually(lambda: crowd.answered > 100)
        stalled, holder = (first, one) if one.is_model_ready("m") else (second, other)
        os.kill(stalled.pid, signal.SIGSTOP)
        try:
            before = crowd.answered
            eventually(lambda: crowd.answered > before + 100)
            assert served.metric("tidegate_engine_up", engine=stalled.address) == 0
        finally:
            os.kill(stalled.pid, signal.SIGCONT)
        eventually(lambda: served.metric("tidegate_engine_up", engine=stalled.address) == 1)
        # what it was not told while it was away
        assert not holder.is_model_ready("m")
    assert crowd.wrong == []


def test_models_of_tritons_with_repositories_of_their_own_run_where_they_are(
    tmp_path: Path,
) -> None:
    for name, models in (("first", ("a", "both")), ("second", ("b", "both"))):
        for model in models:
            put(tmp_path / name, model, identity(), ONE)
    with (
        running(tmp_path / "first") as first,
        running(tmp_path / "second") as second,
        gateway(
            None,
            *("--triton", f"{first.address},127.0.0.1:1,{second.address}"),
            "--allow-repository-control",
        ) as served,
        triton.InferenceServerClient(served.url) as client,
    ):
        index = client.get_model_repository_index()
        assert [model.name for model in index.models] == ["a", "b", "both"]
        for model in ("a", "b", "both"):
            assert ask(client, 1.0, model=model) == 1.0
        for model, server in (("a", first), ("b", second)):
            with triton.InferenceServerClient(server.address) as bare:
                assert bare.is_model_ready(model)
        put(tmp_path / "second", "new", identity(), ONE)
        client.load_model("new")
        assert ask(client, 2.0, model="new") == 2.0
