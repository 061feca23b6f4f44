"""ModelStatistics: what each model has done since the gateway started."""

from __future__ import annotations

from collections.abc import Sequence

from tritonclient.grpc import service_pb2 as pb

from gateway.entry import Entry
from gateway.errors import InvalidRequest, ModelNotFound, ModelUnavailable
from gateway.metrics import ModelStats, ResponseStats
from gateway.registry import Registry


class StatisticsRpcs:
    """Triton's counters of every model that is served, asleep or not: they outlive its sleep."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def ModelStatistics(
        self, message: pb.ModelStatisticsRequest
    ) -> pb.ModelStatisticsResponse:
        """Return the counters of one version, of all versions of a model, or of all models."""
        response = pb.ModelStatisticsResponse()
        for entry in sorted(self._asked_for(message), key=lambda entry: entry.key):
            response.model_stats.append(_statistics(entry))
        return response

    def _asked_for(self, message: pb.ModelStatisticsRequest) -> Sequence[Entry]:
        name, version = message.name, message.version
        if not name:
            return [entry for entry in self._registry.entries() if not entry.retired]
        try:
            serving = self._registry.versions(name)
        except (ModelNotFound, ModelUnavailable):
            raise InvalidRequest(f"requested model '{name}' is not available") from None
        try:
            return [self._registry.find(name, version)] if version else serving
        except ModelNotFound:
            raise InvalidRequest(
                f"requested model version is not available for model '{name}'"
            ) from None


def _statistics(entry: Entry) -> pb.ModelStatistics:
    stats = entry.stats
    statistics = pb.ModelStatistics(
        name=entry.key.name,
        version=str(entry.key.version),
        last_inference=int(stats.last_inference * 1e3),
        inference_count=stats.inferences,
        execution_count=stats.executions,
        inference_stats=_inference_stats(stats),
        batch_stats=[
            pb.InferBatchStatistics(
                batch_size=rows,
                compute_input=_duration(batch.count, batch.input_s),
                compute_infer=_duration(batch.count, batch.infer_s),
                compute_output=_duration(batch.count, batch.output_s),
            )
            for rows, batch in sorted(stats.batches.items())
        ],
    )
    for index, responses in enumerate(stats.responses):
        statistics.response_stats[str(index)].CopyFrom(_response_stats(responses))
    if entry.resident_bytes:
        statistics.memory_usage.add(type="CPU", id=0, byte_size=entry.resident_bytes)
    return statistics


def _inference_stats(stats: ModelStats) -> pb.InferStatistics:
    ran = stats.executed_requests
    return pb.InferStatistics(
        success=_duration(stats.success, stats.request_s),
        fail=_duration(stats.failure, stats.failed_s),
        # as in Triton: what the cache has answered has not waited
        queue=_duration(ran + stats.cache_hits, stats.queue_s),
        compute_input=_duration(ran, stats.input_s),
        compute_infer=_duration(ran, stats.infer_s),
        compute_output=_duration(ran, stats.output_s),
        cache_hit=_duration(stats.cache_hits, stats.cache_hit_s),
        cache_miss=_duration(stats.cache_misses, stats.cache_miss_s),
    )


def _response_stats(responses: ResponseStats) -> pb.InferResponseStatistics:
    return pb.InferResponseStatistics(
        compute_infer=_duration(responses.count, responses.took_s),
        success=_duration(responses.count, responses.took_s),
    )


def _duration(count: int, seconds: float) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=count, ns=int(seconds * 1e9))
