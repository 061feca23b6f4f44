"""Voice activity at 16 kHz: Silero VAD's network, whose memory goes in and out with each chunk."""

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from examples.zoo import packaged

CHUNK = 512
CONTEXT = 64  # the end of the chunk before, which the first window of a chunk reaches back to
STATE = 128
WINDOW, HOP, BINS = 256, 128, 129


class VoiceActivity(nn.Module):
    """One chunk of a stream. A stream begins with zeros for context, hidden and cell."""

    def __init__(self) -> None:
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 2 * BINS, WINDOW, stride=HOP, bias=False)
        self.conv1 = nn.Conv1d(BINS, 128, 3, padding=1)
        self.conv2 = nn.Conv1d(128, 64, 3, stride=2, padding=1)
        self.conv3 = nn.Conv1d(64, 64, 3, stride=2, padding=1)
        self.conv4 = nn.Conv1d(64, 128, 3, padding=1)
        self.lstm_cell = nn.LSTMCell(128, STATE)
        self.final_conv = nn.Conv1d(STATE, 1, 1)

    def forward(
        self, audio: Tensor, context: Tensor, hidden: Tensor, cell: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """float32 [n, 512], [n, 64], [n, 128] twice -> (speech [n, 1], and the last three anew)."""
        heard = functional.pad(torch.cat([context, audio], 1), (0, CONTEXT), "reflect")
        spectrum = self.stft_conv(heard.unsqueeze(1))
        x = (spectrum[:, :BINS] ** 2 + spectrum[:, BINS:] ** 2).sqrt()
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = conv(x).relu()
        hidden, cell = self.lstm_cell(x.squeeze(-1), (hidden, cell))
        speech = self.final_conv(hidden.relu().unsqueeze(-1)).sigmoid().squeeze(-1)
        return speech, audio[:, -CONTEXT:], hidden, cell


def build() -> nn.Module:
    """The trained network in eval mode; its weights are in the pip package."""
    weights = packaged.file("silero_vad", "data/silero_vad_16k.safetensors", "silero-vad==6.2.3")
    network = VoiceActivity()
    network.load_state_dict(load_file(weights))
    return network.eval()
