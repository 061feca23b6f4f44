"""What lies beside the model file of a version."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from export.manifest import Candidate, Manifest
from export.reference import Check
from export.release import Release
from export.spec import ExportSpec
from export.steps import capture
from tests.export.example_manifest import manifest as example

MakeSpec = Callable[..., ExportSpec]


def release(spec: ExportSpec, folder: Path, chosen: str, *files: Path) -> Release:
    report = capture.Report(
        spec=spec,
        kind="callable",
        files={},
        weight_count=1,
        named=True,
        inferred=False,
        checks=(Check(file="0.npz", sizes={"batch": 2}, real=True),),
    )
    np.savez(folder / "0.npz", **{"in:x": np.arange(8, dtype="float32").reshape(2, 4)})  # type: ignore[arg-type]
    best = Candidate(format=chosen, status="chosen", parity=example().parity)
    return Release(
        spec=spec,
        captured=report,
        references=folder,
        chosen=best,
        candidates=(best,),
        files=files,
        label_files={},
        on_gpu=chosen.startswith("tensorrt"),
        steps=(),
    )


def published(made: Release, spec: ExportSpec) -> tuple[Any, Manifest, Path]:
    made.publish(replace_config=False)
    home = Path(spec.repository) / spec.name
    config = text_format.Parse((home / "config.pbtxt").read_text(), pb.ModelConfig())
    return config, Manifest.model_validate_json((home / "1" / "manifest.json").read_text()), home


def test_engines_of_several_gpus_share_a_version(make_spec: MakeSpec, tmp_path: Path) -> None:
    here, there = tmp_path / "model_cc90.plan", tmp_path / "model_cc89.plan"
    for file in (here, there):
        file.write_bytes(file.name.encode())
    spec = make_spec(tensorrt={"engines": [str(there)]})

    config, manifest, home = published(release(spec, tmp_path, "tensorrt-fp16", here), spec)

    assert config.backend == "tensorrt"
    assert dict(config.cc_model_filenames) == {
        "8.9": "model_cc89.plan",
        "9.0": "model_cc90.plan",
    }
    assert set(manifest.files) == {"model_cc89.plan", "model_cc90.plan"}
    assert (home / "1" / "model_cc89.plan").read_bytes() == b"model_cc89.plan"


def test_the_first_real_row_warms_a_fresh_copy(make_spec: MakeSpec, tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(b"graph")
    spec = make_spec()

    config, _, home = published(release(spec, tmp_path, "onnx-fp32", file), spec)

    (sample,) = config.model_warmup
    assert (sample.batch_size, list(sample.inputs["x"].dims)) == (1, [4])
    data = (home / "warmup" / sample.inputs["x"].input_data_file).read_bytes()
    assert np.frombuffer(data, "float32").tolist() == [0.0, 1.0, 2.0, 3.0]


def test_states_are_hidden_from_clients(make_spec: MakeSpec, tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(b"graph")
    state = {"dtype": "FP32", "dims": [3]}
    spec = make_spec(
        inputs=[
            {"name": "x", "dtype": "FP32", "dims": [4]},
            {"name": "before", **state},
            {"name": "START", "dtype": "FP32", "dims": [1]},
        ],
        outputs=[{"name": "y", "dtype": "FP32", "dims": [4]}, {"name": "after", **state}],
        sequence_batching={"states": {"before": "after"}, "start": "START"},
    )

    config, _, _ = published(release(spec, tmp_path, "onnx-fp32", file), spec)

    assert [tensor.name for tensor in config.input] == ["x"]
    assert [tensor.name for tensor in config.output] == ["y"]
    (held,) = config.sequence_batching.state
    assert (held.input_name, held.output_name, list(held.dims)) == ("before", "after", [3])
    assert config.sequence_batching.control_input[0].name == "START"
    assert not config.model_warmup
