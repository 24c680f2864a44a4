"""Rewards of text: the sentiment scorer, a guarded call of reward functions, and checks of
what they returned."""

from __future__ import annotations

import decimal
import inspect
import itertools
import math
import numbers
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from rlhf_helpers.config.checks import Sentence, shown
from rlhf_helpers.data.assets import asset_loaded, find_asset
from rlhf_helpers.environment import local_device
from rlhf_helpers.runs.tensors import merge_adapters, read_tensors

if TYPE_CHECKING:
    from transformers import TextClassificationPipeline

ENCODER = "all-minilm-l6-v2"
LABELS = {0: "NEGATIVE", 1: "POSITIVE"}

# Errors that a second call with the same samples would only repeat.
PROGRAMMING_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    NotImplementedError,
    SyntaxError,
    TypeError,
)


LARGEST = 1e30  # rewards are stored as float32, and their squares are summed


class RewardError(Sentence, ValueError):
    """A reward function failed or returned something unusable; the message says what to do."""


# --- the sentiment scorer ------------------------------------------------------------------


def load_classifier(encoder: str | Path, adapter: str | Path) -> BertForSequenceClassification:
    """The MiniLM encoder with the adapter in `adapter` merged into its weights, in float32.

    peft's file format is read here without peft, which some notebook images cannot import:
    W <- W + (lora_alpha / r) * lora_B @ lora_A for each LoRA pair; other tensors replace theirs.
    """
    config = BertConfig.from_pretrained(
        encoder, id2label=LABELS, label2id={label: i for i, label in LABELS.items()}
    )
    model = BertForSequenceClassification(config).eval()
    encoder_weights = read_tensors(Path(encoder) / "model.safetensors")
    encoder_weights.pop("embeddings.position_ids", None)  # a buffer that newer versions compute
    model.bert.load_state_dict(encoder_weights)
    with asset_loaded(str(adapter), "reward adapter"):
        merge_adapters(model, [Path(adapter)])
    return model


def sentiment_pipeline(
    name: str, device: int | str | torch.device | None = None, batch_size: int = 256
) -> TextClassificationPipeline:
    """`transformers.pipeline("sentiment-analysis", top_k=2)` as the post calls it.

    Called with a list of texts it returns, for each, [{"label": "POSITIVE", "score": p}, ...].
    `name` is "sentiment-minilm", a directory that train-reward wrote, or any classifier with
    these labels, such as lvwerra/distilbert-imdb. `device` None takes the GPU if there is one.
    """
    return pipeline(
        "sentiment-analysis", name, top_k=2, truncation=True, batch_size=batch_size,
        device=local_device() if device is None else device,
    )  # fmt: skip


def pipeline(task: str, model: str, **kwargs: Any) -> Any:
    """`transformers.pipeline`, which finds this project's assets by their names as well."""
    path = find_asset(model).path
    if not (path / "adapter_config.json").exists():
        with asset_loaded(model, "text classifier"):
            return transformers.pipeline(task, model=str(path), tokenizer=str(path), **kwargs)
    encoder = find_asset(ENCODER).path
    return transformers.pipeline(
        task,
        model=load_classifier(encoder, path),
        tokenizer=AutoTokenizer.from_pretrained(encoder),
        **kwargs,
    )


def get_positive_score(scores: Iterable[dict[str, Any]]) -> float:
    """P(POSITIVE) from one text's output of the sentiment pipeline, as in trlX's examples."""
    return score_of(scores, "POSITIVE")


def score_of(scores: Iterable[dict[str, Any]], label: str) -> float:
    """The probability of one label in one text's output of the sentiment pipeline."""
    by_label = {score["label"]: score["score"] for score in scores}
    if label not in by_label:
        raise RewardError(
            f"the sentiment model has the labels {', '.join(map(repr, by_label))} but no "
            f"{label!r}: choose a model whose id2label says POSITIVE and NEGATIVE."
        )
    return by_label[label]


def sentiment_reward(
    name: str,
    device: int | str | torch.device | None = None,
    batch_size: int = 64,
    label: str = "POSITIVE",
    text: str = "sample",
) -> Callable[..., list[float]]:
    """A reward function: P(POSITIVE) of each whole sample, in the order of the samples.

    `label` may be NEGATIVE instead; with `text` "output" the prompt is not scored along.
    Texts of like length share a batch, so that little padding is computed.
    """
    sentiment_fn = sentiment_pipeline(name, device, batch_size)

    def reward_fn(samples: list[str], **kwargs: Any) -> list[float]:
        if text == "output":
            samples = kwargs.get("outputs", samples)
        if not samples:  # the pipeline cannot take an empty list
            return []
        order = sorted(range(len(samples)), key=lambda i: (len(samples[i]), i))
        scores = sentiment_fn([samples[i] for i in order])
        rewards = [0.0] * len(samples)
        for i, score in zip(order, scores, strict=True):
            rewards[i] = score_of(score, label)
        return rewards

    return reward_fn


# --- calling a reward function -------------------------------------------------------------


def call_reward_fn(
    reward_fn: Callable[..., Any],
    timeout_seconds: float | None = None,
    retries: int = 0,
    backoff_seconds: float = 1.0,
    **kwargs: Any,
) -> Any:
    """`reward_fn(**kwargs)`, with a time limit and further attempts after a failure.

    An attempt that runs out of time, or raises what may be transient (not a programming error),
    is repeated up to `retries` times, after 1, 2, 4, ... times `backoff_seconds`. RewardError
    when all attempts failed, with the last exception as its cause. A call that hangs cannot be
    killed: its thread is left behind and its result ignored.
    """
    for attempt in range(1, retries + 2):
        try:
            return _call_within(reward_fn, timeout_seconds, kwargs)
        except Exception as error:
            if attempt > retries or isinstance(error, PROGRAMMING_ERRORS):
                raise RewardError(_failure(error, timeout_seconds, attempt)) from error
        time.sleep(backoff_seconds * 2 ** (attempt - 1))


