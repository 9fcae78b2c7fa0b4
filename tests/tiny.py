"""A small CNN that the suite trains itself in seconds: gratings of four directions, two discs, two shapes.

Its filters have something to look for, so that tests of pictures, atlases and pages need no download.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from convscope.models import InputSpec, Net

LABELS = ("horizontal", "vertical", "rising", "falling", "red disc", "blue disc", "square", "cross")
SPEC = InputSpec(shape=(3, 32, 32), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


class TinyNet(nn.Module):
    """conv - bn - relu three times, a max pooling between, global average, linear: 11 thousand parameters."""

    def __init__(self, classes: int = len(LABELS)) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 12, 5, padding=2, bias=False)
        self.bn1 = nn.BatchNorm2d(12)
        self.relu1 = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(12, 24, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(24)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv3 = nn.Conv2d(24, 32, 3, stride=2, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(32)
        self.relu3 = nn.ReLU(inplace=True)
        self.gap = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(32, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu1(self.bn1(self.conv1(x))))  # [batch, 12, h / 2, w / 2]
        x = self.relu2(self.bn2(self.conv2(x)))  # [batch, 24, h / 2, w / 2]
        x = self.relu3(self.bn3(self.conv3(x)))  # [batch, 32, h / 4, w / 4]
        logits: Tensor = self.fc(self.gap(x).flatten(1))
        return logits


def pictures(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images [count, 3, 32, 32] in [0, 1] with noise, and their classes [count]."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(count, *shape, 1, 1, generator=generator) * (high - low) + low  # [count, ..., 1, 1]

    target = torch.randint(len(LABELS), (count,), generator=generator)
    y, x = torch.meshgrid(torch.linspace(-1, 1, 32), torch.linspace(-1, 1, 32), indexing="ij")
    dx, dy, radius = x - uniform(-0.3, 0.3), y - uniform(-0.3, 0.3), uniform(0.35, 0.6)
    angles = torch.tensor([math.pi / 2, 0.0, math.pi / 4, -math.pi / 4])
    angle = angles[target.clamp(max=3)].view(-1, 1, 1) + uniform(-0.15, 0.15)
    wave = (uniform(8, 16) * (x * angle.cos() + y * angle.sin()) + uniform(0, 6.3)).sin() / 2 + 0.5
    disc = (dx.square() + dy.square() < radius.square()).float()
    square = ((dx.abs() < radius * 0.9) & (dy.abs() < radius * 0.9)).float()
    cross = (((dx.abs() < 0.15) | (dy.abs() < 0.15)) & (dx.abs() < radius) & (dy.abs() < radius)).float()
    masks = torch.stack([wave, wave, wave, wave, disc, disc, square, cross], 1)  # [count, class, 32, 32]
    mask = masks[torch.arange(count), target].unsqueeze(1)

    colour, ground = uniform(0.4, 1.0, 3), uniform(0.0, 0.6, 3)  # [count, 3, 1, 1]
    colour[target == 4] = torch.tensor([0.9, 0.2, 0.1]).view(3, 1, 1)
    colour[target == 5] = torch.tensor([0.1, 0.3, 0.9]).view(3, 1, 1)
    noise = torch.randn(count, 3, 32, 32, generator=generator) * 0.05
    return (ground + mask * (colour - ground) + noise).clamp(0, 1), target


def train(seed: int = 0, steps: int = 100, batch: int = 64) -> tuple[Net, float]:
    """The trained network in eval mode and its accuracy on pictures it has not seen."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = TinyNet()
    images, target = pictures(steps * batch, seed)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=steps)
    for step in range(steps):
        rows = slice(step * batch, (step + 1) * batch)
        loss = functional.cross_entropy(module(SPEC.normalize(images[rows])), target[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    module.eval()
    for parameter in module.parameters():
        parameter.grad = None
    held_out, truth = pictures(512, seed + 1)
    with torch.no_grad():
        accuracy = (module(SPEC.normalize(held_out)).argmax(1) == truth).float().mean().item()
    net = Net(module, SPEC, labels=LABELS, name="tiny", trained=True, normalization_known=True)
    return net, accuracy
