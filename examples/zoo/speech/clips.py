"""Two voices, two sentences each, as the audio models of the zoo hear them.

Synthesised by Flite 2.2 (16 kHz mono) with its voices slt (female) and rms (male), for instance
`flite -voice slt -t "The harbour was quiet that evening." -o slt_harbour.wav`. The other
sentence is "Please send the contract back."
"""

import wave
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

RATE = 16_000
VOICES = ("slt", "rms")


def clip(voice: str, sentence: str) -> NDArray[np.float32]:
    """Samples in -1..1 of "harbour" or "contract", float32 [n]."""
    with wave.open(str(Path(__file__).with_name(f"{voice}_{sentence}.wav"))) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (RATE, 1, 2)
        pcm = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    return (pcm / 32768).astype(np.float32)
