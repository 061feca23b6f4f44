"""Sends requests that ask for no version where the traffic file says, and shadows beside them."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from gateway.core import InferRequest, InferResponse, ModelKey, Stage
from gateway.errors import ModelNotFound, TidegateError
from gateway.metrics import Metrics, Shadowed
from gateway.registry import Registry
from gateway.traffic import Rule, Rules, drawn

log = logging.getLogger(__name__)

SHADOWS_AT_ONCE = 16  # more are dropped: they must not take what the requests themselves need
STICKY = "tidegate_sticky"  # a parameter: requests of equal value go to the same version


class Split:
    """A stage before the router. `take` gives it the rules, again whenever they change."""

    def __init__(
        self,
        router: Stage,
        registry: Registry,
        metrics: Metrics,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._router = router
        self._registry = registry
        self._metrics = metrics
        self._draw = draw
        self._rules: Rules = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._shadows = 0

    def take(self, rules: Rules) -> None:
        """Go by these rules from now on."""
        if rules == self._rules:
            return
        self._rules = rules
        log.info("traffic rules for %d models", len(rules))
        self._registry.label({name: rule.labels for name, rule in rules.items()})
        for name, faults in self.faults().items():
            for fault in faults:
                log.warning("traffic of model %s: %s", name, fault)

    async def run(self) -> None:
        """Be the parent of the shadows, until cancelled; without it there are none."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                self._tasks = None  # an ended group would refuse a task, and so fail the request

    async def infer(self, request: InferRequest) -> InferResponse:
        """Pass a request on to its version, and perhaps a copy to another, whose answer is lost."""
        rule = self._rules.get(request.model)
        if rule is None or request.version:
            return await self._router.infer(request)
        routed = self._routed(request, rule)
        if rule.shadow:
            self._shadow(routed, rule)
        while True:
            try:
                return await self._router.infer(routed)
            except ModelNotFound:
                if not self._has_left(routed):
                    raise
                routed = self._routed(request, rule)

    async def stream(self, request: InferRequest) -> AsyncGenerator[InferResponse, None]:
        """Pass a request on to its version, and its answers back. It has no shadow."""
        rule = self._rules.get(request.model)
        chosen = rule if rule is not None and not request.version else None
        routed = self._routed(request, chosen) if chosen else request
        answered = False
        while True:
            try:
                async with aclosing(self._router.stream(routed)) as answers:
                    async for answer in answers:
                        answered = True
                        yield answer
                return
            except ModelNotFound:
                if answered or chosen is None or not self._has_left(routed):
                    raise
                routed = self._routed(request, chosen)

    def faults(self) -> dict[str, list[str]]:
        """Return what each model's rule says of versions that are not there."""
        return {
            name: list(rule.faults(lambda version, name=name: self._serves(name, version)))  # type: ignore[misc]
            for name, rule in self._rules.items()
        }

    def described(self) -> dict[str, Any]:
        """Return the rules in force, for people."""
        faults = self.faults()
        return {
            name: {
                "labels": rule.labels,
                "split": {str(version): weight for version, weight in rule.weights},
                "shadow": {"to": rule.shadow, "percent": rule.shadow_percent}
                if rule.shadow
                else None,
                "warnings": faults[name],
            }
            for name, rule in self._rules.items()
        }

    def _routed(self, request: InferRequest, rule: Rule) -> InferRequest:
        if not rule.weights:
            return request
        if request.sequence is not None:
            draw = drawn(request.model, request.sequence.id)
        elif STICKY in request.parameters:
            draw = drawn(request.model, request.parameters[STICKY])
        else:
            draw = self._draw()
        version = rule.choose(draw, lambda version: self._serves(request.model, version))
        return request if version is None else replace(request, version=str(version))

    def _shadow(self, request: InferRequest, rule: Rule) -> None:
        """Send a copy to the shadow version, beside the request itself."""
        shadow = str(rule.shadow)
        if request.version == shadow or self._draw() * 100 >= rule.shadow_percent:
            return
        try:
            spec = self._registry.find(request.model, shadow).spec
        except TidegateError:
            return  # the warning has been given
        # a sequence would be begun twice; a decoupled model's or an ensemble's answers are many
        if request.sequence is not None or spec.decoupled or spec.steps:
            return
        counts = self._metrics.shadows
        if self._tasks is None or self._shadows >= SHADOWS_AT_ONCE:
            counts[spec.key, Shadowed.DROPPED] += 1
            return
        self._shadows += 1
        copy = replace(request, version=shadow, trace=None)
        self._tasks.create_task(self._lose(copy, spec.key), name=f"shadow {spec.key}")

    async def _lose(self, request: InferRequest, key: ModelKey) -> None:
        outcome = Shadowed.FAILED
        try:
            await self._router.infer(request)
            outcome = Shadowed.ANSWERED
        except TidegateError as error:
            log.debug("%s: shadow failed: %s", key, error)
        except Exception:  # raised on, it would end the gateway: nobody waits for this answer
            log.exception("shadow %s failed: this is a bug", key)
        finally:
            self._shadows -= 1
            self._metrics.shadows[key, outcome] += 1

    def _has_left(self, routed: InferRequest) -> bool:
        """Return whether a version went while its request waited: its share is the others' now."""
        return bool(routed.version) and not self._serves(routed.model, int(routed.version))

    def _serves(self, name: str, version: int) -> bool:
        return self._registry.serves(ModelKey(name, version))
