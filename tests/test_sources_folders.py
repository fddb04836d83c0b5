"""Folders, several files and archives become examples whose classes and names are those that people see."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import lamina
from lamina import fingerprints, recipe, sources
from lamina.errors import DataError, UsageError
from lamina.sources import Columns, places


def picture(kind="PNG", shade=100):
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, shade, shade)).save(out, kind)
    return out.getvalue()


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A function ({path: content}, name) -> a folder of these files."""
    monkeypatch.setenv("LAMINA_CACHE", str(tmp_path / "cache"))

    def write(files, name="data"):
        root = tmp_path / name
        root.mkdir(exist_ok=True)
        for path, content in files.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(content if isinstance(content, bytes) else content.encode())
        return root

    return write


def kinds(source):
    return [finding.kind for finding in source.findings]


PICTURES = {f"{title}/{k}.png": picture() for title in ("s1", "s2", "s10") for k in (1, 2, 10)}


# --- Pictures ---------------------------------------------------------------------------------------------------------


def test_a_folder_for_each_class(tree):
    root = tree(PICTURES)
    source = sources.open(root)
    train = source.train
    assert train.kind == "files" and train.count == 9 and source.findings == [] and source.reopen == str(root)
    assert train.truth.tolist() == ["s1"] * 3 + ["s2"] * 3 + ["s10"] * 3  # as people count
    assert train.ids.tolist() == [f"{title}/{k}.png" for title in ("s1", "s2", "s10") for k in (1, 2, 10)]
    assert [Path(path).is_file() for path in train.inputs[0]] == [True] * 9
    assert "9 picture files in 3 folders" in source.about


def test_train_and_test_folders_are_parts(tree):
    files = {
        f"{part}/{path}": content for part in ("train", "Validation", "test") for path, content in PICTURES.items()
    }
    source = sources.open(tree({**files, "test/s1/more.png": picture()}))
    assert [part.count for part in (source.train, source.valid, source.test)] == [9, 9, 10]
    assert source.test.ids[0] == "test/s1/1.png" and Counter(source.test.truth) == {"s1": 4, "s2": 3, "s10": 3}
    assert "9 for valid, 10 for test" in source.about
    wrapped = sources.open(tree({f"set-1.0/{path}": content for path, content in files.items()}, "wrapped"))
    assert wrapped.train.count == wrapped.test.count == 9


def test_litter_is_not_there_and_foreign_files_are_counted(tree):
    litter = {"s1/Thumbs.db": b"\xd0\xcf\x11\xe0", "s1/._1.png": b"\0\5", ".git/config": "x", "s2/.DS_Store": b"\0",
              "__MACOSX/s1/1.png": b"", "s1/desktop.ini": "x"}  # fmt: skip
    assert sources.open(tree({**PICTURES, **litter})).findings == []
    source = sources.open(
        tree({**PICTURES, "s2/notes.txt": "a note", "README.md": "# x", "s1/a.mp3": b"ID3\4"}, "more")
    )
    (finding,) = source.findings
    assert (finding.kind, finding.severity, finding.count) == ("foreign_files", "note", 2)
    assert set(finding.examples) == {"s1/a.mp3", "s2/notes.txt"} and source.train.count == 9


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM"])
def test_pictures_are_known_by_their_content(kind, tree):
    source = sources.open(
        tree({"a/one": picture(kind), "a/two.dat": picture(kind), "b/three": picture(kind), "b/x": "P."})
    )
    assert source.train.ids.tolist() == ["a/one", "a/two.dat", "b/three"]
    assert not places.is_picture(b"BMW builds cars\n") and not places.is_picture(b"P5 is a road\n")


def test_pictures_without_folders_have_no_answers(tree):
    root = tree({f"{k}.png": picture() for k in range(3)})
    assert sources.open(root).train.truth is None and sources.open(root).train.count == 3
    alone = sources.open(root / "0.png")
    assert alone.train.kind == "files" and alone.train.ids.tolist() == ["0.png"]


def test_deeper_folders_belong_to_their_class(tree):
    source = sources.open(tree({"cat/a/1.png": picture(), "cat/b/2.png": picture(), "dog/3.png": picture()}))
    assert source.train.truth.tolist() == ["cat", "cat", "dog"] and source.train.ids[0] == "cat/a/1.png"


