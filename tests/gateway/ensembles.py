"""Ensembles for tests: as specs with scripted members, and as folders of a repository."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton

from gateway.core import InferRequest, InferResponse, ModelSpec, Tensor, TensorSpec
from gateway.ensemble import EnsembleStep
from tests.gateway.fakes import spec

HEAD = 'platform: "ensemble"\nmax_batch_size: 4\n'
X = 'input { name: "x" data_type: TYPE_FP32 dims: 3 }\n'
Y = 'output { name: "y" data_type: TYPE_FP32 dims: 3 }\n'


def scheduling(*steps: tuple[str, str, str], version: int = -1) -> str:
    """("id", "x=x", "y=t") maps the member's x to the tensor x, and its y to t."""
    text = ""
    for model, inputs, outputs in steps:
        text += f'step {{ model_name: "{model}" model_version: {version}\n'
        for kind, maps in (("input_map", inputs), ("output_map", outputs)):
            for pair in maps.split():
                key, value = pair.split("=")
                text += f'{kind} {{ key: "{key}" value: "{value}" }}\n'
        text += "}\n"
    return f"ensemble_scheduling {{\n{text}}}\n"


def publish(root: Path, name: str, config: str, *versions: int) -> None:
    for version in versions or (1,):
        (root / name / str(version)).mkdir(parents=True)
    (root / name / "config.pbtxt").write_text(config)


def given(name: str, data: np.ndarray[Any, Any], datatype: str = "FP32") -> triton.InferInput:
    made = triton.InferInput(name, list(data.shape), datatype)
    made.set_data_from_numpy(data)
    return made


def step(
    model: str, inputs: str, outputs: str, version: int = 0, max_inflight: int = 0
) -> EnsembleStep:
    """ "x=a y=b" maps the member's x to the tensor a and its y to b."""
    taken, given = (dict(pair.split("=") for pair in text.split()) for text in (inputs, outputs))
    return EnsembleStep(model, version, taken, given, max_inflight)


def ensemble(*steps: EnsembleStep, outputs: Sequence[str] = ("y",), name: str = "e") -> ModelSpec:
    """An ensemble with the input `x`; a member doubles its input."""
    made = replace(spec(name), steps=steps, platform="ensemble")
    return replace(made, outputs=tuple(TensorSpec(output, "FP32", (2,)) for output in outputs))


CHAIN = ensemble(step("a", "x=x", "y=t"), step("b", "x=t", "y=y"))


@dataclass
class Members:
    """Members that answer with the sum of their inputs plus one, after their own time."""

    seconds: dict[str, float] = field(default_factory=dict)
    failures: dict[str, Exception] = field(default_factory=dict)
    asked: list[InferRequest] = field(default_factory=list)
    log: list[tuple[str, str, float]] = field(default_factory=list)

    async def infer(self, request: InferRequest) -> InferResponse:
        loop = asyncio.get_running_loop()
        self.asked.append(request)
        self.log.append(("start", request.model, loop.time()))
        try:
            await asyncio.sleep(self.seconds.get(request.model, 1.0))
            if request.model in self.failures:
                raise self.failures[request.model]
        except asyncio.CancelledError:
            self.log.append(("cancelled", request.model, loop.time()))
            raise
        self.log.append(("end", request.model, loop.time()))
        total = np.sum([tensor.data for tensor in request.inputs], axis=0) + np.float32(1)
        outputs = [Tensor(name, "FP32", total) for name in request.outputs]
        return InferResponse(request.model, 1, request.id, outputs)

    async def stream(self, request: InferRequest) -> AsyncGenerator[InferResponse, None]:
        yield await self.infer(request)

    def starts(self) -> dict[str, float]:
        return {model: at for what, model, at in self.log if what == "start"}


def question(**changes: object) -> InferRequest:
    values: dict[str, object] = {
        "model": "e",
        "version": "",
        "id": "7",
        "inputs": [Tensor("x", "FP32", np.zeros((1, 2), np.float32))],
        "outputs": [],
        "deadline": 1000.0,
    }
    return InferRequest(**{**values, **changes})  # type: ignore[arg-type]
