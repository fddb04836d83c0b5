"""What a GPU must do as the CPU does; skipped, saying so, where there is none."""

import numpy as np
import pytest
import torch
from torch import nn

import lamina
from lamina import augment, engine, lanes
from lamina.batches import Batches
from lamina.keyed import Key

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")


def net(dropout=0.0):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Dropout(dropout), nn.Linear(32, 3))


def examples(n=300):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(n, 8)).astype(np.float32)
    return x, (x[:, :3]).argmax(1)


def learned(device, **settings):
    x, y = examples()
    module = net().to(device)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    batches = Batches(x, y, batch_size=32, device=device)
    *_, progress = engine.learn(module, batches, nn.CrossEntropyLoss(), optimizer, epochs=3, **settings)
    return {name: value.cpu() for name, value in module.state_dict().items()}, progress


def test_the_order_is_that_of_the_cpu():
    x, y = examples()
    on_cpu = [batch.indices for batch in Batches(x, y, batch_size=32).epoch(2)]
    on_gpu = [batch.indices.cpu() for batch in Batches(x, y, batch_size=32, device="cuda").epoch(2)]
    assert all(torch.equal(a, b) for a, b in zip(on_cpu, on_gpu, strict=True))


def test_keyed_bits_are_those_of_the_cpu():
    indices = torch.arange(1000)
    on_cpu = Key(3, 1, indices).bits("shift", 4)
    assert torch.equal(on_cpu, Key(3, 1, indices.cuda()).bits("shift", 4).cpu())


def test_augmented_bytes_are_those_of_the_cpu():
    pictures = torch.randint(0, 256, (64, 1, 28, 28), dtype=torch.uint8)
    indices = torch.arange(64)
    change = augment.make("shift=2,flip")
    (on_cpu,) = change((pictures,), Key(0, 0, indices))
    (on_gpu,) = change((pictures.cuda(),), Key(0, 0, indices.cuda()))
    assert torch.equal(on_cpu, on_gpu.cpu())


def test_learning_agrees_with_the_cpu_to_rounding():
    (on_cpu, _), (on_gpu, _) = learned("cpu"), learned("cuda")
    for name, value in on_cpu.items():
        assert torch.allclose(value, on_gpu[name], atol=1e-3), name


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns(precision):
    _, progress = learned("cuda", precision=precision, clip_norm=1.0)
    assert progress.mean_loss < 0.8  # ln 3 = 1.10 at the start


def test_a_loss_that_is_not_finite_is_found_by_the_end_of_its_epoch():
    x, y = examples()
    x[7] = np.nan
    module = net().cuda()
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    batches = Batches(x, y, batch_size=32, device="cuda")
    with pytest.raises(lamina.LaminaError, match="is nan"):
        for _ in engine.learn(module, batches, nn.CrossEntropyLoss(), optimizer, epochs=2):
            pass


def test_the_whole_story_on_the_gpu_and_its_net_on_the_cpu(tmp_path):
    run = lamina.train("digits", net="convnet", device="cuda", epochs=4, runs=tmp_path, quiet=True)
    assert run.headline.value > 0.9
    on_gpu = run.evaluate(device="cuda")[0]["value"]
    on_cpu = lamina.load(run.folder).evaluate(device="cpu")[0]["value"]
    assert abs(on_gpu - on_cpu) < 0.01


def test_a_stopped_run_goes_on(tmp_path):
    class Interrupt:
        def __call__(self, progress):
            if progress.step == 30:
                raise KeyboardInterrupt

    settings = {"net": "mlp", "device": "cuda", "epochs": 4, "runs": tmp_path, "quiet": True}
    whole = lamina.train("digits", name="whole", **settings)
    with pytest.raises(KeyboardInterrupt):
        lamina.train("digits", name="stopped", checkpoint_every="10steps", watchers=[Interrupt()], **settings)
    resumed = lamina.resume(tmp_path / "stopped", quiet=True)
    for name, value in whole.net.state_dict().items():
        assert torch.allclose(value, resumed.net.state_dict()[name], atol=1e-4), name


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_captured_step_learns_as_the_eager_one(dropout):
    """Of the same generator, so that masks are the same; within rounding, since sums may be made in any order."""
    ends = []
    for compile in ("on", "off"):
        module = net(dropout).cuda()
        torch.manual_seed(1)
        x, y = examples(320)
        optimizer = torch.optim.Adam(module.parameters(), lr=1e-3, fused=True)
        batches = Batches(x, y, batch_size=32, device="cuda")
        objective = engine.supervised(nn.CrossEntropyLoss())
        lane = lanes.Lane(module, objective, optimizer, compile=compile)
        for _ in engine.learn(module, batches, objective=objective, optimizer=optimizer, epochs=3, lane=lane):
            pass
        assert lane.recorded == (compile == "on"), lane.words
        ends.append(torch.cat([p.detach().flatten().cpu() for p in module.parameters()]))
    assert torch.allclose(*ends, rtol=1e-3, atol=1e-5)


def test_a_net_that_reads_values_is_not_captured():
    class Reads(nn.Linear):
        def forward(self, x):
            return super().forward(x) * (2 if float(x.sum()) > 0 else 1)

    x, y = examples()
    module = Reads(8, 3).cuda()
    with pytest.raises(lamina.LaminaError, match="reads values"):
        for _ in engine.learn(module, Batches(x, y, batch_size=32, device="cuda"), nn.CrossEntropyLoss(),
                              torch.optim.Adam(module.parameters()), epochs=1, compile="on"):  # fmt: skip
            pass