def test_an_empty_class_is_told_and_a_folder_of_nothing_refused(tree):
    root = tree(PICTURES)
    (root / "s3").mkdir()
    source = sources.open(root)
    assert kinds(source) == ["empty_class"] and "s3" not in source.train.truth
    for files, words in (({}, "it is empty"), ({"a/x.mp3": b"ID3\4"}, "holds no data that can be opened here: x.mp3")):
        with pytest.raises(UsageError, match=words):
            sources.open(tree(files, f"no-{len(files)}"))


def test_columns_and_ways_of_reading_would_do_nothing_for_pictures(tree):
    root = tree(PICTURES)
    with pytest.raises(UsageError, match="ignore would do nothing"):
        sources.open(root, columns=Columns(ignore=("a",)))
    with pytest.raises(UsageError, match="separator in source_arg would do nothing"):
        sources.open(root, options={"separator": ";"})
    assert sources.open(root, columns=Columns(target=())).train.truth is None


# --- Tables that name pictures ----------------------------------------------------------------------------------------


def rows(files, label="label"):
    return f"file,{label},split,width\n" + "".join(
        f"{path},{path.split('/')[0]},{'test' if k % 3 == 0 else 'train'},8\n" for k, path in enumerate(files)
    )


def test_a_table_names_pictures_from_its_folder_or_one_in_it(tree):
    for name, start in (("beside", ""), ("below", "pictures/")):
        root = tree({**{start + path: content for path, content in PICTURES.items()}, "list.csv": rows(PICTURES)}, name)
        source = sources.open(root / "list.csv")
        assert source.train.kind == "files" and (source.train.count, source.test.count) == (6, 3)
        assert source.train.inputs[0][0] == str(root / start / "s1/2.png") and source.train.ids[0] == "s1/2.png"
        assert source.train.truth.tolist() == ["s1", "s1", "s2", "s2", "s10", "s10"] and kinds(source) == [
            "columns_beside"
        ]
    folder = sources.open(root)  # the table that lies beside them
    assert folder.test.count == 3 and folder.target == ("label",)


def test_names_without_an_ending_are_found_in_the_table_s_folder(tree):
    files = {f"train/{k}a.jpg": picture("JPEG") for k in range(6)}
    root = tree({**files, "labels.csv": "id,breed\n" + "".join(f"{k}a,{'xy'[k % 2]}\n" for k in range(6))})
    source = sources.open(root)
    assert source.train.kind == "files" and source.train.truth.tolist() == ["x", "y"] * 3
    assert source.train.inputs[0][1].endswith("train/1a.jpg")


def test_pictures_that_are_not_there_are_told(tree):
    root = tree({**PICTURES, "list.csv": rows([*PICTURES, "s2/gone.png"])})
    source = sources.open(root / "list.csv")
    (finding,) = [f for f in source.findings if f.kind == "missing_files"]
    assert finding.examples == ["s2/gone.png"] and source.train.count + source.test.count == 9
    table = sources.open(tree({"list.csv": rows(PICTURES)}, "alone") / "list.csv")
    assert table.train.kind == "table"  # names of nothing are words


# --- Texts ------------------------------------------------------------------------------------------------------------


def test_a_folder_of_texts_for_each_class(tree):
    files = {
        f"{part}/{c}/{k}.txt": f"{c} {k}\nline" for part in ("train", "test") for c in ("pos", "neg") for k in range(3)
    }
    source = sources.open(tree({**files, "train/unsup/0.txt": "?", "README": "about"}))
    assert source.train.kind == "texts" and source.train.truth.tolist() == ["neg"] * 3 + ["pos"] * 3
    assert source.train.inputs[0][0] == "neg 0\nline" and source.train.ids[0] == "train/neg/0.txt"
    assert source.test.count == 6 and kinds(source) == ["no_answer"]


