"""Train a network of your own on chips: the loader's batches in a plain PyTorch loop.

Run it as: python examples/torch_loop.py CHIPS/ (a folder that `sniper chips` wrote)
"""

import sys
from pathlib import Path

import torch
from torch import nn

from sniper_chips import BatchLoader, ChipDataset, LoaderSettings, State

dataset = ChipDataset(Path(sys.argv[1]))
loader = BatchLoader(dataset, LoaderSettings(threads=2), batch_size=8)

# A stand-in for your network: does a chip hold any box? batch.status tells targets from boxes to leave out of a loss.
layers = (nn.Conv2d(3, 8, 7, stride=8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 1))
network = nn.Sequential(*layers)
optimizer = torch.optim.SGD(network.parameters(), lr=0.01)

state = State(seed=0)  # the place in the data: keep it in your checkpoint, and the next batch is the next batch
for _ in range(2):  # epochs
    for step in loader.epoch(state):
        for micro in step.micros:  # one, unless the batch is larger than a rank takes at a time
            batch = micro.to(torch.device("cpu"))
            targets = (batch.offsets.diff() > 0).float()
            logits = network(batch.images.float() / 255).squeeze(1)
            loss = nn.functional.binary_cross_entropy_with_logits(logits, targets)
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        state = step.after
    print(f"epoch {state.epoch}: loss {loss.item():.3f}")
