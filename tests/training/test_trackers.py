"""Each tracker of the blog post's time, and trackio: a real run of two iterations, read back.

The run's own metrics.jsonl says what each must hold. Where a tracker's package is absent its test
is skipped (pip install -e ".[trackers]").
"""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_helpers.runs.files import read_jsonl

pytestmark = pytest.mark.slow
LOGGED = ("reward/mean", "losses/total_loss", "policy/sqrt_kl")


def written(root):
    """{metric: {step: value}} of metrics.jsonl, as the trackers were given them."""
    lines = read_jsonl(root / "run" / "metrics.jsonl")
    found = {n: {x["step"]: x[n] for x in lines if n in x} for n in LOGGED}
    assert len(found["losses/total_loss"]) == 8 and len(found["reward/mean"]) == 3
    return found


TRAIN = """
import sys
from tiny_runs import tiny_train
tiny_train(sys.argv[1], train__total_steps=8, train__project_name="reviews", train__tags=["tiny"],
           train__tracker=sys.argv[2])
"""


def python(code, *arguments, **environment):
    """What a process of its own prints: some trackers write their last when it ends."""
    tests = Path(__file__).parents[1]
    path = os.pathsep.join([str(tests.parent), str(tests)])
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def two_iterations(root, tracker, **environment):
    """Eight optimizer steps of four each on new rollouts; evaluated before, between and after."""
    python(TRAIN, str(root), tracker, **environment)
    return written(root)


def assert_holds(found, expected):
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, rel=1e-5), name


def test_tensorboard(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    expected = two_iterations(tmp_path, "tensorboard")
    events = reader.EventAccumulator(str(tmp_path / "run" / "logs" / "reviews"))
    events.Reload()
    assert_holds({n: {e.step: e.value for e in events.Scalars(n)} for n in LOGGED}, expected)


def records_of_wandb(path):
    """The records of an offline run: wandb's own messages, in the format of LevelDB's log.

    https://github.com/google/leveldb/blob/main/doc/log_format.md: blocks of 32 KiB; each part of a
    record has a checksum (4 bytes), a length (2) and whether more follows (1). wandb puts 7 bytes
    in front of the first block's parts.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, record = path.read_bytes(), 7, b""
    assert data.startswith(b":W&B")
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # the rest of a block that is too small for a part
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(record)
            record = b""


def test_wandb_without_an_account(tmp_path):
    pytest.importorskip("wandb")
    expected = two_iterations(tmp_path, "wandb", WANDB_MODE="offline", WANDB_DIR=str(tmp_path))
    (path,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    records = list(records_of_wandb(path))
    rows = [
        {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
        for record in records if record.HasField("history")
    ]  # fmt: skip
    found = {n: {int(r["_step"]): float(r[n]) for r in rows if n in r} for n in LOGGED}
    assert_holds(found, expected)
    run = next(record.run for record in records if record.HasField("run"))
    assert run.project == "reviews" and list(run.tags) == ["tiny"]


READ_TRACKIO = """
import json, trackio
from trackio.sqlite_storage import SQLiteStorage
(run,) = trackio.Api().runs("reviews")
print(json.dumps({"config": run.config, "logs": SQLiteStorage.get_logs("reviews", run.name)}))
"""


def test_trackio_keeps_it_on_this_machine(tmp_path):
    pytest.importorskip("trackio")
    here = {"TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1"}
    expected = two_iterations(tmp_path, "trackio", **here)
    read = json.loads(python(READ_TRACKIO, **here).splitlines()[-1])
    found = {n: {row["step"]: row[n] for row in read["logs"] if n in row} for n in LOGGED}
    assert_holds(found, expected)
    assert read["config"]["train"]["project_name"] == "reviews"
