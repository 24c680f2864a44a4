"""The profile `seed` from a hub: fetched cold, then without a network, then with a damaged file.

The hub is a server on this machine with tiny random models under the post's names (hub_server.py).
Each step is a process of its own, whose HF_HOME is empty at first.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import BRANCH_HEAD, hub, make_repositories
from notebook_checks import NOTEBOOKS

from rlhf_helpers.data.assets import file_sha256
from rlhf_helpers.data.registry import REGISTRY
from rlhf_helpers.runs.files import read_json, read_jsonl

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
TINY = {
    "train.total_steps": 4, "train.batch_size": 4, "train.eval_interval": 2,
    "method.num_rollouts": 8, "method.chunk_size": 8, "method.gen_kwargs.max_new_tokens": 6,
    "evaluation.n_prompts": 8, "evaluation.samples_per_post_prompt": 1,
}  # fmt: skip
# The real reviews' hashes are pinned; those of the tiny ones take their place in each process.
TINY_REVIEWS = """
import dataclasses
from rlhf_helpers.data.registry import REGISTRY
name = "stanfordnlp/imdb"
REGISTRY[name] = dataclasses.replace(REGISTRY[name], sha256={sums!r})
"""
TRAIN = """
import sys
from rlhf_helpers import load_profile, train
from rlhf_helpers.data.assets import asset_table, load_reviews
from rlhf_helpers.rewards.judge import judge_by_name
from rlhf_helpers.rewards.task import post_prompts, task_prompts, task_reward
profile = load_profile("seed", overrides={tiny!r}, run_dir=sys.argv[1])
print({{row["name"]: row["source"] for row in asset_table(profile)}})
prompts = task_prompts(profile, load_reviews(profile.assets["data"]))
train(reward_fn=task_reward(profile), prompts=prompts,
      eval_prompts=post_prompts(profile), config=profile.config)
print(len(judge_by_name(profile.assets["judge"]).score(["good film", "bad film"])))
"""


class Machine:
    """Where the processes of this test live: their hub, cache and files."""

    def __init__(self, root, address, requests):
        self.root, self.address, self.requests = root, address, requests
        self.cache = root / "home" / "hub"
        reviews = root / "served" / "datasets" / "stanfordnlp" / "imdb"
        sums = {str(p.relative_to(reviews)): file_sha256(p) for p in reviews.rglob("*.parquet")}
        (root / "site").mkdir()
        (root / "site" / "sitecustomize.py").write_text(TINY_REVIEWS.format(sums=sums))

    def python(self, *arguments, **environment):
        fixed = {
            "HF_HOME": str(self.root / "home"), "HF_ENDPOINT": self.address,
            "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1,localhost", "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(self.root / "site"), str(ROOT)]),
        }  # fmt: skip
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        return subprocess.run(
            [sys.executable, *map(str, arguments)], env=inherited | fixed | environment,
            cwd=self.root, capture_output=True, text=True, timeout=1500,
        )  # fmt: skip

    def weights_in_cache(self, name):
        (path,) = self.cache.glob(f"models--{name.replace('/', '--')}/snapshots/*/*model*")
        return path


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    root = tmp_path_factory.mktemp("seed_profile")
    make_repositories(root / "served")
    with hub(root / "served") as (address, requests):
        yield Machine(root, address, requests)


def test_the_five_notebooks_with_a_cold_cache(machine):
    settings = [f"--set={name}={json.dumps(value)}" for name, value in TINY.items()]
    done = machine.python("-m", "rlhf_helpers", "run", "--profile", "seed",
                          "--run-dir", machine.root / "run", *settings)  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    manifest = read_json(machine.root / "run" / "manifest.json")
    assert [row["status"] for row in manifest["notebooks"]] == ["executed"] * len(NOTEBOOKS)
    assets = {row["name"]: row for row in manifest["assets"]}
    assert not any(row["problem"] for row in assets.values())
    served = machine.root / "served" / "models"
    policy, judge = "facebook/opt-1.3b", "siebert/sentiment-roberta-large-english"
    assert assets[policy]["revision"] == REGISTRY[policy].revision
    assert assets[policy]["sha256"] == file_sha256(served / policy / "pytorch_model.bin")
    assert assets[judge]["revision"] == BRANCH_HEAD
    assert assets[judge]["sha256"] == file_sha256(served / judge / "model.safetensors")
    evaluation = read_json(machine.root / "run" / "evaluation.json")
    assert evaluation["n_prompts"] == 8 and 0 < evaluation["judge_after"] < 1
    samples = read_jsonl(machine.root / "run" / "baseline_samples.jsonl")
    assert {s["group"] for s in samples} and all(0 < s["reward"] < 1 for s in samples)
    fetched = [r for r in machine.requests if r.startswith("GET /cdn/")]
    assert len(fetched) == len(set(fetched)) == 5  # three models, two splits: each once


def test_then_without_a_network(machine):
    """Everything from the cache, to the end of training; the hub is not asked once."""
    machine.requests.clear()
    run_dir = machine.root / "offline"
    done = machine.python("-c", TRAIN.format(tiny=TINY), run_dir, HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("'hub cache'") == 4
    assert done.stdout.splitlines()[-1] == "2"
    assert machine.requests == []


@pytest.mark.parametrize("name", ["facebook/opt-1.3b", "lvwerra/distilbert-imdb"])
def test_a_damaged_file_is_named_and_fetched_again_when_it_is_gone(machine, name):
    blob = machine.weights_in_cache(name).resolve()
    content = blob.read_bytes()
    blob.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    machine.requests.clear()
    done = machine.python("-m", "rlhf_helpers", "doctor", "--profile", "seed")
    assert done.returncode != 0
    told = " ".join(done.stdout.split())
    assert name in told and f"remove {blob} and fetch it again" in told
    blob.unlink()
    done = machine.python("-c", TRAIN.format(tiny=TINY), machine.root / name.replace("/", "_"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert blob.read_bytes() == content
    assert sum(r.startswith("GET /cdn/") for r in machine.requests) == 1
