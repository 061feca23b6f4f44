import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest

from export.cli import main

ZOO = Path(__file__).with_name("zoo.py")
Snapshot = Callable[[Path], dict[str, bytes | None]]


@pytest.fixture
def double(tmp_path: Path, double_toml: str) -> Path:
    """Spec file of the `double` model."""
    path = tmp_path / "double.toml"
    path.write_text(double_toml.replace("zoo.py", str(ZOO)))
    return path


@pytest.fixture(autouse=True)
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work below the test's own folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return tmp_path / "repository"


def test_each_export_publishes_the_next_version_and_says_so(
    double: Path, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for version in ("1", "2"):
        resumed = ["--resume"] if version == "2" else []
        assert main([str(double), "--repository", str(repository), "--no-profile", *resumed]) == 0
        said = capsys.readouterr().out
        steps = [line.split("  ")[0] for line in said.splitlines() if line.startswith("✓")]
        own = [step for step in steps if "preflight" not in step]  # an extra, where it is installed
        assert own == ["✓ capture", "✓ labels", "✓ optimise", "✓ verify onnx-fp32", "✓ publish"]
        assert said.count("kept  ") == (len(steps) - 2 if resumed else 0)
        assert "batch 1, 2, 3, 7, 8: y max |error| 0.0e+00" in said
        assert f"exported double version {version} as onnx-fp32" in said

    session = onnxruntime.InferenceSession(repository / "double" / "2" / "model.onnx")
    (result,) = session.run(["y"], {"x": [[1.0, 2.0, 3.0, 4.0]]})
    assert result.tolist() == [[2.0, 4.0, 6.0, 8.0]]
    assert "max_batch_size: 8" in (repository / "double" / "config.pbtxt").read_text()


def test_flags_alone_make_an_export_and_override_a_spec(
    double: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ZOO.parent)
    flags = ["--repository", str(repository), "--model", "zoo.py:tokens", "--max-batch-size", "2"]
    flags += ["--input", 'name="ids", dtype="INT64", dims=["seq"], range=[0, 48]']
    flags += ["--input", 'name="mask", dtype="INT64", dims=["seq"], range=[0, 1]']
    flags += ["--output", 'name="pooled", dtype="FP32", dims=[6], atol=1e-4']
    flags += ["--output", 'name="kept", dtype="INT64", dims=[]']
    flags += ["--output", 'name="ids_next", dtype="INT64", dims=["seq"]']
    flags += ["--dim-sizes", "seq=[1, 9]", "--seed", "5", "--dynamic-batching", ""]

    flags += ["--no-profile", "--formats", "onnx-fp32"]

    assert main(["--name", "flagged", *flags]) == 0
    assert main([str(double), "--name", "overridden", *flags]) == 0

    flagged, overridden = (
        (repository / name / "config.pbtxt").read_text() for name in ("flagged", "overridden")
    )
    assert "max_batch_size: 2\n" in flagged
    assert "dynamic_batching" in flagged
    assert overridden == flagged.replace("flagged", "overridden")


@pytest.mark.parametrize(
    ("code", "flags", "says"),
    [
        (4, ["--model", f"{ZOO}:branch"], "the example took at batch size 4"),
        (1, ["--model", f"{ZOO}:value_branch"], 'zoo.py", line'),
        (1, ["--model", f"{ZOO}:unsupported"], "airy_ai"),
        (1, ["--model", f"{ZOO}:infinite"], "the trained model answers NaN: output 'y'"),
        (1, ["--model", f"{ZOO}:slow", "--step-timeout-s", "4"], "took longer than 4 s"),
        (1, ["--model", f"{ZOO}:crashing"], "its process crashed (SIGSEGV)"),
        (1, ["--model", f"{ZOO}:in_train_mode"], "try: call .eval()"),
        (1, ["--weights", __file__], "is refused"),
        (1, ["--samples", f"{ZOO}:misshapen"], "'x' has shape [8, 5]; the spec says ['batch', 4]"),
        (2, ["--output", 'name="y", dtype="FP32", dims=[4], labels="none.txt"'], "none.txt"),
        (1, ["--max-batch-size", "4"], "max_batch_size is 8, would become 4"),
        (2, ["--input", 'name="x", dtyp="FP32", dims=[4]'], "unknown key 'dtyp' in inputs[0]"),
        (3, ["--target", "gpu"], "the target is a GPU: there is no GPU here"),
        (3, ["--formats", "tensorrt-fp16"], "tensorrt-fp16: there is no NVIDIA driver here"),
        (3, ["--formats", "onnx-int8"], "no samples are given"),
    ],
)
def test_a_failed_step_leaves_the_repository_untouched_and_says_why_and_where(
    double: Path,
    repository: Path,
    snapshot: Snapshot,
    capsys: pytest.CaptureFixture[str],
    code: int,
    flags: list[str],
    says: str,
) -> None:
    (repository / "double" / "3").mkdir(parents=True)
    config = 'name: "double"\nmax_batch_size: 8\ninput { name: "x" data_type: TYPE_FP32 dims: 4 }\n'
    (repository / "double" / "config.pbtxt").write_text(config)
    before = snapshot(repository)

    assert main([str(double), "--repository", str(repository), "--no-profile", *flags]) == code

    assert says in capsys.readouterr().err
    assert snapshot(repository) == before


def test_an_unknown_key_of_the_file_is_named_with_the_file(
    double: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    double.write_text("max_batch = 3\n" + double.read_text())

    assert main([str(double)]) == 2
    assert "double.toml: unknown key 'max_batch'" in capsys.readouterr().err


def test_a_spec_that_is_not_there_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nowhere.toml"]) == 2
    assert "cannot read the spec" in capsys.readouterr().err


@pytest.mark.parametrize(("lines", "code"), [(3, 2), (4, 0)])
def test_labels_have_to_be_as_many_as_the_classes(
    double: Path, repository: Path, capsys: pytest.CaptureFixture[str], lines: int, code: int
) -> None:
    double.write_text(double.read_text() + 'labels = "names.txt"\n')
    double.with_name("names.txt").write_text("name\n" * lines)

    assert main([str(double), "--repository", str(repository), "--no-profile"]) == code
    assert ("names.txt has 3 lines for 4 classes" in capsys.readouterr().err) == bool(code)
    assert (repository / "double" / "names.txt").exists() != bool(code)


@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("torch", "pip install 'tidegate[export]'"),
        ("onnxscript", "pip install 'tidegate[export]'"),
        ("onnxruntime", "pip install 'tidegate[cpu]'"),
    ],
)
def test_a_missing_extra_is_one_sentence(
    double: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    module: str,
    command: str,
) -> None:
    monkeypatch.setitem(sys.modules, module, None)

    assert main([str(double)]) == 3
    said = capsys.readouterr().err
    assert said == f"tidegate export: {module} is not installed\ntry: {command}\n"


def test_help_answers_without_importing_torch() -> None:
    program = "import sys; from export.cli import main\ntry: main(['--help'])\n"
    program += "finally: print([m for m in ('torch', 'onnx', 'onnxruntime') if m in sys.modules])"

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert done.returncode == 0
    assert "usage: tidegate export" in done.stdout
    assert done.stdout.endswith("[]\n")
