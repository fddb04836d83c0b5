"""The report: what is drawn is what was given, what is written is text, and nothing outside is asked for."""

from __future__ import annotations

import http.server
import itertools
import re
import shutil
import subprocess
import sys
import threading
import warnings
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lamina import evaluate
from lamina.report import figures
from lamina.report.page import advice, number, page
from lamina.report.painting import DPI, paint
from lamina.targets.base import Answers

LABELS = ["cat", "dog", "owl"]
EVIL = "<script>document.title='owned'</script>"


def entry(value, low=None, high=None, score="accuracy", better="higher", **more):
    return {
        "score": score,
        "value": value,
        "low": low,
        "high": high,
        "split": "test",
        "n": 360,
        "better": better,
    } | more


def history(losses):
    return [
        {"epoch": k, "train/loss": 1 / k, "valid/loss": loss, "valid/accuracy": 1 - loss / 9, "learning_rate": 0.1 / k}
        for k, loss in enumerate(losses, 1)
    ]


def everything(label="owl"):
    """Facts of all kinds, with `label` wherever a text can stand."""
    names = ["cat", "dog", label]
    random = np.random.default_rng(0)
    truth = np.asarray(names)[random.integers(0, 3, 200)]
    guess = np.where(random.random(200) < 0.8, truth, np.asarray(names)[random.integers(0, 3, 200)])
    answers = Answers(guess, random.uniform(0.5, 1, 200))
    headline = entry(0.85, 0.79, 0.9)
    return {
        "name": label,
        "run": {
            "status": "stopped",
            "lamina": "0.1.0",
            "task": "classes",
            "command": f"lamina train {label}",
            "epochs": 9,
        }
        | {"net": {"name": label, "parameters": 1234}, "source": {"name": label}, "headline": headline, "seed": 0}
        | {"seconds": {"total": 75.0, "train": 62.0}, "data": {"fingerprint": label}, "stopped": label},
        "scores": [headline, entry(0.5, 0.4, 0.6, "log_loss", "lower"), entry(0.99, split="train")],
        "baselines": [entry(0.4, 0.35, 0.45, name="majority"), entry(0.6, 0.55, 0.65, name=label, note=label)],
        "per_class": evaluate.per_class(truth, guess, names),
        "confused": evaluate.confused(evaluate.confusion(truth, guess, names), names),
        "calibration": evaluate.calibration(truth, answers),
        "history": history([3, 2, 1]),
        "settings": [
            ("net", label, "yours", label),
            ("epochs", 9, "default", ""),
            ("augment", [label], "inferred", ""),
        ],
        "findings": [
            {"kind": "x", "severity": "warning", "what": label, "done": label, "fix": label},
            {
                "kind": "y",
                "severity": "note",
                "what": label,
                "done": label,
                "fix": label,
                "count": 40,
                "examples": [7, label, [label, "a", "b"], ["c", "d", 3]],
            },
        ],
        "split": {"train": 700, "valid": 100, label: 200},
        "mistakes": [{"id": 3, "truth": label, "prediction": "cat", "confidence": 0.9}],
        "commands": [f"lamina predict {label}"],
        "words": [label],
    }


class Page(HTMLParser):
    """Elements and their attributes, and the words in between."""

    def __init__(self, text: str):
        super().__init__()
        self.elements, self.words = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.words += " " + data

    def count(self, tag):
        return sum(name == tag for name, _ in self.elements)


# ---------------------------------------------------------------------------------------------------- figures


def drawn(axis):
    return {line.get_label(): line.get_xydata() for line in axis.lines}


