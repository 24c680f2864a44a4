"""Files of preferences: what is read, and the sentence for what is not. The simulated annotator."""

import gzip
import json
import math

import numpy as np
import pytest

from rlhf_helpers.config.checks import ConfigError
from rlhf_helpers.data.assets import REGISTRY, AssetError
from rlhf_helpers.rewards import preferences
from rlhf_helpers.rewards.annotator import Gold, annotate, logit
from rlhf_helpers.rewards.preferences import (
    Candidates,
    Pair,
    load_pairs,
    read_pairs,
    tie_line,
    write_pairs,
)

PAIRS = [
    Pair("This movie was", " a joy.", " dull."),
    Pair('He said: "', 'Größe"\nindeed', "no\u2028way"),  # a line end for str.splitlines
]


def written(path, *lines):
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text(text + "\n", encoding="utf-8")
    return path


def test_what_is_written_is_read_again(tmp_path):
    write_pairs(tmp_path / "p.jsonl", PAIRS)
    assert read_pairs(tmp_path / "p.jsonl") == PAIRS
    assert load_pairs(tmp_path / "p.jsonl") == PAIRS
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text("utf-8").split("\n")[:2]]
    assert lines[0] == {"prompt": "This movie was", "chosen": " a joy.", "rejected": " dull."}


def test_ties_empty_lines_and_further_fields_do_no_harm(tmp_path):
    tie = tie_line(Candidates("a", "b", "c"))
    assert tie == {"prompt": "a", "tie": ["b", "c"]}
    line = {"prompt": "p", "chosen": "x", "rejected": "y", "annotator": "me", "seconds": 3}
    assert read_pairs(written(tmp_path / "p.jsonl", tie, "", line)) == [Pair("p", "x", "y")]


GOOD = {"prompt": "p", "chosen": "x", "rejected": "y"}


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("{", "line 3 is no JSON"),
        ("[1, 2]", "line 3 is [1, 2]: give an object"),
        ({"prompt": "p", "chosen": "x"}, "line 3: rejected is missing"),
        ({"prompt": "p", "chosen": 4, "rejected": "y"}, "line 3: chosen is 4"),
        ({"prompt": None, "chosen": "x", "rejected": "y"}, "line 3: prompt is None"),
        ({"prompt": "p", "chosen": "x", "rejected": "x"}, "line 3: chosen and rejected are the sa"),
        ({"prompt": "p", "tie": "x"}, "line 3: tie is 'x'"),
        ({"chosen": "Hello", "rejected": "Help"}, "line 3: there is no prompt"),
        ("[" * 100_000, "line 3 is no JSON"),
    ],
)
def test_a_bad_file_is_refused_in_one_sentence_with_the_line(tmp_path, bad, said):
    with pytest.raises(ConfigError) as caught:
        read_pairs(written(tmp_path / "p.jsonl", GOOD, "", bad, GOOD))
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


def test_files_that_are_no_text_or_hold_nothing(tmp_path):
    (tmp_path / "b.jsonl").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "z.jsonl.gz").write_bytes(b"no gzip at all")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(json.dumps(GOOD).encode() * 900)[:-20])
    (tmp_path / "e.jsonl").write_text("\n")
    for name, said in (("b.jsonl", "UTF-8"), ("z.jsonl.gz", "UTF-8"), ("cut.jsonl.gz", "cannot be"),
                       ("e.jsonl", "holds no pair")):  # fmt: skip
        with pytest.raises(ConfigError, match=said):
            load_pairs(tmp_path / name)


# --- Anthropic/hh-rlhf -------------------------------------------------------------------------

QUESTION = "\n\nHuman: What is a dog?\n\nAssistant:"


def dialogue(*turns):
    return {"chosen": QUESTION + turns[0], "rejected": QUESTION + turns[1]}


def test_the_prompt_of_two_dialogues_is_what_they_share_up_to_the_answer():
    """Two answers that begin alike ("It is") are still whole answers."""
    lines = dialogue(" It is a pet.", " It is a cat.")
    pair = preferences._pair(lines, "here")
    assert pair == Pair(QUESTION, " It is a pet.", " It is a cat.")
    more = "\n\nHuman: And a cat?\n\nAssistant:"
    longer = dialogue(" A pet." + more + " Too.", " A pet." + more + " No idea.")
    assert preferences._pair(longer, "here").prompt == QUESTION + " A pet." + more
    # The conversations part in the first answer: what follows belongs to the answers.
    parted = dialogue(" A pet." + more + " Too.", " A thing." + more + " Too.")
    assert preferences._pair(parted, "here").chosen == " A pet." + more + " Too."


