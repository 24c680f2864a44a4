"""The verdict on a run, in one word and one sentence, and what got worse, in words.

Both read the dict that `evaluation.summarise_pair` builds. The rules are tried in this
order; the first that holds gives the verdict:

collapsed   the outputs lost their variety: distinct-2 fell under COLLAPSED_DISTINCT_2 of
            what it was, or one 4-word phrase is in more than COLLAPSED_PHRASE_SHARE of the
            outputs and was not before, or the outputs shrank under COLLAPSED_LENGTH of
            their words. Whatever the reward says.
no_change   the interval of the paired reward difference does not lie above zero.
gamed       the reward rose, but the independent judge did not confirm it: its interval
            does not lie above zero, or its gain is under GAMED_JUDGE_GAIN of the reward's. Or both
            rose and the perplexity of the outputs under the untuned model rose over
            GAMED_PERPLEXITY of what it was: a judge that counts words is pleased by heaps of
            praise too, and whether they are still language the model that was there before can
            tell.
narrower    reward and judge rose, and distinct-2 fell under NARROWER_DISTINCT_2 of what it
            was, or self-BLEU rose by more than NARROWER_SELF_BLEU.
improved    reward and judge rose, and the variety held.
"""

from __future__ import annotations

COLLAPSED_DISTINCT_2 = 0.5  # after / before
COLLAPSED_PHRASE_SHARE = 0.5  # of the outputs
COLLAPSED_LENGTH = 0.25  # after / before, in words
GAMED_JUDGE_GAIN = 0.25  # judge's gain / reward's gain
# After / before. Set after a run without any KL penalty had come out as "narrower", with a ratio of
# 2.1 and a judge that had been fooled too.
GAMED_PERPLEXITY = 1.5
NARROWER_DISTINCT_2 = 0.8  # after / before
NARROWER_SELF_BLEU = 0.1  # rise, on a scale of 0 to 1

WORSE_RATIO = 0.05  # relative change of a diversity measure that is worth a line
WORSE_LENGTH = 0.1  # relative change of the length
WORSE_SHARE = 0.05  # change of a share of the samples
WORSE_SELF_BLEU = 0.02
WORSE_PERPLEXITY = 0.1  # relative change
JUDGE_LAGS = 0.5  # judge's gain / reward's gain

VERDICTS = ("improved", "narrower", "gamed", "collapsed", "no_change")


def verdict(summary: dict) -> tuple[str, str]:
    """One of VERDICTS and the sentence that gives its reason."""
    gain, judge = summary["paired_difference"], summary["judge_difference"]
    rose = f"the reward rose by {_interval(gain)}"
    collapse = _collapse(summary)
    if collapse:
        return "collapsed", f"The outputs lost their variety: {collapse}."
    if gain["high"] < 0:
        return "no_change", f"No improvement: the reward fell by {_interval(_negated(gain))}."
    if gain["low"] <= 0:
        return "no_change", (
            f"The reward changed by {_interval(gain)}: zero is inside the interval, so that "
            "this may be noise."
        )
    if judge is not None and judge["low"] <= 0:
        return "gamed", (
            f"{_capital(rose)}, but the independent judge does not confirm it: its score "
            f"changed by {_interval(judge)}."
        )
    if judge is not None and judge["mean"] < GAMED_JUDGE_GAIN * gain["mean"]:
        return "gamed", f"{_capital(rose)}, but the independent judge's by only {_interval(judge)}."
    if _ratio(summary, "perplexity") > GAMED_PERPLEXITY:
        odd = _change("perplexity under it went", summary, "perplexity", ".0f")
        return "gamed", (
            f"{_capital(rose)}, but the untuned model no longer takes the outputs for language: "
            f"{odd}."
        )
    confirmed = (
        "no independent judge was asked"
        if judge is None
        else f"the independent judge confirms it with {_interval(judge)}"
    )
    narrowing = _narrowing(summary)
    if narrowing:
        return "narrower", f"{_capital(rose)} and {confirmed}, but {narrowing}."
    return "improved", f"{_capital(rose)}, {confirmed}, and the outputs kept their variety."


def _collapse(summary: dict) -> str | None:
    """What says that the outputs collapsed, or None."""
    if _ratio(summary, "distinct_2") < COLLAPSED_DISTINCT_2:
        return _change("distinct-2 fell", summary, "distinct_2")
    share = summary["top_4gram_share_after"]
    if share > COLLAPSED_PHRASE_SHARE >= summary["top_4gram_share_before"]:
        phrase = _widest_phrase(summary)
        return f'"{phrase}" is in {_percent(share)} of the outputs'
    if _ratio(summary, "length_words") < COLLAPSED_LENGTH:
        return _change("the mean length fell", summary, "length_words", ".1f") + " words"
    return None


