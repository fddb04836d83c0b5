"""The tutorial, third height: the whole story in a few lines.

    python examples/few_lines.py

The same weights as bare_loop.py, and a run folder beside them: checkpoints, history, scores with intervals, predictions,
figures and a report.
"""

import torch
from digits import load
from net import Net
from torch import nn

import lamina

x, y, x2, y2 = load()
torch.manual_seed(0)
run = lamina.train((x, y), net=Net(), loss=nn.CrossEntropyLoss(), test=(x2, y2), epochs=10)
print(run.headline)
net = run.net