class _OutOfTime(Exception):
    pass


def _call_within(reward_fn: Callable[..., Any], seconds: float | None, kwargs: dict) -> Any:
    """Call in this thread, or in a daemon thread of which only `seconds` are awaited."""
    if seconds is None:
        return _computed(reward_fn(**kwargs))
    outcome: dict[str, Any] = {}

    def target() -> None:
        try:
            outcome["value"] = _computed(reward_fn(**kwargs))
        except BaseException as error:  # carried over to the caller's thread
            outcome["error"] = error

    thread = threading.Thread(target=target, name="reward_fn", daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise _OutOfTime
    if "error" in outcome:
        raise outcome["error"]
    return outcome["value"]


def _computed(value: Any) -> Any:
    """What a generator has still to compute, computed: its errors are those of the call."""
    if inspect.iscoroutine(value):
        value.close()  # or Python warns that nobody waited for it
    if inspect.isawaitable(value) or inspect.isasyncgen(value):
        raise TypeError("it is an async function: give a plain one, which may call asyncio.run")
    return list(itertools.islice(value, 1_000_000)) if isinstance(value, Iterator) else value


def _failure(error: Exception, timeout_seconds: float | None, attempt: int) -> str:
    attempts = f"after {attempt} attempts" if attempt > 1 else "at the first attempt"
    if isinstance(error, _OutOfTime):
        return (
            f"reward_fn did not return within {timeout_seconds:g} s, given up {attempts}: make "
            f"it faster, or raise train.reward_timeout_seconds or train.reward_retries."
        )
    if isinstance(error, PROGRAMMING_ERRORS):
        remedy = "mend the function (the traceback above shows where)"
    else:
        remedy = "if that can pass by itself, raise train.reward_retries"
    said = shown(str(error), 500).strip("'\"")
    return f"reward_fn raised {type(error).__name__}: {said}, given up {attempts}: {remedy}."


# --- checking what it returned -------------------------------------------------------------


def check_rewards(
    values: Any, samples: list[str], dense_ok: bool = False
) -> list[float] | list[list[float]]:
    """The rewards as Python floats, one per sample; RewardError if that is not what they are.

    Numbers of any kind are taken: int, bool, float, numpy, tensors on any device, in a list, an
    array, a tensor or an iterator. With `dense_ok` every sample may instead have a list of
    per-token rewards (trlX 0.7). Wrong length, None, NaN, infinity and strings are refused.
    """
    rows = _plain(values)
    if isinstance(rows, str | bytes | dict | set) or rows is None:
        raise RewardError(
            f"reward_fn returned {_show(rows)} ({type(values).__name__}): return a list with one "
            f"number per sample."
        )
    if not isinstance(rows, Iterable):
        rows = [rows]  # a bare number is harmless where there is one sample
    rows = [_plain(row) for row in itertools.islice(rows, len(samples) + 1000)]  # it may be endless
    if len(rows) != len(samples):
        raise RewardError(
            f"reward_fn returned {len(rows)} rewards for {len(samples)} samples: return one "
            f"number per sample, in the order of the samples."
        )
    dense = [isinstance(row, list | tuple) for row in rows]
    if not any(dense):
        return [_number(row, i, samples) for i, row in enumerate(rows)]
    if all(dense) and all(len(row) == 1 for row in rows):
        return [_number(_plain(row[0]), i, samples) for i, row in enumerate(rows)]  # [n, 1]
    wrong = 0 if not dense_ok else dense.index(False) if not all(dense) else None
    if wrong is not None:
        shape = "a list for some samples only" if dense_ok else "a list of rewards"
        raise RewardError(
            f"reward_fn returned {shape} (sample {wrong}, {_show(samples[wrong])}, got "
            f"{_show(rows[wrong])}): return one number for each sample"
            + (", or one list of per-token rewards for each." if dense_ok else ".")
        )
    return [
        [_number(_plain(v), i, samples, token) for token, v in enumerate(row)]
        for i, row in enumerate(rows)
    ]


def _plain(value: Any) -> Any:
    """Tensors and numpy values as Python's own numbers and lists; everything else as it is."""
    try:
        return value.tolist() if hasattr(value, "tolist") else value
    except Exception as error:  # a tensor on the meta device has no numbers, a sparse one no list
        raise RewardError(
            f"reward_fn returned {_show(type(value).__name__)} without numbers that can be read "
            f"({type(error).__name__}: {_show(str(error))}): return a list with one number per "
            "sample."
        ) from error


def _number(value: Any, index: int, samples: list[str], token: int | None = None) -> float:
    """`value` as a finite float, or RewardError with its place."""
    if isinstance(value, numbers.Real | decimal.Decimal):
        try:
            number = float(value)
        except (ArithmeticError, ValueError, TypeError):  # beyond floats, or a signalling NaN
            number = math.inf
        if abs(number) <= LARGEST:  # neither infinite nor NaN, nor so in float32
            return number
    place = f"sample {index}" + (f", token {token}" if token is not None else "")
    if isinstance(value, str):
        remedy = "convert it with float(...)"
    elif value is None:
        remedy = "return a number on every path of the function"
    else:
        remedy = f"return a finite number, of at most {LARGEST:g}"
    raise RewardError(
        f"reward_fn returned {_show(value)} ({type(value).__name__}) for {place}, "
        f"{_show(samples[index])}: {remedy}."
    )


def _show(value: Any, length: int = 60) -> str:
    return shown(value, length)