def _narrowing(summary: dict) -> str | None:
    """What says that the outputs became more alike, or None."""
    if _ratio(summary, "distinct_2") < NARROWER_DISTINCT_2:
        return _change("distinct-2 fell", summary, "distinct_2")
    if _rise(summary, "self_bleu") > NARROWER_SELF_BLEU:
        return _change("self-BLEU rose", summary, "self_bleu")
    return None


def what_got_worse(summary: dict) -> list[str]:
    """Every cost worth a line, in words and numbers, the reward's own losses first."""
    return [line for line in (*_reward_lines(summary), *_text_lines(summary)) if line]


def _reward_lines(summary: dict) -> list[str | None]:
    gain, judge = summary["paired_difference"], summary["judge_difference"]
    lines: list[str | None] = []
    if gain["high"] < 0:
        lines.append(f"The reward fell by {_interval(_negated(gain))}.")
    lower = summary["share_of_prompts_lower"]
    if lower > 0:
        count, n = round(lower * summary["n_prompts"]), summary["n_prompts"]
        lines.append(f"{count} of {n} prompts ({_percent(lower)}) score lower than before.")
    for name, group in summary["groups"].items():
        change = group["paired_difference"]
        if change["high"] < 0 and group["n_samples"] != summary["n_samples"]:
            fell = _interval(_negated(change))
            lines.append(f'In the group "{name}" the reward fell by {fell}.')
        for row in group.get("prompts", []) if name not in ("hostile", "neutral") else []:
            if row["paired_difference"]["mean"] < 0:
                what = f"the mean reward of {row['n_samples']} samples fell"
                lines.append(f'For "{row["prompt"]}" {_change(what, row, "reward")}.')
    if judge is not None and gain["low"] > 0 and judge["mean"] < JUDGE_LAGS * gain["mean"]:
        lines.append(
            f"The independent judge sees a gain of {judge['mean']:.3f} where the reward gains "
            f"{gain['mean']:.3f}: part of the gain may please the reward model alone."
        )
    return lines


def _text_lines(summary: dict) -> list[str | None]:
    lines: list[str | None] = []
    for n in (1, 2, 3):
        if _ratio(summary, f"distinct_{n}") < 1 - WORSE_RATIO:
            lines.append(_change(f"Distinct-{n} fell", summary, f"distinct_{n}") + ".")
    if _rise(summary, "self_bleu") > WORSE_SELF_BLEU:
        lines.append(_change("The outputs resemble each other more: self-BLEU rose", summary,
                             "self_bleu") + ".")
    if summary["top_4gram_share_after"] > summary["top_4gram_share_before"] + WORSE_SHARE:
        lines.append(
            f'"{_widest_phrase(summary)}" is in {_percent(summary["top_4gram_share_after"])} of '
            f"the outputs; before, no four words were in more than "
            f"{_percent(summary['top_4gram_share_before'])}."
        )
    if abs(_ratio(summary, "length_words") - 1) > WORSE_LENGTH:
        lines.append(_change("The mean length went", summary, "length_words", ".1f") + " words.")
    if abs(_rise(summary, "ended_share")) > WORSE_SHARE:
        before, after = (_percent(summary[f"ended_share_{when}"]) for when in ("before", "after"))
        lines.append(
            f"The share of outputs that end by themselves went from {before} to {after}."
        )
    if abs(_ratio(summary, "perplexity") - 1) > WORSE_PERPLEXITY:
        odd = _ratio(summary, "perplexity") > 1
        lines.append(
            _change("The perplexity of the outputs under the untuned model went", summary,
                    "perplexity", ".1f")
            + (": they are less like it." if odd else ": they are blander.")
        )
    return lines


def _widest_phrase(summary: dict) -> str:
    """The 4-gram found in the most outputs after training."""
    if "top_4gram_after" in summary:
        return summary["top_4gram_after"]
    phrases = summary["repeated_4grams_after"]  # measured before that was noted: the likeliest
    return max(phrases, key=lambda row: row["samples"])["ngram"] if phrases else ""


def _ratio(summary: dict, field: str) -> float:
    """After / before; 1 where it was not measured or was zero before."""
    before, after = summary[f"{field}_before"], summary[f"{field}_after"]
    return after / before if before and after is not None else 1.0


def _rise(summary: dict, field: str) -> float:
    """After - before; 0 where it was not measured."""
    before, after = summary[f"{field}_before"], summary[f"{field}_after"]
    return 0.0 if before is None or after is None else after - before


def _change(words: str, summary: dict, field: str, form: str = ".3f") -> str:
    """'distinct-2 fell from 0.812 to 0.401'."""
    before, after = summary[f"{field}_before"], summary[f"{field}_after"]
    return f"{words} from {before:{form}} to {after:{form}}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _interval(value: dict) -> str:
    return f"{value['mean']:.3f} ({value['low']:.3f} to {value['high']:.3f})"


def _negated(value: dict) -> dict:
    return {"mean": -value["mean"], "low": -value["high"], "high": -value["low"]}


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
