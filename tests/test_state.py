"""A checkpoint gives back exactly what was put in, or says why it cannot; and the newest sound one is always found."""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn
from torch.optim.swa_utils import AveragedModel

from lamina import files, schedules, state
from lamina.batches import LoaderBatches
from lamina.errors import Diverged, LaminaError, RunError
from lamina.history import History
from lamina.state import TrainState

# --- pack and unpack -------------------------------------------------------------------------------------------------

KINDS = [
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.bfloat16,
    torch.float32, torch.float64, torch.complex64, torch.complex128,
]  # fmt: skip


def same(a: Any, b: Any) -> bool:
    """Equal to the bit, NaN and the sign of zero included, and of the same types."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and same(bits(a), bits(b))
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return len(a) == len(b) and all(same(i, j) for i, j in zip(a.items(), b.items(), strict=True))
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(i, j) for i, j in zip(a, b, strict=True))
    if isinstance(a, float):
        return math.copysign(1, a) == math.copysign(1, b) and (a == b or (a != a and b != b))
    return bool(a == b)


def bits(value: torch.Tensor) -> bytes:
    value = value.resolve_conj().resolve_neg()
    value = torch.view_as_real(value) if value.is_complex() else value
    return value.contiguous().flatten().view(torch.uint8).numpy().tobytes() if value.numel() else b""


def there_and_back(tree: Any) -> Any:
    """Through the very bytes of a checkpoint."""
    from safetensors.torch import load

    from lamina.weights import to_bytes

    tensors, plain = state.pack(tree)
    text = json.dumps(plain, allow_nan=False)  # JSON as others read it
    return state.unpack(load(to_bytes(tensors)), json.loads(text))


@st.composite
def tensors(draw: Any) -> torch.Tensor:
    kind = draw(st.sampled_from(KINDS))
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    size = math.prod(shape) * torch.empty(0, dtype=kind).element_size()
    raw = draw(st.binary(min_size=size, max_size=size))
    if kind == torch.bool:
        raw = bytes(byte & 1 for byte in raw)
    value = torch.frombuffer(bytearray(raw), dtype=kind) if size else torch.empty(0, dtype=kind)
    value = value.reshape(shape)
    return value.transpose(0, -1) if draw(st.booleans()) and value.ndim > 1 else value


arrays = hnp.arrays(
    st.sampled_from(["?", "u1", "i1", "i2", "i4", "i8", "f2", "f4", "f8", "c8", "c16"]),
    hnp.array_shapes(min_dims=0, min_side=0),
)
words = st.text(max_size=4) | st.sampled_from(["$tensor", "$tuple", "$", "a.b", "a", "b", "a'"])
keys = (
    words
    | st.integers(-3, 3)
    | st.booleans()
    | st.none()
    | st.floats(allow_nan=False)
    | st.tuples(st.integers(0, 2), words)
)
leaves = (
    st.none() | st.booleans() | st.integers() | st.just(-(2**200)) | st.floats() | words | tensors() | arrays
)  # fmt: skip
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4) | st.lists(inner, max_size=3).map(tuple) | st.dictionaries(keys, inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=300)
@given(trees)
def test_any_nest_comes_back_as_it_was(tree):
    assert same(there_and_back(tree), tree)


@pytest.mark.parametrize(
    "tree",
    [
        {"a.b": torch.tensor(1), "a": {"b": torch.tensor(2)}},
        {0: torch.tensor(1), "0": torch.tensor(2)},
        {"a": [torch.tensor(1)], "a.0": torch.tensor(2), "a.0'": torch.tensor(3)},
        {"z": 1, "a": 2, "m": {"z": 1, "a": 2}},
        {"$tensor": "state"},
        {"$": 1, "a": 2},
        {(1, ("x",)): [()], None: {}},
        [float("nan"), float("-nan"), float("inf"), -float("inf"), -0.0, 5e-324, 2**4000, -(2**63)],
        torch.arange(12.0).reshape(3, 4)[:, ::2],
        torch.tensor([1 + 2j]).conj(),
        np.arange(6)[::-2],
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.array(3.5),
        "\ud800 and \0",
    ],
)
def test_odd_nests_come_back_as_they_were(tree):
    """Names that meet, order, "$" keys, floats that JSON lacks, numbers of any size, strides."""
    assert same(there_and_back(tree), tree)


def test_scalars_of_numpy_become_plain_and_swapped_bytes_native():
    assert same(there_and_back([np.float64("nan"), np.float32(0.5), np.int64(3), np.bool_(True), np.str_("a")]),
                [float("nan"), 0.5, 3, True, "a"])  # fmt: skip
    assert same(there_and_back(np.arange(3, dtype=">i4")), np.arange(3, dtype="i4"))


def test_parameters_are_saved_as_they_are_then():
    weight = nn.Parameter(torch.ones(2))
    assert same(there_and_back({"w": weight}), {"w": torch.ones(2)})


@pytest.mark.parametrize(
    "thing, name",
    [
        (b"bytes", "bytes"), ({1, 2}, "set"), (object(), "object"), (len, "builtin_function_or_method"), (1j, "complex"),
        (np.array(["a"]), "ndarray"), (np.array([None]), "ndarray"), (np.array(["2020-01-01"], dtype="M8[D]"), "ndarray"),
        (np.longdouble(1), "longdouble"), (torch.eye(2).to_sparse(), "Tensor"), (torch.empty(2, device="meta"), "Tensor"),
        (nn.Linear(1, 1), "Linear"), (torch.Generator(), "Generator"), (np.datetime64("2020-01-01"), "date"),
    ],
)  # fmt: skip
def test_what_needs_pickle_is_refused_with_its_place(thing, name):
    with pytest.raises(RunError, match=rf"state at 'state\.parts\.mine\.1' holds an? {name}.*without pickle"):
        state.pack({"parts": {"mine": (1, thing)}})


# --- TrainState ------------------------------------------------------------------------------------------------------


@dataclass
class Watcher:
    """A user's watcher that remembers."""

    seen: list[float]

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, given: dict[str, Any]) -> None:
        self.seen = list(given["seen"])


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adamw groups": lambda p: torch.optim.AdamW([{"params": p[:2], "lr": 1e-3}, {"params": p[2:], "eps": 0.3}], lr=0.01),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, centered=True),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.5, max_iter=3),
}  # fmt: skip


