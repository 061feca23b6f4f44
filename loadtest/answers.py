"""The least an answer must show to count: a fast server that answers rubbish must fail."""

from __future__ import annotations

import math

from tritonclient.grpc import model_config_pb2, service_pb2

from loadtest.payloads import ITEM_BYTES


class WrongAnswer(Exception):
    """The server answered OK with something that cannot be this model's answer."""


class AnswerCheck:
    """Holds an answer against the model's outputs: names, datatypes, batch rows, byte sizes.

    Values are not looked at. Cheap enough (a few microseconds) to run on every answer.
    """

    def __init__(
        self,
        metadata: service_pb2.ModelMetadataResponse,
        config: model_config_pb2.ModelConfig,
        batch_size: int,
    ) -> None:
        self._datatypes = {tensor.name: tensor.datatype for tensor in metadata.outputs}
        self._rows = batch_size if config.max_batch_size > 0 else None

    def __call__(self, response: service_pb2.ModelInferResponse) -> None:
        """Raise `WrongAnswer` if the answer does not fit."""
        outputs = response.outputs
        contents = response.raw_output_contents
        names = {output.name for output in outputs}
        if names != self._datatypes.keys():
            raise WrongAnswer(f"outputs {sorted(names)}, expected {sorted(self._datatypes)}")
        if len(contents) != len(outputs):
            raise WrongAnswer(f"{len(contents)} raw contents for {len(outputs)} outputs")
        for output, raw in zip(outputs, contents, strict=True):
            datatype = output.datatype
            if datatype != self._datatypes[output.name]:
                raise WrongAnswer(
                    f"output '{output.name}' is {datatype}, expected {self._datatypes[output.name]}"
                )
            shape = list(output.shape)
            if self._rows is not None and (not shape or shape[0] != self._rows):
                raise WrongAnswer(
                    f"output '{output.name}' has shape {shape}, expected {self._rows} rows"
                )
            if datatype == "BYTES":
                continue
            expected = math.prod(shape) * ITEM_BYTES[datatype]
            if len(raw) != expected:
                raise WrongAnswer(
                    f"output '{output.name}' of shape {shape} has {len(raw)} bytes, "
                    f"expected {expected}"
                )
