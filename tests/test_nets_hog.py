"""The net of oriented gradients: its histograms against a count by hand, what light cannot change, and where it begins."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import lamina
from lamina.errors import UsageError
from lamina.nets.hog import HOGNet
from lamina.recipe import Recipe
from lamina.sources import Examples
from lamina.targets.embedding import Embedding, area, centres, pairs


def counted(picture: np.ndarray, net: HOGNet) -> np.ndarray:
    """Histograms of a grey picture (H, W) at full size, a pixel at a time; blocks are whole."""
    height, width = picture.shape
    votes = np.zeros((net.directions, height, width))
    for row in range(height):
        for column in range(width):
            across = picture[row, column + 1] - picture[row, column - 1] if 0 < column < width - 1 else 0.0
            down = picture[row + 1, column] - picture[row - 1, column] if 0 < row < height - 1 else 0.0
            place = math.atan2(down, across) / (2 * math.pi) * net.directions
            low = math.floor(place)
            steep = math.hypot(across, down)
            votes[low % net.directions, row, column] += steep * (low + 1 - place)
            votes[(low + 1) % net.directions, row, column] += steep * (place - low)
    found = []
    for down, across in net.grids:
        high, wide = height // down, width // across
        cells = np.zeros((net.directions, down - 1, across - 1))
        for i in range(down - 1):
            for j in range(across - 1):
                part = votes[:, i * high : (i + 2) * high, j * wide : (j + 2) * wide].mean((1, 2))
                cells[:, i, j] = part / math.sqrt((part**2).sum() + 0.25)
        found.append(cells.reshape(-1))
    return np.concatenate(found)


def test_histograms_are_what_counting_gives():
    generator = torch.Generator().manual_seed(3)
    x = F.interpolate(torch.randn(2, 1, 9, 7, generator=generator), (36, 24), mode="bicubic")
    net = HOGNet(1, 4, 36, 24, grids=(4, 6))
    assert net.grids == [(6, 4), (9, 6)]
    found = net.histograms(x)
    half = found.shape[1] // 2
    for k in range(2):
        np.testing.assert_allclose(found[k, :half].numpy(), counted(x[k, 0].double().numpy(), net), atol=2e-5)
        small = F.avg_pool2d(x, 2)[k, 0].double().numpy()  # 18 x 12, which both grids divide
        np.testing.assert_allclose(found[k, half:].numpy(), counted(small, net), atol=2e-5)


def test_light_that_falls_on_all_alike_changes_nothing_and_an_even_picture_is_nothing():
    x = torch.randn(3, 3, 30, 40)
    net = HOGNet(3, 5, 30, 40)
    torch.testing.assert_close(net.histograms(x + 2.5), net.histograms(x), atol=1e-4, rtol=0)
    assert net.histograms(torch.full((1, 3, 30, 40), 0.7)).abs().max() < 1e-4


def test_the_mirrored_answer_is_the_same_for_a_picture_and_its_mirror_image_once_training_is_over():
    net, x = HOGNet(1, 6, 48, 40, mirrored=True), torch.randn(4, 1, 48, 40)
    torch.testing.assert_close(net.eval()(x), net(x.flip(3)))
    assert not torch.allclose(net.train()(x), net(x.flip(3)), atol=1e-2)


def people(count: int, each: int, seed: int = 0, side: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth pictures, one for each person, that differ by smooth changes which are alike for all."""
    generator = torch.Generator().manual_seed(seed)

    def smooth(*shape: int) -> torch.Tensor:
        return F.interpolate(torch.randn(*shape, generator=generator), (side, side), mode="bicubic")

    faces, ways = smooth(count, 1, 8, 8), F.interpolate(torch.randn(3, 1, 5, 5, generator=torch.Generator().manual_seed(9)),
                                                        (side, side), mode="bicubic")  # fmt: skip
    who = torch.arange(count).repeat_interleave(each)
    amounts = torch.randn(len(who), 3, generator=generator)
    noise = torch.randn(len(who), 1, side, side, generator=generator) * 0.1
    return faces[who] + 1.5 * torch.einsum("nk,kchw->nchw", amounts, ways) + noise, who


