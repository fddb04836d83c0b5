"""Texts: what is taken from which source, in any script, and through the command line."""

from __future__ import annotations

import io
import json
import sys

import numpy as np
import pytest
import torch

import lamina
from lamina import data, grams, sources
from lamina import recipe as recipes
from lamina.cli import main
from lamina.domains.text import OTHERS, Text, text_columns
from lamina.errors import DataError, UsageError
from lamina.nets.textnet import TextNet
from lamina.report import page
from lamina.sources import Examples, Source
from lamina.targets.classes import Classes


def objects(values):
    column = np.empty(len(values), object)
    column[:] = list(values)
    return column


def table(**columns):
    kinds = {name: objects(c) if isinstance(c[0], str) else np.asarray(c, float) for name, c in columns.items()}
    return Examples(tuple(kinds.values()), np.arange(len(next(iter(kinds.values())))) % 2, "table", list(kinds))


GOOD = ["a fine film, warm and wise", "wonderful and moving", "the best of the year", "warm, wise and wonderful"]
BAD = ["a dull film, flat and long", "tedious and flat", "the worst of the year", "dull, long and tedious"]


def reviews(n=160):
    """(texts, "pos" or "neg"): no two the same."""
    rows = [f"{(GOOD if k % 2 else BAD)[k // 2 % 4]} {(GOOD if k % 2 else BAD)[k // 8 % 4]} no {k}" for k in range(n)]
    return rows, ["pos" if k % 2 else "neg" for k in range(n)]


def fitted(texts, **options):
    domain = Text(**options)
    domain.fit((objects(texts),), np.arange(len(texts)))
    return domain


# --- Which sources are texts ------------------------------------------------------------------------------------------


def test_a_source_of_texts_is_surely_one():
    assert Text.sniff(Examples((objects(["a", "b"]),), kind="texts"))[0] > 0.9


@pytest.mark.parametrize("x", [GOOD, np.array(GOOD), objects(GOOD), ["a", None, "", "7"]])
def test_a_list_or_array_of_texts_in_memory_is_a_source_of_them(x):
    source = sources.open((x, ["a", "b", "a", "b"]))
    assert source.train.kind == "texts" and source.train.inputs[0].tolist() == ["" if e is None else e for e in x]
    assert "4 texts" in source.about


@pytest.mark.parametrize("x", [["1", "2", "3", "4"], np.array([["a"], ["b"], ["c"], ["d"]]), ["", None, "1", " "]])
def test_numbers_written_as_texts_and_tables_of_texts_are_not(x):
    with pytest.raises(DataError):
        sources.open((x, ["a", "b", "a", "b"]))


def test_a_table_whose_column_holds_texts_is_one_and_says_which():
    sure, reason = Text.sniff(table(text=GOOD + BAD, year=[1.0] * 8))
    assert sure > 0.6 and "'text'" in reason


@pytest.mark.parametrize(
    "columns",
    [
        {"name": ["ada", "bo", "cy", "di"], "age": [1.0, 2, 3, 4]},  # words, not texts
        {"answer": ["yes it is so, sir"] * 4, "age": [1.0, 2, 3, 4]},  # always the same
        {"age": [1.0, 2, 3, 4]},
        {"text": GOOD, **{f"x{k}": [1.0, 2, 3, 4] for k in range(OTHERS + 1)}},  # many columns beside them
    ],
)
def test_other_tables_are_not(columns):
    assert Text.sniff(table(**columns))[0] == 0.0


def test_words_in_the_only_column_are_texts():
    assert text_columns(table(name=["ada", "bo", "cy", "di"])) == ["name"]


def test_a_column_of_a_script_without_spaces_holds_texts():
    assert text_columns(table(t=["今天天气很好", "我们去公园", "他在学校学习", "猫在睡觉"], x=[1.0, 2, 3, 4])) == ["t"]


# --- Taking -----------------------------------------------------------------------------------------------------------


def test_columns_of_texts_are_joined_and_the_others_are_told():
    source = Source("t", table(title=["one thing and the other", "two"] * 3, body=GOOD + BAD[:2], year=[1.0] * 6))
    domain = Text(columns=["title", "body"])
    taken = domain.take(source)
    assert taken.train.kind == "texts" and taken.train.inputs[0][0] == f"one thing and the other\n{GOOD[0]}"
    assert taken.train.truth is source.train.truth
    assert [(f.kind, f.examples) for f in taken.findings] == [("columns_left_out", ["year"])]
    assert Text(columns="body").take(source).train.inputs[0].tolist() == GOOD + BAD[:2]


