"""requirements.txt, its tested versions and pyproject.toml agree, and leave Colab as it is."""

import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from rlhf_helpers.notebook.doctor import requirement_lines

ROOT = Path(__file__).resolve().parents[2]
LINES = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
REQUIREMENTS = {
    canonicalize_name(r.name): r
    for r in map(Requirement, requirement_lines(ROOT / "requirements.txt"))
}
PINNED = {
    canonicalize_name(r.name): next(iter(r.specifier)).version
    for r in map(Requirement, requirement_lines(ROOT / ".ci" / "constraints.txt"))
}
# What Colab's images bring: today's, and the runtime version before it, which can still be chosen.
IMAGES = {
    path.stem: {
        canonicalize_name(r.name): next(iter(r.specifier)).version
        for r in map(Requirement, requirement_lines(path))
    }
    for path in sorted((ROOT / ".ci").glob("colab-*.txt"))
}
# Made newer by the bootstrap cell: a lock file that is a link must not be followed.
REPLACED = {("colab-2026-07", "filelock")}


def test_colabs_versions_are_admitted():
    assert IMAGES.keys() == {"colab-2026-07", "colab-2026-08"}
    for image, versions in IMAGES.items():
        shared = REQUIREMENTS.keys() & versions.keys()
        assert len(shared) > 20
        refused = {(image, name) for name in shared
                   if not REQUIREMENTS[name].specifier.contains(versions[name])}  # fmt: skip
        assert refused == {pair for pair in REPLACED if pair[0] == image}


def test_the_extras_are_pinned_in_range_and_named_where_they_are_missed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    files = (ROOT / ".ci" / name for name in ("extras.txt", "book.txt"))
    lines = [line for file in files for line in requirement_lines(file)]
    found = {r.name.lower(): next(iter(r.specifier)).version for r in map(Requirement, lines)}
    pinned = PINNED | found
    extras = project["optional-dependencies"]
    assert {"book", "browser", "four-bit", "sweeps", "trackers"} <= extras.keys()
    for requirement in [Requirement(line) for lines in extras.values() for line in lines]:
        assert requirement.specifier.contains(pinned[requirement.name])


def test_what_the_book_brings_changes_nothing_that_is_installed():
    brought = {Requirement(line).name for line in requirement_lines(ROOT / ".ci" / "book.txt")}
    assert len(brought) > 20
    assert not {canonicalize_name(name) for name in brought} & PINNED.keys()


def load_torch_index():
    spec = importlib.util.spec_from_file_location("torch_index", ROOT / ".ci" / "torch_index.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "system, machine, driver, reached, option, words",
    [
        ("Linux", "x86_64", False, True, "--index-url=", "CPU build: no NVIDIA driver"),
        ("Linux", "x86_64", False, False, "", "cannot be reached"),
        ("Linux", "x86_64", True, None, "", "CUDA for the NVIDIA driver"),
        ("Linux", "aarch64", False, None, "", "PyPI's build"),
        ("Darwin", "arm64", False, None, "", "PyPI's build"),
    ],
)
def test_torch_comes_as_the_cpu_build_where_there_is_no_driver(
    system, machine, driver, reached, option, words
):
    """`reached` None: the index is not even asked."""
    asked = []

    def reach(index):
        asked.append(index)
        return reached

    found, sentence = load_torch_index().choose(system, machine, driver, reach)
    assert found == (f"{option}{asked[0]}" if option else "")
    assert words in sentence and "\n" not in sentence
    assert len(asked) == (reached is not None)


def test_an_index_that_cannot_be_reached_is_not_taken():
    with socket.socket() as server:  # bound, and nobody listens
        server.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        assert not load_torch_index().can_be_reached(address)


SKIPPED = """
import pytest
def test_optional():
    pytest.importorskip("a_package_that_nobody_has")
def test_trlx():
    pytest.skip("trlX is not installed (it needs old libraries)")
@pytest.mark.xfail
def test_known():
    assert False
"""


@pytest.mark.parametrize("forbidden, outcomes", [
    ("", "2 skipped, 1 xfailed"),
    ("1", "1 failed, 1 skipped, 1 xfailed"),
])  # fmt: skip
def test_a_skip_is_a_failure_where_that_is_asked_for(tmp_path, forbidden, outcomes):
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    (tmp_path / "test_some.py").write_text(SKIPPED)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_some.py"],
        cwd=tmp_path, env={**os.environ, "RLHF_NO_SKIPS": forbidden}, capture_output=True,
        text=True, timeout=120,
    )  # fmt: skip
    assert outcomes in done.stdout.splitlines()[-1]
    assert ("make extras" in done.stdout) == bool(forbidden)


@pytest.mark.parametrize("name", REQUIREMENTS)
def test_the_tested_version_of_each_dependency_is_pinned_and_in_range(name):
    assert REQUIREMENTS[name].specifier.contains(PINNED[name])


def test_every_dependency_has_a_range_and_a_reason():
    for line in LINES:
        if line and not line.startswith("#"):
            requirement, _, reason = line.partition("#")
            assert Requirement(requirement.strip()).specifier, line
            assert len(reason.split()) >= 2, line


def test_a_comment_says_why_trlx_is_not_required():
    comments = " ".join(line for line in LINES if line.startswith("#"))
    assert "trlx itself is not here" in comments
    assert "trlx" not in REQUIREMENTS


def test_pyproject_reads_the_one_list_and_ships_models_and_profiles():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["tool"]["setuptools"]["dynamic"]["dependencies"]["file"] == ["requirements.txt"]
    assert "dependencies" not in project["project"]
    data = project["tool"]["setuptools"]["package-data"]["rlhf_helpers"]
    package = ROOT / "rlhf_helpers"
    shipped = {path for pattern in data for path in package.glob(pattern) if path.is_file()}
    needed = [*package.glob("profiles/*.yml"), *package.glob("artifacts/*/*")]
    assert needed
    assert {path for path in needed if path.is_file()} <= shipped


def test_the_address_stands_in_pyproject_only():
    """Elsewhere it is written by one command, so no other source file may spell it out."""
    owner_and_name = "rlhf-on-one-gpu/rlhf-on-one-gpu"
    sources = [*ROOT.glob("rlhf_helpers/**/*.py"), ROOT / "Makefile", ROOT / "requirements.txt"]
    assert [path.name for path in sources if owner_and_name in path.read_text("utf-8")] == []


def test_the_tested_versions_install_on_every_python_that_the_readme_admits():
    """Debian 12 has 3.11.2: with a pin that wants 3.11.5 pip searches without end there."""
    lowest = re.search(r"Python (3\.\d+) or newer", (ROOT / "README.md").read_text("utf-8"))[1]
    checked = 0
    for name, version in PINNED.items():
        try:
            about = metadata.metadata(name)
        except metadata.PackageNotFoundError:
            continue  # what another system or Python has
        if about["Version"] == version:
            wanted = about.get("Requires-Python") or ""
            assert SpecifierSet(wanted).contains(f"{lowest}.2"), (name, version, wanted)
            checked += 1
    assert checked or sys.version_info >= (3, 12)  # Colab and the oldest have other versions
