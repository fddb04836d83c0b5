"""Source -> examples that are split, fitted and encoded: what is chosen, and that nothing is learned from held-out rows."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from lamina import data, sources, splits
from lamina import recipe as recipes
from lamina.domains.arrays import Arrays
from lamina.domains.image import Image
from lamina.errors import DataError, UsageError
from lamina.recipe import Recipe, make
from lamina.targets.classes import Classes
from lamina.targets.numbers import Numbers

RNG = np.random.default_rng(0)
X = RNG.normal(3, 2, (40, 4))
Y = np.arange(40) % 3


def load(source, recipe=None, *, own_net=False, **options):
    """As `train` does it: what was not asked for is resolved, and the domain told its scale."""
    opened = source if isinstance(source, sources.Source) else sources.open(source)

    def resolve(domain, target, taken, count):
        found, _ = recipes.resolve(
            recipe or Recipe(), own_net=own_net, net="mlp", examples=count, pictures=None, task=target.name,
            given_valid=opened.valid is not None, given_test=opened.test is not None,
        )  # fmt: skip
        domain.scale = found.scale
        return found

    return data.load(recipe or Recipe(), opened, own_net=own_net, resolve=resolve, **options)[0]


class Items(Dataset):
    """Answers are found by reading."""

    def __init__(self, answers, reads=None):
        self.answers, self.reads = answers, [] if reads is None else reads

    def __len__(self):
        return len(self.answers)

    def __getitem__(self, k):
        self.reads.append(k)
        return torch.randn(4), self.answers[k]


class Stream(IterableDataset):
    def __init__(self, answers):
        self.answers = answers

    def __iter__(self):
        return ((torch.ones(4) * k, answer) for k, answer in enumerate(self.answers))


# --- What is chosen ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "own_net", "name"),
    [
        ("digits", False, "image"),
        ("digits", True, "image"),
        ("iris", False, "arrays"),
        ((np.zeros((9, 1, 8, 8), np.uint8), np.arange(9) % 3), False, "image"),
        ((np.zeros((9, 1, 8, 8), np.uint8), np.arange(9) % 3), True, "arrays"),  # his net gets the shape he gave
        ((X, Y), False, "arrays"),
        (Items(Y), True, "arrays"),
    ],
)
def test_the_domain_is_chosen_by_the_form_of_the_inputs(source, own_net, name):
    domain, why = data.choose_domain(sources.open(source).train, None, own_net=own_net)
    assert domain.name == name and why


@pytest.mark.parametrize(
    ("truth", "loss", "name"),
    [
        (Y, None, "classes"),
        (Y, nn.MSELoss(), "numbers"),
        (Y, F.mse_loss, "numbers"),
        (Y.astype(float) * 1.5, None, "numbers"),
        (np.arange(40) * 1000, nn.CrossEntropyLoss(), "classes"),
        (Y % 2, nn.BCEWithLogitsLoss(), "classes"),
        ((Y % 2).astype(float), nn.BCEWithLogitsLoss(), "classes"),
        ((Y % 2).astype(float), F.binary_cross_entropy_with_logits, "classes"),
        ((Y % 2).astype(float)[:, None], nn.BCELoss(), "classes"),
        (np.eye(3)[Y], nn.BCEWithLogitsLoss(), "tags"),
        ((X > 3).astype(int), None, "tags"),
        (X, nn.HuberLoss(), "numbers"),
        (X > 3, lambda output, truth: None, "tags"),
    ],
)
def test_the_target_is_chosen_by_the_loss_and_the_answers(truth, loss, name):
    target, why = data.choose_target(truth, None, loss, known=None, name="mine")
    assert target.name == name and why


def test_names_of_classes_decide_but_a_loss_for_numbers_decides_before():
    truth = np.arange(40)
    assert data.choose_target(truth, None, None, known=["a"] * 40, name="mine")[0].name == "classes"
    assert data.choose_target(truth, None, nn.MSELoss(), known=["a"] * 40, name="mine")[0].name == "numbers"


class MyTarget(Classes):
    name = "mine"


def test_what_is_asked_for_is_taken(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from lamina.targets.numbers import Numbers\nclass Mine(Numbers): name = 'mine'\n"
    )
    for asked, kind in (("numbers", Numbers), (MyTarget, MyTarget), (MyTarget(), MyTarget)):
        target, why = data.choose_target(Y, asked, None, known=None, name="x")
        assert type(target) is kind and why == "yours"
    assert data.choose_target(Y, f"{tmp_path / 'mine.py'}:Mine", None, known=None, name="x")[0].name == "mine"
    assert type(data.choose_domain(sources.open("digits").train, "arrays", own_net=False)[0]) is Arrays
    with pytest.raises(UsageError, match="did you mean 'classes'"):
        data.choose_target(Y, "clases", None, known=None, name="x")


def test_answers_of_no_kind_are_refused():
    with pytest.raises(DataError, match=r"\(<U1, shape \(9, 2\)\) are of no kind"):
        data.choose_target(np.array([["a", "b"]] * 9), None, None, known=None, name="mine")


def test_without_answers_groups_are_sought_unless_there_is_a_loss_that_wants_some():
    target, why = data.choose_target(None, None, None, known=None, name="mine")
    assert target.name == "clusters" and "there are no answers" in why
    with pytest.raises(DataError, match="mine has no answers to learn from"):
        data.choose_target(None, None, nn.MSELoss(), known=None, name="mine")


# --- Splitting, fitting, encoding -------------------------------------------------------------------------------------


def test_columns_are_split_fitted_and_encoded():
    found = load((X, Y))
    assert [found.size(part) for part in data.PARTS] == [28, 4, 8]
    rows = np.concatenate([found.rows(part) for part in data.PARTS])
    assert sorted(rows) == list(range(40))
    train = X[found.rows("train")]
    assert found.domain.mean == pytest.approx(train.mean(0)) and found.domain.std == pytest.approx(train.std(0))
    for part in data.PARTS:
        assert torch.equal(found.truth(part), torch.from_numpy(Y[found.rows(part)]))
    assert torch.equal(found.parts["train"][0].inputs[0], torch.from_numpy(X).float())
    assert "stratified" in found.split.how and found.why["domain"] and found.why["task"]


@pytest.mark.parametrize("truth", [Y, X[:, 0] * 7])
def test_what_is_learned_does_not_depend_on_held_out_rows(truth):
    base = load((X, truth))
    x, y = X.copy(), truth.copy()
    held_out = np.concatenate([base.rows("valid"), base.rows("test")])
    x[held_out] = 1e3
    y[held_out] = y[base.rows("train")[0]]
    other = load((x, y), split=base.split)
    assert other.domain.state() == base.domain.state() and other.target.state() == base.target.state()
    x[base.rows("train")[0]] += 1
    assert load((x, y), split=base.split).domain.state() != base.domain.state()


def test_a_class_that_only_the_held_out_rows_have_is_named():
    split = splits.Split(np.arange(30), np.arange(30, 34), np.arange(34, 40))
    y = np.where(np.arange(40) == 36, 9, Y)
    with pytest.raises(DataError, match="never occur in train: '9'"):
        load((X, y), split=split)


def test_parts_that_are_given_stay_as_they_are():
    source = sources.open((X, Y), valid=(X[:5] + 100, Y[:5]), test=(X[:7] + 200, Y[:7]))
    found = load(source)
    assert [found.size(part) for part in data.PARTS] == [40, 5, 7] and found.split.how == "as given"
    columns = found.parts["train"][0].inputs[0]
    for part, expected in (("train", X), ("valid", X[:5] + 100), ("test", X[:7] + 200)):
        assert torch.equal(columns[found.rows(part)], torch.from_numpy(expected).float())
        assert torch.equal(found.truth(part), torch.from_numpy(Y[: len(expected)]))
    assert found.domain.mean == pytest.approx(X.mean(0))


def test_parts_that_were_read_are_not_kept_beside_the_table_they_became():
    source = sources.open((X, Y), test=(X[:9] + 1, Y[:9]))
    read = [weakref.ref(part.inputs[0]) for part in (source.train, source.test)]
    given = [part.inputs[0].copy() for part in (source.train, source.test)]
    load(source)
    gc.collect()
    found = [part.inputs[0] for part in (source.train, source.test)]
    assert all(map(np.array_equal, given, found)) and found[0].base is found[1].base is not None
    assert read[1]() is None  # X itself is somebody's


def test_a_given_test_part_leaves_the_share_for_validation_to_be_drawn():
    found = load(sources.open((X, Y), test=(X[:7], Y[:7])))
    assert [found.size(part) for part in data.PARTS] == [36, 4, 7]
    assert found.rows("test").tolist() == list(range(40, 47)) and found.rows("valid").max() < 40


def test_shares_that_are_asked_for_are_drawn():
    found = load((X, Y), make(valid=0, test=0.5))
    assert "valid" not in found.parts and found.size("valid") == 0 and found.size("test") == 20
    assert load((X, Y), own_net=True).size("valid") == 0


def test_groups_and_times_are_respected():
    source = sources.open((X, Y))
    source.train.groups = np.arange(40) // 4
    found = load(source)
    parts = [set(source.train.groups[found.rows(part)]) for part in data.PARTS]
    assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])
    source = sources.open((X, Y))
    source.train.times = RNG.permutation(40)
    found = load(source)
    assert source.train.times[found.rows("train")].max() < source.train.times[found.rows("test")].min()


def test_a_run_is_opened_again_with_what_it_learned_and_how_it_was_split():
    first = load((X, Y), own_net=False)
    kinds = type(first.domain)(**first.domain.state()), type(first.target)(**first.target.state())
    again = load((X, Y), make(seed=99), split=first.split, fitted=kinds)
    assert again.fingerprint() == first.fingerprint()
    assert again.domain.state() == first.domain.state() and again.rows("test").tolist() == first.rows("test").tolist()


def test_a_stored_split_of_more_examples_is_refused():
    with pytest.raises(DataError, match="more than the 40 examples"):
        load((X, Y), split=splits.Split(np.arange(30), np.arange(30, 35), np.arange(35, 50)))


def test_names_of_the_inputs_and_of_the_classes_come_along():
    found = load("iris")
    assert found.domain.features[0] == "sepal length (cm)" and found.target.labels == [
        "setosa",
        "versicolor",
        "virginica",
    ]


def test_findings_that_make_training_pointless_stop_it():
    with pytest.raises(DataError, match="one class"):
        load((X, np.zeros(40, int)))
    assert isinstance(load((np.vstack([X, X]), np.concatenate([Y, Y]))).findings, list)


def test_the_fingerprint_sees_inputs_answers_rows_and_classes():
    base = load((X, Y))
    assert load((X, Y)).fingerprint() == base.fingerprint()
    x, y = X.copy(), Y.copy()
    x[7, 2] = np.nextafter(np.float32(x[7, 2]), 9)
    y[[5, 6]] = y[[6, 5]]
    swapped = splits.Split(
        base.split.train, base.split.test[:4], np.concatenate([base.split.valid, base.split.test[4:]])
    )
    others = [
        load((x, Y), split=base.split),
        load((X, y), split=base.split),
        load((X, Y), split=swapped),
        load((X, Y.astype(str)), split=base.split, target=Classes),
        load((X.astype(np.float16), Y), split=base.split),
        load((np.roll(X, 1, 0), Y), split=base.split),
    ]
    prints = [base.fingerprint(), *(other.fingerprint() for other in others)]
    assert len(set(prints)) >= len(prints) - 1  # words and numbers of the same classes may agree
    assert len(set(prints[:4])) == 4


# --- Binary answers as floats -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [nn.BCEWithLogitsLoss(), nn.BCEWithLogitsLoss, F.binary_cross_entropy_with_logits])
@pytest.mark.parametrize("shape", [(40,), (40, 1)])
def test_zeros_and_ones_as_floats_are_classes_for_a_binary_loss(loss, shape):
    y = (Y % 2).astype(np.float32).reshape(shape)
    found = load((X, y), own_net=True, loss=loss)
    assert found.target.name == "classes" and found.target.single and found.target.labels == ["0", "1"]
    assert found.parts["train"][0].truth.tolist() == y.reshape(-1).tolist()
    for dataset in (Items(torch.from_numpy(y)), DataLoader(Items(torch.from_numpy(y)), batch_size=8)):
        found = load(dataset, own_net=True, loss=loss)
        assert found.target.single
        walk = found.domain.batches(None, *found.parts["train"], batch_size=16)
        assert all(batch.truth.dtype == torch.float32 and batch.truth.ndim == 1 for batch in walk.epoch(0))


# --- Datasets ---------------------------------------------------------------------------------------------------------


def test_a_dataset_stays_whole_and_its_rows_are_split():
    dataset = Items(Y)
    found = load(dataset, own_net=True, loss=nn.CrossEntropyLoss())
    encoded, rows = found.parts["train"]
    assert encoded.inputs is dataset and len(rows) == 32 and found.size("test") == 8 and found.truth("train") is None
    for batch in found.domain.batches(None, encoded, rows, batch_size=8).epoch(0):
        assert torch.equal(batch.truth, torch.from_numpy(Y)[batch.indices])
        assert set(batch.indices.tolist()) <= set(rows.tolist())


def test_datasets_that_are_given_for_the_parts_are_put_one_behind_the_other():
    found = load(sources.open(Items(Y), test=Items(Y[:6]), valid=Items(Y[:5])), own_net=True)
    assert [found.size(part) for part in data.PARTS] == [40, 5, 6]
    assert isinstance(found.parts["train"][0].inputs, ConcatDataset)


class Listed(Items):
    def __init__(self, answers, listed, name="targets"):
        super().__init__(answers)
        setattr(self, name, listed)


@pytest.mark.parametrize("name", ["targets", "labels"])
@pytest.mark.parametrize("form", [list, np.asarray, torch.as_tensor])
def test_answers_that_a_dataset_lists_are_not_read_one_by_one(name, form):
    dataset = Listed(Y, form(Y.tolist()), name)
    assert data.truths(dataset).tolist() == Y.tolist()
    assert len(dataset.reads) <= 3  # one of each class, to see that they are what the items carry


def test_an_item_that_is_none_is_an_example_that_cannot_be_used():
    class Gap(Items):
        def __getitem__(self, k):
            return None if k == 7 else super().__getitem__(k)

    bad = {}
    assert data.truths(Gap(Y.tolist()), bad, 100).tolist() == [0 if k == 7 else Y[k] for k in range(40)]
    assert bad == {107: "TypeError: it is None"}
    with pytest.raises(DataError, match="Example 7 of the Dataset could not be read: TypeError: it is None"):
        data.truths(Gap(Y.tolist()))


def test_answers_that_a_dataset_lists_but_does_not_give_are_not_believed():
    """torchvision's `targets` are those before `target_transform`."""
    dataset = Listed((Y > 0).astype(int), Y)
    assert data.truths(dataset).tolist() == (Y > 0).astype(int).tolist()
    assert data.truths(Listed(Y, Y[:10])).tolist() == Y.tolist()
    assert data.truths(Listed(Y, [None, "a"] * 20)).tolist() == Y.tolist()


