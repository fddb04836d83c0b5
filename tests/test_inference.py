"""Asking a net: portions that keep what is on the way small, and a layout that changes nothing but the time."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lamina import familiar, products
from lamina.domains.arrays import Scale
from lamina.domains.base import Domain, Encoded
from lamina.inference import MOST, portion, quickest
from lamina.targets.classes import Classes


def convnet(*last):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), *last, nn.Linear(8 * 36, 4)).eval()


class Functional(nn.Module):
    """The largest tensor (6 MB an example) is made by a function and seen by no module; the weights are larger still."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1_000_000, 2))

    def forward(self, x):
        return F.relu(x.repeat(1, 1500).cumsum(1)).sum(1, keepdim=True) @ self.weight.t()[:1, :2]


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.GRU(1, 40, batch_first=True)

    def forward(self, x):
        return self.layer(x[..., None])[1][0]


@pytest.mark.parametrize(
    ("net", "width", "expected"),
    [
        (nn.Linear(4, 2), 4, 4096),  # tiny: the most
        (nn.Linear(4, 10_000), 4, 256),  # 40 kB an example: 325 in 13 MB
        (nn.Sequential(nn.Linear(4, 100_000), nn.Linear(100_000, 2)), 4, 32),  # 400 kB: 32.5
        (nn.Identity(), 50_000, 64),  # 200 kB of input: 65
        (Functional(), 1000, 16),  # 2 in 13 MB: the fewest
        (Recurrent(), 1000, 64),  # states of 160 kB, which it gives in a tuple: 81
    ],
)
def test_a_portion_keeps_the_largest_tensor_on_the_way_below_thirteen_megabytes(net, width, expected):
    assert portion(net, (torch.zeros(2, width),)) == expected


def test_a_portion_is_not_made_small_by_weights():
    net = Functional()
    assert portion(net, (torch.zeros(2, 1),)) == portion(nn.Linear(1, 1500), (torch.zeros(2, 1),)) == 2048


class Made(nn.Module):
    """Its weights are made anew at each call; of odd numbers of examples it makes one tensor more."""

    def __init__(self, odd=False):
        super().__init__()
        self.seed, self.odd = nn.Parameter(torch.zeros(1000)), odd

    def forward(self, x):
        x = x + 0 if self.odd and len(x) % 2 else x
        return x @ (self.seed[:, None] * torch.ones(1000)).sum(0)[: x.shape[1]]


def test_a_portion_is_not_made_small_by_what_does_not_grow_with_it():
    assert portion(Made(), (torch.zeros(9, 1000),)) == 2048  # 4 kB of input an example; 4 MB of weights
    few = torch.zeros(2, 1000)
    assert portion(Made(odd=True), (few,)) == 16  # the calls cannot be compared: 2 MB an example, and so the fewest
    assert portion(nn.Linear(1000, 2), (few[:1],)) == 2048


def test_inputs_that_are_no_copies_do_not_make_a_portion_small():
    net, few = nn.Sequential(nn.Flatten(), nn.Linear(4000, 2)), torch.zeros(4, 40, 100)
    assert portion(net, (few,)) == 512  # 16 kB of input an example
    assert portion(net, (few,), views=True) == 4096
    assert portion(net, (few,), views=True, most=MOST) == MOST
    wide = nn.Linear(4000, 1000)  # 4 kB are made an example
    assert portion(wide, (few.flatten(1),), views=True, most=MOST) == 2048


