"""Nets that somebody else trained: tiny ones of transformers, made here; what is refused, and the way from start to end."""

from __future__ import annotations

import json
import shutil
import sys
import types

import numpy as np
import pytest
import torch
from torch import nn

import lamina
from lamina import features, pretrained, weights
from lamina.domains.base import Encoded
from lamina.domains.pretrained import Pretrained
from lamina.errors import RunError, UsageError
from lamina.sources import Examples, Source
from lamina.targets.classes import Classes

transformers = pytest.importorskip("transformers")
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
WORDS = [*SPECIAL, "good", "bad", "fine", "poor", "film", "play", "is", "a", "the", "very", "not", "was", "it"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A folder with a BERT of two layers and a tokenizer of 17 words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    folder = tmp_path_factory.mktemp("bert")
    made = Tokenizer(models.WordLevel({word: k for k, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=24,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """A folder with a vision transformer of two layers for pictures of 32 pixels."""
    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8
    )
    transformers.ViTModel(config).save_pretrained(folder)
    about = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4], "size": {"height": 32, "width": 32}}
    (folder / "preprocessor_config.json").write_text(json.dumps(about))
    return folder


def texts(count=60, seed=0):
    """Texts that are good (1) or bad (0) by one word of each."""
    generator = np.random.default_rng(seed)
    truth = np.arange(count) % 2
    fill = np.array(["film", "play", "is", "a", "the", "it", "was", "very"])
    column = np.empty(count, object)
    for k in range(count):
        words = [*generator.choice(fill, 4), ("bad poor" if truth[k] == 0 else "good fine").split()[k // 2 % 2]]
        column[k] = " ".join(generator.permutation(words))
    return column, truth


def source(count=60, seed=0):
    column, truth = texts(count, seed)
    return Source("texts", Examples((column,), truth, kind="texts", labels=["bad", "good"]))


def copied(folder, to, **changes):
    """The folder again, with other entries in its config.json."""
    for place in folder.iterdir():
        if place.is_file():
            (to / place.name).write_bytes(place.read_bytes())
    config = json.loads((to / "config.json").read_text()) | changes
    (to / "config.json").write_text(json.dumps(config))
    return to


# --- What a folder says of itself -------------------------------------------------------------------------------------


def test_a_folder_says_what_it_takes(bert, vit):
    assert pretrained.card(f"hf:{bert}").inputs == "texts"
    found = pretrained.card(f"hf:{vit}")
    assert (found.inputs, found.side, found.channels) == ("pictures", 32, 3)
    assert found.mean == (0.4, 0.5, 0.6) and found.std == (0.2, 0.3, 0.4)


def test_what_is_no_folder_of_a_model_is_refused_with_what_would_be(tmp_path, bert):
    with pytest.raises(UsageError, match="no folder"):
        pretrained.card(f"hf:{tmp_path / 'none'}")
    with pytest.raises(UsageError, match=r"no config\.json"):
        pretrained.card(f"hf:{tmp_path}")
    (tmp_path / "audio").mkdir()
    other = copied(bert, tmp_path / "audio", vocab_size=3)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "vocab_size"}))
    with pytest.raises(UsageError, match="neither texts nor pictures"):
        pretrained.card(f"hf:{other}")


def test_a_model_that_brings_code_of_its_own_is_refused_before_anything_is_loaded(tmp_path, bert):
    copied(bert, tmp_path, auto_map={"AutoModel": "evil.Model"})
    (tmp_path / "evil.py").write_text("raise SystemExit('was run')")
    with pytest.raises(UsageError, match="auto_map"):
        pretrained.card(f"hf:{tmp_path}")


def test_a_model_of_two_kinds_of_input_is_refused(tmp_path, bert):
    copied(bert, tmp_path, vision_config={}, text_config={})
    with pytest.raises(UsageError, match="a part for texts and one for pictures"):
        pretrained.card(f"hf:{tmp_path}")


def test_without_weights_it_is_said_which_are_wanted(tmp_path, bert):
    copied(bert, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UsageError, match="has no weights"):
        pretrained.trunk(pretrained.card(f"hf:{tmp_path}"))