def test_it_begins_where_pictures_of_one_person_differ_alike_in_all_directions():
    """The covariance within a person of what begins is a multiple of the identity, up to the shrinkage."""
    x, who = people(6, 30)
    net = HOGNet(1, 16, 40, 40)
    net.begin([x], who, centres(6, 16))
    found = net(x).detach().double()
    means = torch.stack([found[who == k].mean(0) for k in range(6)])
    within = found - means[who]
    variances = torch.linalg.eigvalsh(within.T @ within / len(within))
    assert variances.max() / variances.min() < 2
    plain = net.histograms(x).double()
    plain -= torch.stack([plain[who == k].mean(0) for k in range(6)])[who]
    before = torch.linalg.eigvalsh(plain.T @ plain)[-16:]
    assert before.max() / before.min() > 5  # it was not so before


def test_it_begins_with_people_near_their_directions_and_tells_unseen_ones_apart():
    x, who = people(8, 12)
    net = HOGNet(1, 32, 40, 40).eval()
    torch.manual_seed(0)
    goal = centres(8, 32)
    unseen, other = people(8, 6, seed=1)

    def scores() -> tuple[float, float]:
        with torch.no_grad():
            right = ((F.normalize(net(x)) @ goal.T).argmax(1) == who).float().mean().item()
            cosines, same = pairs(F.normalize(net(unseen)).numpy(), other.numpy(), np.arange(len(other)))
        return right, area(cosines[same], cosines[~same])

    before = scores()
    net.begin([x, x.roll(1, 2)], who, goal)
    named, told = scores()
    assert named > 0.99 > before[0] + 0.3
    assert told > before[1] + 0.02


@pytest.mark.parametrize(("count", "each"), [(2, 2), (3, 1), (300, 1)])
def test_it_begins_from_any_number_of_people_and_pictures(count, each):
    x, who = people(count, each)
    net = HOGNet(1, 20, 40, 40)
    net.begin([x, x.flip(3)], who, centres(count, 20))
    assert net.head.weight.isfinite().all() and net(x).norm(dim=1).mean() > 0.1


@pytest.mark.parametrize("shape", [(1, 24, 24), (1, 112, 92), (3, 96, 96), (3, 250, 200)])
def test_a_fitted_net_takes_its_shape(shape):
    net = HOGNet.fitted(shape, 9)
    assert net(torch.randn(2, *shape)).shape == (2, 9)
    assert sum(p.numel() for p in HOGNet.fitted(shape, 9, "large").parameters()) > sum(
        p.numel() for p in net.parameters()
    )


@pytest.mark.parametrize(
    "arguments",
    [{"grids": (30,)}, {"grids": (1,)}, {"grids": "a"}, {"grids": ()}, {"directions": 1}, {"size": "smal"}],
)
def test_what_cannot_be_built_is_refused(arguments):
    with pytest.raises(UsageError):
        HOGNet.fitted((1, 40, 40), 3, **arguments)
    with pytest.raises(UsageError, match="24"):
        HOGNet.fitted((1, 20, 20), 3)


def test_few_pictures_of_people_get_it_and_many_do_not(tmp_path):
    x, who = people(8, 10)
    bytes_ = ((x - x.min()) / (x.max() - x.min()) * 255).to(torch.uint8).numpy()
    run = lamina.train((bytes_, who.numpy()), task="embedding", epochs=2, runs=tmp_path, quiet=True, report=False)
    assert run.recipe.net == "hog" and isinstance(run.net, HOGNet)
    assert run.headline.value > 0.9
    many = Examples((np.zeros((5001, 1, 40, 40), np.uint8),), np.zeros(5001), "pictures")
    assert "net" not in Embedding().opinions("image", many, Recipe())


def test_what_it_needs_few_passes_for_is_no_reason_to_cut_those_of_another_net():
    few = Examples((np.zeros((300, 1, 40, 40), np.uint8),), np.zeros(300), "pictures")
    assert Embedding().opinions("image", few, Recipe())["epochs"][0] == 13
    assert "epochs" not in Embedding().opinions("image", few, Recipe(net="convnet"))