def learner(kind: str, seed: int) -> TrainState:
    """A net with buffers and dropout, and one of everything that a training may have."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 3))
    schedule = schedules.make("plateau", steps=None, steps_per_epoch=None, patience=1, factor=0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=2)
    return TrainState(
        net, OPTIMIZERS[kind](list(net.parameters())), schedule=schedule, scaler=scaler,
        ema=AveragedModel(net, use_buffers=True), parts={"watcher-0": Watcher([])},
    )  # fmt: skip


def go_on(found: TrainState, steps: int) -> None:
    """Training by hand, with everything that has a state."""
    for _ in range(steps):
        x = torch.randn(16, 4) + float(np.random.randn()) + random.random()

        def closure(x: torch.Tensor = x) -> torch.Tensor:
            found.optimizer.zero_grad()
            loss = found.net(x).square().mean()
            if isinstance(found.optimizer, torch.optim.LBFGS):
                loss.backward()
            else:
                found.scaler.scale(loss).backward()
            return loss

        for group in found.optimizer.param_groups:
            group["lr"] = 0.01 * found.schedule(found.step)
        if isinstance(found.optimizer, torch.optim.LBFGS):
            loss = found.optimizer.step(closure)
        else:
            loss = closure()
            found.scaler.step(found.optimizer)
            found.scaler.update()
        found.ema.update_parameters(found.net)
        found.schedule.observe(loss.item())
        found.parts["watcher-0"].seen.append(loss.item())
        found.step, found.batch, found.examples = found.step + 1, found.batch + 1, found.examples + 16
        found.loss_count += 16
        found.loss_sum = loss.detach() if found.loss_sum is None else found.loss_sum + loss.detach()


def whole(found: TrainState) -> Any:
    return {"weights": dict(found.net.state_dict()), **found.tree()}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_training_that_is_saved_and_loaded_goes_on_to_the_same_bits(tmp_path, kind):
    one = learner(kind, 0)
    go_on(one, 5)
    one.epoch, one.seconds = 2, 1.5
    one.net[1].eval()
    state.save(tmp_path / "step-0000005", one, {"data": "abc"})
    saved = state.unpack(*state.pack(whole(one)))
    torch.manual_seed(99), np.random.seed(99), random.seed(99)

    other = learner(kind, 1)
    weights, tree, manifest = state.read(tmp_path / "step-0000005")
    other.load(weights, tree)
    assert (manifest["step"], manifest["epoch"], manifest["batch"], manifest["data"]) == (5, 2, 5, "abc")
    assert other.net[1].training is False and other.parts["watcher-0"].seen == one.parts["watcher-0"].seen
    assert same(state.unpack(*state.pack(whole(other))), saved)

    go_on(other, 5)
    other.load(*state.read(tmp_path / "step-0000005")[:2])  # a second time, over what it has become
    go_on(other, 5)
    torch.set_rng_state(tree["generators"]["torch"])
    state.set_all_generators(tree["generators"])
    go_on(one, 5)
    assert same(state.unpack(*state.pack(whole(other))), state.unpack(*state.pack(whole(one))))


def test_a_checkpoint_holds_no_pickle(tmp_path):
    found = learner("adam", 0)
    go_on(found, 2)
    state.save(tmp_path / "step-0000002", found, {})
    assert sorted(p.name for p in (tmp_path / "step-0000002").iterdir()) == [
        "manifest.json", "state.json", "state.safetensors", "weights.safetensors",
    ]  # fmt: skip
    json.loads((tmp_path / "step-0000002" / "state.json").read_text(), parse_constant=lambda name: pytest.fail(name))


GPU = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"))


@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("wrong", [None, "plain", "half", "complex", "none", "huge"])
def test_what_is_not_finite_is_named(device, wrong):
    """Numbers whose sum, or whose sum of squares, is infinite are finite all the same."""
    tensors = {
        "plain": torch.randn(300),
        "half": torch.randn(5, 7).bfloat16(),
        "complex": torch.randn(4, dtype=torch.complex64),
        "none": torch.zeros(()),
        "empty": torch.zeros(0, 3),
        "huge": torch.full((3,), 3e38),
        "count": torch.tensor(3),
    }
    tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
    if wrong is not None:
        tensors[wrong].view(-1)[-1] = float("nan")
        assert state.not_finite(tensors) == [wrong]
        tensors[wrong].view(-1)[-1] = float("-inf")
        assert state.not_finite(tensors) == [wrong]
    else:
        assert state.not_finite(tensors) == []
        assert state.not_finite({name: tensors[name] for name in ("plain", "half", "count")}) == []
        assert state.not_finite({}) == []


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["parameter", "buffer"])
def test_weights_that_are_not_finite_are_not_saved(tmp_path, wrong, where):
    found = learner("adam", 0)
    go_on(found, 1)
    state.save(tmp_path / "step-0000001", found, {})
    with torch.no_grad():
        (found.net[3].weight[0] if where == "parameter" else found.net[1].running_var)[1] = wrong
    with pytest.raises(Diverged, match=r"3\.weight" if where == "parameter" else r"1\.running_var") as caught:
        state.save(tmp_path / "step-0000002", found, {})
    assert caught.value.exit_code == 5 and "learning rate" in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["step-0000001"]


def test_what_a_checkpoint_cannot_hold_leaves_nothing_behind(tmp_path):
    found = learner("adam", 0)
    found.parts["watcher-0"].seen = [object()]  # type: ignore[list-item]
    with pytest.raises(RunError, match=r"parts\.watcher-0\.seen\.0' holds an? object"):
        state.save(tmp_path / "step-0000000", found, {})
    assert not list(tmp_path.iterdir())


def test_another_net_or_optimiser_is_refused_with_words(tmp_path):
    found = learner("adam", 0)
    go_on(found, 1)
    state.save(tmp_path / "step-1", found, {})
    weights, tree, _ = state.read(tmp_path / "step-1")
    with pytest.raises(RunError, match="do not fit the net Linear"):
        TrainState(other := nn.Linear(2, 2), torch.optim.Adam(other.parameters()), parts=found.parts).load(
            weights, tree
        )
    with pytest.raises(RunError, match="The optimiser AdamW cannot take"):
        learner("adamw groups", 0).load(weights, tree)


def test_a_part_that_is_gone_is_missed_before_anything_is_changed(tmp_path):
    found = learner("adam", 0)
    go_on(found, 1)
    state.save(tmp_path / "step-1", found, {})
    weights, tree, _ = state.read(tmp_path / "step-1")
    other = learner("adam", 1)
    other.parts = {}
    before = state.unpack(*state.pack(whole(other)))
    with pytest.raises(RunError, match="state of watcher-0"):
        other.load(weights, tree)
    assert same(state.unpack(*state.pack(whole(other))), before)


def test_a_loader_takes_its_place_along(tmp_path):
    found = learner("sgd", 0)
    found.batches = LoaderBatches([(torch.zeros(2, 4), torch.zeros(2))] * 3)
    next(found.batches.epoch(0))
    state.save(tmp_path / "step-0", found, {})
    taken = []
    other = learner("sgd", 1)
    other.batches = LoaderBatches([])
    other.batches.load_state_dict = taken.append  # type: ignore[method-assign]
    other.load(*state.read(tmp_path / "step-0")[:2])
    assert same(taken, [found.batches.state_dict()])


# --- Which checkpoint ------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Checkpoints after 0, 5, 10 and 15 steps."""
    found = learner("sgd", 0)
    for _ in range(4):
        state.save(tmp_path / f"step-{found.step:07d}", found, {})
        go_on(found, 5)
    return tmp_path


