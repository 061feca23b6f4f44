"""What the exporter publishes, served by a real tritonserver and by the gateway alike."""

from __future__ import annotations

from pathlib import Path

import pytest
import tritonclient.grpc as triton

from examples.digits.data import held_out
from export.cli import main
from tests.gateway.process import gateway
from tests.triton.server import running

ROOT = Path(__file__).parents[2]
SPEC = ROOT / "examples" / "zoo" / "digits_cnn" / "digits_cnn.toml"


def read(address: str) -> list[str]:
    """The digits' names that a server gives to the first held-out images."""
    images = held_out()[0][:20]
    image = triton.InferInput("image", list(images.shape), "FP32")
    image.set_data_from_numpy(images)
    best = triton.InferRequestedOutput("logits", class_count=1)
    with triton.InferenceServerClient(address) as client:
        client.load_model("digits_cnn")
        said = client.infer("digits_cnn", [image], outputs=[best]).as_numpy("logits")
    return [row[0].decode().split(":")[2] for row in said]


@pytest.mark.usefixtures("real_triton")
def test_an_eight_bit_version_with_its_warm_up_and_labels_is_triton_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    repository = tmp_path / "repository"
    flags = ["--repository", str(repository), "--formats", "onnx-int8", "--no-profile"]

    assert main([str(SPEC), *flags]) == 0

    assert (repository / "digits_cnn" / "warmup" / "image").stat().st_size == 256
    names = (SPEC.parent / "labels.txt").read_text().splitlines()
    with running(repository) as server:
        triton_says = read(server.address)
    with gateway(repository, "--allow-repository-control") as own:
        assert read(own.url) == triton_says
    assert triton_says == [names[digit] for digit in held_out()[1][:20]]
