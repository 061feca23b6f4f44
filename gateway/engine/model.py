"""What the embedded engine asks of an open model, whichever runtime has it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Protocol

from gateway.core import Tensor


class Run(Protocol):
    """One run's switch: from `terminate = True` on the runtime ends it as soon as it can."""

    terminate: bool


class OpenModel(Protocol):
    """A model that is ready to run, on one device or on several."""

    def is_quick(self, inputs: Sequence[Tensor]) -> bool:
        """Whether a batch of this size may run on the event loop."""
        ...

    def new_run(self) -> Run:
        """Return the switch of a run to come."""
        ...

    def run(self, inputs: Sequence[Tensor], outputs: Sequence[str], run: Run) -> list[Tensor]:
        """Return the named outputs. Safe in any thread. Raises `InferenceFailed`."""
        ...

    def abort(self) -> None:
        """Terminate every run under way."""
        ...

    def close(self) -> None:
        """Free the model, at the end of its last run if one has not ended. May block."""
        ...


class Replicas:
    """The same model on several devices; a run goes where the fewest are under way."""

    def __init__(self, models: Sequence[OpenModel]) -> None:
        self._models = models
        self._running = [0] * len(models)
        self._lock = threading.Lock()

    def is_quick(self, inputs: Sequence[Tensor]) -> bool:
        """Return False: a GPU is waited for in a worker thread."""
        return False

    def new_run(self) -> Run:
        """Return the switch of a run to come."""
        return self._models[0].new_run()

    def run(self, inputs: Sequence[Tensor], outputs: Sequence[str], run: Run) -> list[Tensor]:
        """Return the named outputs. Safe in any thread."""
        with self._lock:
            chosen = self._running.index(min(self._running))
            self._running[chosen] += 1
        try:
            return self._models[chosen].run(inputs, outputs, run)
        finally:
            with self._lock:
                self._running[chosen] -= 1

    def abort(self) -> None:
        """Terminate every run under way."""
        for model in self._models:
            model.abort()

    def close(self) -> None:
        """Free the model on every device."""
        for model in self._models:
            model.close()