def test_every_part_is_taken_by_name():
    train, test = table(x=[1.0] * 4, text=GOOD), table(text=BAD, x=[1.0] * 4)
    taken = Text().take(Source("t", train, test=test))
    assert taken.test.inputs[0].tolist() == BAD


def test_a_gap_is_an_empty_text():
    source = Source("t", table(text=[*GOOD, *BAD]))
    source.train.inputs[0][2] = None
    assert Text().take(source).train.inputs[0][2] == ""


def test_a_column_that_is_not_there_is_named_with_the_nearest():
    source = Source("t", table(text=GOOD))
    with pytest.raises(UsageError, match=r"'texts'.*did you mean 'text'"):
        Text(columns=["texts"]).take(source)
    with pytest.raises(DataError, match=r"'text'.*did you mean 'txt'"):
        Text(columns=["text"])._joined(table(txt=GOOD), "file.csv")
    with pytest.raises(DataError, match="No column of t holds texts"):
        Text().take(Source("t", table(x=[1.0, 2.0])))
    with pytest.raises(DataError, match="holds no texts"):
        Text().take(Source("t", Examples((np.zeros((3, 2)),), np.arange(3))))


# --- Encoding ---------------------------------------------------------------------------------------------------------


def test_the_tables_hold_what_the_index_says():
    texts, _ = reviews()
    domain = fitted(texts)
    words = domain.words.split("\n")
    bag, _, order = domain.encode((objects(texts),))
    assert [c.dtype for c in (bag, order)] == [torch.int32] * 2
    known = {words[k - 1] for k in bag[0].tolist() if k}
    assert {"dull", "film", "a dull", "dull film"} <= known
    assert [words[k - 1] for k in order[0, :3].tolist()] == ["a", "dull", "film"]


def test_lists_arrays_and_gaps_are_taken_and_other_things_refused():
    domain = fitted(GOOD + BAD)
    expected = domain.encode((objects(["a fine film", ""]),))
    for given in (
        ["a fine film", ""],
        np.array(["a fine film", ""]),
        objects(["a fine film", None]),
        ["a fine film", float("nan")],
    ):
        assert all(torch.equal(a, b) for a, b in zip(domain.encode(given), expected, strict=True))
    with pytest.raises(DataError, match=r"1 of 2 inputs are no texts, such as 3: row 1"):
        domain.encode(["a", 3])
    with pytest.raises(DataError, match="one text"):
        domain.encode("a fine film")


def test_a_text_that_is_cut_is_told_and_others_are_not():
    long = " ".join(f"w{k}" for k in range(300))
    domain = fitted([*GOOD, *BAD, long], most=50)
    (finding,) = domain.findings()
    assert (
        domain.cut == 1 and finding.kind == "long_texts_cut" and "50" in finding.what and finding.severity == "warning"
    )
    assert fitted(GOOD + BAD).findings() == []


def test_memory_is_bounded_by_the_width_of_usual_texts(monkeypatch):
    texts = [*GOOD * 300, " ".join(f"w{k % 900}" for k in range(100_000)), "x" * 200_000]
    domain = fitted(texts)
    assert max(domain.widths) < 200  # one in a thousand does not make the tables wide
    monkeypatch.setattr("lamina.domains.text.BYTES", 4 * 40 * len(texts))
    assert sum(fitted(texts).widths) <= 40
    assert fitted(texts).encode(texts)[0].shape[0] == len(texts)


def test_a_net_of_yours_gets_the_words_in_their_order():
    domain = Text()
    source = domain.take(Source("t", Examples((objects(GOOD + BAD),), np.arange(8) % 2, "texts")), own_net=True)
    domain.fit(source.train.inputs, np.arange(8))
    (order,) = domain.encode(source.train.inputs)
    assert order.dtype == torch.int64 and int(order.max()) <= domain.vocabulary
    assert Text(**json.loads(json.dumps(domain.state()))).own


def test_any_characters_come_through_the_state():
    texts = ["bad \ud800 \x00 end\u200b", "😀 👍🏽 ok", "ไทย 日本", "e\u0301 é"] * 3
    domain = fitted(texts)
    again = Text(**json.loads(json.dumps(domain.state())))
    assert all(torch.equal(a, b) for a, b in zip(domain.encode(texts), again.encode(texts), strict=True))
    assert "\ud800" in domain.words


