"""`tidegate models`, `load`, `unload`, `pin`: a running gateway looked at and steered."""

from __future__ import annotations

import argparse
import json
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

DEFAULT_URL = "http://127.0.0.1:8002"
ANSWER_WITHIN_S = 330.0  # a load may take as long as a request may wait for it


class _Refused(Exception):
    """What the gateway said, or that there is none."""


def models(argv: list[str]) -> int:
    """Show which models are in memory, and where; return the exit code."""
    parser = _parser("models", "Show a gateway's models: those in memory or wanted there.")
    parser.add_argument("pattern", nargs="?", default="*", help='names, "*" stands for any text')
    parser.add_argument("--all", action="store_true", help="those that are asleep, too")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--watch", action="store_true", help="show it anew every second")
    parsed = parser.parse_args(argv)

    def show() -> Table:
        return _table(_asked(parsed.url, parsed.pattern, parsed.all))

    def work() -> None:
        if parsed.json:
            print(json.dumps(_asked(parsed.url, parsed.pattern, parsed.all), indent=2))
        elif parsed.watch:
            with Live(show(), auto_refresh=False) as live:
                while True:
                    time.sleep(1.0)
                    live.update(show(), refresh=True)
        else:
            Console().print(show())

    return _run("models", work)


def load(argv: list[str]) -> int:
    """Have a model loaded now; return the exit code."""
    parser = _parser("load", "Read a model anew and load it; needs --allow-repository-control.")
    parser.add_argument("model")
    parsed = parser.parse_args(argv)
    path = f"/v2/repository/models/{urllib.parse.quote(parsed.model, safe='')}/load"
    return _run("load", lambda: _post(parsed.url, path))


def unload(argv: list[str]) -> int:
    """Put a model to sleep now; return the exit code."""
    parser = _parser("unload", "Put a model to sleep; the next request wakes it.")
    parser.add_argument("model")
    parsed = parser.parse_args(argv)
    path = f"/v2/repository/models/{urllib.parse.quote(parsed.model, safe='')}/unload"
    return _run("unload", lambda: _post(parsed.url, path))


def pin(argv: list[str]) -> int:
    """Have copies of a model ready whether or not anybody asks; return the exit code."""
    parser = _parser("pin", "Keep copies of a model ready; needs --allow-repository-control.")
    parser.add_argument("model")
    parser.add_argument("--replicas", type=int, default=1, help="copies (default: 1)")
    parser.add_argument("--off", action="store_true", help="as its configuration says again")
    parsed = parser.parse_args(argv)
    model = f"/tidegate/models/{urllib.parse.quote(parsed.model, safe='')}"
    path = f"{model}/unpin" if parsed.off else f"{model}/pin?replicas={parsed.replicas}"
    return _run("pin", lambda: _post(parsed.url, path))


def _parser(name: str, text: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"tidegate {name}", description=text)
    parser.add_argument(
        "--url", default=DEFAULT_URL, help=f"the gateway's HTTP port (default: {DEFAULT_URL})"
    )
    return parser


def _run(name: str, work: Any) -> int:
    try:
        work()
    except _Refused as error:
        print(f"tidegate {name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _asked(url: str, pattern: str, everything: bool) -> list[dict[str, Any]]:
    query = urllib.parse.urlencode({"name": pattern, "limit": 1_000_000})
    found = _call(urllib.request.Request(f"{url}/tidegate/models?{query}"))["models"]
    return [each for each in found if everything or each["copies"] or each["waiting"]]


def _post(url: str, path: str) -> None:
    _call(urllib.request.Request(url + path, data=b"", method="POST"))


def _call(request: urllib.request.Request) -> Any:
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_WITHIN_S) as answer:
            return json.loads(answer.read() or b"{}")
    except urllib.error.HTTPError as error:
        with error:
            text = error.read().decode(errors="replace")
        try:
            raise _Refused(json.loads(text)["error"]) from None
        except (ValueError, KeyError, TypeError):
            raise _Refused(f"{request.full_url} answers {error.code}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise _Refused(f"there is no gateway at {request.full_url}: {reason}") from None


def _table(found: list[dict[str, Any]]) -> Table:
    heads = ("model", "state", "pins", "engines", "MB", "waits", "runs", "req/s", "idle")
    table = Table(*heads)
    for each in found:
        table.add_row(
            f"{each['name']}:{each['version']}",
            each["state"],
            str(each["min_replicas"] or ""),
            ", ".join(copy["engine"] for copy in each["copies"]),
            f"{each['bytes'] / 1e6:.1f}",
            str(each["waiting"] + each["queued"]),
            str(each["in_flight"]),
            f"{each['requests_per_s']:.2f}",
            "" if each["idle_s"] is None else f"{each['idle_s']:.0f} s",
        )
    return table
