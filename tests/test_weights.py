"""Weights go through files that plain PyTorch and safetensors read, and nothing in a file is ever executed."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from lamina import weights
from lamina.errors import ResourceError, RunError, UsageError


def net(hidden: int = 5) -> nn.Module:
    torch.manual_seed(hidden)
    return nn.Sequential(nn.Linear(3, hidden), nn.BatchNorm1d(hidden), nn.Linear(hidden, 2))


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
def test_a_file_gives_the_weights_back(tmp_path, suffix):
    ours, other = net(), net()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
        ours[1].running_mean.fill_(0.25)
    weights.save_weights(ours, tmp_path / f"net{suffix}")
    assert weights.load_weights(other, tmp_path / f"net{suffix}") is other
    assert same(other.state_dict(), ours.state_dict())
    assert [p.name for p in tmp_path.iterdir()] == [f"net{suffix}"]


def test_plain_pytorch_reads_what_is_written(tmp_path):
    weights.save_weights(net(), tmp_path / "net.pth")
    assert same(torch.load(tmp_path / "net.pth", weights_only=True), net().state_dict())


def test_plain_safetensors_reads_what_is_written(tmp_path):
    from safetensors.torch import load_file

    weights.save_weights(net(), tmp_path / "net.safetensors")
    assert same(load_file(tmp_path / "net.safetensors"), net().state_dict())


@pytest.mark.parametrize("key", [None, "state_dict", "model_state_dict", "model"])
def test_what_plain_pytorch_writes_is_read(tmp_path, key):
    state = net().state_dict()
    torch.save(state if key is None else {key: state, "epoch": 3}, tmp_path / "net.pth")
    assert same(weights.read_weights(tmp_path / "net.pth"), state)


def test_tied_and_sliced_weights_come_back(tmp_path):
    tied = nn.ModuleDict({"embed": nn.Embedding(4, 3), "head": nn.Linear(3, 4, bias=False)})
    tied["head"].weight = tied["embed"].weight
    tied.register_buffer("slice", torch.arange(1000.0)[10:40:3])
    for suffix in (".pth", ".safetensors"):
        weights.save_weights(tied, tmp_path / f"net{suffix}")
        assert same(weights.read_weights(tmp_path / f"net{suffix}"), tied.state_dict())


def test_every_kind_of_number_comes_back(tmp_path):
    kinds = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
             torch.float16, torch.bfloat16, torch.float32, torch.float64]  # fmt: skip
    holder = nn.Module()
    for k, kind in enumerate(kinds):
        holder.register_buffer(f"b{k}", torch.tensor([[0, 1], [1, 0]]).to(kind))
    for suffix in (".pth", ".safetensors"):
        weights.save_weights(holder, tmp_path / f"a{suffix}")
        assert same(weights.read_weights(tmp_path / f"a{suffix}"), holder.state_dict())


def test_a_net_that_was_never_run_takes_weights():
    lazy, made = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2)), nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    weights.load_exactly(lazy, made.state_dict())
    x = torch.randn(5, 3)
    assert torch.equal(lazy(x), made(x))


# --- What does not fit is named, and nothing is changed --------------------------------------------------------------


def test_missing_extra_and_misshapen_weights_are_named_together():
    ours = net()
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    given = net(7).state_dict()
    del given["0.bias"], given["1.running_mean"]
    given["3.weight"] = torch.zeros(2)
    with pytest.raises(RunError) as caught:
        weights.load_exactly(ours, given)
    text = str(caught.value)
    assert "missing: 0.bias, 1.running_mean" in text
    assert "not in the net: 3.weight" in text
    assert "0.weight: (7, 3) for (5, 3)" in text and " ..." in text
    assert caught.value.exit_code == 4
    assert same(ours.state_dict(), before)


def test_a_name_too_many_alone_is_refused():
    with pytest.raises(RunError, match=r"not in the net: extra\."):
        weights.load_exactly(net(), {**net().state_dict(), "extra": torch.zeros(1)})


def test_state_that_needs_pickle_is_refused(tmp_path):
    class Counting(nn.Linear):
        def get_extra_state(self):
            return {"calls": 3}

        def set_extra_state(self, state):
            pass

    for suffix in (".pth", ".safetensors"):
        with pytest.raises(RunError, match="'_extra_state' is a dict, which cannot be saved without pickle"):
            weights.save_weights(Counting(1, 1), tmp_path / f"a{suffix}")
    with pytest.raises(RunError, match="cannot be written as safetensors"):
        weights.to_bytes({"a": torch.eye(3).to_sparse()})
    with pytest.raises(RunError, match="cannot be written as safetensors"):
        weights.to_bytes({"a": torch.zeros(3, dtype=torch.complex128)})
    assert not list(tmp_path.iterdir())


# --- Paths -----------------------------------------------------------------------------------------------------------


def test_a_mistyped_path_gets_a_near_miss(tmp_path):
    weights.save_weights(net(), tmp_path / "weights.pth")
    with pytest.raises(UsageError, match=r"did you mean 'weights\.pth'"):
        weights.read_weights(tmp_path / "wieghts.pth")
    with pytest.raises(UsageError, match="none is known here"):
        weights.read_weights(tmp_path / "nowhere" / "weights.pth")


def test_an_unknown_ending_is_refused(tmp_path):
    (tmp_path / "net.h5").write_bytes(b"")
    for act in (
        lambda: weights.save_weights(net(), tmp_path / "a.onnx"),
        lambda: weights.read_weights(tmp_path / "net.h5"),
    ):
        with pytest.raises(UsageError, match=r"a file ending in \.safetensors, \.pth, \.pt"):
            act()
    assert [p.name for p in tmp_path.iterdir()] == ["net.h5"]


def test_a_folder_that_is_not_there_is_said(tmp_path):
    with pytest.raises(ResourceError, match="could not be written"):
        weights.save_weights(net(), tmp_path / "no" / "net.pth")


# --- Foreign files ---------------------------------------------------------------------------------------------------


class Malicious:
    """Unpickling this writes a file: a canary for everything worse."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self):
        return (os.mkdir, (str(self.canary),))


