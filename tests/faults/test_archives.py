"""Row 48: archives are unpacked below their folder, as files, within limits; or refused, and nothing is left."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable
from functools import cache

import hostile
import pytest

from lamina.archives import unpack
from lamina.errors import DataError, UsageError

PICTURES = {"cats/1.png": b"one", "cats/2.png": b"two" * 1000, "dogs/1.png": b"", "read me.txt": "kätzchen".encode()}
PACKERS = (".tar", ".tar.gz", ".tar.bz2", ".tar.xz")


def packed(data: bytes) -> bytes:
    return gzip.compress(data, 1)


def zipped(entries: Iterable[tuple[str | zipfile.ZipInfo, bytes]], packed: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", packed) as file:
        for name, content in entries:
            file.writestr(name, content, packed)
    return out.getvalue()


def entry(name: str, kind: int = stat.S_IFREG) -> zipfile.ZipInfo:
    found = zipfile.ZipInfo(name)
    found.external_attr = (kind | 0o777) << 16
    return found


def tarred(*members: tuple[str, bytes, bytes, str], form: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar of (name, content, type, link name) each."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as file:
        for name, content, kind, link in members:
            info = tarfile.TarInfo(name)
            info.size, info.type, info.linkname, info.mode = len(content), kind, link, 0o4777
            file.addfile(info, io.BytesIO(content))
    return out.getvalue()


def regular(*names: str, content: bytes = b"x") -> bytes:
    return tarred(*((name, content, tarfile.REGTYPE, "") for name in names))


@pytest.mark.parametrize("suffix", [".zip", *PACKERS])
def test_what_was_packed_comes_out(tmp_path, suffix):
    (tmp_path / "in").mkdir()
    for name, content in PICTURES.items():
        path = tmp_path / "in" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    archive = tmp_path / f"a{suffix}"
    if suffix == ".zip":
        archive.write_bytes(zipped(PICTURES.items()))
    else:
        with tarfile.open(archive, f"w:{suffix[5:]}") as file:
            file.add(tmp_path / "in", arcname=".")
    found = unpack(archive, tmp_path / "new" / "out")
    assert {str(path.relative_to(tmp_path / "new" / "out")): path.read_bytes() for path in found} == PICTURES
    assert os.listdir(tmp_path / "new") == ["out"]


# --- Nothing leaves the folder ----------------------------------------------------------------------------------------

NAMES = [
    "../evil", "a/../../evil", "/evil", "//evil", "/etc/cron.d/evil", "C:\\evil", "C:evil", "c:/evil", "..\\evil",
    "a\\..\\..\\evil", "\\\\host\\share\\evil", "a/b/../../../evil", "evil\n", "evil\x1b[31m", "\u202egnp.live", "x" * 300,
    "d/" * 600 + "x", "..", "./../evil", "a\x07", "a/./../../evil", "\x7f",
]  # fmt: skip


@cache
def hostile_archives() -> dict[str, bytes]:
    found = {f"zip {name[:40]!r}": zipped([("fine", b"x"), (name, b"x")]) for name in NAMES}
    found |= {f"tar {name[:40]!r}": regular("fine", name) for name in NAMES}
    found["zip NUL"] = zipped([("evilXfine", b"x")]).replace(b"evilX", b"evil\0")
    for title, kind in (("symlink", stat.S_IFLNK), ("fifo", stat.S_IFIFO), ("device", stat.S_IFBLK), ("socket", stat.S_IFSOCK),
                        ("character", stat.S_IFCHR)):  # fmt: skip
        found[f"zip {title}"] = zipped([(entry("l", kind), b"/etc/passwd"), ("l/evil", b"x")])
    for title, kind in (("symlink", tarfile.SYMTYPE), ("hardlink", tarfile.LNKTYPE), ("fifo", tarfile.FIFOTYPE),
                        ("device", tarfile.BLKTYPE), ("character", tarfile.CHRTYPE), ("unknown", b"V")):  # fmt: skip
        for link in ("/etc/passwd", "..", "../../x", "fine"):
            found[f"tar {title} {link}"] = tarred(("fine", b"x", tarfile.REGTYPE, ""), ("l", b"", kind, link),
                                                  ("l/evil", b"x", tarfile.REGTYPE, ""))  # fmt: skip
    twice = (("a", "a"), ("A", "a"), ("a/x", "A/y"), ("a", "a/x"), ("a/x", "a"), ("\u00e9", "e\u0301"), ("ß", "SS"),
                          ("a", "./a"), ("a/b", "a//b"), ("Stra\u00dfe/1", "STRASSE/2"))  # fmt: skip
    for first, second in twice:
        found[f"tar {first} {second}"] = regular(first, second)
        found[f"zip {first} {second}"] = zipped([(entry(first), b"x"), (entry(second), b"x")])
    found["zip encrypted"] = zipped([("a", b"x")]).replace(
        b"PK\x01\x02\x14\x03\x14\x00\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01\x00"
    )
    found["zip method"] = zipped([("a", b"x" * 99)], zipfile.ZIP_BZIP2)
    found["zip lzma"] = zipped([("a", b"x" * 99)], zipfile.ZIP_LZMA)
    found["zip folder with content"] = zipped([("a/", b"x")])
    found["zip other name inside"] = b"PK\x03\x04" + zipped([("a.png", b"x")])[4:].replace(b"a.png", b"b.png", 1)
    found["zip wrong checksum"] = zipped([("a", b"abc")], zipfile.ZIP_STORED).replace(b"abc", b"abd")
    found["nothing"] = b""
    found["text"] = b"hello" * 1000
    found["zeros"] = bytes(100)
    found["gz of text"] = packed(b"hello" * 1000)
    found["gz wrong checksum"] = packed(regular("a"))[:-8] + bytes(8)
    whole = regular("a", "b", content=b"y" * 600)
    found["tar damaged in the middle"] = whole[:1536] + b"\xff" * 512 + whole[2048:]
    found["tar cut"] = whole[:2100]
    found["tar cut between files"] = whole[:1536]
    found["gz cut"] = packed(whole)[:-20]
    return found | bombs()


def bombs() -> dict[str, bytes]:
    zeros = bytes(20 << 20)
    squeezed = zlib.compressobj(9, zlib.DEFLATED, -15)
    kernel = squeezed.compress(zeros) + squeezed.flush()
    crc = zlib.crc32(zeros)
    big = tarfile.TarInfo("a")
    big.size = 1 << 40
    flat = io.BytesIO()  # many entries of one and the same compressed piece
    local = struct.pack("<4s5H3I2H", b"PK\x03\x04", 20, 0, 8, 0, 0, crc, len(kernel), len(zeros), 1, 0) + b"a"
    flat.write(local + kernel)
    start = flat.tell()
    for k in range(1000):
        sizes = (crc, len(kernel), len(zeros), 5)
        flat.write(struct.pack("<4s6H3I5H2I", b"PK\x01\x02", 20, 20, 0, 8, 0, 0, *sizes, *[0] * 6) + f"{k:05}".encode())
    flat.write(struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 1000, 1000, flat.tell() - start, start, 0))
    lying = zipped([("a", zeros)]).replace(struct.pack("<I", len(zeros)), struct.pack("<I", 10))
    pax = tarred(("a", b"", tarfile.XHDTYPE, ""))
    pax = pax[:124] + b"77777777777\0" + pax[136:148] + b"        " + pax[156:]
    pax = pax[:148] + b"%06o\0 " % sum(pax[:512]) + pax[156:]
    gnu = regular("a", content=b"")
    sparse = tarred(("a", b"", tarfile.GNUTYPE_SPARSE, ""), form=tarfile.GNU_FORMAT)
    return {
        "bomb": zipped([("a", zeros)]),
        "many bombs": zipped([(f"{k}", bytes(1 << 20)) for k in range(24)]),
        "flat bomb": flat.getvalue(),
        "lying zip": lying,
        "tar bomb": gzip.compress(regular("a", content=zeros)),
        "tar bomb, xz": lzma.compress(regular("a", content=zeros), preset=0),
        "tar bomb, bz2": bz2.compress(regular("a", content=zeros)),
        "gz in gz": packed(packed(regular("a", content=zeros))),
        "said to be large": big.tobuf(tarfile.GNU_FORMAT) + bytes(1024),
        "large header": packed(pax + bytes(24 << 20)),
        "sparse": sparse,
        "padding": gzip.compress(gnu + bytes(48 << 20)),
        "many headers": packed(tarred(("", b"", tarfile.DIRTYPE, "")) [:512] * 100_000),
        "many files in zip": zipped((str(k), b"") for k in range(10_001)),
        "many files in tar": regular(*map(str, range(10_001)), content=b""),
    }  # fmt: skip


@pytest.mark.fault(48)
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_hostile_archives_leave_nothing(tmp_path, counted, recorded):
    (tmp_path / "root").mkdir()
    found, kinds = hostile_archives(), 0
    watch = hostile.Watch()
    for k, (title, content) in enumerate(found.items()):
        for suffix, pack in (("", bytes), (".gz", packed), (".bz2", bz2.compress), (".xz", lzma.compress)):
            if suffix and (not title.startswith("tar ") or k % counted(17, 1)):
                continue
            archive = hostile.write(tmp_path / "root" / "evil.bin", pack(content))
            before = sorted(tmp_path.rglob("*"))
            error = watch(lambda archive=archive: unpack(archive, archive.parent / "out", most_files=10_000), title)
            kinds += 1
            assert sorted(tmp_path.rglob("*")) == before, title
            assert error is None or (isinstance(error, DataError) and "evil.bin" in error.what), title
    assert watch.crashes == [] and watch.taken == 0 and watch.megabytes() < 100
    recorded(archives=kinds, escapes=0, crashes=0, megabytes=watch.megabytes(), slowest_s=round(watch.slowest, 2))


def test_the_words_say_why(tmp_path):
    for content, words in (
        (zipped([("../evil", b"x")]), r"whose name leads out of its folder: '\.\./evil'"),
        (regular("/evil"), r"whose name is absolute: '/evil'"),
        (regular("A", "a"), r"is 'A' on a disk that does not tell small letters from capitals"),
        (tarred(("l", b"", tarfile.SYMTYPE, "/etc")), r"holds a link, a device or a file with holes: 'l'"),
        (zipped([("a", bytes(40 << 20))]), r"has 40,\d{3} bytes, and unpacks to more than 20,\d{3},\d{3}"),
    ):
        with pytest.raises(DataError, match=words):
            unpack(hostile.write(tmp_path / "a", content), tmp_path / "out")


def test_limits_are_arguments(tmp_path):
    path = hostile.write(tmp_path / "a.zip", zipped([(f"{k}.txt", bytes(1000)) for k in range(20)]))
    with pytest.raises(DataError, match="more than 19 files"):
        unpack(path, tmp_path / "out", most_files=19)
    with pytest.raises(DataError, match="unpacks to more than 19,999"):
        unpack(path, tmp_path / "out", most_bytes=19_999)
    assert len(unpack(path, tmp_path / "out", most_files=20, most_bytes=20_000)) == 20
    path.write_bytes(zipped([("a", bytes(40 << 20))]))
    assert unpack(path, tmp_path / "large", most_ratio=2000)[0].stat().st_size == 40 << 20


def test_rights_are_those_of_any_new_file(tmp_path):
    for content in (tarred(("a", b"x", tarfile.REGTYPE, "")), zipped([(entry("a"), b"x")])):
        (found,) = unpack(hostile.write(tmp_path / "a", content), tmp_path / f"out{len(content)}")
        assert found.stat().st_mode & 0o7000 == 0 and not os.access(found, os.X_OK)


def test_a_folder_that_is_there_is_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    path = hostile.write(tmp_path / "a.zip", zipped(PICTURES.items()))
    with pytest.raises(UsageError, match="exists already"):
        unpack(path, tmp_path / "out")
    with pytest.raises(UsageError, match="There is no archive"):
        unpack(tmp_path / "b.zip", tmp_path / "new")


@pytest.mark.fault(48, 47)
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_changed_archives_stay_inside(tmp_path, counted, recorded):
    members = [(name, data, tarfile.REGTYPE, "") for name, data in PICTURES.items()]
    seeds = [zipped(PICTURES.items()), zipped(PICTURES.items(), zipfile.ZIP_STORED)]
    seeds += [tarred(*members), tarred(*members, form=tarfile.GNU_FORMAT)]
    seeds += [content for content in hostile_archives().values() if len(content) < 20_000]
    root, watch = tmp_path / "root", hostile.Watch()
    root.mkdir()
    for draw in hostile.until(counted(1, 150), seed=48):
        content = hostile.mutated(draw, seeds)
        if draw.random() < 0.2:
            content = packed(content)
        archive = hostile.write(tmp_path / "a", content)
        watch(lambda archive=archive: unpack(archive, root / "out", most_files=10_000), "unpack")
        assert os.listdir(tmp_path) in (["a", "root"], ["root", "a"])
        for path in sorted(root.rglob("*"), reverse=True):
            assert not path.is_symlink() and (path.is_file() or path.is_dir())
            path.rmdir() if path.is_dir() else path.unlink()
    assert watch.crashes == [] and watch.megabytes() < 100
    recorded(files=watch.taken + watch.refused, sound=watch.taken, escapes=0, crashes=0, megabytes=watch.megabytes(),
             slowest_s=round(watch.slowest, 2))  # fmt: skip
