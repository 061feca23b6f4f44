"""What `ensemble_scheduling` says of a model. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class EnsembleStep:
    """One member of an ensemble. `version` 0 is the latest.

    `inputs` map the member's input names to the ensemble's tensors, `outputs` the member's output
    names to the ensemble's tensors. `max_inflight` bounds the ensemble's requests that are in this
    step at once; 0 sets no bound. `ranks` are the dims of the member's inputs, counted with the
    batch dimension; they are known once the ensemble has met its members.
    """

    model: str
    version: int
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    max_inflight: int = 0
    ranks: Mapping[str, int] = field(default_factory=dict)


def needed(steps: Sequence[EnsembleStep], wanted: Collection[str]) -> list[int]:
    """Return the indices of the steps on which the wanted tensors depend, ascending."""
    writers = {
        tensor: index for index, step in enumerate(steps) for tensor in step.outputs.values()
    }
    found: set[int] = set()
    open_ends = list(wanted)
    while open_ends:
        index = writers.get(open_ends.pop())
        if index is not None and index not in found:
            found.add(index)
            open_ends.extend(steps[index].inputs.values())
    return sorted(found)


def written(steps: Sequence[EnsembleStep], given: Collection[str]) -> set[str]:
    """Return the tensors that come to be where `given` ones are there: these, and all computed."""
    there = set(given)
    waiting = list(steps)
    while ready := [step for step in waiting if there.issuperset(step.inputs.values())]:
        waiting = [step for step in waiting if step not in ready]
        there.update(tensor for step in ready for tensor in step.outputs.values())
    return there
