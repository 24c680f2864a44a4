"""The package is a house of rooms. Their order is checked by import-linter, in `make lint`."""

import ast
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "rlhf_helpers"
ROOMS = sorted(path.parent for path in PACKAGE.glob("*/__init__.py"))
DATA = {"artifacts", "profiles"}


def test_at_the_top_there_are_rooms_and_hardly_anything_else():
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir()} - {"__pycache__"}
    assert folders - DATA == {room.name for room in ROOMS}
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    assert len(modules) <= 3, modules


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_a_room_is_small_enough_to_know(room):
    modules = [path for path in room.glob("*.py") if path.name != "__init__.py"]
    assert len(modules) <= 16
    for module in modules:
        assert len(module.read_text("utf-8").splitlines()) <= 440, module.name
    assert not [path for path in room.iterdir() if path.is_dir() and path.name != "__pycache__"]


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_a_room_says_what_it_is_for(room):
    text = ast.get_docstring(ast.parse((room / "__init__.py").read_text("utf-8")))
    assert text and 2 <= len(text.splitlines()) <= 8


def test_every_room_has_its_place_in_the_order():
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]
    layers = tool["importlinter"]["contracts"][0]["layers"]
    named = [name.strip() for layer in layers for name in layer.split("|")]
    assert {room.name for room in ROOMS} <= set(named)


def test_algorithms_need_torch_and_nothing_else():
    allowed = {"torch", "__future__"} | set(sys.stdlib_module_names)
    for path in (PACKAGE / "algorithms").glob("*.py"):
        if path.name == "__init__.py":
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                assert {alias.name.split(".")[0] for alias in node.names} <= allowed, path.name
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                assert node.module.split(".")[0] in allowed, path.name


def test_tests_lie_in_rooms_of_the_same_names():
    folders = {path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")}
    assert folders <= {room.name for room in ROOMS} | {"book", "browser", "package", "pretend_gpu"}
    assert not list((ROOT / "tests").glob("test_*.py"))


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*/__init__.py")), ids=lambda p: p.parent.name)
def test_a_room_hands_on_each_name_once(path):
    """Of two that are called alike the second would hide the first, without a word."""
    names = [
        name.value
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.keyword) and call.arg == "submod_attrs"
        for names in call.value.values
        for name in names.elts
    ]
    assert len(names) == len(set(names)), sorted(n for n in names if names.count(n) > 1)
