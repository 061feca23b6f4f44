"""What a stream of audio through the gateway is promised to hear."""

from __future__ import annotations

from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tritonclient.grpc as triton

pytest.importorskip("torch", reason="voice_activity: pip install tidegate[export]")
pytest.importorskip("safetensors", reason="voice_activity: pip install tidegate[export]")

from examples.zoo.speech.clips import RATE, VOICES, clip
from examples.zoo.voice_activity.data import noise, samples, stream
from examples.zoo.voice_activity.model import CHUNK

Audio = npt.NDArray[np.float32]
SEQUENCES = count(1)
PAUSE = RATE // 2 // CHUNK  # chunks of silence before and after the sentence of a stream


def call(zoo: Any, chunk: Audio, sequence: int, start: bool, end: bool) -> float:
    audio = triton.InferInput("audio", [1, CHUNK], "FP32")
    audio.set_data_from_numpy(chunk[np.newaxis])
    result = zoo.client.infer(
        "voice_activity", [audio], sequence_id=sequence, sequence_start=start, sequence_end=end
    )
    return float(result.as_numpy("speech")[0, 0])


def listen(zoo: Any, chunks: Audio) -> Audio:
    """The probability of speech in each chunk of one stream."""
    sequence, last = next(SEQUENCES), len(chunks) - 1
    heard = [call(zoo, each, sequence, at == 0, at == last) for at, each in enumerate(chunks)]
    return np.array(heard, np.float32)


@pytest.mark.parametrize("voice", VOICES)
def test_speech_is_heard_and_silence_is_not(zoo: Any, voice: str) -> None:
    heard = listen(zoo, stream(voice, "contract"))
    spoken = len(clip(voice, "contract")) // CHUNK
    assert heard[:PAUSE].max() < 0.2
    assert np.median(heard[PAUSE : PAUSE + spoken]) > 0.9
    assert (heard[PAUSE : PAUSE + spoken] > 0.5).mean() > 0.8
    assert heard[-PAUSE // 2 :].max() < 0.2


def test_noise_is_not_speech(zoo: Any) -> None:
    assert np.median(listen(zoo, noise())) < 0.2


def test_interleaved_streams_keep_their_own_memory(zoo: Any) -> None:
    speech, silence = stream("slt", "harbour"), np.zeros_like(stream("slt", "harbour"))
    alone = listen(zoo, speech)
    first, second = next(SEQUENCES), next(SEQUENCES)
    last = len(speech) - 1
    heard = []
    for at in range(len(speech)):
        heard.append(call(zoo, speech[at], first, at == 0, at == last))
        assert call(zoo, silence[at], second, at == 0, at == last) < 0.2
    np.testing.assert_allclose(heard, alone, atol=1e-4)


def test_memory_matters(zoo: Any) -> None:
    chunks = stream("rms", "harbour")
    forgetful = [call(zoo, chunk, next(SEQUENCES), True, True) for chunk in chunks]
    assert np.abs(listen(zoo, chunks) - forgetful).max() > 0.3


def test_the_gateway_carries_the_memory_that_the_network_would(zoo: Any) -> None:
    try:
        rows = samples()
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
    import torch

    from examples.zoo.voice_activity.model import build

    chunks = stream(VOICES[0], "harbour")
    given = [torch.from_numpy(rows[name][: len(chunks)]) for name in rows]
    with torch.no_grad():
        expected = build()(*given)[0][:, 0].numpy()
    np.testing.assert_allclose(listen(zoo, chunks), expected, atol=1e-3)
