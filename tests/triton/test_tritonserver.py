"""The real tritonserver of `make triton`: it starts, serves ONNX models, and leaves nothing."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from onnx import TensorProto, helper, numpy_helper

from gateway.engine import tritonserver
from gateway.engine.process import TritonProcess
from gateway.errors import StartError
from tests.gateway.onnx_models import _model, add_and_multiply, identity, put
from tests.gateway.process import eventually
from tests.triton.server import ENV, running

pytestmark = pytest.mark.usefixtures("real_triton")

BATCHING = "max_batch_size: 8\ndynamic_batching { max_queue_delay_microseconds: 200000 }\n"
ONE = "instance_group { count: 1 kind: KIND_CPU }\n"


THREADS = 'parameters { key: "intra_op_thread_count" value { string_value: "two" } }\n'
RESHAPED = """max_batch_size: 4
input { name: "x" data_type: TYPE_FP32 dims: [1, -1] reshape { shape: [-1] } }
output { name: "y" data_type: TYPE_FP32 dims: [1, -1] reshape { shape: [-1] } }
"""
FIVE_WIDE = """max_batch_size: 4
input { name: "x" data_type: TYPE_FP32 dims: 5 }
output { name: "y" data_type: TYPE_FP32 dims: 3 }
"""


def rows_of_its_own() -> bytes:
    """`y` [m, 1] has a row for each element of `x` [n, 3]."""
    return _model(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["m", 1])],
        [numpy_helper.from_array(np.array([-1, 1], np.int64), "shape")],
    )


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[triton.InferenceServerClient]:
    root = tmp_path_factory.mktemp("repository")
    put(root, "two", add_and_multiply())
    put(root, "text", identity("BYTES"), ONE)
    put(root, "half", identity("FP16"), ONE)
    put(root, "batching", identity(), BATCHING + ONE)
    put(root, "reshaped", identity(dims=("n", "k")), RESHAPED + ONE)
    put(root, "scalars", identity(dims=("n",)), ONE)
    put(root, "own_rows", rows_of_its_own(), ONE)
    put(root, "truncated", identity()[:40])
    put(root, "too_wide", identity(), FIVE_WIDE)
    put(root, "threads", identity(), THREADS)
    put(
        root,
        "wrong",
        identity(),
        'input { name: "z" data_type: TYPE_FP32 dims: [-1, 3] }\n'
        'output { name: "y" data_type: TYPE_FP32 dims: [-1, 3] }\n',
    )
    with running(root) as server, triton.InferenceServerClient(server.address) as made:
        yield made


def tensor(name: str, array: np.ndarray, datatype: str) -> triton.InferInput:
    made = triton.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array)
    return made


def test_model_without_config_is_completed_and_answers(
    client: triton.InferenceServerClient,
) -> None:
    client.load_model("two")
    config = client.get_model_config("two").config
    assert config.max_batch_size == 4
    assert config.HasField("dynamic_batching")
    assert [list(one.dims) for one in (*config.input, *config.output)] == [[2]] * 4
    array = np.array([[1, 2], [3, 4]], np.float32)
    answer = client.infer("two", [tensor("a", array, "FP32"), tensor("b", array, "FP32")])
    np.testing.assert_array_equal(answer.as_numpy("product"), array * array)
    only = client.infer(
        "two",
        [tensor("a", array, "FP32"), tensor("b", array, "FP32")],
        outputs=[triton.InferRequestedOutput("sum")],
    )
    assert [one.name for one in only.get_response().outputs] == ["sum"]


def test_strings_and_halves_survive(client: triton.InferenceServerClient) -> None:
    client.load_model("text")
    client.load_model("half")
    texts = np.array([[b"a", "ü".encode(), b""]], np.object_)
    answer = client.infer("text", [tensor("x", texts, "BYTES")])
    assert answer.as_numpy("y").tolist() == texts.tolist()
    halves = np.array([[0.5, 1.5, 65504]], np.float16)
    answer = client.infer("half", [tensor("x", halves, "FP16")])
    np.testing.assert_array_equal(answer.as_numpy("y"), halves)


def test_request_that_is_no_text_is_refused_and_the_instance_lives_on(
    client: triton.InferenceServerClient,
) -> None:
    client.load_model("text")
    broken = np.array([[b"\xff", b"b", b"c"]], np.object_)
    with pytest.raises(triton.InferenceServerException, match="UTF-8 only"):
        client.infer("text", [tensor("x", broken, "BYTES")])
    fine = np.array([[b"a", b"b", b"c"]], np.object_)
    assert client.infer("text", [tensor("x", fine, "BYTES")]).as_numpy("y").tolist()


def test_requests_that_wait_share_a_run(client: triton.InferenceServerClient) -> None:
    client.load_model("batching")

    def ask(value: float) -> bool:
        array = np.full((1, 3), value, np.float32)
        answer = client.infer("batching", [tensor("x", array, "FP32")]).as_numpy("y")
        return bool(np.array_equal(answer, array))

    with ThreadPoolExecutor(16) as clients:
        assert all(clients.map(ask, range(16)))
    (stats,) = client.get_inference_statistics("batching").model_stats
    assert stats.inference_count == 16
    assert stats.execution_count < 16


def test_reshape_with_a_variable_dim_is_undone_once(
    client: triton.InferenceServerClient,
) -> None:
    client.load_model("reshaped")
    array = np.arange(10, dtype=np.float32).reshape(2, 1, 5)
    answer = client.infer("reshaped", [tensor("x", array, "FP32")])
    np.testing.assert_array_equal(answer.as_numpy("y"), array)


def test_scalars_of_a_batch_are_completed_to_one_element_each(
    client: triton.InferenceServerClient,
) -> None:
    client.load_model("scalars")
    (declared,) = client.get_model_config("scalars").config.input
    assert (list(declared.dims), declared.HasField("reshape")) == ([1], True)
    array = np.array([[1], [2]], np.float32)
    answer = client.infer("scalars", [tensor("x", array, "FP32")])
    np.testing.assert_array_equal(answer.as_numpy("y"), array)


def test_output_whose_rows_are_not_the_batch_is_refused(
    client: triton.InferenceServerClient,
) -> None:
    client.load_model("own_rows")
    with pytest.raises(triton.InferenceServerException, match=r"batch of 2 gave .* \[6, 1\]"):
        client.infer("own_rows", [tensor("x", np.ones((2, 3), np.float32), "FP32")])


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("truncated", "cannot open 'model.onnx'"),
        ("wrong", "which the model has not"),
        ("too_wide", r"input 'x' the dims \[-1, 5\] \(batch first\), the model \[-1, 3\]"),
        ("threads", "must be a whole number, not 'two'"),
    ],
)
def test_faulty_model_says_what_is_wrong(
    client: triton.InferenceServerClient, name: str, reason: str
) -> None:
    with pytest.raises(triton.InferenceServerException, match=reason):
        client.load_model(name)


ORPHAN = """
import asyncio, sys
from pathlib import Path
from gateway.engine.process import TritonProcess
from gateway.engine.tritonserver import find

