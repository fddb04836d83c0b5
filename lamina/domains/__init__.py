"""Kinds of input, one a file: the folder is the registry, a file's name is the domain's name.

A domain turns raw inputs into compact tensors (`encode`), learns its numbers from the training split (`fit`), gives the
deterministic first layers (`prepare`), a default net, batches, and the way back to answers (`answers`, `predict`).
"""
