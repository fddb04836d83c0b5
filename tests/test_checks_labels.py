"""Labels that were planted wrongly are suspected, nearly no others are, and the run tells which."""

from __future__ import annotations

import json

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

import lamina
from lamina import sources
from lamina.checks import labels

RNG = np.random.default_rng(0)


@given(st.integers(0, 2**32 - 1), st.integers(2, 5))
def test_suspects_are_those_of_brute_force(seed, classes):
    rng = np.random.default_rng(seed)
    given_labels = rng.integers(0, classes, 60)
    table = rng.dirichlet(np.full(classes, 0.3), 60)
    usual = [table[given_labels == k, k].mean() if (given_labels == k).any() else np.inf for k in range(classes)]
    wanted = {}
    for row, label in enumerate(given_labels):
        confident = [k for k in range(classes) if table[row, k] >= usual[k]]
        best = max(confident, key=lambda k: table[row, k], default=label)
        if best != label and table[row, label] < labels.LEAST:
            wanted[row] = best
    rows, other = labels.suspects(given_labels, table)
    assert dict(zip(rows.tolist(), other.tolist(), strict=True)) == wanted
    margins = table[rows, other] - table[rows, given_labels[rows]]
    assert (np.diff(margins) <= 1e-12).all()  # the surest first


def test_neighbours_are_those_of_brute_force():
    embedding, classes = RNG.normal(size=(90, 6)), RNG.integers(0, 3, 90)
    unit = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
    alike = unit @ unit.T
    np.fill_diagonal(alike, -2)
    near = np.argsort(-alike, axis=1)[:, : labels.NEIGHBOURS]
    wanted = np.stack([(classes[near] == k).sum(1) for k in range(3)], 1)
    found = labels.of_neighbours(torch.from_numpy(embedding), classes, 3)
    assert np.allclose(found, (wanted + 0.5 / 3) / (labels.NEIGHBOURS + 0.5), atol=1e-6)
    assert np.allclose(found.sum(1), 1)


def suspected(x: np.ndarray, y: np.ndarray, runs, **settings) -> tuple[set[int], str]:
    run = lamina.train((x, y), runs=runs, quiet=True, baselines=False, report=False, **settings)
    found = json.loads((run.folder / "data.json").read_text())["findings"]
    doubts = [finding for finding in found if finding["kind"] == "suspected_labels"]
    if not doubts:
        return set(), ""
    assert len(doubts[0]["examples"]) == doubts[0]["count"]
    return {int(name.split()[0]) for name, _, _ in doubts[0]["examples"]}, doubts[0]["severity"]


def test_flipped_labels_of_digits_are_found(tmp_path):
    source = sources.open("digits").train
    x, y = source.inputs[0], source.truth.copy()
    wrong = np.flatnonzero(np.random.default_rng(1).random(len(y)) < 0.05)
    y[wrong] = (y[wrong] + 1 + wrong % 9) % 10
    found, severity = suspected(x, y, tmp_path, epochs=12)
    assert severity == "warning"
    assert len(found & set(wrong)) >= 0.9 * len(found)  # precision
    assert len(found & set(wrong)) >= 0.6 * len(wrong)  # recall


def test_right_labels_are_let_alone(tmp_path):
    source = sources.open("digits").train
    found, severity = suspected(source.inputs[0], source.truth, tmp_path, epochs=12)
    assert len(found) <= 4 and severity in ("", "note")


def test_of_a_finding_the_surest_are_listed_and_the_rest_counted():
    assert labels.finding([], 100) is None
    entries = [(f"{k}.png", "cat", "dog", k / 1000) for k in range(300)]
    told = labels.finding(entries, 1000)
    assert told is not None and told.severity == "warning" and told.count == 300
    assert told.examples[0] == ["299.png", "cat", "dog"] and len(told.examples) == labels.LISTED
    assert "299.png is 'cat' and looks like 'dog'" in told.what and "297 more" in told.what
    assert labels.finding(entries[:1], 1000).severity == "note"
