"""GSM8K: school problems in words, whose answers end in `#### 42` (Cobbe et al. 2021)."""

from __future__ import annotations

from pathlib import Path

from .assets import AssetError, find_asset, first_line

QUESTION = (
    "Solve the problem step by step, and end with #### and the number.\n\n"
    "Problem: {question}\nSolution:"
)


def gsm8k_prompts(name: str = "openai/gsm8k", split: str = "train") -> list[dict[str, str]]:
    """The problems of a split as prompts with their `answer`, for `gsm8k_verifier`.

    `name`: the hub's data set, or a local .jsonl or .parquet file with question and answer.
    AssetError where it cannot be read.
    """
    import pandas as pd

    path = find_asset(name, kind="dataset").path
    if path.is_dir():
        path = path / "main" / f"{split}-00000-of-00001.parquet"
    read = pd.read_parquet if path.suffix == ".parquet" else _read_lines
    try:
        frame = read(path)
        rows = list(zip(frame["question"], frame["answer"], strict=True))
    except Exception as error:  # pandas and Arrow raise many kinds
        raise _no_problems(path, f"{type(error).__name__}: {first_line(error)}") from error
    for number, row in enumerate(rows, 1):
        if not all(isinstance(text, str) and text.strip() for text in row) or "####" not in row[1]:
            raise _no_problems(path, f"row {number} has no question, or no #### in its answer")
    if not rows:
        raise _no_problems(path, "there is no row")
    return [{"prompt": QUESTION.replace("{question}", q), "answer": a} for q, a in rows]


def _read_lines(path: Path):
    import pandas as pd

    return pd.read_json(path, lines=True, dtype=False)


def _no_problems(path: Path, problem: str) -> AssetError:
    return AssetError(
        f"{path} cannot be read as problems ({problem}): give a .jsonl or .parquet file whose rows "
        "have a question and an answer that ends in #### and a number."
    )