def damage(place: Any, how: str) -> None:
    file = place / ("manifest.json" if how.startswith("manifest") else "weights.safetensors")
    if how.endswith("missing"):
        file.unlink()
    elif how.endswith("truncated"):
        file.write_bytes(file.read_bytes()[:-10])
    elif how.endswith("empty"):
        file.write_bytes(b"")
    else:
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 4
        file.write_bytes(data)


HOW = [f"{what} {how}" for what in ("manifest", "weights") for how in ("missing", "truncated", "empty", "flipped")]


def test_the_newest_is_the_one_of_most_steps(folder):
    (folder / "step-99").mkdir()
    (folder / "step-00000x").mkdir()
    (folder / "other").mkdir()
    (folder / "step-0000050").write_text("a file")
    told: list[str] = []
    assert state.newest(folder, told.append) == folder / "step-0000015"
    assert len(told) == 1 and "step-99" in told[0]
    assert state.newest(folder / "nowhere", told.append) is None


@pytest.mark.parametrize("how", HOW)
def test_a_damaged_one_is_passed_over_and_named(folder, how):
    damage(folder / "step-0000015", how)
    damage(folder / "step-0000010", "weights flipped")
    told: list[str] = []
    assert state.newest(folder, told.append) == folder / "step-0000005"
    assert [words.split()[1] for words in told] == ["step-0000015", "step-0000010"]
    assert state.read(folder / "step-0000005")[2]["step"] == 5
    with pytest.raises(RunError):
        state.read(folder / "step-0000015")


