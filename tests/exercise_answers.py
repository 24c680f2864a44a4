"""What the tests of all exercises share: a right answer is right, and each mistake is named."""

import pytest


def said(capsys, check, *given):
    """What a check prints of what it is given."""
    check(*given)
    return capsys.readouterr().out.strip()


def still_open(*_, **__):
    """A function that the reader has not written yet."""
    raise NotImplementedError


def name_of(given):
    return getattr(given, "__name__", None)


def right_answers(cases):
    """A test of (check, right answer)."""

    @pytest.mark.parametrize("check, answer", cases, ids=name_of)
    def test(capsys, check, answer):
        assert said(capsys, check, answer) == "Right."

    return test


def named_mistakes(cases):
    """A test of (check, words of its sentence, wrong answer)."""

    @pytest.mark.parametrize("check, words, wrong", cases, ids=name_of)
    def test(capsys, check, words, wrong):
        sentence = said(capsys, check, wrong)
        assert words in sentence
        assert sentence.startswith("Still open" if words.startswith("Still open") else "Not yet: ")

    return test
