"""Training as the zoo's own networks do it: seeded, on one thread, the same weights again."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Change = Callable[[torch.Tensor], torch.Tensor]


def fit(
    network: torch.nn.Module,
    inputs: Sequence[torch.Tensor],
    targets: torch.Tensor,
    loss: Loss,
    *,
    epochs: int,
    batch: int,
    peak_rate: float,
    weight_decay: float = 0.01,
    distorted: Change = lambda values: values,
) -> torch.nn.Module:
    """`network` in eval mode, trained on rows of `inputs` and `targets` in random order.

    `distorted` changes the first input of each batch.
    """
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=weight_decay)
    steps = epochs * -(-len(targets) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak_rate, total_steps=steps)
    for _ in range(epochs):
        for rows in torch.split(torch.randperm(len(targets)), batch):
            first, *others = (values[rows] for values in inputs)
            error = loss(network(distorted(first), *others), targets[rows])
            optimizer.zero_grad()
            torch.autograd.backward(error)
            optimizer.step()
            schedule.step()
    return network.eval()


def begin(seed: int = 0) -> None:
    """Make what follows repeatable: the order of summation, and so the weights, depends on both."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)


def save(network: torch.nn.Module, file: Path, found: str) -> None:
    """Write the weights and say what was found."""
    save_file(network.state_dict(), file)
    print(f"{file.name}: {found}, {file.stat().st_size:,} bytes of weights")