def test_files_of_lines_are_classes_by_what_tells_them_apart(tree):
    pos, neg = "".join(f"good {k}\n" for k in range(9)), "".join(f"bad {k}\n" for k in range(9))
    for name, files, titles in (
        ("endings", {"rt.pos": pos, "rt.neg": neg}, ["neg", "pos"]),
        ("stems", {"films-good.txt": pos, "films-bad.txt": neg}, ["bad", "good"]),
        ("folders", {"a/lines.txt": pos, "b/lines.txt": neg}, ["a", "b"]),
    ):
        root = tree({**files, "LICENSE": "free"}, name)
        source = sources.open(root)
        assert sorted(set(source.train.truth)) == titles and source.train.count == 18 and source.findings == []
    root = tree({"rt.pos": pos + "\n\n", "rt.neg": neg}, "pattern")
    source = sources.open(f"{root}/rt.*")
    assert source.train.ids[0] == "rt.neg:1" and source.train.truth[0] == "neg" and kinds(source) == ["blank_lines"]


def test_one_file_of_lines_and_its_encoding(tree):
    root = tree({"a.txt": "Le café était fermé.\nDer Schlüssel ist weg.\nCoração\n".encode("latin-1")})
    source = sources.open(root / "a.txt")
    assert source.train.kind == "texts" and source.train.ids.tolist() == [1, 2, 3] and kinds(source) == ["encoding"]
    assert source.train.inputs[0].tolist() == ["Le café était fermé.", "Der Schlüssel ist weg.", "Coração"]
    assert sources.open(root / "a.txt", options={"encoding": "latin-1"}).findings == []
    with pytest.raises(DataError, match="no text"):
        sources.open(tree({"b.txt": "\n \n"}) / "b.txt")


@pytest.mark.parametrize("separator", ["\t", ";", ","])
def test_a_text_file_that_is_cut_evenly_is_a_table(separator, tree):
    lines = "".join(f"{k}{separator}word{separator}{k % 2}\n" for k in range(9))
    source = sources.open(tree({"t.txt": f"a{separator}b{separator}y\n{lines}"}) / "t.txt")
    assert source.train.kind == "table" and source.train.names == ["a", "b"]
    prose = "Yes, it is.\nNo, it is not, or so.\nPerhaps, then.\nWell, yes.\n"
    assert sources.open(tree({"p.txt": prose}) / "p.txt").train.kind == "texts"


# --- Several files ----------------------------------------------------------------------------------------------------


def test_tables_of_the_same_columns_are_put_together(tree):
    root = tree({"part-2.csv": "y,x\nb,2\n", "part-10.csv": "x,y\n,a\n", "part-1.csv": "x,y\n1.5,a\n"})
    for given in (f"{root}/part-*.csv", sorted(root.glob("*.csv")), str(root)):
        source = sources.open(given, columns=Columns(target=("y",)))
        numbers = source.train.inputs[0].tolist()
        assert len(numbers) == 3 and 1.5 in numbers and 2.0 in numbers
    assert source.train.ids.tolist() == ["part-1.csv:2", "part-2.csv:2", "part-10.csv:2"]
    assert source.train.truth.tolist() == ["a", "b", "a"]
    (root / "part-3.csv").write_text("x,z\n1,a\n")
    with pytest.raises(DataError, match=r"part-3.csv has other columns than part-1.csv: no 'y', 'z' as well"):
        sources.open(f"{root}/part-*.csv")
    with pytest.raises(UsageError, match="No file fits"):
        sources.open(f"{root}/nothing-*.csv")


def test_several_paths_are_named_by_one_text_that_opens_them_again(tree):
    root = tree({"a.csv": "x,y\n1,a\n", "b.csv": "x,y\n2,b\n"})
    source = sources.open([root / "a.csv", root / "b.csv"])
    assert source.train.truth.tolist() == ["a", "b"] and source.reopen == f"{root}/a.csv{os.pathsep}{root}/b.csv"
    again = sources.open(source.reopen)
    assert again.train.ids.tolist() == source.train.ids.tolist()


def test_a_folder_of_train_and_test_tables(tree):
    root = tree({"train.tsv": "text\tlabel\ngood\t1\nbad\t0\n", "dev.tsv": "label\ttext\n1\tfine\n", "README.txt": "x",
                 "test.tsv": "text\nwell\n"})  # fmt: skip
    source = sources.open(root)
    assert (
        source.train.count == 2 and source.valid.inputs[0].tolist() == ["fine"] and source.valid.truth.tolist() == [1]
    )
    assert source.test is None and kinds(source) == ["no_answer"]