def test_curves_are_the_history():
    lines = history([3, 1, 2])
    figure = figures.curves([*lines[:2], {"epoch": 2, "event": {"words": "x"}}, *lines[2:]])
    loss, accuracy, rate = figure.axes
    assert drawn(loss)["valid"].tolist() == [[1, 3], [2, 1], [3, 2]]
    assert drawn(loss)["train"].tolist() == [[1, 1], [2, 1 / 2], [3, 1 / 3]]
    assert drawn(loss)["least loss: epoch 2"].tolist() == [[2, 1]]
    assert drawn(accuracy)["least loss: epoch 2"].tolist() == [[2, 1 - 1 / 9]]
    assert rate.lines[0].get_ydata().tolist() == [0.1, 0.05, 0.1 / 3]


def test_curves_mark_the_epoch_they_are_told():
    assert "kept: epoch 3" in drawn(figures.curves(history([3, 1, 2]), best=3).axes[0])


def test_curves_pass_over_what_is_not_finite_or_not_there():
    lines = history([3, 1, 2])
    lines[1]["valid/loss"] = float("nan")
    lines[0]["valid/accuracy"] = None
    del lines[2]["learning_rate"]
    loss, accuracy, rate = figures.curves(lines).axes
    assert drawn(loss)["valid"][:, 0].tolist() == [1, 3] and "least loss: epoch 3" in drawn(loss)
    assert drawn(accuracy)["valid"][:, 0].tolist() == [2, 3] and len(rate.lines[0].get_xdata()) == 2
    for few in ([], [{"event": 1}], [{"epoch": 1, "train/loss": 2.0}], [{"epoch": 1, "valid/loss": float("inf")}]):
        assert paint(figures.curves(few)).light.startswith(b"\x89PNG")


def test_confusion_writes_every_count():
    counts = np.array([[50, 3, 0], [7, 40, 0], [0, 1, 12345]])
    (axis,) = figures.confusion(counts, LABELS).axes
    assert sorted(int(text.get_text()) for text in axis.texts) == [1, 3, 7, 40, 50, 12345]
    assert [text.get_text() for text in axis.get_xticklabels()] == LABELS
    image = axis.images[0].get_array()
    assert image[0, 2, 3] == 0 and image[0, 0, 3] > image[0, 1, 3] > 0  # nothing, much, little


@pytest.mark.parametrize(
    ("size", "length"), [(2, 3), (2, 60), (10, 1), (10, 17), (20, 10), (47, 30), (200, 5), (1000, 9)]
)
def test_labels_never_overlap(size, length):
    labels = [f"{k:0{length}d}" for k in range(size)]
    figure = figures.confusion(np.eye(size, dtype=int), labels)
    paint(figure)
    figure.dpi = DPI
    (axis,) = figure.axes
    for ticks, low, high in ((axis.get_xticklabels(), "x0", "x1"), (axis.get_yticklabels(), "y0", "y1")):
        boxes = sorted((getattr(t.get_window_extent(), low), getattr(t.get_window_extent(), high)) for t in ticks)
        assert all(one[1] <= next_[0] + 1 for one, next_ in itertools.pairwise(boxes))
        assert 2 <= len(boxes) <= 40
    inside = figure.bbox
    assert all(inside.x0 - 1 <= t.get_window_extent().x0 for t in axis.get_yticklabels())


@pytest.mark.parametrize("size", [2, 10, 20])
def test_the_widest_names_fit(size):
    figure = figures.confusion(np.eye(size, dtype=int), ["W" * 18] * size)
    paint(figure)
    (axis,) = figure.axes
    for label in (*axis.get_xticklabels(), *axis.get_yticklabels(), axis.xaxis.label, axis.yaxis.label):
        box = label.get_window_extent()
        assert min(box.x0, box.y0) >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
    assert axis.bbox.width > 0.6 * DPI


def test_names_are_shown_as_they_are():
    labels = ["$5 or $10", "a_b^c", "two\nlines"]
    figure = figures.confusion(np.eye(3, dtype=int), labels)
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["$5 or $10", "a_b^c", "two lines"]
    paint(figure)  # as mathematics, the first would raise
    rows = [{"id": 1, "truth": "$\\bad", "prediction": "$x$", "confidence": 0.5}]
    paint(figures.mistakes(None, rows))
    paint(figures.mistakes(np.zeros((1, 1, 8, 8)), rows))
    paint(figures.scatter(np.arange(3.0), np.arange(3.0), names=["$\\bad"]))


