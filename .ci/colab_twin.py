"""Run the notebooks and the fast tests in a twin of Colab's image, and write what came out.

    make test-colab

starts this with the twin's own Python, which has the versions of .ci/colab-2026-08.txt. It works in
a copy of the repository's tracked files, and writes after every notebook and every folder of tests.
What stands in for Colab: an empty package google.colab that is imported when a kernel starts, the
repository lying where the bootstrap cell would clone it to (/content is replaced by a temporary
folder), and kernels that start in that folder. What it cannot show: a GPU, Colab's page, and
whatever Google changed after the list was published.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nbclient import NotebookClient
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

ROOT = Path(__file__).resolve().parents[1]
NAMED = ("torch", "transformers", "tokenizers", "peft", "torchao", "accelerate", "datasets",
         "numpy")  # fmt: skip
LIVE = {"profile": "smoke", "run_dir": "runs/colab_twin", "reference_run": False}
CELL_TIMEOUT = 1800  # seconds


def copy_of_the_repository(folder: Path) -> Path:
    """The tracked files in a folder of the repository's name under `folder`."""
    name = re.search(r"/content/([\w-]+)", (ROOT / "notebooks/01_setup.ipynb").read_text())[1]
    repo = folder / name
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    for file in tracked.stdout.decode().split("\0")[:-1]:
        target = repo / file
        target.parent.mkdir(parents=True, exist_ok=True)
        content = (ROOT / file).read_bytes()
        if file.startswith("figures/support/"):  # as docs/running.md has it: it changes meanwhile
            command = ["git", "show", f"HEAD:{file}"]
            content = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
        target.write_bytes(content)
    return repo


def put_content_at(content: Path, repo: Path) -> None:
    """Let the notebooks of `repo` look for it in `content` instead of /content."""
    for notebook in repo.glob("notebooks/**/*.ipynb"):
        text = notebook.read_text(encoding="utf-8")
        notebook.write_text(text.replace("/content/", f"{content.as_posix()}/"), encoding="utf-8")


def like_colab(folder: Path) -> dict[str, str]:
    """The environment of kernels for which `"google.colab" in sys.modules` holds."""
    startup = folder / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "colab.py").write_text("import google.colab\n")
    package = folder / "packages" / "google" / "colab"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    return {"IPYTHONDIR": str(folder / "ipython"), "PYTHONPATH": str(folder / "packages"),
            "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}  # fmt: skip


def run_notebook(path: Path, content: Path, parameters: dict | None) -> float:
    """Execute all cells in a new kernel; the seconds it took. Raises the error of a cell.

    In the exercises each solution must be told by its check that it is right.
    """
    notebook = load_notebook_node(str(path))
    if parameters:
        notebook = parameterize_notebook(notebook, parameters)
    started = time.monotonic()
    kernel = notebook.metadata.get("kernelspec", {}).get("name", "python3")
    NotebookClient(
        notebook, timeout=CELL_TIMEOUT, kernel_name=kernel,
        resources={"metadata": {"path": str(content)}},
    ).execute()  # fmt: skip
    for cell in notebook.cells:
        if "solution" in cell.metadata.get("tags", ()):
            said = "".join(output.get("text", "") for output in cell.outputs).strip()
            if said.splitlines()[-1:] != ["Right."]:
                raise ValueError(f"a solution is not right: {said or 'its check says nothing'}")
    return round(time.monotonic() - started, 1)


def replaced_packages(image: str) -> dict[str, str]:
    """What the bootstrap cell has replaced of the image's packages: the versions before and now."""
    lines = (ROOT / ".ci" / f"{image}.txt").read_text(encoding="utf-8").splitlines()
    before = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    now = {name: importlib.metadata.version(name).split("+")[0] for name in before}
    return {name: f"{before[name]} -> {now[name]}" for name in before if now[name] != before[name]}


def run_tests(repo: Path, room: str, processes: int) -> dict[str, Any]:
    """Fast tests of tests/<room>: passed, failed, skipped, names of the failed, seconds, date."""
    environment = {**os.environ, "PYTHONPATH": str(repo)}
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider",
         "-n", str(processes), "--dist", "loadfile", f"tests/{room}"],
        cwd=repo, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    print(done.stdout[-4000:], done.stderr[-2000:], flush=True)
    lines = done.stdout.splitlines() or [""]
    counted = re.findall(r"(\d+) (passed|failed|skipped|error)", lines[-1])
    counts = {word: int(number) for number, word in counted}
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    if done.returncode not in (0, 5) and not failed:  # 5: every test there is a slow one
        failed = [f"tests/{room}: pytest ended with code {done.returncode}"]
        counts["failed"] = 1
    return {"passed": 0, "failed": 0, "skipped": 0, **counts, "names_of_failed": failed,
            "seconds": round(time.monotonic() - started), "date": today()}  # fmt: skip