def test_weights_in_a_bin_file_go_through_the_quarantine_and_are_the_same(tmp_path, bert):
    copied(bert, tmp_path)
    held = weights.read_weights(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save(held, tmp_path / "pytorch_model.bin")
    one, other = (pretrained.trunk(pretrained.card(f"hf:{place}")) for place in (bert, tmp_path))
    tokens = torch.tensor([[2, 4, 8, 3, 0], [2, 5, 3, 0, 0]])
    assert torch.equal(one(tokens), other(tokens))


def test_a_bin_file_that_would_run_something_is_refused(tmp_path, bert):
    import os
    import pickle

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "was-run"),)

    copied(bert, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({"w": Evil()}))
    with pytest.raises(RunError):
        pretrained.trunk(pretrained.card(f"hf:{tmp_path}"))
    assert not (tmp_path / "was-run").exists()


def test_weights_that_lack_some_are_refused(tmp_path, bert):
    copied(bert, tmp_path)
    held = weights.read_weights(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save({name: value for name, value in held.items() if "layer.1" not in name}, tmp_path / "pytorch_model.bin")
    with pytest.raises(RunError, match="weights are missing"):
        pretrained.trunk(pretrained.card(f"hf:{tmp_path}"))


def test_timm_that_is_not_there_is_named_with_what_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UsageError, match="torchvision"):
        pretrained.card("timm:resnet18")


def test_a_net_of_timm_takes_its_weights_from_the_file_and_leaves_out_the_last_layer(monkeypatch, tmp_path):
    """timm itself needs torchvision; this stands in for it."""

    class Net(nn.Module):
        num_features = 6

        def __init__(self):
            super().__init__()
            self.body = nn.Conv2d(3, 6, 3)
            self.pretrained_cfg = {"input_size": (3, 16, 16), "mean": (0.5,) * 3, "std": (0.5,) * 3}

        def forward(self, x):
            return self.body(x).mean((2, 3))

    asked = {}

    def create_model(name, **options):
        asked.update(options, name=name)
        return Net()

    monkeypatch.setitem(
        sys.modules, "timm", types.SimpleNamespace(list_models=lambda: ["tiny"], create_model=create_model)
    )
    found = pretrained.card("timm:tiny")
    assert found.side == 16 and pretrained.width(pretrained.Trunk(found, Net()), found) == 6
    with pytest.raises(UsageError, match="did you mean"):
        pretrained.card("timm:tinny")
    with pytest.raises(UsageError, match="--weights FILE"):
        pretrained.trunk(found)
    theirs = Net()
    torch.save({"state_dict": {**theirs.state_dict(), "fc.weight": torch.zeros(1000, 6)}}, tmp_path / "tiny.pth")
    made = pretrained.trunk(found, file=str(tmp_path / "tiny.pth"))
    assert torch.equal(made.model.body.weight, theirs.body.weight) and asked["pretrained"] is False


# --- Features ---------------------------------------------------------------------------------------------------------


def test_features_of_a_text_are_the_mean_over_its_tokens_and_the_upper_layers_whatever_fills_it_up(bert):
    trunk = pretrained.trunk(pretrained.card(f"hf:{bert}"))
    model = transformers.BertModel.from_pretrained(bert).eval()
    tokens = torch.tensor([[2, 4, 8, 3, 0, 0, 0], [2, 5, 3, 0, 0, 0, 0]], dtype=torch.int32)
    with torch.no_grad():
        found = trunk(tokens)
        for row, length in ((0, 4), (1, 3)):
            layers = model(input_ids=tokens[row : row + 1, :length].long(), output_hidden_states=True).hidden_states
            assert torch.allclose(found[row], torch.stack(layers[1:]).mean(0)[0].mean(0), atol=1e-5)


def test_features_of_a_picture_are_the_mean_over_its_places(vit):
    trunk = pretrained.trunk(pretrained.card(f"hf:{vit}"))
    model = transformers.ViTModel.from_pretrained(vit).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(trunk(x), model(pixel_values=x).last_hidden_state.mean(1), atol=1e-5)


def test_pictures_are_scaled_as_the_trunk_was_trained(vit):
    domain = Pretrained(trunk=f"hf:{vit}")
    column = np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32)).astype(np.uint8)
    domain.fit((column,), np.arange(4))
    found = domain.prepare()(domain.encode((column,))[0])
    mean, std = (np.array(part)[None, :, None, None] for part in ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4)))
    assert found.numpy() == pytest.approx((column / 255 - mean) / std, abs=1e-5)


