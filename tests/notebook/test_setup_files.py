"""requirements.txt, its tested versions and pyproject.toml agree, and leave Colab as it is."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
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
# What Colab's images bring (August 2026, Python 3.12 and 3.13).
COLAB = {
    "torch": "2.11.0", "transformers": "5.15.0", "peft": "0.20.0", "accelerate": "1.14.0",
    "datasets": "4.0.0", "numpy": "2.1.3",
    "click": "8.4.2", "filelock": "3.32.3",
}  # fmt: skip


@pytest.mark.parametrize("name, version", COLAB.items())
def test_colabs_versions_are_admitted(name, version):
    assert REQUIREMENTS[name].specifier.contains(version)


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