@pytest.fixture
def hub_copy(tmp_path):
    """A folder laid out like Anthropic/hh-rlhf, with a few lines in each part."""
    root = tmp_path / "hh"
    for part, words in (("helpful-base", ["a", "b"]), ("harmless-base", ["c"])):
        for split in ("train", "test"):
            (root / part).mkdir(parents=True, exist_ok=True)
            lines = [dialogue(f" {w} {split}", " bad") for w in words]
            lines.append(dialogue(" same", " same"))  # there are such
            lines.append(dialogue(" something", " "))  # and such
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (root / part / f"{split}.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    (root / "red-team-attempts").mkdir()
    (root / "red-team-attempts" / "red_team_attempts.jsonl.gz").write_bytes(gzip.compress(b"[]"))
    return root


def test_all_parts_of_the_hub_or_one(hub_copy, monkeypatch):
    assert [p.chosen for p in load_pairs(hub_copy)] == [" c train", " a train", " b train"]
    assert [p.chosen for p in load_pairs(hub_copy, split="test")][0] == " c test"
    asked = []

    def found(name, kind):
        asked.append((name, kind))
        return type("Found", (), {"path": hub_copy})

    monkeypatch.setattr(preferences, "find_asset", found)
    pairs = load_pairs("Anthropic/hh-rlhf:helpful-base")
    assert [p.chosen for p in pairs] == [" a train", " b train"]
    assert asked == [("Anthropic/hh-rlhf", "dataset")]
    with pytest.raises(ConfigError, match="harmless-base, helpful-base, red-team-attempts"):
        load_pairs("Anthropic/hh-rlhf:helpless")


def test_the_hub_asset_is_pinned_and_a_name_that_is_nothing_is_said(monkeypatch):
    assert len(REGISTRY["Anthropic/hh-rlhf"].revision) == 40
    with pytest.raises(AssetError, match="neither an existing path"):
        load_pairs("no such file.jsonl")


# --- the simulated annotator -----------------------------------------------------------------


def test_gold_of_sentiment_is_a_logit():
    assert logit([0.5, 0.9]).tolist() == pytest.approx([0, math.log(9)])
    assert np.isfinite(logit([0.0, 1.0])).all()
    gold = Gold.measured_on([0.1, 0.9], None, 0)
    assert gold.of([0.75]).tolist() == pytest.approx([math.log(3)]) and gold.name == "sentiment"


def test_gold_of_both_adds_what_is_measured_in_standard_deviations():
    # Logits -1, 1 (mean 0, deviation 1); fluency -6, -4 (mean -5, deviation 1).
    p = 1 / (1 + math.e)
    gold = Gold.measured_on([p, 1 - p], [-6.0, -4.0], fluency_weight=0.5)
    assert gold.of([0.5, 1 - p], [-5.0, -7.0]).tolist() == pytest.approx([0, 1 - 0.5 * 2])
    assert gold.name == "sentiment and fluency"
    with pytest.raises(ConfigError, match="all alike"):
        Gold.measured_on([0.5, 0.5], [-6.0, -4.0], 1.0)


def test_the_annotator_says_what_bradley_terry_says_as_often_as_it_says(tmp_path):
    candidates = [Candidates("p", f"first {i}", f"second {i}") for i in range(20_000)]
    pairs = annotate(candidates, np.full(20_000, 2 * math.log(3)), 2.0, 0.2, seed=1)
    firsts = sum(pair.chosen.startswith("first") for pair in pairs) / len(pairs)
    assert firsts == pytest.approx(0.7, abs=0.01)  # 0.8 * 3/4 + 0.2 / 2
    for candidate, pair in zip(candidates[:50], pairs, strict=False):
        assert {pair.chosen, pair.rejected} == {candidate.first, candidate.second}
    assert annotate(candidates[:9], np.ones(9), 1, 0, 5) == annotate(
        candidates[:9], np.ones(9), 1, 0, 5
    )


def test_nobody_prefers_one_of_two_equal_texts():
    with pytest.raises(ConfigError, match="pair 1 has twice"):
        annotate([Candidates("p", "a", "b"), Candidates("p", "a", "a")], [1, 0], 1, 0, 0)