def test_grams_are_the_tokens_and_pairs_each_once_without_those_the_tokenizer_sets():
    found = pretrained.grams(np.array([[2, 4, 5, 4, 5, 3, 0], [2, 3, 0, 0, 0, 0, 0]]), 0, {0, 2, 3})
    assert (found[0] > 0).sum() == 4 and len(set(found[0][found[0] > 0])) == 4  # 4, 5, 4-5, 5-4
    assert not found[1].any()
    again = pretrained.grams(np.array([[2, 5, 4, 3]]), 0, {0, 2, 3})  # 5, 4, 5-4
    assert set(again[0][again[0] > 0]) < set(found[0])


def test_an_example_has_the_same_features_alone_and_among_others(bert):
    domain = Pretrained(trunk=f"hf:{bert}")
    column, truth = texts(40)
    domain.fit((column,), np.arange(40))
    target = Classes()
    target.fit(truth)
    net = domain.net(target, "small", domain.trunk).eval()
    whole = domain.featured(net, Encoded(domain.encode((column,))), None).inputs[0]
    some = domain.featured(net, Encoded(domain.encode((column,))), np.array([5, 17])).inputs[0]
    assert torch.allclose(whole[[5, 17]], some[[5, 17]], atol=1e-6) and not some[0].any()
    assert torch.allclose(whole[7], net.trunk(domain.encode((column[7:8],))[0])[0], atol=1e-6)


def test_features_are_computed_once(bert, monkeypatch):
    domain = Pretrained(trunk=f"hf:{bert}")
    column, truth = texts(40)
    domain.fit((column,), np.arange(40))
    target = Classes()
    target.fit(truth)
    net = domain.net(target, "small", domain.trunk)
    asked = []
    net.trunk.register_forward_hook(lambda module, given, found: asked.append(len(given[0])))
    examples = Encoded(domain.encode((column,)), target.encode(truth))
    for _ in range(3):
        for batch in domain.batches(net, examples, np.arange(30), batch_size=8).epoch(0):
            net(*batch.inputs)
    domain.ask(net.eval(), examples, np.arange(40))
    assert sum(asked) == 40


def test_layers_have_rates_that_fall_towards_the_first(bert):
    trunk = pretrained.trunk(pretrained.card(f"hf:{bert}"))
    rates = pretrained.layer_rates(nn.ModuleDict({"trunk": trunk}), 1e-3, 0.5)
    assert rates == {"*.layer.0.*": 5e-4, "*.layer.1.*": 1e-3, "trunk.*": 2.5e-4}


# --- From start to end ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tune", [False, True])
def test_a_run_on_a_trunk_learns_and_needs_its_folder_no_more(bert, runs, tmp_path, tune):
    folder = tmp_path / "trunk"
    folder.mkdir()
    copied(bert, folder)
    options = {"net_arg": {"tune": True}, "learning_rate": 3e-3, "epochs": 12} if tune else {}
    run = lamina.train(source(200), net=f"hf:{folder}", runs=runs, quiet=True, report=False, **options)
    assert run.headline.value > 0.9
    new = texts(20, seed=9)[0]
    before = run.predict(new)
    shutil.rmtree(folder)
    again = lamina.load(run.folder).predict(new)
    assert np.array_equal(again.prediction, before.prediction)
    assert again.probabilities == pytest.approx(before.probabilities, abs=1e-6)
    rates = run.recipe.rates
    assert (rates["*.layer.0.*"] < rates["*.layer.1.*"]) if tune else not rates
    trained = run.weights()
    kept = weights.read_weights(bert / "model.safetensors")
    same = torch.equal(trained["trunk.model.encoder.layer.0.output.dense.weight"],
                       kept["encoder.layer.0.output.dense.weight"])  # fmt: skip
    assert same is not tune


def test_a_table_of_texts_is_found_by_name_and_numbers_are_learned_too(bert, runs, tmp_path):
    column, truth = texts(120)
    lines = ["note,stars", *(f"{column[k]},{3 * truth[k] + 0.5 * (k % 4 // 2)}" for k in range(120))]
    (tmp_path / "notes.csv").write_text("\n".join(lines))
    run = lamina.train(
        str(tmp_path / "notes.csv"),
        target="stars",
        task="numbers",
        net=f"hf:{bert}",
        runs=runs,
        quiet=True,
        report=False,
    )
    assert run.facts["domain"] == "pretrained" and run.facts["task"] == "numbers"
    (tmp_path / "new.csv").write_text("who,note\nme,a good film is very fine\nyou,a bad film is very poor\n")
    good, bad = lamina.load(run.folder).predict(str(tmp_path / "new.csv")).prediction
    assert good > bad + 1


