"""Where log lines go and how they look; what of that can be changed while the gateway runs."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import dataclass
from datetime import UTC, datetime

_GATEWAY = logging.getLogger("gateway")


@dataclass(frozen=True)
class LogSettings:
    """What is logged, in Triton's words.

    A `verbose_level` above 0 adds a line for each request. `format` is of the times: "default" or
    "ISO8601".
    """

    info: bool = True
    warning: bool = True
    error: bool = True
    verbose_level: int = 0
    format: str = "default"


class Logs:
    """The log on stderr. It looks at its settings for each line: changes act at once."""

    def __init__(self, settings: LogSettings, json_lines: bool) -> None:
        self.settings = settings
        handler = logging.StreamHandler(sys.stderr)
        handler.addFilter(self._wanted)
        text = _TextFormatter("%(asctime)s %(levelname)-7s %(message)s")
        text.logs = self
        handler.setFormatter(_JsonFormatter() if json_lines else text)
        logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
        # uvicorn says at every start and stop what this gateway's own lines say better
        logging.getLogger("uvicorn").setLevel(logging.ERROR)
        self.change(settings)

    def change(self, settings: LogSettings) -> None:
        """Log as these settings have it."""
        self.settings = settings
        # the gateway's own lines alone: what libraries have to say is for those who debug them
        _GATEWAY.setLevel(logging.DEBUG if settings.verbose_level else logging.NOTSET)

    def _wanted(self, record: logging.LogRecord) -> bool:
        settings = self.settings
        if record.levelno >= logging.ERROR:
            return settings.error
        if record.levelno >= logging.WARNING:
            return settings.warning
        return record.levelno < logging.INFO or settings.info


def log_to_stderr(log_format: str, level: str) -> Logs:
    """Set up logging as the gateway was told to; `level` is the least severe line to print."""
    settings = LogSettings(
        info=level in ("debug", "info"),
        warning=level != "error",
        verbose_level=int(level == "debug"),
    )
    return Logs(settings, log_format == "json")


class _TextFormatter(logging.Formatter):
    logs: Logs

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        if self.logs.settings.format == "default":
            return super().formatTime(record, datefmt)
        moment = datetime.fromtimestamp(record.created, UTC)
        return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


class _JsonFormatter(logging.Formatter):
    """One JSON object a line: time (seconds since the epoch), level, logger, message."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": round(record.created, 6),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)
