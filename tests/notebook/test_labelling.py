"""The labelling widget, its buttons pressed by code."""

import json

import pytest

from rlhf_helpers.config.checks import ConfigError
from rlhf_helpers.notebook import labelling as module
from rlhf_helpers.notebook.labelling import PairLabeller, answers_to, label_pairs
from rlhf_helpers.rewards.preferences import Candidates, Pair, read_lines, read_pairs

CANDIDATES = [Candidates(f"prompt {i}", f" first {i}", f" second {i}") for i in range(4)]


def press(labeller, name):
    (button,) = [b for b in labeller.buttons if b.description.startswith(name)]
    button.click()


def shown(labeller):
    return " ".join(box.value for box in labeller.texts)


def test_each_click_is_in_the_file_before_the_next(tmp_path):
    path = tmp_path / "made" / "preferences.jsonl"
    labeller = PairLabeller(CANDIDATES, path)
    assert " first 0" in shown(labeller) and "0 of 4" in labeller.state.value
    press(labeller, "A")
    assert read_pairs(path) == [Pair("prompt 0", " first 0", " second 0")]
    assert " first 1" in shown(labeller)
    press(labeller, "B")
    press(labeller, "No difference")
    assert read_pairs(path)[1] == Pair("prompt 1", " second 1", " first 1")
    assert read_lines(path)[2] == {"prompt": "prompt 2", "tie": [" first 2", " second 2"]}
    assert "3 of 4 answered, 1 of them" in labeller.state.value and labeller.bar.value == 3


def test_undo_takes_the_last_answer_back(tmp_path):
    path = tmp_path / "p.jsonl"
    labeller = PairLabeller(CANDIDATES, path)
    assert labeller.buttons[3].disabled
    for name in ("A", "No difference", "Undo", "B", "Undo", "Undo", "B"):
        press(labeller, name)
    assert read_pairs(path) == [Pair("prompt 0", " second 0", " first 0")]
    assert " first 1" in shown(labeller)
    press(labeller, "Undo")
    assert path.read_text() == "" and labeller.buttons[3].disabled
    press(labeller, "Undo")  # a click that came late
    assert " first 0" in shown(labeller)


def test_it_goes_on_where_the_file_ends_and_keeps_other_lines(tmp_path):
    path = tmp_path / "p.jsonl"
    other = {"prompt": "another notebook's", "chosen": "x", "rejected": "y"}
    path.write_text(json.dumps(other) + "\n")
    press(PairLabeller(CANDIDATES, path), "A")
    # The same pairs, shown the other way round.
    turned = [Candidates(c.prompt, c.second, c.first) for c in CANDIDATES]
    labeller = PairLabeller(turned, path)
    assert " first 1" in shown(labeller) and "1 of 4" in labeller.state.value
    assert labeller.buttons[3].disabled  # nothing of this session
    press(labeller, "B")
    assert read_lines(path)[0] == other and len(read_pairs(path)) == 3
    assert read_pairs(path)[2] == Pair("prompt 1", " first 1", " second 1")


def test_when_all_are_answered_only_undo_is_left(tmp_path):
    labeller = PairLabeller(CANDIDATES[:1], tmp_path / "p.jsonl")
    press(labeller, "B")
    assert [b.disabled for b in labeller.buttons] == [True, True, True, False]
    assert "All answers are in p.jsonl" in labeller.prompt.value and shown(labeller) == " "
    press(labeller, "A")
    assert len(read_pairs(tmp_path / "p.jsonl")) == 1


def test_texts_of_a_model_are_no_html(tmp_path):
    evil = Candidates("<b>", "<script>alert(1)</script>", "x & y")
    text = shown(PairLabeller([evil], tmp_path / "p.jsonl"))
    assert "<script>" not in text and "&lt;script&gt;" in text and "x &amp; y" in text


def test_a_click_that_cannot_be_kept_does_not_move_on(tmp_path, monkeypatch):
    labeller = PairLabeller(CANDIDATES, tmp_path / "p.jsonl")

    def full(path, lines):
        raise OSError("no space left on device")

    monkeypatch.setattr(module, "write_jsonl", full)
    with pytest.raises(OSError):
        labeller.answer("A")
    assert " first 0" in shown(labeller) and not labeller.given and not labeller.lines


def test_a_file_that_is_none_is_said(tmp_path):
    (tmp_path / "p.jsonl").write_text("not json\n")
    with pytest.raises(ConfigError, match="line 1"):
        PairLabeller(CANDIDATES, tmp_path / "p.jsonl")


def test_where_nobody_sits_the_first_pair_is_printed(tmp_path, capsys, monkeypatch):
    assert label_pairs(CANDIDATES, tmp_path / "p.jsonl") is None
    assert "prompt 0 second 0" in capsys.readouterr().out
    assert not (tmp_path / "p.jsonl").exists()
    monkeypatch.setattr(module, "in_live_notebook", lambda: True)
    widget = label_pairs(CANDIDATES, tmp_path / "p.jsonl")
    assert len(widget.children) == 4


def test_the_reader_s_answers_take_the_place_of_the_simulated_ones(tmp_path, monkeypatch):
    path = tmp_path / "p.jsonl"
    simulated = [Pair(c.prompt, c.first, c.second) for c in CANDIDATES[:3]]
    monkeypatch.setattr(module, "in_live_notebook", lambda: True)
    assert answers_to(simulated, path) == simulated  # nobody has answered
    labeller = PairLabeller(CANDIDATES, path)
    for name in ("No difference", "B", "A", "A"):
        press(labeller, name)
    # Ties are no answers, and the fourth pair is not among those asked for.
    assert answers_to(simulated, path) == [
        Pair("prompt 1", " second 1", " first 1"), Pair("prompt 2", " first 2", " second 2")
    ]  # fmt: skip
    assert answers_to(simulated[:1], path) == simulated[:1]
    monkeypatch.setattr(module, "in_live_notebook", lambda: False)
    assert answers_to(simulated, path) == simulated
