"""Row "overhead": a whole export in float32 against a script that only calls torch.onnx.export.

Both are processes of their own, from the start to the end, in turns: the script imports PyTorch,
builds the trained model and writes the file; the export also checks the file, compares it with
PyTorch at five batch sizes and publishes it.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from benchmarks.bars import Outcome
from benchmarks.export_command import export, spec
from benchmarks.provenance import ROOT
from benchmarks.rows import Found

SCRIPT = """
import sys, torch
from {module} import build
{weights}
torch.onnx.export(model, {example}, sys.argv[1], dynamo=True, opset_version=20,
    input_names={inputs!r}, output_names=["out"], dynamic_shapes={dynamic}, verbose=False)
"""
LOADED = """from safetensors.torch import load_file
model = build(); model.load_state_dict(load_file("examples/zoo/{name}/{name}.safetensors"))"""
IDS = "(torch.randint(0, 999, (3, 9)), torch.ones(3, 9, dtype=torch.int64))"
PLAIN = {
    "digits_cnn": SCRIPT.format(
        module="examples.zoo.digits_cnn.model",
        weights=LOADED.format(name="digits_cnn"),
        example="(torch.rand(3, 1, 8, 8),)",
        inputs=["image"],
        dynamic='({0: "batch"},)',
    ),
    "minilm": SCRIPT.format(
        module="examples.zoo.minilm.model",
        weights="model = build()",
        example=IDS,
        inputs=["input_ids", "attention_mask"],
        dynamic='({0: "batch", 1: "seq"},) * 2',
    ),
}


def measure(scratch: Path, rounds: int) -> Found:
    """The median ratio of each model, in turns; the bar is of the worse one."""
    figures: dict[str, dict[str, list[float]]] = {}
    ratios = {}
    for name, script in PLAIN.items():
        plain, whole = [], []
        for number in range(rounds):
            began = time.perf_counter()
            target = str(scratch / f"{name}.onnx")
            subprocess.run(
                [sys.executable, "-c", script, target],
                cwd=ROOT,
                check=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            plain.append(time.perf_counter() - began)
            flags = ["--no-profile", "--formats", "onnx-fp32"]
            repository = scratch / f"{name}-{number}" / "repository"
            whole.append(export(name, spec(name), *flags, repository=repository).seconds)
        figures[name] = {"torch_onnx_export_s": plain, "tidegate_export_s": whole}
        ratios[name] = median(b / a for a, b in zip(plain, whole, strict=True))
    claim = "seconds of an export (verified, published) / of torch.onnx.export alone"
    worst = max(ratios.values())
    return [Outcome("overhead", claim, 1.5, False, worst)], {"ratios": ratios, "runs": figures}
