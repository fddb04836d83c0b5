"""Devices: names to devices, what is absent is said, precision does what it says."""

import json

import pytest
import torch

from lamina import devices
from lamina.errors import ResourceError, UsageError

CPU = torch.device("cpu")


@pytest.fixture
def two_gpus(monkeypatch):
    """A machine with two GPUs, as far as torch.cuda tells; the second is the current one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: f"Card {number}")


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


def test_auto_takes_cuda_then_mps_then_cpu(monkeypatch, no_gpu):
    assert devices.pick("auto") == devices.pick("cpu") == CPU
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert devices.pick("auto") == torch.device("mps")


def test_a_gpu_has_its_number(two_gpus):
    assert devices.pick("auto") == devices.pick("cuda") == torch.device("cuda", 1)
    assert devices.pick("cuda:0") == torch.device("cuda", 0)
    with pytest.raises(ResourceError, match=r"number 2.*\n.*Card 0.*Card 1"):
        devices.pick("cuda:2")


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "mps"])
def test_an_absent_device_is_said_to_be_absent(no_gpu, name):
    with pytest.raises(ResourceError, match="not available"):
        devices.pick(name)


@pytest.mark.parametrize(
    "name, words",
    [
        ("gpu", "auto, cpu, cuda, mps"),
        ("cpu0", "auto, cpu"),
        ("cpu:1", "by number"),
        ("cuda:x", "by number"),
        ("", "no device"),
    ],
)
def test_a_name_that_is_none_is_told_what_there_is(name, words):
    with pytest.raises(UsageError, match=words):
        devices.pick(name)


@pytest.mark.parametrize(
    "precision, dtype", [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_one_autocast_object_serves_every_step(precision, dtype):
    layer, context = torch.nn.Linear(3, 3), devices.autocast(CPU, precision)
    for _ in range(2):
        with context:
            assert layer(torch.ones(2, 3)).dtype == dtype
        assert layer(torch.ones(2, 3)).dtype == torch.float32
    assert layer.weight.dtype == torch.float32


def test_only_fp16_is_scaled():
    assert devices.scaler(CPU, "fp32") is None and devices.scaler(CPU, "bf16") is None
    scaler = devices.scaler(CPU, "fp16")
    assert scaler.is_enabled()
    assert scaler.scale(torch.ones(())).item() == scaler.get_scale() > 1


def test_a_precision_that_the_device_lacks_is_told_what_there_is():
    with pytest.raises(UsageError, match=r"'bf16' is not available on meta\n.*fp32"):
        devices.autocast(torch.device("meta"), "bf16")
    with pytest.raises(UsageError, match="did you mean 'bf16'"):
        devices.autocast(CPU, "bf61")


def test_describe_counts_threads():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert devices.describe(CPU) == "cpu, 1 thread"
        torch.set_num_threads(2)
        assert devices.describe(CPU) == "cpu, 2 threads"
    finally:
        torch.set_num_threads(before)


def test_the_fingerprint_is_json_and_changes_with_what_changes_bits():
    before = torch.get_num_threads()
    one = devices.fingerprint(CPU, "fp32")
    assert json.loads(json.dumps(one)) == one == devices.fingerprint(CPU, "fp32")
    assert one["torch"] == torch.__version__ and one["cpu"]
    assert devices.fingerprint(CPU, "bf16") != one
    assert devices.fingerprint(CPU, compiled=True) != one
    assert devices.fingerprint(CPU, processes=2) != one
    try:
        torch.set_num_threads(before + 1)
        assert devices.fingerprint(CPU, "fp32") != one
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu():
    device = devices.pick("auto")
    assert device.type == "cuda" and "GiB" in devices.describe(device)
    assert devices.fingerprint(device)["gpu"] == torch.cuda.get_device_name(device)
    with devices.autocast(device, "fp16"):
        assert torch.nn.Linear(3, 3, device=device)(torch.ones(2, 3, device=device)).dtype == torch.float16
