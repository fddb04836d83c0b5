"""Nets: one a file, whole but for `base`, which reads what people ask of them.

The folder is the registry: `nets/mlp.py` is the net "mlp". To add one, add a file. What a file here gives:

- `NET`: its one public class, a plain `nn.Module` that can be lifted out of Lamina and used without it;
- `NET.fitted(shape, width_out, size="small", **arguments)`: the net for an input of `shape` (an example's, without the
  batch: `(features,)` or `(C, H, W)`) and an answer that is `width_out` numbers wide (classes, tags, targets), in the
  size "small", "medium" or "large". `arguments` are those of the class, and win over what the size would choose.

A net takes float tensors (B, *shape) and gives (B, width_out): logits or numbers, no softmax.
"""
