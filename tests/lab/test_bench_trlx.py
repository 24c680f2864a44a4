"""The measurement beside the real trlX: what it counts, the files that both read, its errors."""

import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_helpers.config.checks import ConfigError
from rlhf_helpers.config.paths import repo_root
from rlhf_helpers.data.reviews import load_reviews
from rlhf_helpers.lab import bench_trlx
from rlhf_helpers.lab.bench_case import Case
from rlhf_helpers.runs.files import read_json
from rlhf_helpers.show.bench_figures import beside_trlx_plot

CASE = Case(
    shape="deep", tiny=True, batch=4, rollouts=8, new_tokens=6, unfrozen=1, threads=1, iterations=4
)


def calls(text):
    """R a rollout, E an evaluation; call number i comes after i² seconds and 10 i CPU seconds."""
    return [
        {"wall": float(i * i), "cpu": 10.0 * i, "evaluation": letter == "E"}
        for i, letter in enumerate(text)
    ]


@pytest.mark.parametrize(
    "text, walls",
    [
        ("ERRRE", [5.0]),  # the first evaluation comes first: R at 1, 4, 9
        ("RERRRE", [5.0, 7.0]),  # it comes after the first rollout: R at 0, 4, 9, 16
        ("RRRER", [3.0]),  # none of the two around an evaluation
    ],
)
def test_whole_iterations_are_counted_and_the_first_is_not(text, walls):
    periods = bench_trlx.whole_iterations(calls(text))
    assert [p["wall"] for p in periods] == walls
    assert {p["cpu"] for p in periods} == {10.0}


def test_medians_and_ratios_by_hand():
    found = {
        "trlx": [{"periods": [{"wall": 8.0, "cpu": 6.0}]},
                 {"periods": [{"wall": 12.0, "cpu": 6.0}]}],
        "ours": [{"periods": [{"wall": 4.0, "cpu": 2.0}, {"wall": 5.0, "cpu": 2.0},
                              {"wall": 90.0, "cpu": 2.0}]}],
    }  # fmt: skip
    summary = bench_trlx.compared(found)
    assert summary["wall_seconds"] == {"trlx": 10.0, "ours": 5.0}
    assert summary["wall_ratio"] == {"ours": 2.0} and summary["cpu_ratio"] == {"ours": 3.0}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench") / "model"
    texts = list(load_reviews()["text"])[:400]
    bench_trlx.write_model(CASE, folder, texts)
    return folder, texts


def test_every_id_is_text_and_prompts_have_24_tokens(files):
    folder, texts = files
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert len(tokenizer) == model.config.vocab_size == 512
    assert all(tokenizer.convert_ids_to_tokens(list(range(512))))
    prompts = bench_trlx.openings(texts, folder)
    assert len(prompts) == 256 and texts[0].startswith(prompts[0])
    lengths = [len(ids) for ids in tokenizer(prompts, add_special_tokens=False)["input_ids"]]
    # A cut in the middle of a character or of a merge makes another tokenisation of a few.
    assert sum(length == 24 for length in lengths) > 240 and max(lengths) < 28
    written = torch.load(folder / "pytorch_model.bin")["lm_head.weight"]
    torch.testing.assert_close(model.model.decoder.embed_tokens.weight, written)


@pytest.mark.slow
def test_our_half_runs_in_a_process_of_its_own(files, tmp_path):
    folder, texts = files
    prompts = bench_trlx.openings(texts, folder)
    for engine, semantics in (("trlx", "trlx"), ("ours", "trlx"), ("ours-corrected", "corrected")):
        given = bench_trlx.run_case(CASE, engine, folder, prompts, tmp_path)
        assert given["config"]["method"]["semantics"] == semantics
        assert given["config"]["train"]["total_steps"] == 4 * 2 * 4  # 4 epochs of 2 minibatches
    found = bench_trlx._in_process(sys.executable, given, tmp_path)
    assert len(found["periods"]) == 2  # of four rollouts; the first period is not counted
    assert all(0 < period["wall"] < 60 for period in found["periods"])
    assert found["peak_memory_bytes"] > 100e6


@pytest.mark.slow
def test_an_interpreter_without_trlx_is_told_what_it_needs(files, tmp_path, monkeypatch, capsys):
    folder, texts = files
    monkeypatch.delenv("PYTHONPATH", raising=False)
    given = bench_trlx.run_case(CASE, "trlx", folder, texts[:4], tmp_path)
    given["config"]["model"]["model_path"] = str(folder)
    with pytest.raises(ConfigError, match="PYTHONPATH set to its checkout"):
        bench_trlx._in_process(sys.executable, given, tmp_path)


@pytest.mark.parametrize(
    "changes, message", [({"shape": None}, "goes with --shape"), ({"iterations": 2}, "3 or more")]
)
def test_what_cannot_be_compared_is_refused(changes, message, tmp_path):
    case = Case(**{**vars(CASE), **changes})
    with pytest.raises(ConfigError, match=message):
        bench_trlx.beside_trlx(case, sys.executable, tmp_path)


COMMITTED = sorted((repo_root() / "figures/bench/trlx").glob("*.json"))


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_committed_figures_follow_from_their_own_seconds(path):
    result = read_json(path)
    again = bench_trlx.compared(result["engines"])
    assert {name: result[name] for name in again} == again
    for runs in result["engines"].values():
        assert sum(len(run["periods"]) for run in runs) >= 2
    assert result["engines"]["trlx"][0]["versions"]["transformers"] == "4.27.1"


def test_times_and_memory_are_drawn_for_each_engine():
    periods = [{"wall": 4.0, "cpu": 3.0}]
    found = {
        name: [{"periods": periods, "peak_memory_bytes": 2e9}] for name in bench_trlx.ENGINES
    }
    result = {"shape": "deep", "engines": found, **bench_trlx.compared(found)}
    for axes in beside_trlx_plot([result, result]).axes:
        assert [bar.get_width() for bar in axes.patches] == [3.0] * 3
        assert [text.get_text() for text in axes.texts] == [" 3.00 s, 2.00 GB"] * 3
        assert axes.get_title(loc="left") == "deep: 1.0 and 1.0 times faster"
