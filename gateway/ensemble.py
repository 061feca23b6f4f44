"""What `ensemble_scheduling` says of a model. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EnsembleStep:
    """One member of an ensemble. `version` 0 is the latest.

    `inputs` map the member's input names to the ensemble's tensors, `outputs` the member's output
    names to the ensemble's tensors.
    """

    model: str
    version: int
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
