"""The settings of `tidegate serve`: one frozen value, validated once."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from gateway.errors import StartError
from gateway.placement import EngineKind

ENV_PREFIX = "TIDEGATE_"


class Settings(BaseModel):
    """What the gateway was told. Each field is a TOML key, a TIDEGATE_* variable and a flag."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field("127.0.0.1", description="address to listen on, gRPC and HTTP")
    port: int = Field(8001, ge=0, le=65535, description="gRPC port; 0 takes a free one")
    http_port: int = Field(
        8002,
        ge=0,
        le=65535,
        description="HTTP port: REST, /metrics, /healthz, /docs; 0 takes a free one",
    )
    repository: str = Field(
        "model_repository",
        min_length=1,
        description="the Triton model repository: a folder, or a URL such as s3://bucket/models",
    )
    repository_cache_dir: Path = Field(
        Path("~/.cache/tidegate/repository"),
        validate_default=True,
        description="where files of a repository at a URL are kept; $XDG_CACHE_HOME is honoured",
    )
    repository_cache_bytes: int = Field(
        50 * 1024**3, ge=0, description="bound on the weights that are kept there"
    )
    repository_refresh_s: float = Field(
        60.0, ge=0, description="how often a repository at a URL is read again; 0: never"
    )
    idle_timeout_s: float = Field(
        300.0, gt=0, description="unload a model that nobody used for so many seconds"
    )
    request_timeout_s: float = Field(
        300.0, gt=0, description="deadline of a request whose client set none, in seconds"
    )
    drain_timeout_s: float = Field(
        30.0, ge=0, description="how long SIGTERM waits for requests in flight, in seconds"
    )
    max_message_bytes: int = Field(
        256 * 1024 * 1024, gt=0, le=2**31 - 1, description="largest message and HTTP body, in bytes"
    )
    max_inflight: int = Field(4096, gt=0, description="requests in flight, all models together")
    max_inflight_per_model: int = Field(1024, gt=0, description="requests in flight, one model")
    intra_op_threads: int = Field(
        0, ge=0, description="ONNX Runtime's shared thread pool; 0 takes one a core but one"
    )
    cache_dir: Path | None = Field(
        Path("~/.cache/tidegate/sessions"),
        validate_default=True,
        description="where optimised ONNX sessions are kept, so that the next load is quick; "
        "$XDG_CACHE_HOME is honoured; empty keeps none",
    )
    cache_max_bytes: int = Field(10 * 1024**3, ge=0, description="bound on what is kept there")
    gpu_memory_limit_bytes: int = Field(
        0, ge=0, description="what a model may take of a GPU's memory; 0 sets no limit"
    )
    engine_timeout_s: float = Field(
        300.0, gt=0, description="give up on a batch that the engine has not answered, in seconds"
    )
    triton: str = Field(
        "",
        pattern=r"^((dns:)?[^,]+:\d{1,5}(,(dns:)?[^,]+:\d{1,5})*)?$",
        description="HOST:PORT (gRPC) of a Triton server that runs models, several with commas; "
        "dns:HOST:PORT is one for each address that the name has, asked again and again. With "
        "--repository models are described from there, else by what Triton says of its own",
    )
    spawn_triton: int = Field(
        0, ge=0, le=64, description="Triton servers of the gateway's own, over --repository"
    )
    embedded: bool | None = Field(
        None,
        description="run models in this process, too (default: where there is no Triton); "
        "those that it cannot serve go to Triton",
    )
    memory_bytes: int | None = Field(
        None,
        ge=0,
        description="what models may take in this process (default: a share of the GPU's memory "
        "or, without one, of what the container or the machine has); 0 sets no bound",
    )
    triton_memory_bytes: int | None = Field(
        None,
        ge=0,
        description="the same for each Triton server (default: for the gateway's own likewise, no "
        "bound for others)",
    )
    max_replicas: int = Field(
        0, ge=0, description="copies of a model at most; 0: as many as there are engines"
    )
    target_concurrency: float = Field(
        0.0,
        ge=0,
        description="requests in flight that one copy is meant for; with more there will be "
        "another; 0: by the model's batch size and instances",
    )
    predictive_prewarm: bool = Field(
        False, description="load models shortly before the time at which they are usually asked for"
    )
    traffic: Path | None = Field(
        None, description="file of labels, weights and shadows of versions; read again on change"
    )
    watch: bool = Field(True, description="take up what changes in the repository by itself")
    triton_env: Path = Field(
        Path(".venv-triton"), description="the environment that `make triton` makes"
    )
    allow_client_shm: bool = Field(
        False, description="let clients register shared memory of this machine and use it"
    )
    allow_repository_control: bool = Field(
        False, description="let clients load and unload models by name"
    )
    response_cache_bytes: int = Field(
        64 * 1024**2, ge=0, description="bound on cached answers, all models together; 0 keeps none"
    )
    trace_endpoint: str = Field(
        "",
        pattern=r"^(https?://.+)?$",
        description="URL of an OpenTelemetry collector (OTLP over HTTP); empty traces nothing",
    )
    trace_rate: int = Field(
        1000, gt=0, lt=2**32, description="trace one of so many requests that are in no trace yet"
    )
    log_format: Literal["text", "json"] = Field("text", description="how a log line looks")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least severe log line to print"
    )

    @field_validator("cache_dir", mode="before")
    @classmethod
    def _empty_is_none(cls, value: object) -> object:
        return None if value == "" else value

    @field_validator("repository_cache_dir")
    @classmethod
    def _repository_home(cls, value: Path) -> Path:
        return value.expanduser()

    @field_validator("cache_dir")
    @classmethod
    def _home(cls, value: Path | None) -> Path | None:
        return value.expanduser() if value is not None else None

    @model_validator(mode="after")
    def _some_engine(self) -> Settings:
        if self.embedded is False and not self.triton and not self.spawn_triton:
            raise ValueError("--no-embedded needs --triton or --spawn-triton")
        if "dns:" in self.triton and not self.repository_given:
            raise ValueError("--triton dns:HOST:PORT needs --repository")
        return self

    @property
    def engine_kinds(self) -> frozenset[EngineKind]:
        """The kinds of engine that there are."""
        kinds = {EngineKind.TRITON} if self.triton or self.spawn_triton else set()
        if self.embedded or (self.embedded is None and not kinds):
            kinds.add(EngineKind.EMBEDDED)
        return frozenset(kinds)

    @property
    def repository_is_remote(self) -> bool:
        """Whether the repository is at a URL."""
        return "://" in self.repository

    @property
    def repository_given(self) -> bool:
        """Whether somebody named the repository; a Triton server has one of its own."""
        return "repository" in self.model_fields_set


