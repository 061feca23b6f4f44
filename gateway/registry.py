"""The one table that the request path and the control loop share.

The request path counts itself in and out and raises demand; the reconciler alone moves states.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress

from gateway.core import ModelKey, ModelSpec, ModelState
from gateway.entry import IN_MEMORY, Entry
from gateway.errors import InvalidRequest, ModelNotFound, ModelUnavailable, RepositoryError
from gateway.habit import Habit
from gateway.metrics import Metrics
from gateway.repository import ensemble_config
from gateway.repository.reader import ModelListing
from gateway.rows import ModelRow


class Registry:
    """Every model of the repository, by name and version.

    With `predictive` it learns when each is used.
    """

    def __init__(self, metrics: Metrics, predictive: bool = False) -> None:
        self._metrics = metrics
        self._predictive = predictive
        self._models: dict[str, dict[int, Entry]] = {}
        self._errors: dict[str, str] = {}
        self._ensembles: defaultdict[str, set[str]] = defaultdict(set)  # of each member
        # what requests without a version go to, as found before; cleared with every change
        self._latest: dict[str, Entry] = {}
        # versions that have left, and serve until their successors are ready
        self._standing_in: dict[str, Entry] = {}
        self._pins: dict[str, int] = {}
        self._labels: Mapping[str, Mapping[str, int]] = {}
        # what the control loop has to look at, unless anything may have changed
        self._stirring: dict[ModelKey, Entry] = {}
        self._look_at_all = True
        self._demand = asyncio.Event()
        metrics.watch(self.rows)

    def rows(self) -> tuple[ModelRow, ...]:
        """Return a snapshot of every entry."""
        return tuple(entry.row() for entry in self.entries())

    def awake(self) -> tuple[ModelRow, ...]:
        """Return a snapshot of the entries that are in memory, or wanted there.

        For the control loop alone. Of thousands that are asleep only those are looked at that
        somebody has poked for since the last time.
        """
        entries = self.entries() if self._look_at_all else self._stirring.values()
        self._look_at_all = False
        self._stirring = {entry.key: entry for entry in entries if not entry.dormant}
        return tuple(entry.row() for entry in self._stirring.values())

    def entries(self) -> Iterator[Entry]:
        """Yield every entry, by name and version."""
        for versions in self._models.values():
            yield from versions.values()

    def broken(self) -> Iterable[tuple[str, str]]:
        """Yield the models that cannot be served, each with the reason."""
        return self._errors.items()

    def entry(self, key: ModelKey) -> Entry:
        """Return the entry of a key taken from a snapshot."""
        return self._models[key.name][key.version]

    def find(self, name: str, version: str = "") -> Entry:
        """Return the entry that serves a request; without a version the latest one.

        Raises `ModelNotFound`, `ModelUnavailable` for a model whose files are at fault, and
        `InvalidRequest` for a version that is neither a whole number > 0 nor a label.
        """
        if not version and (latest := self._latest.get(name)) is not None:
            return latest
        if version and (labels := self._labels.get(name)) and not version.lstrip("-").isdecimal():
            version = _labelled(name, version, labels)
        number = _version_number(version) if version else 0
        if name in self._errors:
            raise ModelUnavailable(f"model '{name}' is not available: {self._errors[name]}")
        versions = self._models.get(name, {})
        serving = [entry for entry in versions.values() if not entry.retired]
        if not serving:
            raise ModelNotFound(f"Request for unknown model: '{name}' is not found")
        if not version:
            stand_in = self._standing_in.get(name)
            if stand_in is not None and stand_in.state is ModelState.READY:
                return stand_in
            latest = self._latest[name] = max(serving, key=lambda entry: entry.key.version)
            return latest
        if number not in versions or versions[number].retired:
            raise ModelNotFound(
                f"Request for unknown model: '{name}' version {version} is not found"
            )
        return versions[number]

    def serves(self, key: ModelKey) -> bool:
        """Return whether there is such a version."""
        entry = self._models.get(key.name, {}).get(key.version)
        return entry is not None and not entry.retired

    def label(self, labels: Mapping[str, Mapping[str, int]]) -> None:
        """Have versions found by these names, too, model by model."""
        self._labels = labels

    def versions(self, name: str) -> list[Entry]:
        """Return the serving versions of a model, ascending. Raises like `find`."""
        self.find(name)
        serving = (entry for entry in self._models[name].values() if not entry.retired)
        return sorted(serving, key=lambda entry: entry.key.version)

    def members(self, ensemble: ModelSpec, path: tuple[str, ...] = ()) -> list[Entry]:
        """Return the entry of each step of an ensemble; of any other model none.

        `path` are the ensembles that it is a member of. Raises `RepositoryError` where a member
        is not there, or is in the end the ensemble itself.
        """
        name = ensemble.key.name
        path = (*path, name)
        found = []
        for step in ensemble.steps:
            if step.model in path:
                raise ensemble_config.circular(path[path.index(step.model) :])
            try:
                member = self.find(step.model, str(step.version or ""))
            except ModelUnavailable:
                key = ModelKey(step.model, step.version or 1)
                raise ensemble_config.broken(name, key, self._errors[step.model]) from None
            except ModelNotFound:
                known = bool(self._models.get(step.model))
                raise ensemble_config.absent(name, step, known) from None
            self.members(member.newest, path)
            found.append(member)
        return found

    def joined(self, spec: ModelSpec) -> ModelSpec:
        """Return an ensemble as its members make it, any other model as it is.

        Raises `RepositoryError` where the members do not fit.
        """
        if not spec.steps:
            return spec
        members = self.members(spec)
        return ensemble_config.joined(
            spec, [each.newest if each.stale else each.spec for each in members]
        )

    def fault(self, entry: Entry) -> str:
        """Return what keeps a version from being served, as far as is known; "" for nothing."""
        if entry.backing_off():
            return entry.reason
        name = entry.key.name
        try:
            self.joined(entry.newest)
            for member in self.members(entry.newest):
                if reason := self.fault(member):
                    raise ensemble_config.broken(name, member.key, reason)
        except RepositoryError as error:
            return str(error)
        return ""

    async def ready(self, entry: Entry) -> None:
        """Return once a version is ready, and raise demand until then.

        Raises `ModelUnavailable` with the load's reason at once where it fails, or has just failed.
        """
        failures = entry.stats.load_failures
        with entry.awaited():
            self.poke(entry)
            # those of a sequence go on in the order in which they came
            async with entry.line if entry.in_order else nullcontext():
                while entry.state is not ModelState.READY:
                    _raise_if_hopeless(entry, failures)
                    await entry.next_move()

    def update(self, listing: ModelListing) -> None:
        """Take a model as it now is on disk. Versions that are gone retire.

        One that is ready does so only once its successor is, and serves until then. Files that
        became faulty do not disturb versions that are loaded. Ensembles that it is a member of are
        made ready anew.
        """
        self._latest.pop(listing.name, None)
        versions = self._models.setdefault(listing.name, {})
        if listing.error:
            if not any(entry.state in IN_MEMORY for entry in versions.values()):
                self._errors[listing.name] = listing.error
            return
        self._errors.pop(listing.name, None)
        before = _serving(versions)
        present = {spec.key.version: spec for spec in listing.versions}
        for version, spec in present.items():
            if version in versions:
                versions[version].reread(spec)
            else:
                habit = Habit() if self._predictive else None
                versions[version] = Entry(spec, self._metrics, self.poke, habit)
                versions[version].pinned = self._pins.get(listing.name)
        leaving = [entry for version, entry in versions.items() if version not in present]
        self._stand_in(listing.name, versions[max(present)], leaving)
        for entry in leaving:
            if entry is not self._standing_in.get(listing.name):
                self._retire(entry)
        for spec in listing.versions:
            for step in spec.steps:
                self._ensembles[step.model].add(listing.name)
            self._meet(versions[spec.key.version])
        if _serving(versions) != before:
            self._renew_ensembles(listing.name)
        self.poke()

    def _stand_in(self, name: str, successor: Entry, leaving: Sequence[Entry]) -> None:
        """Have the newest of the versions that leave serve until its successor is ready."""
        self._standing_in.pop(name, None)
        for entry in self._models[name].values():
            entry.succeeds = False
        ready = [each for each in leaving if each.state is ModelState.READY and not each.retired]
        if ready and successor.state is not ModelState.READY and not successor.newest.steps:
            self._standing_in[name] = max(ready, key=lambda entry: entry.key.version)
            successor.succeeds = True

    def stands_in(self, entry: Entry) -> bool:
        """Return whether a version has left, and serves until its successor is ready."""
        return self._standing_in.get(entry.key.name) is entry

    def settle(self, name: str) -> None:
        """Retire a version that stood in for another, once that is ready or it is not itself."""
        stand_in = self._standing_in.get(name)
        if stand_in is None:
            return
        successors = [entry for entry in self._models[name].values() if entry.succeeds]
        ready = [entry for entry in successors if entry.state is ModelState.READY]
        if ready or stand_in.state is not ModelState.READY:
            del self._standing_in[name]
            self._latest.pop(name, None)
            for entry in successors:
                entry.succeeds = False
            self._retire(stand_in)
            self._renew_ensembles(name)
            self.poke()

    def _renew_ensembles(self, member: str, path: tuple[str, ...] = ()) -> None:
        """Have the ensembles of a member, and theirs, made ready anew: it is another now."""
        for name in self._ensembles.get(member, set()).difference(path):
            for entry in self._models.get(name, {}).values():
                entry.renew()
                self._meet(entry)
            self._renew_ensembles(name, (*path, name))

    def _meet(self, entry: Entry) -> None:
        """Have a cold ensemble's spec say what its members make it, as far as they are known."""
        if entry.reading.steps and entry.state in (ModelState.UNKNOWN, ModelState.UNAVAILABLE):
            with suppress(RepositoryError):
                entry.spec = self.joined(entry.reading)

    def pin(self, name: str, copies: int | None) -> None:
        """Have so many copies of a model ready always; None: as its configuration says.

        Raises like `find`.
        """
        self.find(name)
        if copies is None:
            self._pins.pop(name, None)
        else:
            self._pins[name] = copies
        for entry in self._models[name].values():
            entry.pinned = copies
        self.poke()

    def knows(self, name: str) -> bool:
        """Return whether the model has been read, be it faulty."""
        return name in self._models

    def remove(self, name: str) -> None:
        """Retire every version of a model whose folder has gone."""
        self._latest.pop(name, None)
        self._errors.pop(name, None)
        self._standing_in.pop(name, None)
        for entry in self._models.get(name, {}).values():
            self._retire(entry)
        self._forget_empty(name)
        self._renew_ensembles(name)
        self.poke()

    def drop(self, key: ModelKey) -> None:
        """Forget a retired entry that holds nothing any more."""
        del self._models[key.name][key.version]
        self._stirring.pop(key, None)
        self._metrics.forget(key)
        self._forget_empty(key.name)

    def _retire(self, entry: Entry) -> None:
        entry.retired = True
        entry.wake()

    def _forget_empty(self, name: str) -> None:
        if name not in self._errors and not self._models.get(name):
            self._models.pop(name, None)

    def poke(self, entry: Entry | None = None) -> None:
        """Have the control loop look at the table: for one entry, or for whatever has changed."""
        if entry is None:
            self._look_at_all = True
        else:
            self._stirring[entry.key] = entry
        self._demand.set()

    async def demand(self) -> None:
        """Return when somebody has poked since the last return."""
        await self._demand.wait()
        self._demand.clear()