def test_a_mistake_in_a_file_is_called_by_the_end_of_its_name():
    rows = [
        {"id": name, "truth": "a", "prediction": "b", "confidence": 0.9} for name in ("x.png", "photographs/of/a/1.jpg")
    ]
    (axis,) = figures.mistakes(np.zeros((2, 1, 8, 8)), rows).axes
    assert [text.get_text() for text in axis.texts][2::3] == ["x.png", "…raphs/of/a/1.jpg"]


def test_a_script_without_a_font_warns_nobody():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        paint(figures.confusion(np.eye(2, dtype=int), ["猫", "犬"]))


def test_mistakes_are_the_surest_first_and_only_mistakes():
    sure = [0.6, 0.99, 0.8, 0.95]
    rows = [{"id": k, "truth": "a", "prediction": "a" if k == 1 else "b", "confidence": c} for k, c in enumerate(sure)]
    pictures = np.arange(4)[:, None, None, None] * np.ones((1, 8, 8))
    (axis,) = figures.mistakes(pictures, rows, most=2).axes
    assert [image.get_array().mean() for image in axis.images] == [3, 2]
    assert [t.get_text() for t in axis.texts] == ["b · 95 %", "is a", "no. 3", "b · 80 %", "is a", "no. 2"]
    (bars,) = figures.mistakes(None, rows).axes
    assert [t.get_text() for t in bars.get_yticklabels()] == ["no. 3", "no. 2", "no. 0"]
    assert [patch.get_width() for patch in bars.patches] == [0.95, 0.8, 0.6]
    for none in (pictures, None):
        assert paint(figures.mistakes(none, [])).light.startswith(b"\x89PNG")


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 8), (4, 8, 8), (2, 8, 8), (3, 40, 90), (8, 8)])
@pytest.mark.parametrize("kind", ["uint8", "unit", "any"])
def test_pictures_of_all_kinds_are_shown(shape, kind):
    random = np.random.default_rng(0)
    pictures = random.integers(0, 256, (3, *shape)).astype(np.uint8)
    pictures = {"uint8": pictures, "unit": pictures / 255.0, "any": pictures / 25.0 - 3}[kind]
    figure = figures.samples(pictures, ["a", "b", "c"], ["a", "a", "c"])
    paint(figure)
    (axis,) = figure.axes
    assert len(axis.images) == 3 and [t.get_text() for t in axis.texts][:4] == ["a", "✓ a", "b", "✗ a"]
    high, wide = shape[-2:]
    left, right, low, top = axis.images[0].get_extent()
    assert (right - left) / (top - low) == pytest.approx(wide / high)
    if shape[0] == 3 and kind != "any":
        assert np.allclose(axis.images[0].get_array(), np.moveaxis(pictures[0], 0, -1))


def test_scatter_shows_every_example_and_what_is_left_over():
    truth, guess = np.array([1.0, 2, 3, np.nan]), np.array([1.5, 2, 2, 1])
    left, right = figures.scatter(truth, guess).axes
    assert left.lines[0].get_xydata().tolist() == [[1, 1.5], [2, 2], [3, 2]]
    assert right.lines[0].get_xydata().tolist() == [[1.5, 0.5], [2, 0], [2, -1]]
    assert len(figures.scatter(np.ones((5, 2)), np.ones((5, 2))).axes) == 4
    many = np.random.default_rng(0).normal(size=6000)
    cloud = figures.scatter(many, many).axes[0].collections[0]
    assert cloud.get_array().sum() == 6000
    paint(figures.scatter(np.zeros(0), np.zeros(0)))


