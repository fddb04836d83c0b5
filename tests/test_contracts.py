"""Every domain and every target honours its contract. The folder is the list: a new file is tested by being there.

A domain brings its sample (`tiny`); a target needs a line in ANSWERS.
"""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lamina import data, losses, names
from lamina import recipe as recipes
from lamina.domains.base import Domain, Encoded
from lamina.targets.base import Answers, Target

RNG = np.random.default_rng(0)
ANSWERS = {  # name -> some answers of this kind, 60 of them
    "classes": np.array(["ham", "spam", "eggs"])[np.arange(60) % 3],
    "numbers": RNG.normal(100, 30, 60),
    "tags": (RNG.random((60, 4)) < 0.4).astype(np.int64),
    "embedding": np.array(["ada", "bo", "cy"])[np.arange(60) % 3],
}
DOMAINS = [name for name in names.known("domains") if name != "pretrained"]  # which needs a net from somebody's disk
KINDS = names.known("targets")
TARGETS = [name for name in KINDS if name != "clusters"]  # of which nobody gives any: tests/test_clusters.py


def domain_of(name):
    return names.module("domains", name).DOMAIN


def target_of(name):
    assert name in ANSWERS, f"a new target needs some answers in ANSWERS of {__file__}"
    return names.module("targets", name).TARGET


def sample(name):
    """(the domain fitted, its target fitted, raw inputs, answers, training rows) of a domain's own sample."""
    domain = domain_of(name)()
    train = domain.read(domain.tiny()).train
    truth = data.answers(train)
    target, _ = data.choose_target(truth, None, None, known=train.labels, name=name)
    rows = np.arange(0, len(truth), 2)
    domain.fit(train.inputs, rows)
    target.fit(truth[rows], **({"names": train.labels} if train.labels else {}))
    return domain, target, train.inputs, truth, rows


def json_of(state):
    return json.loads(json.dumps(state, allow_nan=False))


def part(columns, rows):
    return tuple(column[rows] for column in columns)


# --- Domains ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DOMAINS)
def test_a_domain_is_found_by_its_file(name):
    kind = domain_of(name)
    assert issubclass(kind, Domain) and kind.name == name
    assert kind.__module__ == f"lamina.domains.{name}" and names.module("domains", name).__doc__


@pytest.mark.parametrize("name", DOMAINS)
def test_a_domain_recognises_its_sample(name):
    train = domain_of(name)().read(domain_of(name).tiny()).train
    found, reason = data.choose_domain(train, None, own_net=False)
    assert found.name == name and reason
    assert all(0 <= domain_of(other).sniff(train)[0] <= 1 for other in DOMAINS)


@pytest.mark.parametrize("name", DOMAINS)
def test_encoding_is_deterministic_and_changes_nothing(name):
    domain, _, inputs, _, _ = sample(name)
    kept, state = copy.deepcopy(inputs), json_of(domain.state())
    one, other = domain.encode(inputs), domain.encode(inputs)
    assert all(
        isinstance(column, Tensor) and torch.equal(column, again) for column, again in zip(one, other, strict=True)
    )
    assert all(np.array_equal(column, before) for column, before in zip(inputs, kept, strict=True))
    assert json_of(domain.state()) == state


@pytest.mark.parametrize("name", DOMAINS)
def test_an_example_is_encoded_alike_alone_and_among_others(name):
    domain, _, inputs, _, _ = sample(name)
    whole = domain.encode(inputs)
    for row in (0, 7):
        alone = domain.encode(part(inputs, [row]))
        assert all(torch.equal(column, full[row : row + 1]) for column, full in zip(alone, whole, strict=True))