def test_files_of_several_kinds_are_refused(tree):
    root = tree({"a.csv": "x,y\n1,a\n", "b.png": picture()})
    with pytest.raises(UsageError, match="several kinds"):
        sources.open(f"{root}/*")


# --- Archives ---------------------------------------------------------------------------------------------------------


def archive(root, files, name):
    place = root / name
    if name.endswith(".zip"):
        with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as out:
            for path, content in files.items():
                out.writestr(path, content)
        return place
    with tarfile.open(place, "w:" + name.partition(".tar")[2].lstrip(".").replace("tgz", "gz")) as out:
        for path, content in files.items():
            member = tarfile.TarInfo(path)
            member.size = len(content)
            out.addfile(member, io.BytesIO(content))
    return place


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.tar.xz", "a.tar.bz2"])
def test_archives_are_what_they_hold(name, tree, tmp_path):
    root = tree(PICTURES)
    source = sources.open(archive(tmp_path, {f"set/{path}": content for path, content in PICTURES.items()}, name))
    plain = sources.open(root)
    assert source.train.truth.tolist() == plain.train.truth.tolist() and source.reopen == str(tmp_path / name)
    assert [Path(path).read_bytes() for path in source.train.inputs[0]] == [picture()] * 9
    assert len(list((tmp_path / "cache" / "archives").iterdir())) == 1


def test_an_archive_is_unpacked_once_and_again_when_it_changed(tree, tmp_path):
    tree({})
    place = archive(tmp_path, {"t.csv": b"x,y\n1,a\n2,b\n"}, "t.zip")
    first = sources.open(place)
    (folder,) = (tmp_path / "cache" / "archives").iterdir()
    before = (folder / "t.csv").stat().st_mtime_ns
    assert sources.open(place).train.ids.tolist() == first.train.ids.tolist() == [2, 3]
    assert (folder / "t.csv").stat().st_mtime_ns == before
    archive(tmp_path, {"t.csv": b"x,y\n1,a\n2,b\n3,c\n"}, "t.zip")
    assert sources.open(place).train.count == 3
    assert len(list((tmp_path / "cache" / "archives").iterdir())) == 1  # that of before is gone


def test_without_a_cache_nothing_is_kept(tree, tmp_path, monkeypatch):
    tree({})
    monkeypatch.setenv("LAMINA_CACHE", "off")
    source = sources.open(archive(tmp_path, PICTURES, "p.zip"))
    assert Path(source.train.inputs[0][0]).is_file() and not (tmp_path / "cache").exists()


def test_names_with_accents_are_read(tree, tmp_path):
    tree({})
    source = sources.open(archive(tmp_path, {"café/über.txt": b"x\n", "thé/ça.txt": b"y\n"}, "n.zip"))
    assert source.train.truth.tolist() == ["café", "thé"] and source.train.ids[0] == "café/über.txt"


@pytest.mark.parametrize(
    "files, name, words",
    [
        ({"../../escape.txt": b"x", "ok.txt": b"y"}, "escape.zip", "leads out of its folder"),
        ({"/etc/x.txt": b"x"}, "absolute.tar.gz", "absolute"),
        ({"zeros.csv": b"0,0\n" * (30 << 20)}, "bomb.zip", "unpacks to more than"),
    ],
)
def test_hostile_archives_are_refused_and_leave_nothing(files, name, words, tree, tmp_path):
    tree({})
    with pytest.raises(DataError, match=words):
        sources.open(archive(tmp_path, files, name))
    assert list((tmp_path / "cache" / "archives").iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["cache", "data", name])


