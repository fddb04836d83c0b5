"""Kinds of answer, one a file: the folder is the registry, a file's name is the target's name.

A target learns its labels or scale from the training split (`fit`), turns answers into tensors (`encode`), says how wide
the net's output must be and what to minimise (`width`, `loss`), checks that a net fits (`check`), and turns outputs into
answers for people (`decode`) and into scores (`measures`).
"""