def test_reliability_and_histogram_are_the_calibration():
    confidence = np.repeat([0.55, 0.95], 50)
    right = np.repeat([True, False, True], [30, 20, 50])
    found = evaluate.calibration(np.ones(100), Answers(right.astype(float), confidence))
    (axis,) = figures.reliability(found).axes
    points = next(line for line in axis.lines if line.get_linestyle() == "None").get_xydata()
    assert np.allclose(points, [[0.55, 0.6], [0.95, 1]])
    figure = figures.histogram(confidence, right)
    shares = [patch.get_data().values for patch in figure.axes[0].patches]
    assert all(np.isclose(part.sum(), 1) for part in shares)
    for empty in (figures.reliability({}), figures.histogram(np.zeros(0), np.zeros(0, bool)), figure):
        assert paint(empty).light.startswith(b"\x89PNG")


def all_kinds():
    """A figure of every kind, with every kind of stroke."""
    rng = np.random.default_rng(0)
    rows = [{"id": k, "truth": "a", "prediction": "b", "confidence": 0.9} for k in range(3)]
    confidence, right = rng.random(50), rng.random(50) < 0.8
    points = {"confidence": 0.8, "accuracy": 0.7, "low": 0.6, "high": 0.9}
    return {
        "curves": figures.curves(history([3, 1, 2])),
        "confusion": figures.confusion(np.array([[5, 1], [2, 7]]), ["a", "b"]),
        "histogram": figures.histogram(confidence, right),
        "reliability": figures.reliability({"bins": [points]}),
        "scatter": figures.scatter(confidence, confidence**2),
        "cloud": figures.scatter(rng.normal(size=6000), rng.normal(size=6000)),
        "gallery": figures.mistakes(rng.integers(0, 256, (3, 1, 8, 8)).astype(np.uint8), rows),
        "bars": figures.mistakes(None, rows),
    }


def pixels(png):
    """The bytes of a picture -> (H, W, 4) numbers."""
    return np.asarray(Image.open(BytesIO(png)).convert("RGBA")).astype(int)


@pytest.mark.parametrize("kind", all_kinds())
def test_a_painted_figure_is_what_matplotlib_saves(kind):
    figure = all_kinds()[kind]
    painted = paint(figure)
    assert (painted.width, painted.height) == tuple(round(96 * inches) for inches in figure.get_size_inches())
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    assert np.array_equal(pixels(painted.light), pixels(buffer.getvalue()))


@pytest.mark.parametrize("kind", all_kinds())
def test_everything_drawn_has_room(kind):
    figure = all_kinds()[kind]
    light = pixels(paint(figure).light)
    if kind != "gallery":  # its pictures reach to the edge
        edge = np.concatenate([light[[0, -1]].reshape(-1, 4), light[:, [0, -1]].reshape(-1, 4)])
        assert (edge == 255).all()
    boxes = [axis.get_tightbbox(for_layout_only=True) for axis in figure.axes]
    for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other)


@pytest.mark.parametrize("kind", all_kinds())
def test_the_dark_picture_has_the_same_strokes_in_other_colours(kind):
    painted = paint(all_kinds()[kind])
    light, dark = pixels(painted.light)[..., :3], pixels(painted.dark)[..., :3]
    met = 0
    for colour, other in {figures.PAPER: figures.DARK_PAPER, **figures.DARK}.items():
        named = (light == rgb(colour)).all(-1)
        if kind == "gallery":  # a picture's own points keep their colours
            named &= (dark != light).any(-1)
        assert np.abs(dark[named] - rgb(other)).max(initial=0) <= (0 if colour == figures.PAPER else 12)
        met += named.any()
    assert met >= 3


def rgb(colour):
    return [int(colour[k : k + 2], 16) for k in (1, 3, 5)]