def archive(path: Path, payload: bytes) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", payload)
        file.writestr("archive/version", "3\n")
        file.writestr("archive/byteorder", "little")


def hostile(canary: Path) -> dict[str, bytes]:
    import io

    buffers = {name: io.BytesIO() for name in ("new", "legacy", "state")}
    torch.save(Malicious(canary), buffers["new"])
    torch.save(Malicious(canary), buffers["legacy"], _use_new_zipfile_serialization=False)
    torch.save({**net().state_dict(), "hook": Malicious(canary)}, buffers["state"])
    return {**{name: buffer.getvalue() for name, buffer in buffers.items()}, "bare": pickle.dumps(Malicious(canary))}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("kind", ["new", "legacy", "state", "bare", "archive"])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
def test_nothing_in_a_file_is_executed(tmp_path, kind, suffix):
    canary, path = tmp_path / "canary", tmp_path / f"net{suffix}"
    if kind == "archive":
        archive(path, pickle.dumps(Malicious(canary)))
    else:
        path.write_bytes(hostile(canary)[kind])
    with pytest.raises(RunError, match=r"could not be read as weights|not a sound safetensors file") as caught:
        weights.load_weights(net(), path)
    assert not canary.exists()
    assert "\n\n" not in str(caught.value) and len(str(caught.value)) < 1000


def test_the_canary_sings(tmp_path):
    pickle.loads(hostile(tmp_path / "canary")["bare"])
    assert (tmp_path / "canary").is_dir()


def test_a_whole_pickled_net_is_refused_with_the_way_out(tmp_path):
    torch.save(net(), tmp_path / "net.pth")
    with pytest.raises(RunError, match="save its state_dict"):
        weights.read_weights(tmp_path / "net.pth")


@pytest.mark.parametrize("content", [b"", b"\x80", b"{}", b"PK\x03\x04", b"\0" * 100, b"\xff" * 100, b"(" * 100_000])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_rubbish_is_refused_with_words(tmp_path, suffix, content):
    (tmp_path / f"net{suffix}").write_bytes(content)
    with pytest.raises(RunError, match=f"net{suffix}"):
        weights.read_weights(tmp_path / f"net{suffix}")


@pytest.mark.parametrize("found", [[1, 2], {"a": 1}, {"model": [3]}, 3, {"state_dict": {"a": "b"}}])
def test_what_is_no_state_dict_is_refused(tmp_path, found):
    torch.save(found, tmp_path / "net.pth")
    with pytest.raises(RunError, match="holds no state dict"):
        weights.read_weights(tmp_path / "net.pth")


def test_every_truncation_is_refused(tmp_path):
    for suffix in (".pth", ".safetensors"):
        path = tmp_path / f"net{suffix}"
        weights.save_weights(nn.Linear(2, 2), path)
        sound = path.read_bytes()
        for length in range(0, len(sound), 7):
            path.write_bytes(sound[:length])
            with pytest.raises(RunError):
                weights.read_weights(path)


@pytest.mark.parametrize("kind", weights._KINDS, ids=str)
def test_the_bytes_are_those_of_safetensors(kind):
    """Any kind of number, no number at all, one alone, transposed, shared and conjugate."""
    from safetensors.torch import load, save

    raw = torch.arange(96, dtype=torch.uint8)
    numbers = (raw % 2 if kind == torch.bool else raw).view(kind)
    several = {"b": numbers, "a": numbers[:0], "c": numbers[1], "d": numbers.reshape(2, -1).t(), "e": numbers}
    if kind.is_complex:
        several["f"] = numbers.conj()
    plain = {name: value.resolve_conj().contiguous().clone() for name, value in several.items()}
    assert weights.to_bytes(several) == save(plain)
    mixed = {**several, "half": torch.ones(3, dtype=torch.float16), "long": torch.arange(3), "flag": torch.tensor(True)}
    found = load(weights.to_bytes(mixed))
    assert found.keys() == mixed.keys()
    for name, value in mixed.items():
        assert found[name].dtype == value.dtype and found[name].shape == value.shape
        assert (
            found[name].flatten().view(torch.uint8).tolist()
            == value.resolve_conj().flatten().view(torch.uint8).tolist()
        )


@pytest.mark.parametrize(
    "make",
    [
        lambda n: torch.empty(n),
        lambda n: torch.zeros(n, 2),
        lambda n: torch.ones((2, n)),
        lambda n: torch.full((n,), 1.0),
        lambda n: torch.rand(n),
        lambda n: torch.randn(n, generator=torch.Generator()),
        lambda n: torch.randint(0, 2, (n,)),
        lambda n: torch.randperm(n),
        lambda n: torch.arange(n),
        lambda n: torch.linspace(0, 1, n),
        lambda n: torch.eye(n),
    ],
)
def test_whatever_a_net_is_made_of_is_bounded_by_its_weights(make):
    with pytest.raises(ValueError, match="asks for"), weights.Bounded({"w": torch.zeros(10)}):
        make(1 << 30)
    with weights.Bounded({"w": torch.zeros(10)}):
        assert make(7).numel() >= 7
