"""The tutorial, second height: Lamina takes the step, the loop's body stays yours.

    python examples/own_loop.py

`learn` yields after every optimiser step; whatever you want to happen between steps stands in the `for` body.
"""

import torch
from digits import load
from net import Net
from torch import nn

import lamina

x, y, x2, y2 = load()
batches = lamina.Batches(x, y, batch_size=64, seed=0)

torch.manual_seed(0)
net = Net()
optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, fused=True)

for progress in lamina.learn(net, batches, nn.CrossEntropyLoss(), optimizer, epochs=10):
    if progress.epoch_end:
        print(f"epoch {progress.epoch + 1}: loss {progress.mean_loss:.4f}")

net.eval()
with torch.no_grad():
    right = net(torch.from_numpy(x2)).argmax(1) == torch.from_numpy(y2)
print(f"test accuracy {right.float().mean():.4f}")
