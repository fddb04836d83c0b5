"""One page a run: pictures, words, numbers; opens offline.

`figures` draws, `page` writes. In: the facts of a run as plain data (run.json, scores, history, ...). Out: matplotlib
figures, their PNG bytes, and one self-contained HTML text. Who calls writes the files.
"""
