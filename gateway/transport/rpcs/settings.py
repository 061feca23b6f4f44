"""LogSettings and TraceSetting: what is logged and what is traced, changed while serving."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tritonclient.grpc import service_pb2 as pb

from gateway.errors import InvalidRequest, ModelNotFound, ModelUnavailable, NotSupported
from gateway.logs import Logs, LogSettings
from gateway.registry import Registry
from gateway.trace_settings import TraceSettings

# Triton's setting -> ours, the field of the message that holds it, and what Triton calls its type
_LOG_SETTINGS: Mapping[str, tuple[str, str, str]] = {
    "log_info": ("info", "bool_param", "boolean"),
    "log_warning": ("warning", "bool_param", "boolean"),
    "log_error": ("error", "bool_param", "boolean"),
    "log_verbose_level": ("verbose_level", "uint32_param", "int32"),
    "log_format": ("format", "string_param", "string"),
}
_LOG_FORMATS = ("default", "ISO8601")


class SettingsRpcs:
    """Shows and changes the settings; the texts of errors are Triton's."""

    def __init__(self, registry: Registry, logs: Logs, traces: TraceSettings) -> None:
        self._registry = registry
        self._logs = logs
        self._traces = traces

    async def LogSettings(self, message: pb.LogSettingsRequest) -> pb.LogSettingsResponse:
        """Change what is given, return all. Settings that do not exist mean nothing."""
        given = message.settings
        if "log_file" in given:
            raise NotSupported("log file location can not be updated through network protocol")
        changes: dict[str, Any] = {}
        for setting, (name, kind, kind_in_words) in _LOG_SETTINGS.items():
            if setting in given:
                if given[setting].WhichOneof("parameter_choice") != kind:
                    raise InvalidRequest(f"expect {kind_in_words} for '{setting}'")
                changes[name] = getattr(given[setting], kind)
        if changes.get("format", "default") not in _LOG_FORMATS:
            raise InvalidRequest(f"invalid argument for log_format, got: {changes['format']}")
        if changes:
            self._logs.change(replace(self._logs.settings, **changes))
        return _shown(self._logs.settings)

    async def TraceSetting(self, message: pb.TraceSettingRequest) -> pb.TraceSettingResponse:
        """Change what is given, of one model or of all without their own; return what holds."""
        name = message.model_name
        if name:
            try:
                self._registry.find(name)
            except (ModelNotFound, ModelUnavailable):
                raise InvalidRequest(f"Request for unknown model : {name}") from None
        self._traces.update(
            name, {setting: list(given.value) for setting, given in message.settings.items()}
        )
        response = pb.TraceSettingResponse()
        for setting, values in self._traces.shown(name).items():
            response.settings[setting].value.extend(values)
        return response


def _shown(settings: LogSettings) -> pb.LogSettingsResponse:
    response = pb.LogSettingsResponse()
    for setting, (name, kind, _) in _LOG_SETTINGS.items():
        setattr(response.settings[setting], kind, getattr(settings, name))
    response.settings["log_file"].string_param = ""
    return response
