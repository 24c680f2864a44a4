"""The commands of this room. Whatever takes time to import is imported inside them."""

from __future__ import annotations

import click


@click.command()
@click.option("--out", default="runs/pretrain", help="Where it goes.")
@click.option("--seed", type=int, default=0)
@click.option("--steps", type=int, help="Optimizer steps.", show_default="as the shipped model")
def pretrain(out, seed, steps) -> None:
    """Make the shipped policy tiny-opt-imdb again."""
    from rlhf_helpers.config.paths import resolve_run_dir

    from .pretrain import PretrainConfig
    from .pretrain import pretrain as make
    from .pretrain_report import publish

    config = PretrainConfig(seed=seed, **_given(steps=steps))
    out_dir = resolve_run_dir(out)
    model, tokenizer = make(out_dir, config)
    metrics = publish(out_dir, out_dir / "tiny-opt-imdb", model, tokenizer, config)
    print(f"{metrics['heldout']['bits_per_byte']:.3f} bits per byte; see {out_dir}/tiny-opt-imdb")


@click.command()
@click.option("--out", default="runs/pretrain_arithmetic", help="Where it goes.")
@click.option("--seed", type=int, default=0)
@click.option("--steps", type=int, help="Optimizer steps, at most.")
def pretrain_arithmetic(out, seed, steps) -> None:
    """Make tiny-opt-arithmetic again, the base model of notebook 07."""
    from rlhf_helpers.config.paths import resolve_run_dir

    from .arithmetic_report import NAME, publish_arithmetic
    from .pretrain_arithmetic import ArithmeticConfig
    from .pretrain_arithmetic import pretrain_arithmetic as make

    config = ArithmeticConfig(seed=seed, **_given(steps=steps))
    out_dir = resolve_run_dir(out)
    model, tokenizer = make(out_dir, config)
    found = publish_arithmetic(out_dir, out_dir / NAME, model, tokenizer, config)["heldout"]
    print(f"greedy {found['greedy']:.3f}, pass@1 {found['pass_at_1']:.3f}; see {out_dir / NAME}")


@click.command()
@click.option("--out", required=True, help="Directory for the trained part.")
@click.option("--steps", type=int, help="Optimizer steps.", show_default="as the shipped model")
@click.option("--seed", type=int, default=0)
@click.option("--eval-reviews", type=int, help="Measure on about N reviews of bucket 0, not all.")
def train_reward(out, steps, seed, eval_reviews) -> None:
    """Train the sentiment reward model again."""
    from .train_reward import RewardTrainConfig
    from .train_reward import train_reward as make

    config = RewardTrainConfig(seed=seed, eval_reviews=eval_reviews, **_given(steps=steps))
    metrics = make(out, config)
    for name in ("held_out_reviews", "held_out_snippets"):
        print(name, {k: v for k, v in metrics[name].items() if k != "bins"})


@click.command()
@click.option("--out", help="Directory for judge.npz.", show_default="that of the shipped judge")
@click.option("--seed", type=int, default=0, help="Of the pieces of reviews.")
def train_judge(out, seed) -> None:
    """Train the independent judge again, in under a minute on one CPU core."""
    from .train_judge import train_judge as make

    judge = make(seed=seed, **_given(out_dir=out))
    against, in_favour = judge.top_features()
    print("against:", ", ".join(against), "\nfor:    ", ", ".join(in_favour))


@click.command("fine-tune")
@click.option("--profile", default="smollm2", help="Whose model it is.")
@click.option("--out", default="runs/fine_tune", help="Where the adapter goes.")
@click.option("--steps", type=int, help="Optimizer steps.", show_default="250")
@click.option("--seed", type=int, default=0)
def fine_tune(profile, out, steps, seed) -> None:
    """Teach a profile's model to write reviews, before PPO: an adapter, its figures, its card."""
    from rlhf_helpers.config.paths import resolve_run_dir
    from rlhf_helpers.config.profiles import load_profile
    from rlhf_helpers.config.trl_config import TRLConfig
    from rlhf_helpers.data.adapters import base_of
    from rlhf_helpers.data.assets import find_asset

    from .fine_tune import FineTuneConfig
    from .fine_tune import fine_tune as make

    policy_config = load_profile(profile).config
    base = base_of(find_asset(policy_config.model.model_path).path)
    if base is not None:  # the profile's policy is such an adapter already: make it again
        changes = {"model.model_path": base, "tokenizer.tokenizer_path": base}
        policy_config = TRLConfig.update(policy_config, changes)
    config = FineTuneConfig(seed=seed, **_given(steps=steps))
    out_dir = resolve_run_dir(out)
    metrics = make(out_dir, policy_config, config)
    before, after = (metrics[when]["bits_per_byte"] for when in ("before", "after"))
    print(f"{before:.3f} -> {after:.3f} bits per byte; use it with --set assets.policy={out_dir}")


@click.command()
@click.argument("adapter", metavar="POLICY")
@click.option("--out", required=True, help="Directory for the plain model.")
def merge(adapter, out) -> None:
    """Write a tuned policy, e.g. runs/cpu/policy, as a plain model that transformers loads."""
    from rlhf_helpers.config.paths import resolve_run_dir
    from rlhf_helpers.progress import printable

    from .merge import merge as make

    print(printable(str(make(adapter, resolve_run_dir(out)))))


def _given(**options) -> dict:
    """The options that were given; what they go to has a default for the others."""
    return {name: value for name, value in options.items() if value is not None}