def test_when_none_is_sound_none_is_found(folder):
    for place in folder.iterdir():
        damage(place, "weights flipped")
    told: list[str] = []
    assert state.newest(folder, told.append) is None and len(told) == 4


def sound(folder: Any) -> list[str]:
    found = []
    for place in sorted(folder.iterdir()):
        try:
            files.verify(place)
            found.append(place.name)
        except LaminaError:
            pass
    return found


@pytest.mark.parametrize("damaged", [[], [15], [15, 10], [10], [5], [0], [10, 5], [15, 10, 5], [15, 10, 5, 0]], ids=str)
@pytest.mark.parametrize("keep", [1, 2, 3])
def test_pruning_never_leaves_fewer_than_it_should(folder, damaged, keep):
    for step in damaged:
        damage(folder / f"step-{step:07d}", random.choice(HOW))
    before = sound(folder)
    state.prune(folder, keep)
    assert sound(folder) == before[-keep:]
    assert state.newest(folder, lambda words: None) == (folder / before[-1] if before else None)
    state.prune(folder, keep)
    assert sound(folder) == before[-keep:]


def test_old_damaged_ones_go_when_enough_are_newer(folder):
    damage(folder / "step-0000000", "weights flipped")
    state.prune(folder)
    assert sorted(p.name for p in folder.iterdir()) == ["step-0000010", "step-0000015"]


def test_every_flipped_bit_of_a_small_checkpoint_is_seen(tmp_path):
    """A sample of them; every bit of a smaller directory is tried in test_files."""
    found = learner("momentum", 0)
    go_on(found, 2)
    place = tmp_path / "step-0000002"
    state.save(place, found, {})
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    for file in sorted(place.iterdir()):
        good = file.read_bytes()
        for _ in range(60):
            at = draw.randrange(len(good))
            file.write_bytes(good[:at] + bytes([good[at] ^ 1 << draw.randrange(8)]) + good[at + 1 :])
            with pytest.raises(RunError, match="damaged"):
                state.read(place)
        file.write_bytes(good)
    state.read(place)


def test_the_history_of_very_many_epochs_is_read_again(tmp_path):
    """More values than any text of somebody else's may have."""
    history = History([{"epoch": k, "step": k, "train/loss": 0.5, "learning_rate": 1e-3} for k in range(200_000)])
    net = nn.Linear(2, 2)
    state.save(
        tmp_path / "step-1", TrainState(net, torch.optim.SGD(net.parameters(), 0.1), parts={"history": history}), {}
    )
    _, tree, _ = state.read(tmp_path / "step-1")
    assert tree["parts"]["history"]["rows"] == history.rows
