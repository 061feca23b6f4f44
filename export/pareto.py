"""Which formats are worth a look: those that no other beats in everything. Pure."""

from collections.abc import Sequence

from export.manifest import Candidate, Profile


def front(candidates: Sequence[Candidate]) -> frozenset[str]:
    """Formats that no other is at least as good as in throughput, memory, size and error.

    Only of those that were measured; of two equal ones both stay.
    """
    merits = {each.format: merit for each in candidates if (merit := _merits(each))}
    return frozenset(
        name
        for name, own in merits.items()
        if not any(_beats(other, own) for other in merits.values())
    )


def measured(profile: Profile | None) -> Profile | None:
    """The profile, where it has a curve."""
    return profile if profile and profile.curve else None


def worst_error(candidate: Candidate) -> float | None:
    """The largest |error| of all outputs; None where it was not verified."""
    if candidate.parity is None or not candidate.parity.outputs:
        return None
    return max(output.max_abs for output in candidate.parity.outputs.values())


def worst_cosine(candidate: Candidate) -> float | None:
    """The mean cosine of the output that has the least; None where it was not verified."""
    if candidate.parity is None or not candidate.parity.outputs:
        return None
    return min(output.cosine for output in candidate.parity.outputs.values())


def _merits(candidate: Candidate) -> tuple[float, ...] | None:
    """More is better in each; None for what was not measured."""
    profile, error, size = (
        measured(candidate.profile),
        worst_error(candidate),
        candidate.size_bytes,
    )
    if candidate.status not in ("ok", "chosen") or not profile or error is None or size is None:
        return None
    return (profile.knee().throughput, -profile.resident_bytes, -size, -error)


def _beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)
