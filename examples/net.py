"""The tutorial's network, written as people write it. Nothing in it knows of Lamina.

Used unchanged by bare_loop.py, own_loop.py and few_lines.py, and by the command line:

    lamina train digits --net examples/net.py:Net --epochs 10
"""

import torch
from torch import nn


class Net(nn.Module):
    """64 - 128 - 64 - 10: pictures of 8 x 8 in, a number for each of ten digits out."""

    def __init__(self, inputs=64):
        super().__init__()
        self.fc1 = nn.Linear(inputs, 128)
        self.fc2 = nn.Linear(128, 64)
        self.fc3 = nn.Linear(64, 10)

    def forward(self, x):
        x = torch.flatten(x, 1)  # (B, 8, 8) -> (B, 64)
        x = nn.ReLU()(self.fc1(x))
        x = nn.ReLU()(self.fc2(x))
        return self.fc3(x)  # (B, 10)
