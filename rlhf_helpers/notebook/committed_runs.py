"""Keep what a finished run left, small enough to commit, and draw the README's figures from it.

    python -m rlhf_helpers keep runs/cpu
    python -m rlhf_helpers figures
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from rlhf_helpers.config.checks import ConfigError
from rlhf_helpers.config.paths import clone_root, resolve_run_dir
from rlhf_helpers.config.profiles import load_profile
from rlhf_helpers.runs.contents import read_manifest
from rlhf_helpers.runs.files import KEPT, RunDir, made_directory, refuse_links, remove, writing_to

MAX_BYTES = 5_000_000
# Of a further seed only what tables and figures of several seeds need.
KEPT_OF_A_SEED = ("config", "manifest", "metrics", "evaluation")
# Of the run that notebook 05 ends with: what it wrote, and the policy that writes more.
KEPT_WITHOUT_PENALTY = (*KEPT_OF_A_SEED, "policy", "after_samples")
# Of a policy's directory: the tokenizer is the base model's own, and the value head, often larger
# than the adapter, is needed to train on but not to sample.
LEFT_OUT = shutil.ignore_patterns(
    "tokenizer*", "special_tokens_map.json", "vocab.json", "merges.txt", "chat_template*",
    "value_head.safetensors",
)  # fmt: skip
# What `evaluate` adds to a finished run; kept where it is there.
KEPT_IF_THERE = ("evaluation_*.json", "judge_course.csv")


def keep_run(
    run_dir: str | Path,
    as_seed: bool = False,
    figures: Path | None = None,
    without_penalty: bool = False,
) -> Path:
    """Copy a finished run to figures/reference_runs/<profile> or figures/seeds/<profile>-<seed>.

    A further seed under other semantics than the profile's goes to figures/<semantics>/ instead,
    and a run `without_penalty` (β = 0) to figures/without_penalty/<profile>. What was kept there
    before is replaced as a whole. Raises MissingRunFileError when the run is not finished,
    ConfigError when a notebook of it failed, the files are too large to commit, or a run that
    should have no penalty has one.
    """
    run = RunDir(resolve_run_dir(run_dir), create=False)
    figures = figures or clone_root("The command keep") / "figures"
    with writing_to(figures, "try again"):
        return _keep(run, as_seed, without_penalty, figures)


def _keep(run: RunDir, as_seed: bool, without_penalty: bool, figures: Path) -> Path:
    kept = KEPT_WITHOUT_PENALTY if without_penalty else KEPT_OF_A_SEED if as_seed else KEPT
    sources = [run.require(name) for name in kept]
    refuse_links(run.path)  # nothing from outside of it is copied
    rows = read_manifest(run.manifest)["notebooks"]
    not_done = [row["name"] for row in rows if row["status"] != "executed"]
    if not_done:
        raise ConfigError(f"{run.path} is not a finished run: {', '.join(not_done)} did not end.")
    sources += [path for pattern in KEPT_IF_THERE for path in sorted(run.path.glob(pattern))]
    if run.eval_samples.exists() and kept is KEPT:
        sources.append(run.eval_samples)  # the texts on the way, which notebook 04 shows
    profile = load_profile(run.path)
    semantics = profile.config.method.semantics
    as_usual = semantics == load_profile(profile.name).config.method.semantics
    if without_penalty and profile.config.method.init_kl_coef != 0:
        raise ConfigError(
            f"{run.path} has a KL penalty: --without-penalty is for method.init_kl_coef=0."
        )
    seeds = "seeds" if as_usual else semantics
    if without_penalty:
        target = figures / "without_penalty" / profile.name
    elif as_seed:
        target = figures / seeds / f"{profile.name}-{profile.config.train.seed}"
    else:
        target = figures / "reference_runs" / profile.name
    made_directory(target.parent)
    if target.parent.resolve() != figures.resolve() / target.parent.name:
        raise ConfigError(f"{target.parent} leads out of {figures}: remove that link.")
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        copied = Path(folder) / "run"
        copied.mkdir()
        for source in sources:
            if source.is_dir():
                shutil.copytree(source, copied / source.name, symlinks=True, ignore=LEFT_OUT)
            else:
                shutil.copy2(source, copied / source.name, follow_symlinks=False)
        size = sum(path.stat().st_size for path in copied.rglob("*") if path.is_file())
        if size > MAX_BYTES:
            raise ConfigError(
                f"{run.path} has {size / 1e6:.1f} MB to keep, {MAX_BYTES / 1e6:.0f} MB at most: "
                "lower evaluation.n_prompts."
            )
        # The earlier run goes when this one is there: nothing is lost if this is interrupted.
        earlier = Path(folder) / "earlier"
        if os.path.lexists(target):
            target.rename(earlier)
        try:
            copied.rename(target)
        except BaseException:
            if earlier.exists():
                earlier.rename(target)
            raise
        remove(earlier)
    return target


def draw_readme_figures(profile: str = "cpu") -> list[Path]:
    """Draw headline.png from the reference run, seeds.png and semantics.png from all seeds, and
    bench/speed.png from the measurements beside trlX."""
    from rlhf_helpers.runs.files import reference_run_dir
    from rlhf_helpers.show.bench_figures import beside_trlx_plot
    from rlhf_helpers.show.bench_table import beside_trlx_results
    from rlhf_helpers.show.plot_style import save_figure
    from rlhf_helpers.show.results_tables import (
        finished_runs,
        runs_by_semantics,
        trlx_runs,
    )
    from rlhf_helpers.show.run_figures import headline_figure, seeds_figure, semantics_figure

    folder = clone_root("The command figures") / "figures"
    drawn = [save_figure(headline_figure(reference_run_dir(profile)), folder / "headline.png")]
    runs = finished_runs(profile)
    if len(runs) > 1:
        drawn.append(save_figure(seeds_figure(runs), folder / "seeds.png"))
    if trlx_runs(profile):
        figure = semantics_figure(**runs_by_semantics(profile))
        drawn.append(save_figure(figure, folder / "semantics.png"))
    drawn.append(save_figure(beside_trlx_plot(beside_trlx_results()), folder / "bench/speed.png"))
    return drawn
