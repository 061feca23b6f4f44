"""The load test as plain Locust sees it: `locust -f loadtest/locustfile.py --host ADDRESS:PORT`.

`--model NAME` (or LOADTEST_MODEL) says what to test; the web UI asks for it.
"""

import json
import logging
import signal
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import gevent
from locust import events
from locust.env import Environment

from loadtest.endpoint import EndpointError
from loadtest.payloads import PayloadError, parse_integers, parse_shapes
from loadtest.users import InferUser, Target

__all__ = ["InferUser"]

log = logging.getLogger("loadtest")


def add_arguments(parser: ArgumentParser) -> None:
    """Add what Locust does not know: the model and its requests."""
    add: Any = parser.add_argument  # Locust's parser takes env_var and include_in_web_ui besides
    add("--model", env_var="LOADTEST_MODEL", default="", help="model to test")
    add("--model-version", env_var="LOADTEST_MODEL_VERSION", default="", help="its version")
    add("--batch-size", type=int, default=1, help="rows in a request")
    add("--shape", default="", help="dims of open inputs: NAME:D,D[;NAME:D,D]")
    add("--integers", default="0,99", help="least and greatest value of integer inputs")
    add("--seed", type=int, default=0, help="seed of the request's values")
    add("--timeout-s", type=float, default=30.0, help="deadline of a request, in seconds")
    add("--measured", default="", include_in_web_ui=False, help="write exact figures to this JSON")


def stop_on_ctrl_c(environment: Environment, **_: Any) -> None:
    """Let Ctrl-C end a run without web UI as its time limit would, report and all.

    Python's own KeyboardInterrupt may strike inside gRPC's event loop, which swallows it.
    """
    if environment.web_ui is None and environment.runner is not None:
        gevent.signal_handler(signal.SIGINT, environment.runner.quit)


def prepare(environment: Environment, **_: Any) -> None:
    """Make the requests; a run without them ends at once."""
    options = environment.parsed_options
    runner = environment.runner
    if options is None or runner is None:
        raise AssertionError("a test starts without options or runner: this is a bug")
    try:
        if not options.model or not environment.host:
            raise PayloadError("say what to test: --host ADDRESS:PORT and --model NAME")
        InferUser.target = Target(
            environment.host,
            options.model,
            options.model_version,
            batch_size=options.batch_size,
            shapes=parse_shapes(options.shape.split(";")),
            integers=parse_integers(options.integers),
            seed=options.seed,
            timeout_s=options.timeout_s,
        )
    except (EndpointError, PayloadError) as error:
        InferUser.target = None
        log.error("%s", error)
        environment.process_exit_code = 1
        # Locust starts its users once this listener returns; there is nothing to stop before.
        gevent.spawn(runner.stop if environment.web_ui else runner.quit)


def finish(environment: Environment, **_: Any) -> None:
    """Write down what was measured, and hang up."""
    target, InferUser.target = InferUser.target, None
    if target is None:
        return
    target.close()
    options = environment.parsed_options
    if options is not None and options.measured:
        Path(options.measured).write_text(json.dumps(target.recording.summary()))


hooks: Any = events  # Locust leaves `add_listener` untyped
hooks.init_command_line_parser.add_listener(add_arguments)
hooks.init.add_listener(stop_on_ctrl_c)
hooks.test_start.add_listener(prepare)
hooks.test_stop.add_listener(finish)