def test_smooth_edges_are_recoloured_as_mixtures():
    x = np.linspace(0, 1, 50)
    light, dark = (pixels(part)[..., :3] for part in (lambda p: (p.light, p.dark))(paint(figures.scatter(x, x))))
    share = (255 - light[..., 0]) / 255  # of blue, which has no red, on white
    mixed = np.abs(light - (255 + share[..., None] * (np.array(rgb(figures.BLUE)) - 255))).max(-1) <= 1
    paper, ink = np.array(rgb(figures.DARK_PAPER)), np.array(rgb(figures.DARK[figures.BLUE]))
    assert ((share > 0.1) & (share < 0.9) & mixed).sum() > 100
    assert np.abs(dark - (paper + share[..., None] * (ink - paper)))[mixed].max() <= 12


def test_pictures_of_examples_keep_their_colours_on_a_dark_page():
    pictures = np.random.default_rng(0).integers(0, 256, (3, 3, 8, 8)).astype(np.uint8)
    painted = paint(figures.samples(pictures, ["a", "b", "c"]))
    light, dark = pixels(painted.light), pixels(painted.dark)
    side = round(0.92 * figures.WIDTH / 8 * DPI)
    assert np.array_equal(light[1 : side - 1, 8 : side - 1], dark[1 : side - 1, 8 : side - 1])
    assert not np.array_equal(light[side + 1 :], dark[side + 1 :])


def test_the_papers_are_the_cards_of_the_page():
    cards = re.findall(r"--card: (#\w+)", page({"run": {}}))
    assert cards == [figures.PAPER, figures.DARK_PAPER]