@pytest.mark.parametrize(
    "dataset",
    [
        Items(Y), Items([str(y) for y in Y]), Subset(Items(np.repeat(Y, 2)), range(0, 80, 2)),
        ConcatDataset([Items(Y[:13]), Listed(Y[13:], Y[13:])]), TensorDataset(torch.zeros(40, 2), torch.from_numpy(Y)),
    ],
    ids=["items", "words", "subset", "concatenated", "tensors"],
)  # fmt: skip
def test_answers_are_found_in_any_dataset(dataset):
    assert [int(answer) for answer in data.truths(dataset)] == Y.tolist()


def test_looking_for_answers_leaves_the_callers_generators_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    data.truths(Items(Y))
    data.answers(sources.open(DataLoader(Items(Y), shuffle=True)).train)
    assert torch.equal(torch.rand(2), expected)


class Unanswered(Items):
    def __getitem__(self, k):
        return torch.ones(4)


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        (Unanswered(Y), "Item 0 of the Dataset has no answer"),
        (DataLoader(Unanswered(Y)), "Item 0 of the Dataset has no answer"),
        (Stream([]), "gave no batch"),
    ],
)
def test_datasets_without_answers_are_refused(dataset, words):
    with pytest.raises(DataError, match=words):
        data.answers(sources.open(dataset).train)


