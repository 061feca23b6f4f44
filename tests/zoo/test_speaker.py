"""What speaker embeddings from the gateway are promised to tell apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import tritonclient.grpc as triton

from examples.zoo.speaker.data import FRAMES, windows
from examples.zoo.speaker.mel import spectrogram
from examples.zoo.speech.clips import VOICES, clip

Floats = npt.NDArray[np.float32]


def embed(zoo: Any, mel: Floats) -> Floats:
    given = triton.InferInput("mel", list(mel.shape), "FP32")
    given.set_data_from_numpy(mel)
    embedding: Floats = zoo.client.infer("speaker", [given]).as_numpy("embedding")
    return embedding


def voiceprint(zoo: Any, voice: str, sentence: str) -> Floats:
    """The mean over a clip's windows, at length 1."""
    mean = embed(zoo, np.ascontiguousarray(windows(voice, sentence)[::4])).mean(0)
    unit: Floats = mean / np.linalg.norm(mean)
    return unit


def test_one_voice_is_closer_to_itself_in_another_sentence_than_to_another_voice(zoo: Any) -> None:
    prints = {
        (voice, sentence): voiceprint(zoo, voice, sentence)
        for voice in VOICES
        for sentence in ("harbour", "contract")
    }
    same = [prints[voice, "harbour"] @ prints[voice, "contract"] for voice in VOICES]
    other = [
        prints[VOICES[0], one] @ prints[VOICES[1], another]
        for one in ("harbour", "contract")
        for another in ("harbour", "contract")
    ]
    assert min(same) > 0.75
    assert max(other) < 0.7
    assert min(same) > max(other) + 0.1


def test_an_embedding_has_length_one_and_no_negative_part(zoo: Any) -> None:
    embedding = embed(zoo, windows("slt", "harbour")[:3])
    assert embedding.shape == (3, 256)
    assert embedding.min() >= 0
    np.testing.assert_allclose(np.linalg.norm(embedding, axis=1), 1, atol=1e-4)


def test_a_whole_clip_of_any_length_is_taken(zoo: Any) -> None:
    whole = spectrogram(clip("rms", "contract"))
    assert len(whole) > FRAMES
    near = voiceprint(zoo, "rms", "contract")
    assert embed(zoo, whole[np.newaxis])[0] @ near > 0.9


def test_loudness_is_no_part_of_a_voice(zoo: Any) -> None:
    audio = clip("slt", "harbour")
    loud, soft = (spectrogram(audio * gain)[np.newaxis, :FRAMES] for gain in (0.05, 0.01))
    np.testing.assert_allclose(embed(zoo, loud), embed(zoo, soft), atol=1e-3)