async def main():
    server = TritonProcess(find(Path(sys.argv[1])), Path(sys.argv[2]))
    await server.start()
    print(server.address, flush=True)
    await server.wait()

asyncio.run(main())
"""


def test_server_dies_with_its_parent_however_that_ends(tmp_path: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", ORPHAN, str(ENV), str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    with parent.stdout:
        host, port = parent.stdout.readline().strip().split(":")
        parent.send_signal(signal.SIGKILL)
        parent.wait()

    def gone() -> bool:
        with socket.socket() as sock:
            return sock.connect_ex((host, int(port))) != 0

    eventually(gone)


def test_stop_leaves_nothing_and_a_new_start_has_the_same_address(tmp_path: Path) -> None:
    async def story() -> None:
        await server.start()
        address = server.address
        await server.stop()
        assert await server.wait() == 0
        await server.start()
        assert server.address == address
        await server.stop()

    server = TritonProcess(tritonserver.find(ENV), tmp_path)
    asyncio.run(story())
    assert not list(Path("/dev/shm").glob(f"*{server._region}*"))


def test_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    async def story() -> None:
        server = TritonProcess(tritonserver.find(ENV), tmp_path / "nowhere")
        with pytest.raises(StartError, match=r"ended with 1 before(.|\n)*nowhere"):
            await server.start()

    asyncio.run(story())


def test_missing_installation_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StartError, match="run `make triton`"):
        tritonserver.find(tmp_path)
