"""What 01_setup finds out about data, model and memory: the file setup.json of a run directory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rlhf_helpers.config.profiles import Profile
from rlhf_helpers.data.reviews import (
    HELD_OUT_BUCKET,
    JUDGE_BUCKETS,
    REWARD_BUCKETS,
    heldout_prompts,
    load_reviews,
    review_opening,
    training_prompts,
)

if TYPE_CHECKING:
    from datasets import Dataset

USES = {
    "held out: nothing is trained on it": (HELD_OUT_BUCKET,),
    "labels for the independent judge": tuple(JUDGE_BUCKETS),
    "labels for the reward model": tuple(REWARD_BUCKETS),
}


def setup_report(profile: Profile) -> dict[str, Any]:
    """`data`, `model` and `memory` of a profile; loads the data, and no weights."""
    reviews = load_reviews(profile.assets["data"])
    model = model_report(profile)
    return {"data": data_report(profile, reviews), "model": model, "memory": model.pop("memory")}


def data_report(profile: Profile, reviews: Dataset) -> dict[str, Any]:
    """How many reviews serve which purpose, how many prompts there are, and one example."""
    buckets, labels = reviews["bucket"][:], reviews["label"][:]
    words = profile.prompts["words"]
    uses = []
    for use, chosen in USES.items():
        own = [label for label, bucket in zip(labels, buckets, strict=True) if bucket in chosen]
        uses.append({
            "buckets": "-".join(str(b) for b in dict.fromkeys((chosen[0], chosen[-1]))),
            "use": use, "reviews": len(own), "positive": sum(own) / len(own),
        })  # fmt: skip
    texts = reviews["text"][:]
    openings = [review_opening(t, words) for t, b in zip(texts, buckets, strict=True) if b == 0]
    training = training_prompts(reviews, words)
    return {
        "reviews": len(texts),
        "uses": uses,
        "example": {"text": texts[0], "prompt": review_opening(texts[0], words),
                    "label": labels[0], "bucket": buckets[0]},
        "training_prompts": len(training),
        "distinct_training_prompts": len(set(training)),
        "first_training_prompts": training[:5],
        "openings_of_bucket_0": len(set(openings)),
        "heldout_prompts": len(heldout_prompts(reviews, words)),
    }  # fmt: skip


def model_report(profile: Profile) -> dict[str, Any]:
    """Sizes of the policy from its configuration alone, and the memory that a run needs."""
    from rlhf_helpers.lab.memory import predict_profile, profile_shape
    from rlhf_helpers.models.lora import meta_report

    model = profile.config.model
    config = profile_shape(profile)
    report = meta_report(config, model)
    memory = predict_profile(profile)
    return {
        "type": config.model_type,
        "layers": config.num_hidden_layers,
        "width": config.hidden_size,
        "vocabulary": config.vocab_size,
        "parameters": report["total"] - report["lora"],
        "lora": report["lora"],
        "value_head": report["value_head"],
        "memory": memory.parts,
        "memory_phase": memory.peak_phase,
    }