def _serving(versions: Mapping[int, Entry]) -> dict[int, ModelSpec]:
    return {number: entry.newest for number, entry in versions.items() if not entry.retired}


def _raise_if_hopeless(entry: Entry, failures: int) -> None:
    """Raise where a model's next move cannot be to READY; `failures` were known before the wait."""
    if entry.retired:
        raise ModelNotFound(f"Request for unknown model: '{entry.key.name}' is not found")
    if entry.stats.load_failures > failures or entry.backing_off():
        raise ModelUnavailable(
            f"model '{entry.key.name}' version {entry.key.version} is not available: {entry.reason}"
        )


def _labelled(name: str, label: str, labels: Mapping[str, int]) -> str:
    if label not in labels:
        raise ModelNotFound(
            f"Request for unknown model: '{name}' has no version '{label}'; "
            f"its labels are {', '.join(sorted(labels))}"
        )
    return str(labels[label])


def _version_number(version: str) -> int:
    digits = version.removeprefix("-")
    # the length first: Python refuses to convert thousands of digits
    if not (digits.isascii() and digits.isdecimal() and len(digits) <= 19 and int(digits) < 2**63):
        raise InvalidRequest(
            f"failed to get model version from specified version string '{version}' "
            "(details: stol), version should be an integral value > 0"
        )
    if int(version) < 0:
        raise InvalidRequest(
            f"invalid model version specified '{version}' , version should be an integral value > 0"
        )
    return int(version)