def test_half_an_archive_and_links_are_refused(tree, tmp_path):
    tree({})
    whole = archive(tmp_path, PICTURES, "p.zip").read_bytes()
    (tmp_path / "half.zip").write_bytes(whole[: len(whole) // 2])
    with tarfile.open(tmp_path / "link.tar.gz", "w:gz") as out:
        member = tarfile.TarInfo("out")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        out.addfile(member)
    for name, words in (("half.zip", "no sound archive"), ("link.tar.gz", "a link")):
        with pytest.raises(DataError, match=words):
            sources.open(tmp_path / name)
    with pytest.raises(DataError, match="empty archive"):
        sources.open(archive(tmp_path, {}, "empty.zip"))


# --- The shared sets --------------------------------------------------------------------------------------------------


def test_the_shared_sets_are_what_their_description_says(shared_data, tree):
    tree({})
    for name, parts, classes in (
        ("image/objects10_split.csv", (450, None, 150), 10),
        ("image/scenes6.zip", (600, None, 240), 6),
        ("face/att_faces.zip", (400, None, None), 40),
        ("text/rt_polarity", (10_662, None, None), 2),
        ("text/sst2", (6_920, 872, 1_821), 2),
        ("text/ag_news", (6_080, None, 1_520), 4),
    ):
        source = sources.open(shared_data / name)
        found = [getattr(source, part) for part in ("train", "valid", "test")]
        assert tuple(None if part is None else part.count for part in found) == parts, name
        assert len(np.unique(source.train.truth)) == classes, name
        assert not [finding for finding in source.findings if finding.severity != "note"], name


# --- What is asked of them --------------------------------------------------------------------------------------------


def test_one_class_is_refused_whatever_it_is_of(tree, runs):
    root = tree({"only/a.png": picture(), "only/b.png": picture()})
    table = tree({"one.csv": "x,y\n" + "1,a\n2,a\n" * 20}, "table") / "one.csv"
    for source in (root, table):
        with pytest.raises(DataError, match=r"All .* are of one class, '(only|a)'"):
            lamina.train(source, runs=runs, quiet=True)
    assert list(runs.iterdir()) == []


def test_a_source_that_is_open_takes_no_columns(runs):
    with pytest.raises(UsageError, match="source_arg would do nothing: the source is opened already"):
        lamina.train(sources.open("iris"), source_arg={"separator": ";"}, runs=runs, quiet=True)
    with pytest.raises(UsageError, match=r"3 entries for 2 examples.*\n.*name a column"):
        lamina.train({"x": [1.0, 2.0], "y": ["a", "b"]}, groups=[1, 2, 3], runs=runs, quiet=True)


def test_what_a_run_was_trained_on_is_named_by_whole_paths(tree, runs, monkeypatch):
    rows = "".join(f"{k % 7},{k % 3 / 2},{'ab'[k % 2]}\n" for k in range(30))
    root = tree({"part-1.csv": "u,v,y\n" + rows, "part-2.csv": "y,u,v\n" + "a,1,0\nb,2,1\n" * 15})
    monkeypatch.chdir(root)
    options = {"net": "mlp", "epochs": 1, "runs": runs, "quiet": True, "baselines": False, "report": False}
    for given in ("part-*.csv", [Path("part-1.csv"), Path("part-2.csv")], Path("part-1.csv")):
        run = lamina.train(given, test="part-2.csv", **options)
        assert run.recipe.target == ["y"] and run.recipe.test == str(root / "part-2.csv")
        monkeypatch.chdir(runs)
        assert lamina.load(run.folder).reload().source.train.count == (30 if isinstance(given, Path) else 60)
        monkeypatch.chdir(root)
        scores = run.evaluate(root / "part-2.csv")  # its columns stand in another order
        assert scores[0]["n"] == 30


def test_files_are_told_by_size_and_time_and_folders_of_folders_by_one_entry(tree):
    root = tree({**PICTURES, "list.csv": "x,y\n1,a\n"})
    asked = recipe.make(source=str(root), test=f"{root}/*.csv", valid="0.1")
    found = fingerprints._files(asked)
    assert set(found) == {str(root / "list.csv"), f"{root}{os.sep}"}
    assert found[f"{root}{os.sep}"][0] == 9 * len(picture()) and fingerprints._files(asked) == found
    os.utime(root / "s1/1.png", ns=(1, 1))
    other = fingerprints._files(asked)
    assert other[f"{root}{os.sep}"][0] == found[f"{root}{os.sep}"][0] and other != found
    (root / ".hidden").write_text("x")
    assert fingerprints._files(asked) == other
