"""Inputs unlike those learned from are told, familiar ones are not, and it is the same net that answers."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lamina
from lamina import familiar, sources, weights
from lamina.errors import RunError
from lamina.run import Run

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    examples = sources.open("digits").train
    return examples.inputs[0], examples.truth


@pytest.fixture(scope="module")
def run(tmp_path_factory, digits) -> Run:
    place = tmp_path_factory.mktemp("familiar")
    return lamina.train("digits", epochs=12, runs=place, name="digits", quiet=True, baselines=False, report=False)


def held_out(run: Run, digits) -> np.ndarray:
    return digits[0][run.reload().split.test]


def letters() -> np.ndarray:
    """Capital letters that are no digits, as large as those."""
    from PIL import Image, ImageDraw, ImageFont

    found = []
    for letter in "ABEFHKMNPRTVWXY":
        for size in (9, 10, 11):
            picture = Image.new("L", (8, 8))
            ImageDraw.Draw(picture).text((4, 4), letter, 240, ImageFont.load_default(size), anchor="mm")
            found.append(np.asarray(picture))
    return np.stack(found)


def test_noise_and_inverted_digits_are_strange_and_new_digits_are_not(run, digits):
    known = held_out(run, digits)
    assert run.predict(known).unlike.mean() < 0.04  # 359 of them; one in a hundred is meant
    noise = RNG.integers(0, 256, known.shape).astype(np.uint8)
    for strange in (noise, 255 - known, known * 0, known * 0 + 255):
        assert run.predict(strange).unlike.mean() > 0.95
    assert run.predict(RNG.permuted(known, axis=2)).unlike.mean() > 0.7  # each column of pixels shuffled
    assert run.predict(letters().reshape(-1, *known.shape[1:])).unlike.mean() > 0.5


def test_the_answers_are_those_of_the_net_alone(run, digits):
    known = held_out(run, digits)
    found = run.predict(known)
    alone = run.target.given(run.domain.predict(run.net, known, run.target))
    assert (found.prediction == alone.prediction).all()
    assert np.allclose(found.probabilities, alone.probabilities, atol=1e-5)
    for few in (known[:1], known[:3]):
        assert np.array_equal(run.predict(few).unlike, found.unlike[: len(few)])


def test_a_net_of_ones_own_with_an_odd_output_is_watched_too(tmp_path):
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 16), nn.Linear(16, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.tanh(self.first(x))).squeeze(1)  # (B,)

    x = RNG.normal(size=(400, 4)).astype(np.float32)
    run = lamina.train((x, x @ [1, 2, -1, 0.5]), net=Odd(), loss=nn.MSELoss(), epochs=5, runs=tmp_path, quiet=True,
                       baselines=False, report=False)  # fmt: skip
    found = run.predict(x[:50])
    assert found.prediction.shape == (50,) and found.unlike.mean() < 0.1
    assert run.predict(x[:50] * 100).unlike.all() and run.predict(x[:50] + [0, 0, 50, 0]).unlike.all()


def test_a_net_without_such_layers_has_no_opinion(tmp_path):
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(4, 3))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight

    x = RNG.normal(size=(90, 4)).astype(np.float32)
    run = lamina.train(
        (x, np.arange(90) % 3), net=Bare(), epochs=1, runs=tmp_path, quiet=True, baselines=False, report=False
    )
    assert run.predict(x).unlike is None and not (run.folder / familiar.FILE).exists()


def test_a_net_that_cannot_be_asked_for_few_examples_still_ends_its_training(tmp_path):
    class Shy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            if len(x) == 5:
                raise ValueError("five are company")
            return self.layer(x)

    x = RNG.normal(size=(90, 4)).astype(np.float32)
    run = lamina.train((x, np.arange(90) % 3), net=Shy(), epochs=1, batch_size=8, runs=tmp_path, quiet=True,
                       baselines=False, report=False, test="0")  # fmt: skip
    assert run.facts["status"] == "done" and run.facts["familiar"] == {"why_not": "ValueError: five are company"}


@pytest.mark.parametrize("damage", ["flipped", "gone"])
def test_a_damaged_file_is_refused(run, digits, tmp_path, damage):
    copy = tmp_path / "copy"
    shutil.copytree(run.folder, copy)
    place: Path = copy / familiar.FILE
    content = bytearray(place.read_bytes())
    content[len(content) // 2] ^= 1
    place.unlink() if damage == "gone" else place.write_bytes(content)
    with pytest.raises(RunError, match=r"familiar\.safetensors is"):
        lamina.load(copy).predict(digits[0][:2])


def test_layers_that_the_net_does_not_have_are_refused(run, digits, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run.folder, copy)
    facts = json.loads((copy / "run.json").read_text())
    facts["familiar"]["layers"][0] = "no.such.layer"
    (copy / "run.json").write_text(json.dumps(facts))
    with pytest.raises(RunError, match=r"run.json is damaged"):
        lamina.load(copy).predict(digits[0][:2])


def test_of_a_run_of_an_earlier_version_nothing_is_told_and_that_is_said(run, digits, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run.folder, copy)
    tensors = weights.read_weights(copy / familiar.FILE)
    written = weights.to_bytes({name: tensor for name, tensor in tensors.items() if name != "least"})
    (copy / familiar.FILE).write_bytes(written)
    facts = json.loads((copy / "run.json").read_text())
    facts["familiar"]["sha256"] = hashlib.sha256(written).hexdigest()
    (copy / "run.json").write_text(json.dumps(facts))
    with pytest.warns(UserWarning, match="of an earlier version"):
        found = lamina.load(copy).predict(digits[0][:2])
    assert found.unlike is None and len(found.prediction) == 2


# --- The arithmetic ---------------------------------------------------------------------------------------------------


def test_the_distance_is_that_of_mahalanobis():
    from scipy.spatial.distance import cdist

    x, classes = RNG.normal(size=(200, 5)) @ RNG.normal(size=(5, 5)), np.arange(200) % 3
    factor, means = familiar._fitted(x, classes)
    inverse = factor.double() @ factor.double().T
    centres = np.stack([x[classes == k].mean(0) for k in range(3)])
    wanted = cdist(x, centres, "mahalanobis", VI=inverse.numpy()).min(1)
    assert np.allclose(familiar.distance(torch.from_numpy(x).float(), factor, means).numpy(), wanted, rtol=1e-3)
    within = x - centres[classes]
    assert np.allclose(np.linalg.inv(inverse.numpy()), within.T @ within / 200, atol=0.15 * within.var(0).max())


@pytest.mark.parametrize(
    "shape, dim, wanted",
    [((6, 4), 0, 4), ((6, 3, 5, 5), 0, 6), ((6, 7, 4), 0, 8), ((2, 6, 4), 1, 8), ((6, 3000), 0, 128), ((6,), 0, 1)],
)
def test_what_goes_into_a_layer_becomes_a_row_an_example(shape, dim, wanted):
    given = torch.randn(shape)
    found = familiar.summary(given, dim)
    assert found.shape == (6, wanted)
    if len(shape) == 4:
        assert torch.allclose(found[:, :3], given.mean((2, 3)), atol=1e-6)
        assert torch.allclose(found[:, 3:], given.std((2, 3), correction=0), atol=1e-4)
    order = torch.tensor([3, 1, 0, 5, 2, 4])
    assert torch.allclose(familiar.summary(given.index_select(dim, order), dim), found[order], atol=1e-5)


def test_a_convolution_over_a_sequence_has_its_channels_last():
    net = nn.Sequential(nn.Conv1d(3, 4, 1), nn.Flatten(), nn.Linear(20, 2))
    x = torch.randn(6, 3, 5)
    _, seen = familiar.watch(net, (x,), ["0", "2"])
    assert torch.equal(seen["0"], x.transpose(1, 2)) and seen["2"].shape == (6, 20)
    assert torch.allclose(familiar.summary(seen["0"], 0)[:, :3], x.mean(2), atol=1e-6)


def test_of_many_inputs_every_64th_are_added_up():
    given = torch.randn(6, 300)
    found = familiar.summary(given, 0, True)
    wanted = torch.stack([given[:, k :: familiar.GROUPS].sum(1) for k in range(familiar.GROUPS)], 1)
    assert torch.allclose(found, wanted, atol=1e-5)
    few = given[:, : familiar.WIDEST]
    assert torch.equal(familiar.summary(few, 0, True), few)
    pictures = given.view(6, 3, 10, 10)
    assert torch.allclose(
        familiar.summary(pictures, 0, True), torch.cat([familiar.summary(pictures, 0), wanted], 1), atol=1e-5
    )
    for plain in (pictures[:, :, :2, :2], pictures.repeat(1, 12, 1, 1)):  # of so few pixels, or so many channels, none
        assert torch.equal(familiar.summary(plain, 0, True), familiar.summary(plain, 0))


@pytest.mark.parametrize("width", [129, 300, 1024, 1100, 3000])
def test_of_wide_layers_every_128th_are_added_up_each_with_its_sign(width):
    given = torch.randn(150, width)
    signed = given * familiar._signs(width, given.device)
    wanted = torch.stack([signed[:, k :: familiar.WIDEST].sum(1) for k in range(familiar.WIDEST)], 1)
    assert torch.allclose(familiar.summary(given, 0), wanted, atol=1e-4)


def test_pictures_in_which_nothing_is_seen_are_strange_and_usual_rows_are_not():
    """Blurred, dark and empty ones lie nearer to the mean than any other; where no side is told, as of tables, none is."""
    draw = np.random.default_rng(0)
    x = draw.normal(0, 1, (3000, 16 * 16)).astype(np.float32) + 3.0
    net = nn.Sequential(nn.Linear(256, 20), nn.ReLU(), nn.Linear(20, 3)).eval()
    batches = torch.from_numpy(x).split(500)
    strange = torch.full((5, 256), float(x.mean()))
    for both_sides in (True, False):
        known = familiar.learn(net, [(part,) for part in batches[:4]], None, [(part,) for part in batches[4:]],
                               both_sides=both_sides)  # fmt: skip
        watched = familiar.Watched(net, known)
        told = watched.apart(watched(torch.cat([strange, torch.from_numpy(x[-500:])])))[1]
        assert bool(told[:5].all()) is both_sides and told[5:].mean() < 0.03


def test_folded_features_keep_their_distances():
    one, other = torch.randn(1, 20_000), torch.randn(1, 20_000)
    folded = familiar.summary(torch.cat([one, other]), 0)
    assert float((folded[0] - folded[1]).norm()) == pytest.approx(float((one - other).norm()), rel=0.25)


def test_of_few_distances_the_limit_is_that_of_their_distribution_and_not_their_largest():
    """Of a log-normal one it lies between the quantiles 0.99 and 0.999 on average, and one that is far off moves it little."""
    draw = np.random.default_rng(1)
    several = [np.exp(0.5 * draw.normal(size=60)) for _ in range(200)]
    limits = [familiar._limit(apart) for apart in several]
    assert np.exp(0.5 * 2.326) < np.exp(np.mean(np.log(limits))) < np.exp(0.5 * 3.09)
    with_one = [familiar._limit(np.append(apart, 1e3)) for apart in several]
    assert np.mean(np.log(with_one) - np.log(limits)) < 0.15
    many = np.exp(draw.normal(size=20_000))
    assert familiar._limit(many) == pytest.approx(np.quantile(many, 0.99))


@pytest.mark.parametrize(("rows", "width"), [(400, 6), (60, 40), (20, 64)])
def test_the_covariance_is_shrunk_as_scikit_learn_shrinks_it(rows, width):
    from sklearn.covariance import ledoit_wolf

    x = np.random.default_rng(rows).normal(size=(rows, width)) @ np.diag(np.linspace(0.1, 3, width))
    assert np.allclose(familiar.shrunk(x), ledoit_wolf(x, assume_centered=True)[0], rtol=1e-9, atol=1e-12)
    assert familiar.shrunk(np.zeros((5, 3))).tolist() == np.zeros((3, 3)).tolist()


def test_a_training_loads_no_scikit_learn(tmp_path):
    """It takes longer to import than the tutorial's net takes for an epoch."""
    program = f"""
import sys
import lamina
run = lamina.train("digits", net="mlp", epochs=1, runs={str(tmp_path)!r}, quiet=True)
assert run.predict("digits").unlike is not None
assert not {{"sklearn", "scipy.stats", "scipy.optimize"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True)