def chosen_notebooks(repo: Path, only: str | None) -> list[tuple[Path, str, dict | None]]:
    """(notebook, how, parameters): as committed the numbered ones and the exercises, then the
    numbered ones live, then all in one."""
    numbered = sorted(repo.glob("notebooks/[0-9]*.ipynb"))
    together = repo / "notebooks" / "colab" / "all_in_one.ipynb"
    exercises = sorted(repo.glob("notebooks/exercises/*.ipynb"))
    runs = [(path, "as committed", None) for path in [*numbered, *exercises]]
    runs += [(path, f"live, profile {LIVE['profile']}", LIVE) for path in numbered]
    runs += [(together, f"live, profile {LIVE['profile']}", {"profile": LIVE["profile"]})]
    return [run for run in runs if only is None or re.search(only, f"{run[0].stem} {run[1]}")]


def run_notebooks(repo: Path, content: Path, only: str | None) -> Iterator[dict[str, Any]]:
    """One row for each notebook and way of running it; the error of one that fails in `problem`."""
    for path, how, parameters in chosen_notebooks(repo, only):
        row = {"notebook": path.stem, "how": how, "seconds": None, "problem": None}
        row["date"] = today()
        try:
            row["seconds"] = run_notebook(path, content, parameters)
        except Exception as error:
            text = re.sub(r"\x1b\[[\d;]*m", "", str(error)).strip()  # without colours
            row["problem"] = f"{type(error).__name__}: {text.splitlines()[-1]}"
        print(row, flush=True)
        yield row


def today() -> str:
    return datetime.date.today().isoformat()


def add_to_file(
    out: Path,
    image: str,
    notebooks: Sequence[dict] = (),
    fast_tests: Mapping[str, dict] | None = None,
) -> dict[str, Any]:
    """Put new rows in the place of those that the file has of the same; what it holds then."""
    before = json.loads(out.read_text()) if out.exists() else {}
    rows = [*before.get("notebooks", []), *notebooks]
    result = {
        "image": image, "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in NAMED},
        "replaced": replaced_packages(image),
        "notebooks": list({(row["notebook"], row["how"]): row for row in rows}.values()),
        "fast_tests": before.get("fast_tests", {}) | dict(fast_tests or {}),
    }  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n")
    return result


def failed_runs(result: dict[str, Any]) -> list[str]:
    """The notebooks and tests that failed."""
    notebooks = [row["notebook"] for row in result["notebooks"] if row["problem"]]
    rooms = result["fast_tests"].values()
    return notebooks + [name for room in rooms for name in room["names_of_failed"]]


def main() -> int:
    """Everything, or what the options name; exit code 1 where something failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image", required=True, help="name of the image, such as colab-2026-08")
    parser.add_argument("--skip-tests", action="store_true", help="the notebooks only")
    parser.add_argument("--skip-notebooks", action="store_true", help="the fast tests only")
    parser.add_argument("--notebook", help="only those whose name and way this pattern is found in")
    parser.add_argument("--room", action="append", help="only this folder of tests; several times")
    parser.add_argument("--processes", type=int, default=min(4, os.cpu_count() or 1))
    arguments = parser.parse_args()
    out = ROOT / "figures" / "support" / f"{arguments.image}.json"
    with tempfile.TemporaryDirectory() as folder:
        if not arguments.skip_tests:
            # A copy of its own: tests compare the notebooks' text with what they were written from.
            repo = copy_of_the_repository(Path(folder) / "tests")
            subprocess.run(["git", "init", "-q"], cwd=repo, check=True)
            every = sorted(path.parent.name for path in repo.glob("tests/*/test_*.py"))
            for room in arguments.room or sorted(set(every) - {"browser"}):
                counts = run_tests(repo, room, arguments.processes)
                result = add_to_file(out, arguments.image, fast_tests={room: counts})
        if not arguments.skip_notebooks:
            content = Path(folder) / "content"
            repo = copy_of_the_repository(content)
            put_content_at(content, repo)
            os.environ.update(like_colab(Path(folder)))
            for row in run_notebooks(repo, content, arguments.notebook):
                result = add_to_file(out, arguments.image, notebooks=[row])
    return 1 if failed_runs(result) else 0


if __name__ == "__main__":
    sys.exit(main())