@pytest.mark.parametrize("name", DOMAINS)
def test_a_domain_learns_from_the_training_rows_only(name):
    domain, _, inputs, _, rows = sample(name)
    other = tuple(column.copy() for column in inputs)
    for column in other:
        column[1::2] = column[1::2][::-1].max()  # no training row
    again = domain_of(name)()
    again.fit(other, rows)
    assert json_of(again.state()) == json_of(domain.state())
    for column in other:
        column[rows] = column[np.resize(rows[: len(rows) // 2], len(rows))]  # the second half is the first again
    again.fit(other, rows)
    assert json_of(again.state()) != json_of(domain.state()), "nothing is learned, so the comparison says nothing"


@pytest.mark.parametrize("name", DOMAINS)
def test_the_default_net_takes_what_the_domain_gives(name):
    domain, target, inputs, _, _ = sample(name)
    some = domain.encode(part(inputs, np.arange(5)))
    for size in ("small", "medium", "large"):
        net = domain.net(target, size).eval()
        assert isinstance(net, nn.Module)
        with torch.no_grad():
            output = net(domain.prepare()(some[0]), *some[1:])
        assert output.shape == (5, target.width) and torch.isfinite(output).all()


@pytest.mark.parametrize("name", DOMAINS)
def test_a_domain_saved_and_built_again_predicts_the_same_numbers(name):
    domain, target, inputs, _, _ = sample(name)
    net = domain.net(target, "small").eval()
    again = type(domain)(**json_of(domain.state()))
    same = type(target)(**json_of(target.state()))
    some = part(inputs, np.arange(20))
    one, other = domain.predict(net, some, target), again.predict(net, some, same)
    assert np.array_equal(one.prediction, other.prediction)
    assert one.probabilities is None or np.array_equal(one.probabilities, other.probabilities)
    for key, value in domain.prepare().state_dict().items():
        assert torch.equal(value, again.prepare().state_dict()[key])


@pytest.mark.parametrize("name", DOMAINS)
def test_one_step_of_learning_works_on_every_domains_own_ground(name):
    domain, target, inputs, truth, rows = sample(name)
    net, loss = domain.net(target, "small"), target.loss()
    examples = Encoded(domain.encode(inputs), target.encode(truth))
    batch = next(iter(domain.batches(net, examples, rows, batch_size=16, seed=3)))
    assert batch.count == 16 and set(batch.indices.tolist()) <= set(rows.tolist())
    value, count = domain.loss(net, batch, target, loss)
    value.backward()
    assert value.ndim == 0 and torch.isfinite(value) and int(count) == 16
    found = domain.validate(net.eval(), domain.batches(net, examples, rows, batch_size=32, shuffle=False), target, loss)
    assert {"loss", target.quick} <= found.keys() and np.isfinite(list(found.values())).all()


# --- Targets ----------------------------------------------------------------------------------------------------------


def fitted(name):
    target = target_of(name)()
    target.fit(ANSWERS[name])
    return target


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_is_found_by_its_file(name):
    kind = target_of(name)
    assert issubclass(kind, Target) and kind.name == name
    assert kind.__module__ == f"lamina.targets.{name}" and names.module("targets", name).__doc__


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_recognises_its_answers(name):
    asked = name if target_of(name).sniff(ANSWERS[name])[0] == 0 else None  # those that are given only when asked for
    assert data.choose_target(ANSWERS[name], asked, None, known=None, name=name)[0].name == name
    assert data.choose_target(ANSWERS[name], name, None, known=None, name=name)[1] == "yours"


@pytest.mark.parametrize("name", TARGETS)
def test_answers_go_there_and_back(name):
    target = fitted(name)
    encoded = target.encode(ANSWERS[name])
    assert isinstance(encoded, Tensor) and len(encoded) == 60 and torch.equal(encoded, target.encode(ANSWERS[name]))
    people = target.people(encoded.numpy())
    if ANSWERS[name].dtype.kind == "f":
        assert people == pytest.approx(ANSWERS[name], rel=1e-6)
    else:
        assert (people == ANSWERS[name]).all()


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_learns_nothing_when_it_encodes_or_decodes(name):
    target = fitted(name)
    state = json_of(target.state())
    output = torch.randn(60, target.width)
    target.check(output, target.encode(ANSWERS[name]), target.loss())
    target.decode(output), target.tally(output, target.encode(ANSWERS[name])), target.measures()
    assert json_of(target.state()) == state


@pytest.mark.parametrize("name", TARGETS)
def test_a_targets_own_loss_can_be_minimised_to_the_right_answers(name):
    """Free outputs, no net: what the loss draws them to is what decode gives back."""
    target = fitted(name)
    truth = target.encode(ANSWERS[name])
    output = torch.zeros(60, target.width, requires_grad=True)
    optimizer = torch.optim.Adam([output], lr=0.3)
    for _ in range(150):
        optimizer.zero_grad()
        value = target.loss()(output, target.shape_truth(truth, output))
        value.backward()
        optimizer.step()
    assert value.ndim == 0
    answers = target.decode(output.detach())
    assert isinstance(answers, Answers) and len(answers) == 60
    if ANSWERS[name].dtype.kind == "f":
        assert answers.prediction == pytest.approx(ANSWERS[name], abs=0.05 * ANSWERS[name].std())
    else:
        assert (answers.prediction == ANSWERS[name]).all()
    headline = target.measures()[0]
    score = headline.compute(target.people(truth.numpy()), answers)
    if headline.better == "higher":
        assert score == 1.0
    else:
        assert 0 <= score < 0.05 * ANSWERS[name].std()


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_saved_and_built_again_decodes_the_same(name):
    target = fitted(name)
    again = type(target)(**json_of(target.state()))
    output = torch.randn(9, target.width)
    one, other = target.decode(output), again.decode(output)
    assert (one.prediction == other.prediction).all() and again.width == target.width
    assert torch.equal(again.encode(ANSWERS[name]), target.encode(ANSWERS[name]))
    assert json_of(again.state()) == json_of(target.state())


@pytest.mark.parametrize("name", TARGETS)
def test_probabilities_and_confidences_lie_between_0_and_1(name):
    answers = fitted(name).decode(torch.randn(40, fitted(name).width) * 20)
    for column in (answers.probabilities, answers.confidence):
        assert column is None or (np.isfinite(column).all() and column.min() >= 0 and column.max() <= 1)


@pytest.mark.parametrize("name", TARGETS)
def test_columns_of_a_prediction_have_a_cell_for_each_row(name):
    target = fitted(name)
    columns = target.columns(target.decode(torch.randn(7, target.width)))
    assert columns and all(len(column) == 7 for column in columns.values())


@pytest.mark.parametrize("name", TARGETS)
def test_the_scores_of_a_target_have_names_of_their_own_and_a_direction(name):
    target = fitted(name)
    measures = target.measures()
    assert len({measure.name for measure in measures}) == len(measures)
    assert {measure.better for measure in measures} <= {"higher", "lower"}
    assert target.quick in {measure.name for measure in measures}
    answers = target.decode(torch.randn(60, target.width))
    truth = target.people(target.encode(ANSWERS[name]).numpy())
    for measure in measures:
        assert np.isfinite(measure.compute(truth, answers)), measure.name


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_counts_what_its_loss_is_taken_over(name):
    target = fitted(name)
    output, truth = torch.randn(60, target.width), target.encode(ANSWERS[name])
    assert int(losses.count(target.loss(), output, target.shape_truth(truth, output), 60)) == 60


# --- The recipe knows them --------------------------------------------------------------------------------------------


def test_every_domain_and_target_is_named_in_the_help():
    for field, room in (("domain", DOMAINS), ("task", KINDS)):
        words = recipes.FIELDS[field].description or ""
        assert all(name in words for name in room), words
