"""The tutorial, first height: the plain PyTorch loop. Only the loader is Lamina's.

    python examples/bare_loop.py

own_loop.py and few_lines.py end in the same weights, bit for bit.
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
loss = nn.CrossEntropyLoss()
optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, fused=True)

for epoch in range(10):
    total = 0.0
    for inputs, truth in batches:  # another order in every epoch
        optimizer.zero_grad()
        value = loss(net(inputs), truth)
        value.backward()
        optimizer.step()
        total += value.item() * len(truth)
    print(f"epoch {epoch + 1}: loss {total / len(x):.4f}")

net.eval()
with torch.no_grad():
    right = net(torch.from_numpy(x2)).argmax(1) == torch.from_numpy(y2)
print(f"test accuracy {right.float().mean():.4f}")
