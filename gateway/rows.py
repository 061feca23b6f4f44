"""The table at one moment, frozen: what the control loop decides by, and the metrics show. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.core import ModelKey, ModelState
from gateway.placement import NO_PLACEMENT, EngineKind, Placement

HALF_LIFE_S = 600.0  # after so long a request counts half as much
LEAST_NAP_S = 5.0  # shorter sleeps, of who is expected soon, are not worth a load


@dataclass(frozen=True, slots=True)
class ReplicaRow:
    """One copy of a model version in one engine.

    `bytes` is what it holds, or, while it loads, what is set aside for it. `running` counts its
    batches under way. A `lost` one its engine has no more: it serves nobody.
    """

    engine: str
    state: ModelState
    bytes: int
    running: int = 0
    lost: bool = False


@dataclass(frozen=True, slots=True)
class ModelRow:
    """What the registry knows of one model version at one moment.

    `waiting` counts requests that wait until it is ready; `waiting_since` is since when somebody
    has wanted it: the first of them, or, where none waits, who asked by name (`load_requested`).
    `queued` counts those in its batch queue, `running` batches in engines: these may outlive the
    requests that they were cut for. Times are absolute seconds of the event loop's clock. A
    `retired` version has left the repository (or its version policy) and is to go once nobody uses
    it. `keep_s` is for how long after its last use somebody may come back to what it holds: a
    sequence.

    `desired` copies are wanted for its load (0: no opinion). `expected` is from when until when its
    next request will come, by its habits: it is to be ready then where that costs nobody anything.
    `held_by` are engines that had it ready before the gateway knew them: a load there is quick.
    `kind` is the kind of engine that runs it; None for an ensemble, which the gateway itself runs.
    `min_replicas` copies are wanted whether or not anybody asks: by the model's configuration, or
    by whoever has pinned it. `size_bytes` is what one more copy will take, as far as is known;
    `load_s` what its last load took (0 before the first). `frequency` is its requests as they
    count at `frequency_at`, each halved with every `HALF_LIFE_S` since.
    """

    key: ModelKey
    state: ModelState
    waiting: int
    queued: int
    running: int
    in_flight: int
    last_used: float
    replicas: tuple[ReplicaRow, ...] = ()
    kind: EngineKind | None = EngineKind.EMBEDDED
    placement: Placement = NO_PLACEMENT
    min_replicas: int = 0
    desired: int = 0
    expected: tuple[float, float] | None = None
    size_bytes: int = 0
    load_s: float = 0.0
    loaded_at: float = 0.0
    waiting_since: float = 0.0
    frequency: float = 0.0
    frequency_at: float = 0.0
    held_by: frozenset[str] = frozenset()
    instances: int = 1
    batch_size: int = 1
    retry_at: float = 0.0
    copy_retry_at: float = 0.0
    load_requested: bool = False
    unload_requested: bool = False
    retired: bool = False
    sequential: bool = False
    keep_s: float = 0.0

    @property
    def resident_bytes(self) -> int:
        """What all its copies hold, or have set aside for them."""
        return sum(replica.bytes for replica in self.replicas)


@dataclass(frozen=True, slots=True)
class EngineRow:
    """One engine of the fleet. `budget_bytes` 0 sets no bound.

    One that is not `up` takes no loads: it does not answer (`reason` says why; `seen` that it once
    did), or is on its way out (`leaving`). It takes the models that it `offers` (None: all). At
    most `loads_at_once` copies are loaded into it at a time (0: no bound).
    """

    name: str
    kind: EngineKind
    budget_bytes: int = 0
    up: bool = True
    leaving: bool = False
    loads_at_once: int = 0
    seen: bool = True
    reason: str = ""
    offers: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that `decide` looks at: models that are in memory or wanted there, all engines."""

    models: tuple[ModelRow, ...]
    engines: tuple[EngineRow, ...]
