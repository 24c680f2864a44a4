"""Damage to files and directories, of every kind that hands do: for tests of what reads them."""

import os
import random
import shutil
from pathlib import Path

NOISE = random.Random(0).randbytes(700)


def _replaced(path, content: bytes):
    """`content` in a file of its own: what a link led to is left alone."""
    _removed(path)
    path.write_bytes(content)


def _removed(path):
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _content(path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def _cut(share):
    return lambda path, outside: _replaced(path, _content(path)[: int(share * len(_content(path)))])


def _of(content):
    return lambda path, outside: _replaced(path, content)


def _link_to(target):
    def damage(path, outside):
        _removed(path)
        path.symlink_to(target(path, outside))

    return damage


def _directory(path, outside):
    _removed(path)
    path.mkdir()
    (path / "inside").write_text("of somebody")


def _pipe(path, outside):
    _removed(path)
    os.mkfifo(path)


def _directory_as_link(path, outside):
    """The folder of the file, moved outside, and a link to it in its place."""
    folder = path.parent
    moved = outside / f"moved {folder.name}"
    shutil.copytree(folder, moved)
    shutil.rmtree(folder)
    folder.symlink_to(moved)


def _other_types(path, outside):
    """Every number of a JSON file becomes a text, and every text a list."""
    swapped = _content(path).replace(b": ", b': "x", "y": ').replace(b'"x", "y": "', b'["', 3)
    _replaced(path, swapped)


def _lines(path, outside):
    """Every other line is gone."""
    _replaced(path, b"\n".join(_content(path).split(b"\n")[::2]))


DAMAGES = {
    "missing": lambda path, outside: _removed(path),
    "empty": _of(b""),
    "half of it": _cut(0.5),
    "all but its end": _cut(0.99),
    "its first bytes": _cut(0.01),
    "every other line": _lines,
    "noise": _of(NOISE),
    "zeros": _of(bytes(5000)),
    "latin-1": _of("caf\xe9: 1\n".encode("latin-1")),
    "utf-16": _of('{"step": 1}\n'.encode("utf-16")),
    "a list": _of(b"[]\n"),
    "an object": _of(b"{}\n"),
    "null": _of(b"null\n"),
    "a number": _of(b"3\n"),
    "a text": _of(b'"x"\n'),
    "a list of lists": _of(b"[[1], [2]]\n"),
    "an object of lists": _of(b'{"step": [], "prompt": 1, "seed": {}, "notebooks": 3}\n'),
    "NaN": _of(b'{"step": NaN, "reward": Infinity, "seconds": -Infinity}\n'),
    "a number without end": _of(b'{"step": ' + b"9" * 5000 + b"}\n"),
    "nested without end": _of(b"[" * 100_000),
    "half a pair": _of(b'{"prompt": "\\ud800", "profile": "\\ud800", "step": 1}\n'),
    "escape codes": _of(b'{"prompt": "\\u001b[2J", "profile": "\\u001b]0;x\\u0007"}\n'),
    "aliases": _of(b"a: &a [x, x]\n" + b"".join(
        b"%c: &%c [%s]\n" % (i + 1, i + 1, b", ".join([b"*%c" % i] * 9))
        for i in range(ord("a"), ord("k"))
    )),
    "other types": _other_types,
    "a directory": _directory,
    "a pipe": _pipe,
    "a link outside": _link_to(lambda path, outside: outside / "secret"),
    "a link to a folder outside": _link_to(lambda path, outside: outside / "folder"),
    "a link to nothing": _link_to(lambda path, outside: outside / "new"),
    "a link to itself": _link_to(lambda path, outside: path),
    "a link to a device": _link_to(lambda path, outside: "/dev/zero"),
    "its folder is a link": _directory_as_link,
}  # fmt: skip


def make_outside(root: Path) -> Path:
    """A folder beside the run that nobody may change."""
    outside = root / "outside"
    (outside / "folder").mkdir(parents=True)
    (outside / "secret").write_text("secret")
    (outside / "folder" / "file").write_text("of somebody")
    return outside


def everything_in(folder: Path) -> dict[str, bytes | None]:
    """Name and content of all that lies in a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }
