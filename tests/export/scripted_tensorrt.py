"""TensorRT proper as a script: what was asked of it, and answers that need a GPU."""

from collections.abc import Sequence
from enum import IntEnum
from types import SimpleNamespace
from typing import Any, Self


class Severity(IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3


class Logger:
    Severity = Severity


class Library:
    """A module `tensorrt`. `says` goes to the logger while it builds, then comes `answer`."""

    ILogger = Logger
    NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
    MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")
    BuilderFlag = SimpleNamespace(VERSION_COMPATIBLE="version compatible")
    HardwareCompatibilityLevel = SimpleNamespace(AMPERE_PLUS="ampere+")

    def __init__(
        self,
        version: str = "11.0.0.1",
        *,
        says: Sequence[tuple[Severity, str]] = (),
        answer: bytes | None = b"engine",
        starts: bool = True,
    ) -> None:
        self.__version__ = version
        self._says = says
        self._answer = answer
        self._starts = starts
        self.asked: dict[str, Any] = {}
        self.hardware_compatibility_level: str | None = None

    def Builder(self, log: Any) -> Self:
        self._log = log
        if not self._starts:
            self._speak()
            raise TypeError("pybind11::init(): factory function returned nullptr")
        return self

    def OnnxParser(self, network: Any, log: Any) -> Any:
        return SimpleNamespace(parse_from_file=lambda path: True, num_errors=0)

    def create_network(self, flags: int) -> Any:
        self.asked["network flags"] = flags
        tensor = SimpleNamespace(name="x", shape=(-1, 4))
        return SimpleNamespace(num_inputs=1, get_input=lambda index: tensor, num_layers=3)

    def create_builder_config(self) -> Self:
        return self

    def set_memory_pool_limit(self, pool: str, size: int) -> None:
        self.asked[pool] = size

    def set_flag(self, flag: str) -> None:
        self.asked["flag"] = flag

    def create_optimization_profile(self) -> Any:
        return SimpleNamespace(set_shape=lambda name, *shapes: self.asked.update({name: shapes}))

    def add_optimization_profile(self, profile: Any) -> int:
        return 0

    def create_timing_cache(self, known: bytes) -> Any:
        self.asked["known timings"] = known
        return SimpleNamespace(serialize=lambda: known + b"+1")

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        return ignore_mismatch

    def build_serialized_network(self, network: Any, config: Any) -> bytes | None:
        self._speak()
        return self._answer

    def _speak(self) -> None:
        for level, words in self._says:
            self._log.log(level, words)
