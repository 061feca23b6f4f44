"""The command line: `tidegate NAME ...`, and `tidegate serve` itself."""

from __future__ import annotations

import argparse
import os
import sys
from importlib.metadata import entry_points, version
from pathlib import Path

from gateway.config import Settings, load_settings
from gateway.errors import TidegateError
from gateway.transport.grpc_tuning import choose_io_layer

_SUMMARIES = {
    "serve": "serve a model repository over KServe v2 gRPC",
    "models": "show which models of a running gateway are in memory, and where",
    "load": "have a running gateway load a model now",
    "unload": "have a running gateway put a model to sleep",
    "pin": "have a running gateway keep copies of a model ready",
    "export": "turn a trained PyTorch model into a verified version in a repository",
    "loadtest": "measure latency and throughput of an endpoint with Locust",
}


def main(argv: list[str] | None = None) -> int:
    """Run `tidegate ARGV`; return the exit code.

    The programs are found by entry point, so that none of them imports another.
    """
    commands = {point.name: point for point in entry_points(group="tidegate.commands")}
    parser = argparse.ArgumentParser(
        prog="tidegate",
        description="A serverless inference gateway.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="commands:\n"
        + "\n".join(f"  {name:<10} {_SUMMARIES.get(name, '')}" for name in commands)
        + "\n\n`tidegate COMMAND --help` says more.",
    )
    parser.add_argument("--version", action="version", version=f"tidegate {version('tidegate')}")
    parser.add_argument("command", choices=sorted(commands), metavar="COMMAND")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...")
    parsed = parser.parse_args(argv)
    return int(commands[parsed.command].load()(parsed.arguments))


def serve(argv: list[str]) -> int:
    """Run `tidegate serve ARGV` until a signal; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="tidegate serve",
        description="Serve a model repository over KServe v2, gRPC and REST. Each flag is also a "
        "key of the config file and a TIDEGATE_* variable; flags win over variables, variables "
        "over the file.",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings as TOML")
    for name, field in Settings.model_fields.items():
        text = f"{field.description} (default: {field.default})"
        flag = f"--{name.replace('_', '-')}"
        if field.annotation in (bool, bool | None):
            parser.add_argument(
                flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text
            )
        else:
            parser.add_argument(flag, default=argparse.SUPPRESS, metavar="VALUE", help=text)
    flags = vars(parser.parse_args(argv))
    file = flags.pop("config")
    try:
        settings = load_settings(flags, os.environ, file)
        choose_io_layer()
        # gRPC and ONNX Runtime take most of a second to import: `--help` need not wait for them
        from gateway import app

        app.run(settings)
    except TidegateError as error:
        print(f"tidegate serve: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