def test_streams_without_answers_are_refused():
    class Silent(Stream):
        def __iter__(self):
            return (torch.ones(4) for _ in range(5))

    for source in (Silent(Y), DataLoader(Silent(Y), batch_size=2)):
        with pytest.raises(DataError, match="batches have no answers"):
            data.answers(sources.open(source).train)


def test_a_scale_that_cannot_be_measured_is_refused_and_not_forgotten():
    for source in (Items(Y), DataLoader(Items(Y))):
        with pytest.raises(UsageError, match="scale=standard is measured on columns"):
            load(source, make(scale="standard"), own_net=True)
    assert load(Items(Y), make(scale="none"), own_net=True).domain.scale == "none"


def test_pictures_in_a_dataset_of_yours_may_be_called_pictures():
    found = load(Items(Y), own_net=True, domain=Image)
    assert found.domain.name == "image" and isinstance(found.domain.prepare(), nn.Identity)


# --- Loaders and streams ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    [
        DataLoader(Items(Y), batch_size=7, shuffle=True), DataLoader(Stream(Y), batch_size=7), Stream(Y),
        DataLoader(Stream([str(y) for y in Y]), batch_size=7),
    ],
    ids=["loader", "loader of a stream", "stream", "words"],
)  # fmt: skip
def test_loaders_and_streams_are_taken_as_they_are(source):
    opened = sources.open(source)
    assert sorted(int(answer) for answer in data.answers(opened.train)) == sorted(Y)
    found = load(opened, own_net=True, loss=nn.CrossEntropyLoss())
    assert list(found.parts) == ["train"] and found.rows("train") is None and found.truth("train") is None
    walk = found.domain.batches(None, *found.parts["train"], batch_size=64)
    assert sum(batch.count for batch in walk.epoch(0)) == 40 and found.target.labels == ["0", "1", "2"]
    assert found.size("train") in (40, None) and len(found.fingerprint()) == 64


def test_beside_a_loader_columns_may_be_given_to_test_on():
    source = sources.open(DataLoader(Items(Y), batch_size=7), test=(X[:6], Y[:6]))
    found = load(source, own_net=True)
    assert found.size("test") == 6 and found.truth("test").tolist() == Y[:6].tolist()
    assert torch.equal(found.parts["test"][0].inputs[0], torch.from_numpy(X[:6]).float())


@pytest.mark.parametrize("source", [DataLoader(Items(Y)), Stream(Y)])
def test_no_net_of_ours_can_be_fitted_to_a_loader(source):
    with pytest.raises(UsageError, match="cannot be measured before training"):
        load(source)
