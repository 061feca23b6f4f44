"""Face detection: the proposal network of MTCNN (arXiv:1604.02878), over images of any size."""

import torch
from torch import Tensor, nn

from examples.zoo import packaged

STRIDE, WINDOW = 2, 12  # pixels: from one window to the next, and the side of each


class FaceProposals(nn.Module):
    """For each window of 12 x 12 pixels: is it a face, and how far is the face's frame off."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 10, 3)
        self.prelu1 = nn.PReLU(10)
        self.pool1 = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.conv2 = nn.Conv2d(10, 16, 3)
        self.prelu2 = nn.PReLU(16)
        self.conv3 = nn.Conv2d(16, 32, 3)
        self.prelu3 = nn.PReLU(32)
        self.conv4_1 = nn.Conv2d(32, 2, 1)
        self.conv4_2 = nn.Conv2d(32, 4, 1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """float32 [n, 3, height, width] in 0..255 -> [n, 1, rows, columns], [n, 4, rows, columns].

        The four are left, top, right and bottom against the window's, in windows' sides.
        """
        x = self.pool1(self.prelu1(self.conv1((image - 127.5) / 128)))
        x = self.prelu3(self.conv3(self.prelu2(self.conv2(x))))
        return torch.softmax(self.conv4_1(x), 1)[:, 1:], self.conv4_2(x)


def build() -> nn.Module:
    """The trained network in eval mode; its weights are in the pip package."""
    path = packaged.file("facenet_pytorch", "data/pnet.pt", "facenet-pytorch==2.6.0")
    network = FaceProposals()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.eval()