def test_a_copy_with_the_channels_last_answers_the_same_and_the_net_is_left_alone():
    net, x = convnet(nn.Flatten()), torch.randn(9, 3, 10, 10)
    before = [weight.stride() for weight in net.parameters()]
    quick = quickest(net, (x,))
    assert quick is not net
    assert quick[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(quick(x), net(x), atol=1e-5)
    assert [weight.stride() for weight in net.parameters()] == before


def test_whoever_looks_at_layers_finds_the_same_ones_in_the_copy():
    net, x = convnet(nn.Flatten()), torch.randn(9, 3, 10, 10)
    quick = quickest(net, (x,), same_layers=True)
    assert quick[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert [(name, type(layer)) for name, layer in quick.named_modules()] == [
        (n, type(m)) for n, m in net.named_modules()
    ]
    assert torch.allclose(quick(x), net(x), atol=1e-5)
    products = nn.Sequential(nn.Linear(30, 4), nn.ReLU()).eval()
    assert quickest(products, (torch.randn(9, 30),), same_layers=True) is products


class View(nn.Module):
    def forward(self, x):
        return x.view(len(x), -1)


class Uncopied(nn.Flatten):
    def __deepcopy__(self, memory):
        raise TypeError("one of a kind")


class Strides(nn.Module):
    """Gives other numbers where the layout is another."""

    def forward(self, x):
        return x.flatten(1) + float(x.stride()[1] == 1)


@pytest.mark.parametrize("odd", [View(), Uncopied(), Strides()], ids=["fails", "cannot be copied", "answers otherwise"])
def test_a_net_that_does_not_bear_the_layout_stays_as_it_is(odd):
    net = convnet(odd)
    x = torch.randn(4, 3, 10, 10)
    quick = quickest(net, (x,))
    assert quick[0].weight.is_contiguous() and torch.allclose(quick(x), net(x), atol=1e-5)
    assert quick is not net  # the product at its end may be changed all the same


class Aside(nn.Module):
    """Calls its layers where nobody looks for them."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(48, 4), nn.ReLU()
        self.__dict__["aside"] = [self.first, self.last]

    def forward(self, x):
        for layer in self.aside:
            x = layer(x.flatten(1))
        return x


@pytest.mark.parametrize("kind", ["aside", "scripted"])
def test_a_net_whose_layers_cannot_be_replaced_answers_as_before(kind):
    net, x = Aside().eval(), torch.randn(9, 3, 16)
    expected, modules = net(x), list(net.modules())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is old
        net = torch.jit.trace(net, x) if kind == "scripted" else net
    with torch.no_grad():
        quick = quickest(net, (x,))
        assert torch.allclose(quick(x), expected, atol=1e-5) and torch.allclose(net(x), expected, atol=1e-5)
    assert kind == "scripted" or list(map(id, net.modules())) == list(map(id, modules))


def mlp(width=48):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(width, 20), nn.ReLU(), nn.Linear(20, 9), nn.Tanh(), nn.Linear(9, 4)
    ).eval()


def after_products(net):
    return [module.after for module in net.modules() if hasattr(module, "after")]


def test_packed_products_answer_the_same_and_take_the_relu_behind_them():
    net, x = mlp(), torch.randn(50, 3, 16)
    before = copy.deepcopy(net.state_dict())
    with torch.no_grad():
        quick = quickest(net, (x,))
        assert after_products(quick) == ["relu", "none", "none"]
        assert torch.allclose(quick(x), net(x), atol=1e-6)
        assert torch.allclose(quick(x[:1]), net(x[:1]), atol=1e-6)
    assert all(torch.equal(before[name], weight) for name, weight in net.state_dict().items())


class Between(nn.Module):
    """Reads what the product gave before the relu."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(48, 4), nn.ReLU())

    def forward(self, x):
        x = self.layers[0](x.flatten(1))
        return x + self.layers[1](x)


class Tied(nn.Module):
    """Uses the weights of a layer by itself, too."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(48, 4)

    def forward(self, x):
        return F.linear(self.layer(x.flatten(1)), self.layer.weight.t())


def test_a_net_that_does_not_bear_packed_products_stays_as_it_is():
    net = Tied()
    assert quickest(net, (torch.randn(5, 3, 16),)) is net


def test_a_relu_stays_where_somebody_reads_what_it_takes():
    net, x = Between().eval(), torch.randn(5, 3, 16)
    with torch.no_grad():
        quick = quickest(net, (x,))
        assert after_products(quick) == ["none"] and torch.allclose(quick(x), net(x), atol=1e-6)


class Residual(nn.Module):
    """As it is usually written: one relu for all, which works in place."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 3, 3, padding=1, bias=False), filled(nn.BatchNorm2d(3))
        self.conv2, self.bn2 = nn.Conv2d(3, 3, 3, padding=1, bias=False), filled(nn.BatchNorm2d(3))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        found = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(found + x)


class Dense(nn.Module):
    """What the convolution gives goes past the norm as well."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), filled(nn.BatchNorm2d(3))

    def forward(self, x):
        found = self.conv(x)
        return torch.cat([found, self.norm(found)], 1)


def filled(norm):
    """A norm that has seen something, and has learned something for each channel."""
    if norm.running_mean is not None:
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 3)
    if norm.weight is not None:
        nn.init.uniform_(norm.weight, -2, 2)
        nn.init.uniform_(norm.bias, -1, 1)
    return norm


def remaining(net):
    """Norms and relus that are still done by themselves."""
    return [type(layer) for layer in net.modules() if isinstance(layer, (nn.modules.batchnorm._BatchNorm, nn.ReLU))]


@pytest.mark.parametrize(
    ("layers", "left"),
    [
        ([nn.Conv2d(3, 8, 3), filled(nn.BatchNorm2d(8)), nn.ReLU()], []),
        ([nn.Conv2d(3, 8, 3, bias=False), filled(nn.BatchNorm2d(8, affine=False)), nn.ReLU(inplace=True)], []),
        ([nn.Conv2d(3, 6, 3, stride=2, padding=(2, 1), dilation=2, groups=3), nn.ReLU(), nn.Conv2d(6, 2, 1)], []),
        ([nn.Conv2d(3, 8, 3, padding="same"), filled(nn.BatchNorm2d(8)), nn.ReLU()], [nn.ReLU]),
        ([nn.Conv2d(3, 8, 3, padding=1, padding_mode="circular"), filled(nn.BatchNorm2d(8)), nn.ReLU()], [nn.ReLU]),
        ([nn.Conv2d(3, 8, 3), nn.ReLU(), filled(nn.BatchNorm2d(8))], [nn.BatchNorm2d]),
        ([nn.Conv2d(3, 8, 3), filled(nn.BatchNorm2d(8)), filled(nn.BatchNorm2d(8)), nn.ReLU()], [nn.BatchNorm2d, nn.ReLU]),
        ([nn.Flatten(), nn.Linear(192, 8), filled(nn.BatchNorm1d(8)), nn.ReLU(), nn.Linear(8, 2)], []),
        ([nn.Flatten(2), nn.Conv1d(3, 8, 3, padding=1), filled(nn.BatchNorm1d(8)), nn.ReLU()], []),
        ([nn.Flatten(2), nn.Linear(64, 3), filled(nn.BatchNorm1d(3)), nn.ReLU()], [nn.BatchNorm1d, nn.ReLU]),  # of channels
        ([nn.Unflatten(2, (4, 2)), nn.Conv3d(3, 8, 2), filled(nn.BatchNorm3d(8)), nn.ReLU()], [nn.ReLU]),
        ([nn.ConvTranspose2d(3, 8, 3), filled(nn.BatchNorm2d(8)), nn.ReLU()], [nn.BatchNorm2d, nn.ReLU]),
        ([Residual()], [nn.ReLU]),  # which is called twice
        ([Dense()], [nn.BatchNorm2d]),
    ],
)  # fmt: skip
def test_norms_and_relus_become_part_of_the_layer_before_them(layers, left):
    net, x = nn.Sequential(*layers).eval(), torch.randn(40, 3, 8, 8)
    before, modules = copy.deepcopy(net.state_dict()), list(map(id, net.modules()))
    with torch.no_grad():
        expected = net(x)
        quick = quickest(net, (x,))
        assert remaining(quick) == left
        assert torch.allclose(quick(x), expected, atol=1e-5) and torch.allclose(quick(x[:1]), expected[:1], atol=1e-5)
        assert torch.equal(net(x), expected)
    assert list(map(id, net.modules())) == modules
    assert all(torch.equal(before[name], weight) for name, weight in net.state_dict().items())


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(4, 6, 3),
        nn.Conv1d(4, 6, 5, stride=3, padding=2, dilation=2, groups=2, bias=False),
        nn.Conv1d(4, 6, 3, padding="same"),
        nn.Conv1d(4, 6, 3, padding=1, padding_mode="reflect"),
    ],
)
def test_a_convolution_along_a_line_answers_the_same_as_one_of_a_picture(layer):
    net, x = nn.Sequential(layer, nn.Tanh(), nn.MaxPool1d(2), nn.Conv1d(6, 2, 1)).eval(), torch.randn(20, 4, 50)
    with torch.no_grad():
        quick = quickest(net, (x,))
        assert (type(quick[0]) is nn.Conv1d) is (layer.padding == "same" or layer.padding_mode == "reflect")
        assert type(quick[3]) is not nn.Conv1d and type(net[3]) is nn.Conv1d
        for some in (x, x[:1], x[:, :, :30]):
            assert torch.allclose(quick(some), net(some), atol=1e-5)


def test_a_convolution_of_one_example_by_itself_stays_as_it_is():
    """Without the dimension that counts examples."""
    net = nn.Sequential(nn.Flatten(0, 1), nn.Conv1d(8, 3, 3)).eval()
    assert quickest(net, (torch.randn(4, 2, 9),)) is net


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(8, track_running_stats=False), nn.BatchNorm2d(8, momentum=0.0)])
def test_a_norm_that_takes_what_it_needs_from_the_batch_stays(norm):
    net, x = nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.ReLU()).eval(), torch.randn(40, 3, 8, 8)
    norm.train()
    with torch.no_grad():
        quick = quickest(net, (x,))
        assert remaining(quick) == [nn.BatchNorm2d, nn.ReLU] and torch.allclose(quick(x), net(x), atol=1e-5)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_norms_and_relus_with_a_hook_on_them_or_before_them_stay(layer):
    net, seen = nn.Sequential(nn.Conv2d(3, 8, 3), filled(nn.BatchNorm2d(8)), nn.ReLU()).eval(), []
    net[layer].register_forward_hook(lambda module, inputs, output: seen.append(output.clone()))
    x = torch.randn(40, 3, 8, 8)
    with torch.no_grad():
        quick = quickest(net, (x,))
        assert remaining(quick) == ([nn.ReLU] if layer == 2 else [nn.BatchNorm2d, nn.ReLU])
        seen.clear()
        quick(x)
        net(x)
    assert len(seen) == 2 and torch.allclose(*seen, atol=1e-5)


def test_a_layer_with_a_hook_is_not_replaced():
    net, seen = mlp(), []
    net[1].register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    with torch.no_grad():
        quick = quickest(net, (torch.randn(5, 3, 16),))
        assert after_products(quick) == ["none", "none"]
        seen.clear()
        quick(torch.randn(7, 3, 16))
    assert seen == [7]


@pytest.fixture(params=["by integers", "by floats"])
def units(request, monkeypatch):
    """Both ways that the first product of bytes may take."""
    if request.param == "by floats":
        monkeypatch.setattr(products, "fast", lambda: False)
    elif not products.fast():
        pytest.skip("this processor has no units for integers of 8 bits")
    return request.param


@pytest.mark.parametrize("scale", [Scale(255.0), Scale(255.0, [0.3] * 16, [0.2] * 16), Scale(1.0, 100.0, 50.0)])
@pytest.mark.parametrize("bias", [True, False])
def test_the_scaling_of_bytes_goes_into_the_first_product(scale, bias, units):
    net, x = mlp(), torch.randint(0, 256, (50, 3, 16), dtype=torch.uint8)
    if not bias:
        net[1].bias = None
    whole = nn.Sequential(scale, net)
    with torch.no_grad():
        quick = quickest(whole, (x,))
        assert type(quick[0]) is not Scale and whole[0] is scale and type(net[1]) is nn.Linear
        assert isinstance(quick[1][1], products.OfBytes) is (units == "by integers")
        assert after_products(quick) == ["relu", "none", "none"]
        for some in (x[:7], x, x[:1]):  # into memory that is used again
            assert torch.allclose(quick(some), whole(some), atol=1e-5)


@pytest.mark.parametrize(
    ("scale", "width", "goes"),
    [
        (Scale(255.0), 16, True),
        (Scale(255.0, [0.3] * 16, [0.2] * 16), 16, True),
        (Scale(255.0, 0.3, 0.2), 80, True),  # so many that they are added up
        (Scale(255.0, [0.3] * 80, [0.1 + 0.01 * k for k in range(80)]), 80, False),
    ],
)
def test_the_scaling_goes_into_what_is_looked_at_too(scale, width, goes, units):
    net, x = mlp(3 * width), torch.randint(0, 256, (400, 3, width), dtype=torch.uint8)
    with torch.no_grad():
        inputs = [(scale(part),) for part in x.split(50)]
        known = familiar.learn(net, inputs[:6], None, inputs[6:], both_sides=True)
        whole = nn.Sequential(scale, familiar.Watched(net, known))
        quick = quickest(whole, (x,))
        odd = torch.randint(0, 2, (50, 3, width), dtype=torch.uint8)
        assert (type(quick[0]) is not Scale) is goes
        for some in (x, odd):
            assert torch.allclose(quick(some), whole(some), atol=1e-3)
        for net in (whole, quick):
            strange = known.strangeness(net(torch.cat([x, odd]))[:, -len(known.layers) :])
            assert strange[:400].max() > 0.3 and strange[400:].min() > 1
        assert whole[1].familiar is known


class Floats(nn.Module):
    """Asks for floats itself: bytes are converted before the first product."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(48, 8), nn.ReLU())

    def forward(self, x):
        return self.layers(x.float().flatten(1))


def test_a_net_that_makes_floats_itself_gets_the_floats_of_bytes():
    whole, x = nn.Sequential(Scale(255.0), Floats()).eval(), torch.randint(0, 256, (9, 3, 16), dtype=torch.uint8)
    with torch.no_grad():
        quick = quickest(whole, (x,))
        assert not any(isinstance(module, products.OfBytes) for module in quick.modules())
        assert type(quick[0]) is not Scale and torch.allclose(quick(x), whole(x), atol=1e-5)


def test_of_very_large_pictures_the_first_product_is_one_of_floats():
    """The few examples that are tried are dark; sums of light ones would run over."""
    x = torch.ones(4, 3, 160, 160, dtype=torch.uint8)
    whole = nn.Sequential(Scale(255.0), nn.Sequential(nn.Flatten(), nn.Linear(3 * 160 * 160, 2))).eval()
    with torch.no_grad():
        quick = quickest(whole, (x,))
        assert type(quick[0]) is not Scale and not isinstance(quick[1][1], products.OfBytes)
        assert torch.allclose(quick(255 * x), whole(255 * x), atol=1e-4)


def test_a_net_that_is_one_product_takes_bytes_too(units):
    whole, x = (
        nn.Sequential(Scale(255.0, 0.3, 0.2), nn.Linear(48, 5)),
        torch.randint(0, 256, (9, 48), dtype=torch.uint8),
    )
    with torch.no_grad():
        quick = quickest(whole, (x,))
        assert isinstance(quick[1], products.OfBytes) is (units == "by integers")
        assert torch.allclose(quick(x), whole(x), atol=1e-5)


class Skip(nn.Module):
    """The input goes past the first product as well."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(48, 48)

    def forward(self, x):
        return x.flatten(1) + self.layer(x.flatten(1))


def test_scaled_bytes_that_something_else_reads_too_stay_scaled():
    whole, x = nn.Sequential(Scale(255.0), Skip()).eval(), torch.randint(0, 256, (9, 3, 16), dtype=torch.uint8)
    with torch.no_grad():
        quick = quickest(whole, (x,))
        assert type(quick[0]) is Scale and torch.allclose(quick(x), whole(x), atol=1e-5)


def test_a_net_without_convolutions_and_products_is_not_copied():
    net = nn.Tanh()
    assert quickest(net, (torch.zeros(2, 3),)) is net
    point = nn.Conv2d(3, 3, 1)  # its weights are in both layouts at once
    assert quickest(point, (torch.zeros(2, 3, 4, 4),)) is point


class Plain(Domain):
    def encode(self, inputs):
        return inputs


@pytest.mark.parametrize("count", [1, 16, 17, 700])
def test_answers_do_not_depend_on_the_portion(count):
    """Against the net asked once for all; enough examples for the other layout, and too few."""
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(count + 5, 3, 10, 10)).astype(np.float32))
    truth = torch.from_numpy(rng.integers(0, 4, count + 5))
    net, target = convnet(nn.Flatten()), Classes(labels=list("abcd"), values=list("abcd"))
    rows = rng.permutation(count + 5)[:count]
    with torch.no_grad():
        expected = net(x[rows]).softmax(1).numpy()
    for size in (None, 1, 64, 10_000):
        options = {} if size is None else {"batch_size": size}
        found, same = Plain().answers(net, Encoded((x,), truth), target, rows, **options)
        assert np.allclose(found.probabilities, expected, atol=1e-5)
        assert np.array_equal(same, truth[rows])


class Writing(nn.Module):
    """Works in place on what it is given."""

    def forward(self, x):
        return x.mul_(2)[:, :4]


@pytest.mark.parametrize("net", [Writing(), nn.Linear(6, 4)], ids=["writes", "reads"])
def test_what_a_net_writes_to_its_input_does_not_reach_the_data(net):
    x = torch.randn(100, 6)
    before, target = x.clone(), Classes(labels=list("abcd"), values=list("abcd"))
    with torch.no_grad():
        expected = net(x.clone()).softmax(1)
    found, _ = Plain().answers(net, Encoded((x,)), target)
    assert torch.equal(x, before) and np.allclose(found.probabilities, expected.numpy(), atol=1e-6)
    with torch.inference_mode():  # where torch does not count writes
        assert np.allclose(Plain().answers(net, Encoded((x,)), target)[0].probabilities, expected.numpy(), atol=1e-6)
    assert torch.equal(x, before)


class Told(Plain):
    """The net is told the answers while it is validated."""

    def outputs(self, net, batch):
        return net(batch.inputs[0], batch.truth)


class Telling(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.sizes = nn.Linear(6, 4), []

    def forward(self, x, truth):
        self.sizes.append(len(x))
        wide = self.layer(x).repeat(1, 5000)  # 80 kB an example, so 128 are asked at a time
        return wide[:, :4] + F.one_hot(truth, 4)


def test_validation_asks_in_portions_also_a_net_that_is_told_the_answers():
    net, target = Telling(), Classes(labels=list("abcd"), values=list("abcd"))
    x, truth = torch.randn(300, 6), torch.randint(0, 4, (300,))
    walk = Told().batches(net, Encoded((x,), truth), None, batch_size=256, shuffle=False)
    found = Told().validate(net, walk, target, nn.CrossEntropyLoss())
    assert net.sizes == [4, 2, 128, 128, 44] and walk.batch_size == 256
    with torch.no_grad():
        expected = F.cross_entropy(net.layer(x) + F.one_hot(truth, 4), truth)
    assert found["loss"] == pytest.approx(float(expected), rel=1e-5)


def test_validation_in_the_other_layout_is_the_loss_and_the_score_of_all():
    x, truth = torch.randn(300, 3, 10, 10), torch.randint(0, 4, (300,))
    net, target, domain = convnet(nn.Flatten()), Classes(labels=list("abcd"), values=list("abcd")), Plain()
    walk = domain.batches(net, Encoded((x,), truth), None, batch_size=50, shuffle=False)
    found = domain.validate(net, walk, target, nn.CrossEntropyLoss())
    with torch.no_grad():
        output = net(x)
    assert found["loss"] == pytest.approx(float(F.cross_entropy(output, truth)), rel=1e-5)
    assert found["accuracy"] == pytest.approx(float((output.argmax(1) == truth).float().mean()))


def test_asked_exactly_the_net_itself_answers_to_the_bit():
    x, truth = torch.randn(300, 3, 10, 10), torch.randint(0, 4, (300,))
    net, target, domain = convnet(nn.Flatten()), Classes(labels=list("abcd"), values=list("abcd")), Plain()
    asked = []
    net.register_forward_hook(lambda module, inputs, output: asked.append(module is net))
    domain.answers(net, Encoded((x,), truth), target, batch_size=50, exact=True)
    walk = domain.batches(net, Encoded((x,), truth), None, batch_size=50, shuffle=False)
    domain.validate(net, walk, target, nn.CrossEntropyLoss(), exact=True)
    assert len(asked) == 12 and all(asked)
