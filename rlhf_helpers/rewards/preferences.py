"""Pairs of texts of which somebody preferred one, and the files that hold them.

A file has one JSON object a line:

    {"prompt": "This movie was", "chosen": " a joy to watch.", "rejected": " dull."}

`chosen` and `rejected` continue the prompt; other fields may stand beside them. Two more kinds of
line are read: a tie, {"prompt": ..., "tie": [text, text]}, which teaches nothing and is left out,
and a pair of whole dialogues without a prompt, as Anthropic/hh-rlhf has them
(arXiv:2204.05862), whose common beginning is the prompt.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlhf_helpers.config.checks import ConfigError, shown
from rlhf_helpers.config.reading import open_regular
from rlhf_helpers.data.assets import find_asset
from rlhf_helpers.runs.files import write_jsonl

ASSISTANT = "\n\nAssistant:"  # opens each answer of a dialogue in Anthropic/hh-rlhf


@dataclass(frozen=True)
class Candidates:
    """A prompt and two continuations of it, before anybody has said which is better."""

    prompt: str
    first: str
    second: str


@dataclass(frozen=True)
class Pair:
    """A prompt, the continuation that was preferred, and the other one."""

    prompt: str
    chosen: str
    rejected: str


# --- reading -------------------------------------------------------------------------------


def load_pairs(name: str | os.PathLike[str], split: str = "train") -> list[Pair]:
    """Pairs from a file, or from a data set of the hub or a folder laid out like one.

    `name` is a .jsonl or .jsonl.gz file, or "Anthropic/hh-rlhf" (about 160,000 pairs), or one of
    its parts, "Anthropic/hh-rlhf:helpful-base"; from those the files called <split>.jsonl.gz.
    Raises ConfigError for a file that is no such file, with the line, AssetError where there is
    none.
    """
    path, part = Path(name).expanduser(), ""
    if not os.path.exists(path):
        whole, _, part = os.fspath(name).partition(":")
        path = find_asset(whole, kind="dataset").path
    if path.is_file():
        return read_pairs(path)
    files = sorted(f for f in path.glob(f"{part or '*'}/{split}.jsonl*"))
    if not files:
        raise ConfigError(
            f"{path} has no {part or '<part>'}/{split}.jsonl: give one of its parts "
            f"({', '.join(sorted(p.name for p in path.iterdir() if p.is_dir())) or 'none'}) and a "
            "split that it has, or the path of a .jsonl file."
        )
    return [pair for file in files for pair in read_pairs(file)]


def read_pairs(path: str | os.PathLike[str]) -> list[Pair]:
    """The pairs of one file, in its order, ties left out.

    Of dialogues, those are left out that are equal or in which one side has no answer (there are
    such in Anthropic/hh-rlhf). Raises ConfigError with the first line that is neither.
    """
    pairs = [_pair(line, where) for where, line in _lines(Path(path))]
    found = [pair for pair in pairs if pair is not None]
    if not found:
        raise ConfigError(
            f"{path} holds no pair of texts: give one JSON object a line, with prompt, chosen and "
            "rejected."
        )
    return found


def read_lines(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Every line of a file as it stands there, ties too; ConfigError as in `read_pairs`."""
    found = []
    for where, line in _lines(Path(path)):
        _pair(line, where)
        found.append(line)
    return found


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each line that is not empty as (where it stands, its JSON object)."""
    try:
        with open_regular(path) as raw:
            file = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw
            for number, line in enumerate(file, start=1):
                if line.strip():
                    where = f"{path}, line {number}"
                    yield where, _object(line.decode("utf-8"), where)
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ConfigError(
            f"{path} cannot be read as text ({error}): give a .jsonl file in UTF-8, or a .jsonl.gz."
        ) from None


def _object(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where} is no JSON ({error}): give one object a line.") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{where} is {shown(value)}: give an object with prompt, chosen and "
                          "rejected.")  # fmt: skip
    return value


def _pair(line: dict[str, Any], where: str) -> Pair | None:
    """The pair of a line; None where nobody can learn from it."""
    if "tie" in line:
        if not isinstance(line["tie"], list) or len(line["tie"]) != 2:
            raise ConfigError(f"{where}: tie is {shown(line['tie'])}; give a list of two texts.")
        return None
    fields = ("chosen", "rejected") if "prompt" not in line else ("prompt", "chosen", "rejected")
    for field in fields:
        if not isinstance(line.get(field), str):
            has = f"{field} is {shown(line[field])}" if field in line else f"{field} is missing"
            raise ConfigError(f"{where}: {has}; give a text.")
    if "prompt" not in line:
        return _pair_of_dialogues(line["chosen"], line["rejected"], where)
    pair = Pair(line["prompt"], line["chosen"], line["rejected"])
    if pair.chosen == pair.rejected:
        raise ConfigError(
            f"{where}: chosen and rejected are the same text; leave the line out, or write "
            '"tie": [text, text] in place of the two.'
        )
    return pair


def _pair_of_dialogues(chosen: str, rejected: str, where: str) -> Pair | None:
    """Two dialogues that begin alike: the prompt ends where the answers that differ begin."""
    common = os.path.commonprefix([chosen, rejected])
    place = common.rfind(ASSISTANT)
    if place < 0:
        raise ConfigError(
            f"{where}: there is no prompt, and the two texts do not begin with the same turns up "
            f"to {ASSISTANT!r}; give a prompt, or two dialogues in the format of Anthropic/hh-rlhf."
        )
    end = place + len(ASSISTANT)
    pair = Pair(chosen[:end], chosen[end:], rejected[end:])
    usable = pair.chosen != pair.rejected and pair.chosen.strip() and pair.rejected.strip()
    return pair if usable else None


# --- writing -------------------------------------------------------------------------------


def pair_line(pair: Pair, **beside: Any) -> dict[str, Any]:
    """A pair as a line of a file, with other fields beside it."""
    return {**asdict(pair), **beside}


def tie_line(candidates: Candidates) -> dict[str, Any]:
    """Two texts between which somebody could not choose, as a line of a file."""
    return {"prompt": candidates.prompt, "tie": [candidates.first, candidates.second]}


def write_pairs(path: str | os.PathLike[str], pairs: Sequence[Pair]) -> None:
    """Write pairs to a file that `load_pairs` reads, all or nothing."""
    write_jsonl(path, [pair_line(pair) for pair in pairs])
