"""What the server itself counted, read from its Prometheus endpoint.

The names are Triton's (`nv_inference_count`, ...), so a bare Triton can be read as well.
"""

from __future__ import annotations

import urllib.error
import urllib.request
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

# Batch elements, batches, and requests by outcome.
_FIELDS = {
    "nv_inference_count": "inferences",
    "nv_inference_exec_count": "executions",
    "nv_inference_request_success": "successes",
    "nv_inference_request_failure": "failures",
}


class MetricsUnreadable(Exception):
    """The server's metrics cannot be read; the text says why."""


@dataclass(frozen=True, slots=True)
class ServerCounts:
    """A model's counters, or the difference of two readings of them."""

    inferences: float = 0.0
    executions: float = 0.0
    successes: float = 0.0
    failures: float = 0.0

    def since(self, earlier: ServerCounts) -> ServerCounts:
        """Return what was counted after `earlier`."""
        return ServerCounts(
            inferences=self.inferences - earlier.inferences,
            executions=self.executions - earlier.executions,
            successes=self.successes - earlier.successes,
            failures=self.failures - earlier.failures,
        )

    @property
    def mean_batch_rows(self) -> float | None:
        """Batch elements in an executed batch on average; None if nothing was executed."""
        return self.inferences / self.executions if self.executions > 0 else None


def parse_counts(text: str, model: str, version: str = "") -> ServerCounts:
    """Return a model's counters from Prometheus text: one version's, or the sum over all.

    A model that is not mentioned has counted nothing. Raises `MetricsUnreadable`.
    """
    counts = dict.fromkeys(_FIELDS.values(), 0.0)
    known = False
    try:
        for family in text_string_to_metric_families(text):
            # The parser gives what is typed as a counter the suffix that Triton's names lack.
            field = _FIELDS.get(family.name.removesuffix("_total"))
            if field is None:
                continue
            known = True
            for sample in family.samples:
                labels = sample.labels
                if labels.get("model") == model and version in ("", labels.get("version")):
                    counts[field] += sample.value
    except ValueError as error:
        raise MetricsUnreadable(f"not Prometheus text: {error}") from None
    if not known:
        raise MetricsUnreadable("no nv_inference_* metrics in the answer")
    return ServerCounts(**counts)


def read_counts(url: str, model: str, version: str = "", timeout_s: float = 5.0) -> ServerCounts:
    """Return a model's counters as the server publishes them now. Raises `MetricsUnreadable`."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=timeout_s) as answer:
            text = answer.read().decode()
    except urllib.error.HTTPError as error:
        error.close()
        raise MetricsUnreadable(f"{url}: HTTP status {error.code}") from None
    except urllib.error.URLError as error:
        raise MetricsUnreadable(f"{url}: {error.reason}") from None
    except (OSError, ValueError) as error:
        raise MetricsUnreadable(f"{url}: {error}") from None
    return parse_counts(text, model, version)
