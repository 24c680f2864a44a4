"""Keep what a finished run left, small enough to commit, and draw the README's figures from it.

    python -m rlhf_helpers keep runs/cpu
    python -m rlhf_helpers figures
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from rlhf_helpers.config.trl_config import (
    ConfigError,
    load_profile,
    repo_root,
    resolve_run_dir,
)
from rlhf_helpers.runs.files import KEPT, RunDir, read_json

MAX_BYTES = 5_000_000
# Of a further seed only what tables and figures of several seeds need.
KEPT_OF_A_SEED = ("config", "manifest", "metrics", "evaluation")
# Of a policy's directory: the tokenizer is the base model's own, and the value head, often larger
# than the adapter, is needed to train on but not to sample.
LEFT_OUT = shutil.ignore_patterns(
    "tokenizer*", "special_tokens_map.json", "vocab.json", "merges.txt", "chat_template*",
    "value_head.safetensors",
)  # fmt: skip
# What `evaluate` adds to a finished run; kept where it is there.
KEPT_IF_THERE = ("evaluation_*.json", "judge_course.csv")


def keep_run(run_dir: str | Path, as_seed: bool = False, figures: Path | None = None) -> Path:
    """Copy a finished run to figures/reference_runs/<profile> or figures/seeds/<profile>-<seed>.

    A further seed under other semantics than the profile's goes to figures/<semantics>/ instead.
    What was kept there before is replaced as a whole. Raises MissingRunFileError when the run is
    not finished, ConfigError when a notebook of it failed or the files are too large to commit.
    """
    run = RunDir(resolve_run_dir(run_dir), create=False)
    sources = [run.require(name) for name in (KEPT_OF_A_SEED if as_seed else KEPT)]
    rows = read_json(run.manifest)["notebooks"]
    not_done = [row["name"] for row in rows if row["status"] != "executed"]
    if not_done:
        raise ConfigError(f"{run.path} is not a finished run: {', '.join(not_done)} did not end.")
    sources += [path for pattern in KEPT_IF_THERE for path in sorted(run.path.glob(pattern))]
    profile = load_profile(run.path)
    figures = figures or repo_root() / "figures"
    semantics = profile.config.method.semantics
    as_usual = semantics == load_profile(profile.name).config.method.semantics
    kind = "seeds" if as_usual else semantics
    place = f"{kind}/{profile.name}-{profile.config.train.seed}"
    target = figures / (place if as_seed else f"reference_runs/{profile.name}")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        copied = Path(folder) / "run"
        copied.mkdir()
        for source in sources:
            if source.is_dir():
                shutil.copytree(source, copied / source.name, ignore=LEFT_OUT)
            else:
                shutil.copy2(source, copied / source.name)
        size = sum(path.stat().st_size for path in copied.rglob("*") if path.is_file())
        if size > MAX_BYTES:
            raise ConfigError(
                f"{run.path} has {size / 1e6:.1f} MB to keep, {MAX_BYTES / 1e6:.0f} MB at most: "
                "lower evaluation.n_prompts."
            )
        if target.exists():
            shutil.rmtree(target)
        copied.rename(target)
    return target


def draw_readme_figures(profile: str = "cpu") -> list[Path]:
    """Draw headline.png from the reference run, seeds.png and semantics.png from all seeds."""
    from rlhf_helpers.runs.files import reference_run_dir
    from rlhf_helpers.show.plot_style import save_figure
    from rlhf_helpers.show.results_tables import (
        corrected_runs,
        finished_runs,
        runs_by_semantics,
    )
    from rlhf_helpers.show.run_figures import headline_figure, seeds_figure, semantics_figure

    folder = repo_root() / "figures"
    drawn = [save_figure(headline_figure(reference_run_dir(profile)), folder / "headline.png")]
    runs = finished_runs(profile)
    if len(runs) > 1:
        drawn.append(save_figure(seeds_figure(runs), folder / "seeds.png"))
    if corrected_runs(profile):
        figure = semantics_figure(**runs_by_semantics(profile))
        drawn.append(save_figure(figure, folder / "semantics.png"))
    return drawn