def load_settings(
    flags: Mapping[str, Any], environ: Mapping[str, str], file: Path | None = None
) -> Settings:
    """Return the settings: file, overridden by environment, overridden by flags.

    Raises `StartError` naming the key and where it came from.
    """
    merged: dict[str, Any] = {}
    origin: dict[str, str] = {}

    def take(values: Mapping[str, Any], where: str) -> None:
        merged.update(values)
        origin.update(dict.fromkeys(values, where))

    if cache_home := environ.get("XDG_CACHE_HOME"):
        ours = Path(cache_home, "tidegate")
        caches = {"cache_dir": ours / "sessions", "repository_cache_dir": ours / "repository"}
        take(caches, "XDG_CACHE_HOME")
    if file is not None:
        take(_read_toml(file), str(file))
    from_env = {
        name: environ[ENV_PREFIX + name.upper()]
        for name in Settings.model_fields
        if ENV_PREFIX + name.upper() in environ
    }
    take(from_env, "the environment")
    take(flags, "the command line")
    try:
        return Settings.model_validate(merged)
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:
            raise StartError(first["msg"].removeprefix("Value error, ")) from None
        name = str(first["loc"][0])
        if first["type"] == "extra_forbidden":
            message = f"{origin[name]}: unknown setting '{name}'"
        else:
            message = f"{origin[name]}: setting '{name}': {first['msg']}, got {first['input']!r}"
        raise StartError(message) from None


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text())
    except OSError as error:
        raise StartError(f"cannot read the config file '{file}': {error.strerror}") from None
    except UnicodeDecodeError:
        raise StartError(f"{file} is not a text file in UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise StartError(f"{file}: {error}") from None