# --- The net ----------------------------------------------------------------------------------------------------------


def test_texts_without_a_single_known_word_have_an_answer():
    texts, labels = reviews()
    domain, target = fitted(texts), Classes()
    target.fit(np.array(labels))
    net = domain.net(target, "small").eval()
    answers = domain.predict(net, ["", "   ", "zzz qqq", "\x00\x1b", "\ud800"], target)
    assert np.isfinite(answers.probabilities).all()


def test_opinions_follow_how_much_there_is_and_what_was_asked():
    def opinions(n, **asked):
        examples = Examples((objects(["some words of a text"] * n),), kind="texts")
        return {k: v for k, (v, _) in Text().opinions(examples, Classes(), recipes.make(**asked)).items()}

    few, many = opinions(200), opinions(60_000)
    assert few["epochs"] > many["epochs"] and few["batch_size"] < many["batch_size"]
    assert "epochs" not in opinions(60_000, budget=1) and opinions(60_000, budget=1)["size"] == "small"
    assert opinions(200, budget=3600)["size"] == "large" and opinions(200, budget=3600)["epochs"] == few["epochs"]
    assert "epochs" not in opinions(200, steps=10) and "learning_rate" not in opinions(200, optimizer="sgd")
    assert opinions(200, net="mine") == {}
    with pytest.raises(UsageError, match="scale=unit is for numbers"):
        opinions(200, scale="unit")


def test_another_net_by_name_is_refused():
    target = Classes()
    target.fit(np.array(["a", "b"]))
    with pytest.raises(UsageError, match="not for texts"):
        fitted(GOOD + BAD).net(target, "small", "mlp")


# --- The command line -------------------------------------------------------------------------------------------------


def command(*words):
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return ended.value.code


def written(path, rows, header="text\tlabel"):
    path.write_text("\n".join([header, *("\t".join(map(str, row)) for row in rows)]) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    texts, labels = reviews()
    file = written(folder / "reviews.tsv", zip(texts, labels, strict=True))
    assert command("train", file, "--runs", folder, "--name", "r", "--epochs", 3, "--no-report", "-q") == 0
    return lamina.load(folder / "r")


def test_a_table_of_texts_is_learned_through_the_command_line(run):
    assert run.facts["domain"] == "text" and run.facts["net"]["name"] == "textnet"
    assert run.headline.value > 0.9 and isinstance(run.net, TextNet)
    names = {entry["name"] for entry in json.loads((run.folder / "scores.json").read_text())["baselines"]}
    assert {"majority", "bayes", "ngrams"} <= names
    assert run.evaluate()[0]["value"] == pytest.approx(run.headline.value)


def test_predictions_on_lines_on_a_table_and_on_standard_input(run, tmp_path, capsys, monkeypatch):
    lines = tmp_path / "new.txt"
    lines.write_text("warm, wise and wonderful\n\ndull and tedious, flat\n", encoding="utf-8")
    said = predictions(run, lines, capsys)
    assert [row[1] for row in said] == ["pos", said[1][1], "neg"] and [row[0] for row in said] == ["0", "1", "2"]

    columns = tmp_path / "new.csv"
    columns.write_text('year,text\n1,"warm, wise and wonderful"\n2,"dull and tedious, flat"\n', encoding="utf-8")
    assert [row[1] for row in predictions(run, columns, capsys)] == ["pos", "neg"]

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.read_bytes())))
    assert [row[1] for row in predictions(run, "-", capsys)] == [row[1] for row in said]


def predictions(run, path, capsys):
    capsys.readouterr()
    assert command("predict", run.folder, path) == 0
    return [line.split(",") for line in capsys.readouterr().out.splitlines()[1:]]


def test_python_takes_lists_of_texts(run):
    answers = run.predict(["wonderful and wise", "tedious and dull", ""])
    assert answers.prediction.tolist()[:2] == ["pos", "neg"] and np.isfinite(answers.probabilities).all()


