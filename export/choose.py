"""Which format is published, and how the gateway is to batch it: from measured curves. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from export.errors import ProfileError
from export.formats import BASE
from export.manifest import Candidate, CurvePoint, Profile
from export.objective import Objective
from export.spec import DynamicBatching, ExportSpec

# What computes something else than the trained model has to be better by more than noise.
MARGIN: Final = 1.05
# A lead that a neighbour's load during one of the two measurements may have made.
DOUBTFUL: Final = 1.3
# Waiting for a fuller batch costs each request so much of a batch's own time, at most.
DELAY_SHARE: Final = 0.1
LONGEST_DELAY_US: Final = 5000


@dataclass(frozen=True)
class Batching:
    """What `config.pbtxt` says of batches; `dynamic` None: every request is one of its own."""

    max_batch_size: int
    dynamic: DynamicBatching | None
    instances: int = 1


def choose(candidates: Sequence[Candidate], objective: Objective) -> tuple[Candidate, str]:
    """The best of those that are "ok", and why; raises `ProfileError` where none keeps the bound.

    Without profiles the base is it: nothing says that another is better.
    """
    alive = [each for each in candidates if each.status == "ok"]
    measured = [each for each in alive if each.profile]
    if not measured:
        base = next((each for each in alive if each.format == BASE), alive[0])
        return base, "nothing was measured"
    fitting = [each for each in measured if _best(each.profile, objective)]
    if not fitting:
        quickest = min(measured, key=lambda each: _p99(each))
        raise ProfileError(
            f"no format keeps p99 under {objective.p99_ms:g} ms: {quickest.format} has "
            f"{_p99(quickest):.3g} ms at batch 1",
            "allow more, or take a smaller model",
        )
    best = max(fitting, key=lambda each: _merit(each.profile, objective))
    exact = next((each for each in fitting if each.format == BASE), None)
    if exact and _merit(best.profile, objective) < MARGIN * _merit(exact.profile, objective):
        best = exact
    return best, _why(best, exact, objective)


def doubted(candidates: Sequence[Candidate], objective: Objective) -> tuple[Candidate, ...]:
    """The base and what leads it by so little that both are to be measured again."""
    fitting = [each for each in candidates if _best(each.profile, objective)]
    if not fitting:
        return ()
    best = max(fitting, key=lambda each: _merit(each.profile, objective))
    base = next((each for each in candidates if each.format == BASE), None)
    if base is None or best is base or objective.goal == "memory":
        return ()
    if base not in fitting:
        return ()
    lead = _merit(best.profile, objective) / _merit(base.profile, objective)
    return (base, best) if lead < DOUBTFUL else ()


def merged(one: Profile, other: Profile) -> Profile:
    """Two measurements of one file: of each batch size the quicker, which was disturbed less."""
    again = {point.batch: point for point in other.curve}
    curve = [
        max(point, again.get(point.batch, point), key=lambda each: each.throughput)
        for point in one.curve
    ]
    return one.model_copy(update={"curve": tuple(curve)})


def batching(spec: ExportSpec, profile: Profile | None, objective: Objective) -> Batching:
    """How to batch: what the spec says, else what the curve says."""
    if spec.batch_limit == 0 or spec.sequence_batching:
        return Batching(spec.batch_limit, None, _instances(profile))
    limit = spec.max_batch_size or _limit(spec, profile, objective)
    if spec.dynamic_batching is not None:
        dynamic = spec.dynamic_batching or None
    else:
        dynamic = _dynamic(limit, profile, objective)
    return Batching(limit, dynamic, _instances(profile))


def _limit(spec: ExportSpec, profile: Profile | None, objective: Objective) -> int:
    """The smallest batch that reaches what the best one does, of those within the bound."""
    within = _within(profile, objective) if profile else []
    if not within:
        return spec.batch_limit
    most = max(each.throughput for each in within)
    return next(each.batch for each in within if each.throughput >= 0.98 * most)


def _dynamic(limit: int, profile: Profile | None, objective: Objective) -> DynamicBatching | None:
    if profile is None or limit == 1:
        return None
    within = [each for each in _within(profile, objective) if each.batch <= limit]
    if not within:
        return None
    most = max(each.throughput for each in within)
    knee = next(each for each in within if each.throughput >= 0.9 * most)
    if knee.batch == 1:
        return None  # a batch takes as long as its rows one by one
    if objective.goal == "latency":
        return DynamicBatching()
    delay_us = min(LONGEST_DELAY_US, DELAY_SHARE * knee.p50_ms * 1000)
    if objective.p99_ms is not None:
        delay_us = min(delay_us, (objective.p99_ms - knee.p99_ms) / 2 * 1000)
    return DynamicBatching(
        preferred_batch_size=(knee.batch,), max_queue_delay_microseconds=round(delay_us)
    )


def _instances(profile: Profile | None) -> int:
    return profile.instances if profile else 1


def _within(profile: Profile, objective: Objective) -> list[CurvePoint]:
    bound = objective.p99_ms
    return [each for each in profile.curve if bound is None or each.p99_ms <= bound]


def _best(profile: Profile | None, objective: Objective) -> CurvePoint | None:
    """The point that the objective asks for: of the highest throughput, or batch 1."""
    within = _within(profile, objective) if profile else []
    if not within:
        return None
    if objective.goal == "latency":
        return within[0]
    return max(within, key=lambda each: each.throughput)


def _merit(profile: Profile | None, objective: Objective) -> float:
    """More is better."""
    point = _best(profile, objective)
    assert profile, "only what was measured is compared: this is a bug"
    assert point, "only what keeps the bound is compared: this is a bug"
    if objective.goal == "latency":
        return 1 / point.p50_ms
    if objective.goal == "memory":
        return 1 / max(1, profile.resident_bytes)
    return point.throughput


def _p99(candidate: Candidate) -> float:
    assert candidate.profile, "only what was measured is compared: this is a bug"
    return candidate.profile.curve[0].p99_ms


def _why(best: Candidate, base: Candidate | None, objective: Objective) -> str:
    ratio = _merit(best.profile, objective) / _merit(base.profile, objective) if base else 1.0
    if best is base or base is None:
        return f"best for {objective}"
    return f"best for {objective}: {ratio:.2f} times {base.format}"
