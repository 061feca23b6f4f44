"""Models to export: each callable is named by a spec of the tests."""

import importlib
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn


class Double(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale


class Branch(nn.Module):
    """The trap: the exported file keeps the branch of the example, whatever the batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 10 if x.shape[0] > 3 else x


class ValueBranch(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 3 else x * 2


class BakedBatch(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(4, 4)  # the example's batch size


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 6)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        vectors = self.embedding(ids) * mask.unsqueeze(-1)
        return {"pooled": vectors.sum(1), "kept": mask.sum(1), "ids_next": ids + 1}


class Scalar(nn.Module):
    def forward(self, x: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x.sum() * k, x * k


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states: torch.Tensor = self.lstm(x)[0]
        return states


class Add(nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a + b


class InPlace(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.add_(1)


class Nested(nn.Module):
    def forward(
        self, batch: dict[str, tuple[torch.Tensor, torch.Tensor]], scale: torch.Tensor
    ) -> dict[str, dict[str, torch.Tensor]]:
        left, right = batch["pair"]
        total = (left + right) * scale
        return {"sums": {"all": total, "twice": 2 * total}}


class Infinite(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.abs().neg().sqrt()


class Unsupported(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = torch.special.airy_ai(x)
        return value


class Slow(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(60)
        return x


class Dropped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.body(x)
        return result


def double() -> nn.Module:
    return Double().eval()


def branch() -> nn.Module:
    return Branch().eval()


def value_branch() -> nn.Module:
    return ValueBranch().eval()


def baked_batch() -> nn.Module:
    return BakedBatch().eval()


def tokens() -> nn.Module:
    torch.manual_seed(0)
    return Tokens().eval()


def scalar() -> nn.Module:
    return Scalar().eval()


def recurrent() -> nn.Module:
    torch.manual_seed(0)
    return Recurrent().eval()


def wide() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 512), nn.Linear(512, 4)).eval()


def add() -> nn.Module:
    return Add().eval()


def in_place() -> nn.Module:
    return InPlace().eval()


def nested() -> nn.Module:
    return Nested().eval()


def infinite() -> nn.Module:
    return Infinite().eval()


def unsupported() -> nn.Module:
    return Unsupported().eval()


def slow() -> nn.Module:
    return Slow().eval()


def t5_encoder() -> nn.Module:
    transformers = importlib.import_module("transformers")
    shape = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    module: nn.Module = transformers.T5EncoderModel(transformers.T5Config(vocab_size=50, **shape))
    return module.eval()


def token_calls() -> Iterator[dict[str, torch.Tensor]]:
    for count, length in ((2, 5), (3, 9), (2, 7)):
        ids = torch.arange(count * length).reshape(count, length) * 2 % 50
        yield {"ids": ids, "mask": (ids > 4).long()}


def misshapen() -> dict[str, Any]:
    return {"x": np.zeros((8, 5), "float32")}


def crashing() -> nn.Module:
    os.kill(os.getpid(), signal.SIGSEGV)
    return Double()


def in_train_mode() -> nn.Module:
    return Dropped()


def half_in_train_mode() -> nn.Module:
    module = Dropped().eval()
    module.body[1].train()
    return module


def broken() -> nn.Module:
    raise RuntimeError("no such layer")


def of_an_absent_package() -> nn.Module:
    raise ModuleNotFoundError("pip install weights-of-it")


def not_a_module() -> Any:
    return {"weight": 1}