def test_pictures_go_through_a_trunk(vit, runs):
    generator = np.random.default_rng(0)
    truth = np.arange(80) % 2
    pictures = (generator.random((80, 3, 32, 32)) * 60 + 120 * truth[:, None, None, None]).astype(np.uint8)
    run = lamina.train((pictures, truth), net=f"hf:{vit}", runs=runs, quiet=True, report=False)
    assert run.headline.value > 0.9 and run.facts["domain"] == "pretrained"
    with pytest.raises(UsageError, match="tune=true"):
        lamina.train((pictures, truth), net=f"hf:{vit}", augment="flip", runs=runs, quiet=True, report=False)


def test_a_trunk_of_texts_refuses_pictures(bert, runs):
    with pytest.raises((UsageError, lamina.errors.DataError), match="texts"):
        lamina.train((np.zeros((20, 8, 8), np.uint8), np.arange(20) % 2), net=f"hf:{bert}", runs=runs, quiet=True)


def test_a_run_on_a_trunk_goes_on_where_it_stopped(bert, runs):
    straight = lamina.train(source(80), net=f"hf:{bert}", runs=runs, name="a", quiet=True, report=False)
    steps = []

    def stop(progress):
        steps.append(progress.step)
        if len(steps) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lamina.train(source(80), net=f"hf:{bert}", runs=runs, name="b", quiet=True, report=False, watchers=[stop])
    resumed = lamina.resume(runs / "b", source(80), quiet=True)
    assert all(torch.equal(value, resumed.weights()[name]) for name, value in straight.weights().items())


# --- The cache --------------------------------------------------------------------------------------------------------


def test_features_are_found_again_by_another_run_and_computed_where_weights_or_examples_differ(
    bert, monkeypatch, tmp_path
):
    monkeypatch.setenv("LAMINA_CACHE", str(tmp_path))
    column, truth = texts(200)
    target = Classes()
    target.fit(truth)

    def computed(rows, change=0.0):
        domain = Pretrained(trunk=f"hf:{bert}", length=12)
        domain.fit((column[rows],), np.arange(len(rows)))
        net = domain.net(target, "small", domain.trunk)
        net.trunk.model.embeddings.word_embeddings.weight.data.add_(change)
        asked = []
        net.trunk.register_forward_hook(lambda module, given, found: asked.append(len(given[0])))
        found = domain.featured(net, Encoded(domain.encode((column[rows],))), None).inputs[0]
        return sum(asked), found

    first, expected = computed(np.arange(100))
    again, same = computed(np.arange(100)[::-1].copy())
    assert first == 100
    assert again == 0 and torch.equal(same.flip(0), expected)
    assert 0 < computed(np.arange(50, 150))[0] <= 50
    assert computed(np.arange(100), change=0.01)[0] == 100


def test_a_damaged_cache_is_as_good_as_none_and_the_oldest_go_first(monkeypatch, tmp_path):
    monkeypatch.setenv("LAMINA_CACHE", str(tmp_path))
    some = features.keys(torch.arange(40).reshape(10, 4))
    tokens = torch.tensor([[5, 0, 6, 0], [5, 0, 6, 7]])
    assert np.array_equal(features.keys(tokens, 0)[:1], features.keys(tokens[:1, :3], 0))  # what fills up says nothing
    assert not np.array_equal(features.keys(tokens, 0)[0], features.keys(tokens, 0)[1])
    assert len(np.unique(some, axis=0)) == 10 and np.array_equal(some, features.keys(torch.arange(40).reshape(10, 4)))
    table = torch.randn(10, 3)
    features.keep("a" * 64, some[:6], table[:6])
    found, there = features.known("a" * 64, some, 3)
    assert there.tolist() == [True] * 6 + [False] * 4 and torch.equal(found[:6], table[:6])
    assert not features.known("b" * 64, some, 3)[1].any() and not features.known("a" * 64, some, 5)[1].any()
    monkeypatch.setattr(features, "MOST_BYTES", 5 * 28)
    features.keep("a" * 64, some[6:], table[6:])
    assert features.known("a" * 64, some, 3)[1].tolist() == [False] * 5 + [True] * 5
    for place in (tmp_path / "features").iterdir():
        place.write_bytes(place.read_bytes()[:-9])
    assert not features.known("a" * 64, some, 3)[1].any()
    monkeypatch.setenv("LAMINA_CACHE", "off")
    features.keep("a" * 64, some, table)
    assert not features.known("a" * 64, some, 3)[1].any()
