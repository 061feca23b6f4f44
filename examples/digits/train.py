"""Train the digits network and write its weights: `python -m examples.digits.train`."""

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn import functional

from examples.digits.data import held_out, training
from examples.digits.model import build

EPOCHS, BATCH, PEAK_RATE = 60, 64, 6e-3


def distorted(images: torch.Tensor) -> torch.Tensor:
    """`images`, each turned (±10°), scaled (±10 %) and shifted (±1 pixel) at random."""
    count = len(images)
    angle = (torch.rand(count) - 0.5) * 0.35
    scale = 1 + (torch.rand(count) - 0.5) * 0.2
    shift = (torch.rand(count, 2) - 0.5) * 0.5
    cos, sin = scale * angle.cos(), scale * angle.sin()
    rows = [torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)]
    grid = functional.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


def train(seed: int) -> tuple[torch.nn.Module, float]:
    """(network in eval mode, accuracy on the held-out digits); the same seed, the same weights."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)  # the order of summation, and so the weights, depends on it
    network = build().train()
    images, labels = map(torch.from_numpy, training())
    batches = -(-len(images) // BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK_RATE, total_steps=EPOCHS * batches
    )
    for _ in range(EPOCHS):
        for chosen in torch.split(torch.randperm(len(images)), BATCH):
            logits = network(distorted(images[chosen]))
            loss = functional.cross_entropy(logits, labels[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
    network.eval()
    images, labels = map(torch.from_numpy, held_out())
    with torch.no_grad():
        hits = network(images).argmax(1) == labels
    return network, hits.float().mean().item()


def main() -> None:
    """Write `digits.safetensors` beside this file and print the held-out accuracy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    default = Path(__file__).with_name("digits.safetensors")
    parser.add_argument("--output", type=Path, default=default)
    args = parser.parse_args()
    network, accuracy = train(args.seed)
    save_file(network.state_dict(), args.output)
    print(f"held-out accuracy {accuracy:.2%}, {args.output.stat().st_size:,} bytes of weights")


if __name__ == "__main__":
    main()