def test_drawing_uses_no_pyplot_and_writing_a_page_no_matplotlib_without_figures():
    program = """
import sys
from lamina.report import figures, page, painting
page.page({"run": {}})
assert "matplotlib" not in sys.modules
import matplotlib
before = matplotlib.rcParams.copy()
page.page({"run": {}}, {"curves": painting.paint(figures.curves([{"epoch": 1, "train/loss": 1.0}]))})
assert "matplotlib.pyplot" not in sys.modules and matplotlib.rcParams.copy() == before
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------------------------------------------- numbers as words


@pytest.mark.parametrize(
    ("value", "of", "words"),
    [
        (None, {}, "–"),
        (0.9556, {"score": "accuracy", "low": 0.929, "high": 0.974}, "95.6 %"),
        (0.98123, {"score": "accuracy", "low": 0.9810, "high": 0.9814}, "98.123 %"),
        (0.7, {"score": "accuracy", "low": 0.5, "high": 0.9}, "70 %"),
        (0.99996, {"score": "accuracy"}, "99.996 %"),
        (1.0, {"score": "accuracy"}, "100.0 %"),
        (53.46, {"score": "rmse", "low": 46.5, "high": 61.7}, "53"),
        (113407.13, {"score": "rmse", "low": 110877, "high": 115922}, "113,407"),
        (0.12564, {"score": "log_loss", "low": 0.0918, "high": 0.1865}, "0.126"),
        (-0.0004, {"score": "r2", "low": -0.06, "high": 0.0}, "0.000"),
        (3.14159, {"score": "return"}, "3.142"),
        (0, {}, "0"),
    ],
)
def test_numbers_are_as_exact_as_they_are_known(value, of, words):
    assert number(value, of) == words


# ---------------------------------------------------------------------------------------------------- the page


def test_of_the_facts_only_the_run_must_be_there():
    found = Page(page({"run": {}}))
    assert found.count("section") == 0 and found.count("h1") == 1


@settings(max_examples=40, deadline=None)
@given(st.sets(st.sampled_from(sorted(set(everything()) - {"run"}))))
def test_any_part_may_be_missing(left_out):
    facts = {key: value for key, value in everything().items() if key not in left_out}
    found = Page(page(facts))
    assert found.count("html") == 1 and "None" not in found.words and "Undefined" not in found.words


def test_the_headline_its_interval_and_the_baselines_are_there():
    words = Page(page(everything())).words
    for piece in ("85 %", "79 to 90 %", "95 % interval", "majority", "for certain", "360", "lamina train owl"):
        assert piece in words, piece


@pytest.mark.parametrize(
    ("net", "linear", "words"),
    [
        (entry(0.9, 0.85, 0.95), entry(0.7, 0.65, 0.75, name="linear"), "Better than the best baseline, linear"),
        (
            entry(0.9, 0.85, 0.95),
            entry(0.88, 0.83, 0.93, name="linear"),
            "No certain difference from the best baseline",
        ),
        (entry(0.7, 0.65, 0.75), entry(0.9, 0.85, 0.95, name="linear"), "Worse than the best baseline"),
        (
            entry(5, 4, 6, "rmse", "lower"),
            entry(9, 8, 10, "rmse", "lower", name="linear"),
            "Better than the best baseline",
        ),
    ],
)
def test_the_verdict_follows_the_intervals(net, linear, words):
    assert words in Page(page({"run": {"headline": net}, "baselines": [linear]})).words


def test_a_headline_without_a_value_says_why():
    broken = entry(None, note="the score is nan: rows 3, 17")
    found = Page(
        page({"run": {"headline": broken}, "scores": [broken], "baselines": [entry(0.4, 0.3, 0.5, name="mean")]})
    )
    assert "rows 3, 17" in found.words and found.count("svg") == 0


def test_many_classes_are_folded():
    labels = [f"class {k}" for k in range(40)]
    truth = np.repeat(labels, 5)
    rows = evaluate.per_class(truth, truth, labels)
    found = Page(page({"run": {}, "per_class": rows}))
    assert found.count("details") == 1 and "28 more classes" in found.words and found.words.count("class ") >= 40


def test_examples_of_a_finding_are_folded_where_they_are_many():
    shown = page(everything())
    assert shown.count("<summary>4 of 40</summary>") == 1
    assert "<tr><td>7</td></tr>" in shown and "<tr><td>c</td><td>d</td><td>3</td></tr>" in shown


def test_figures_stand_at_their_place_and_others_at_the_end():
    drawn = {"curves": paint(figures.curves(history([2, 1]))), "my_own": paint(figures.curves(history([1, 2])))}
    text = page({"run": {}}, drawn)
    found = Page(text)
    assert found.count("img") == 2 and text.index("How it learned") < text.index("More pictures") < text.index("my own")
    for tag, attributes in found.elements:
        if tag == "img":
            assert attributes["src"].startswith("data:image/png;base64,iVBOR") and attributes["alt"]
            assert attributes["width"] == "883"


def test_what_looks_like_markup_is_text():
    drawn = {EVIL: paint(figures.confusion(np.eye(2, dtype=int), [EVIL, "b"]))}
    found = Page(page(everything(EVIL), drawn))
    assert found.count("script") == 0 and found.words.count(EVIL) > 15
    quotes = '" onload="alert(1)" x="'
    for tag, attributes in Page(page(everything(quotes))).elements:
        assert not any(name.startswith("on") for name in attributes), tag


def test_nothing_outside_is_asked_for():
    text = page(everything(), {"curves": paint(figures.curves(history([2, 1])))})
    for _, attributes in Page(text).elements:
        for name in ("src", "href", "srcset", "data", "action"):
            assert attributes.get(name, "data:").startswith("data:")
    assert not re.search(r"url\(|@import|https?://", re.sub(r"base64,[A-Za-z0-9+/=]+", "", text))
    assert "default-src 'none'" in text


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium on this machine")
def test_a_browser_shows_it_runs_nothing_and_stays_at_home(tmp_path):
    asked = []

    class Listener(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Listener) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        away = f"http://127.0.0.1:{server.server_port}"
        label = f"{EVIL}<img src='{away}/label.png' onerror=\"document.title='owned'\">"
        text = page(everything(label), {"curves": paint(figures.curves(history([2, 1])))})

        def opened(name: str, text: str) -> str:
            path = tmp_path / name
            path.write_text(text, encoding="utf-8")
            options = (
                "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
            )
            command = ["chromium", *options.split(), "--disable-component-update", "--disable-sync"]
            command += [
                f"--user-data-dir={tmp_path / 'profile'}",
                "--virtual-time-budget=2000",
                "--dump-dom",
                path.as_uri(),
            ]
            return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout

        # The trap works: in a page that does not escape, the label runs and asks.
        assert "<title>owned" in opened("trap.html", f"<title>x</title><body>{label}") and asked
        asked.clear()
        shown = opened("report.html", text)
        server.shutdown()
    assert asked == []
    found = Page(shown)
    assert found.count("script") == 0 and EVIL in found.words and "<title>owned" not in shown
    assert found.count("section") >= 8 and found.count("img") == 1


# ---------------------------------------------------------------------------------------------------- advice


def told(**facts):
    return " ".join(advice({"run": {"headline": entry(0.9, 0.88, 0.92)}, **facts}))


def test_a_run_without_trouble_gets_no_advice():
    steady = history([3, 2, 1.5, 1.2, 1.1, 1.05, 1.04, 1.03, 1.025, 1.022, 1.021])
    honest = {"ece": 0.01, "ece_chance": 0.02, "confidence": 0.91, "accuracy": 0.9}
    rows = [{"label": k, "recall": 0.9, "recall_low": 0.8, "recall_high": 0.95, "support": 50} for k in range(3)]
    assert (
        told(history=steady, calibration=honest, per_class=rows, baselines=[entry(0.5, 0.4, 0.6, name="linear")]) == ""
    )


def test_a_net_no_better_than_a_linear_model_is_told():
    assert "A linear model does as well" in told(baselines=[entry(0.89, 0.85, 0.91, name="linear")])
    assert "A linear model does better" in told(baselines=[entry(0.99, 0.98, 1, name="linear")])
    assert "linear" not in told(baselines=[entry(0.89, 0.85, 0.91, score="f1", name="linear")])


def test_learning_by_heart_is_told():
    assert "least at epoch 3 of 8 and rose" in told(history=history([3, 2, 1, 1.1, 1.2, 1.3, 1.4, 1.5]))


def test_stopping_too_soon_is_told_unless_somebody_stopped_it():
    falling = history([9, 8, 7, 6, 5, 4])
    assert "--epochs 12" in told(history=falling)
    assert "--epochs" not in told(history=falling, run={"stopped": "no better for 5 epochs"})


def test_the_class_that_is_certainly_harder_is_named():
    rows = [{"label": k, "recall": 0.95, "recall_low": 0.9, "recall_high": 0.98, "support": 100} for k in "ab"]
    hard = {"label": "c", "recall": 0.5, "recall_low": 0.4, "recall_high": 0.6, "support": 100}
    unsure = {"label": "d", "recall": 0.25, "recall_low": 0.01, "recall_high": 0.81, "support": 4}
    words = told(per_class=[*rows, hard, unsure])
    assert "“c” is found less often" in words and "“d”" not in words


def test_confidence_that_cannot_be_trusted_is_told():
    off = {"ece": 0.09, "ece_chance": 0.02, "confidence": 0.99, "accuracy": 0.9}
    assert "too sure" in told(calibration=off) and "too unsure" in told(calibration=off | {"confidence": 0.7})


def test_a_wide_interval_is_told():
    assert "Four times as many" in told(run={"headline": entry(0.9, 0.8, 0.96)})


def test_of_answers_that_are_nan_the_histogram_says_nothing():
    figure = figures.histogram(np.array([0.5, np.nan, 0.9, np.nan]), np.array([True, False, True, True]))
    assert {text.get_text() for text in figure.axes[0].get_legend().get_texts()} == {
        "where it was right (2)", "where it was wrong (0)",
    }  # fmt: skip
    figures.histogram(np.array([np.nan]), np.array([False]))