@pytest.mark.parametrize("task", ["tags", "numbers"])
def test_texts_tell_tags_and_numbers_too(task, runs):
    texts, labels = reviews(120)
    sign = np.array([1.0 if label == "pos" else -1.0 for label in labels])
    truth = np.stack([sign > 0, sign < 0], 1).astype(np.int64) if task == "tags" else 10 + 3 * sign + np.arange(120) % 3
    source = Source("t", Examples((objects(texts),), truth, "texts"))
    domain, target = Text(), data.build("targets", task, "TARGET")
    domain.fit(source.train.inputs, np.arange(120))
    target.fit(truth)
    net = domain.net(target, "small")
    encoded = data.Encoded(domain.encode(source.train.inputs), target.encode(truth))
    domain.begin(net, encoded, np.arange(120), target)
    answers, _ = domain.answers(net.eval(), encoded, target)
    said = answers.prediction if task == "numbers" else answers.probabilities[:, 0]
    assert np.corrcoef(said, sign)[0, 1] > 0.9  # from the start alone


@pytest.mark.parametrize(
    ("letters", "words"),
    [
        ("的一是不了在人有我他这中大来上国", ("喜欢", "讨厌")),  # Chinese
        ("กขคงจชดตถทนบปพมยรลวสหอ", ("ชอบ", "เกลียด")),  # Thai
        ("あいうえおかきくけこさしすせそ", ("最高", "最悪")),  # Japanese
        ("абвгдежзиклмнопрст ", ("прекрасно", "ужасно")),
    ],
)
def test_scripts_with_and_without_spaces_are_learned(letters, words):
    random = np.random.default_rng(0)
    noise = ["".join(random.choice(list(letters), 20)) for _ in range(400)]
    texts = [row[:10] + words[k % 2] + row[10:] for k, row in enumerate(noise)]
    truth = np.array(["like", "hate"])[np.arange(400) % 2]
    domain, target, rows = Text(), Classes(), np.arange(300)
    domain.fit((objects(texts),), rows)
    target.fit(truth[rows])
    net = domain.net(target, "small", channels=0)
    encoded = data.Encoded(domain.encode(texts), target.encode(truth))
    domain.begin(net, encoded, rows, target)
    answers = domain.predict(net.eval(), texts[300:], target)
    assert (answers.prediction == truth[300:]).mean() > 0.95


def test_what_is_broken_on_purpose_is_learned_from(runs, tmp_path):
    """Empty rows, control characters, emoji, scripts, accents apart, surrogates, and a very long row, all in one table."""
    texts, labels = reviews(100)
    odd = ["", "   ", "a\x00b\x1b[31mred", "zero\u200bwidth", "😀 👨\u200d👩 👍🏽", "ภาษาไทย", "日本語のテキスト",
           "e\u0301te\u0301", "word " * 100_000, "x" * 200_000]  # fmt: skip
    texts[: len(odd)] = odd
    source = Source("odd", Examples((objects(texts),), np.array(labels), "texts"))
    domain = Text()
    kind, _ = data.choose_domain(source.train, None, own_net=False)
    assert kind.name == "text"
    domain.fit(source.train.inputs, np.arange(100))
    assert sum(column.nbytes for column in domain.encode(source.train.inputs)) < 4 << 20
    assert len(domain.findings()) == 1 and domain.cut == 2


@pytest.mark.parametrize(
    "name", ["control_characters", "emoji_and_scripts", "empty_rows", "very_long_row", "label_in_text"]
)
def test_the_bad_texts_of_the_samples_are_learned(name, shared_data, runs):
    file = shared_data / "bad" / "text" / f"{name}.tsv"
    assert command("train", file, "--runs", runs, "--name", "r", "--epochs", 1, "--no-report", "-q") == 0
    assert np.isfinite(lamina.load(runs / "r").headline.value)


def test_runs_are_never_longer_than_a_word_may_be():
    assert max(map(len, grams.runs("y" * 1000, 99))) == grams.LONGEST


# --- The report -------------------------------------------------------------------------------------------------------


def test_the_report_says_which_words_speak_for_which_answer(run):
    told = dict(run.domain.telling(run.net, run.target))
    assert list(told) == ["neg", "pos"]
    assert "wonderful" in told["pos"].split(" · ") and "dull" in told["neg"].split(" · ")
    assert not set(told["pos"].split(" · ")) & set(told["neg"].split(" · "))


def test_the_words_that_speak_are_on_the_page():
    facts = {"run": {"status": "done"}, "telling": [("<pos>", "wonderful, <b>")]}
    text = page.page(facts)
    assert "wonderful, &lt;b&gt;" in text and "What speaks for which answer" in text
    assert "What speaks" not in page.page({"run": {"status": "done"}})
