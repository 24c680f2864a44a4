"""The pipeline on tiny notebooks: parameters, records, first failure, interruption."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest
from notebook_checks import NOTEBOOKS
from tiny_notebooks import write_notebook

from rlhf_helpers.config.checks import ConfigError
from rlhf_helpers.config.paths import repo_root
from rlhf_helpers.config.profiles import load_profile
from rlhf_helpers.environment import added_environment
from rlhf_helpers.notebook import pipeline
from rlhf_helpers.notebook.pipeline import PipelineError, notebook_paths, run_pipeline
from rlhf_helpers.notebook.watch import CellNumbers, NotebookWatch, TimeEstimate
from rlhf_helpers.progress import duration
from rlhf_helpers.runs.files import RunDir, atomic_write_json, read_json
from rlhf_helpers.runs.lock import only_run_in

SHOW_ALL = """\
import json, os, sys
json.dump({
    "parameters": [profile, run_dir, seed, overrides, reference_run],
    "executable": sys.executable,
    "folder": os.getcwd(),
    "environment": {k: os.environ.get(k, "") for k in ("OMP_WAIT_POLICY", "GLIBC_TUNABLES")},
}, open(run_dir + "/seen.json", "w"))"""


@pytest.fixture
def without_assets(monkeypatch):
    """Leave out the search for models and devices, which has its own tests and takes seconds."""

    def write_little(run, profile):
        earlier = read_json(run.manifest)["notebooks"] if run.manifest.exists() else []
        manifest = {"profile": profile.name, "assets": [], "notebooks": earlier}
        atomic_write_json(run.manifest, manifest)
        return manifest

    monkeypatch.setattr(pipeline, "write_manifest", write_little)


def test_two_notebooks_run_with_the_parameters_of_the_run(tmp_path, without_assets, capsys):
    folder = tmp_path / "notebooks"
    hold = "import time\nblock = bytearray(200_000_000)\nprint('holding')\ntime.sleep(1)"
    write_notebook(folder, "01_first.ipynb", SHOW_ALL, "import rlhf_helpers")
    write_notebook(folder, "02_second.ipynb", hold)
    run_dir = tmp_path / "run"
    results = run_pipeline(
        "smoke", run_dir, seed=7, overrides={"method.ppo_epochs": 3}, notebook_folder=folder
    )
    seen = json.loads((run_dir / "seen.json").read_text())
    assert seen["parameters"] == ["smoke", str(run_dir), 7, {"method.ppo_epochs": 3}, False]
    assert seen["executable"] == sys.executable
    assert seen["folder"] == str(folder)
    assert seen["environment"]["OMP_WAIT_POLICY"]
    assert "mmap_threshold" in seen["environment"]["GLIBC_TUNABLES"]

    rows = read_json(run_dir / "manifest.json")["notebooks"]
    assert [(row["name"], row["status"]) for row in rows] == [
        ("01_first", "executed"), ("02_second", "executed"),
    ]  # fmt: skip
    assert all(row["seconds"] > 0 for row in rows)
    assert 200e6 < rows[1]["peak_rss_bytes"] < 1e9
    assert [result.name for result in results] == ["01_first", "02_second"]
    assert results[1].peak_rss_bytes == rows[1]["peak_rss_bytes"]

    executed = nbformat.read(run_dir / "notebooks" / "02_second.ipynb", as_version=4)
    assert executed.cells[-1].outputs[0].text == "holding\n"
    printed = capsys.readouterr().out
    assert "    holding\n" in printed
    assert printed.index("01_first · notebook 1/2") < printed.index("02_second · notebook 2/2")
    assert load_profile(run_dir).config.method.ppo_epochs == 3


def test_the_first_failure_names_notebook_cell_and_error_and_keeps_the_rest(
    tmp_path, without_assets
):
    folder = tmp_path / "notebooks"
    write_notebook(folder, "01_good.ipynb", "open(run_dir + '/result.txt', 'w').write('kept')")
    write_notebook(folder, "02_bad.ipynb", "print('before')", "# why\nratio = 1 / 0", "print('no')")
    write_notebook(folder, "03_never.ipynb", "open(run_dir + '/never.txt', 'w')")
    run_dir = tmp_path / "run"
    with pytest.raises(PipelineError) as error:
        run_pipeline("smoke", run_dir, notebook_folder=folder)
    message = str(error.value)
    # Cells 1 and 2 are heading and parameters, so 1 / 0 stands in cell 4.
    assert message.startswith("02_bad.ipynb failed in cell 4 of 5, In [4] (# why): ")
    assert "ZeroDivisionError: division by zero" in message
    assert str(run_dir / "notebooks" / "02_bad.ipynb") in message
    assert (run_dir / "result.txt").read_text() == "kept"
    assert not (run_dir / "never.txt").exists()
    rows = read_json(run_dir / "manifest.json")["notebooks"]
    assert [(row["name"], row["status"]) for row in rows] == [
        ("01_good", "executed"), ("02_bad", "failed"),
    ]  # fmt: skip
    half = nbformat.read(run_dir / "notebooks" / "02_bad.ipynb", as_version=4)
    outputs = [output for cell in half.cells for output in cell.get("outputs", [])]
    assert [output.output_type for output in outputs] == ["stream", "error"]


def test_a_kernel_that_is_killed_is_reported_with_its_memory(tmp_path, without_assets):
    folder = tmp_path / "notebooks"
    write_notebook(
        folder, "01_dies.ipynb", "import os, time\ntime.sleep(1)\nos.kill(os.getpid(), 9)"
    )
    expected = r"01_dies.ipynb failed in cell 3 of 3: .* process died"
    with pytest.raises(PipelineError, match=expected):
        run_pipeline("smoke", tmp_path / "run", notebook_folder=folder)


def test_a_run_directory_of_another_configuration_is_refused(tmp_path, without_assets):
    folder = tmp_path / "notebooks"
    write_notebook(folder, "01_first.ipynb", "x = 1")
    run_pipeline("smoke", tmp_path / "run", seed=1, notebook_folder=folder)
    before = (tmp_path / "run" / "config.yml").read_bytes()
    with pytest.raises(ConfigError, match="train.seed is 1 there and 2 here"):
        run_pipeline("smoke", tmp_path / "run", seed=2, notebook_folder=folder)
    assert (tmp_path / "run" / "config.yml").read_bytes() == before


def test_two_pipelines_in_one_directory_exclude_each_other(tmp_path, without_assets):
    write_notebook(tmp_path / "notebooks", "01_first.ipynb", "x = 1")
    (tmp_path / "run").mkdir()
    with only_run_in(tmp_path / "run", ".pipeline.lock"):
        with pytest.raises(ConfigError, match="in use by another run"):
            run_pipeline("smoke", tmp_path / "run", notebook_folder=tmp_path / "notebooks")
    assert not (tmp_path / "run" / "notebooks").exists()


def test_a_missing_asset_is_reported_before_any_notebook_runs(tmp_path, monkeypatch):
    from rlhf_helpers.data.assets import AssetError

    folder = tmp_path / "notebooks"
    write_notebook(folder, "01_first.ipynb", "open(run_dir + '/ran.txt', 'w')")
    row = {"name": "tiny", "role": "policy", "problem": "tiny is missing: fetch it."}
    monkeypatch.setattr(pipeline, "write_manifest", lambda run, profile: {"assets": [row]})
    with pytest.raises(AssetError, match="tiny is missing: fetch it."):
        run_pipeline("smoke", tmp_path / "run", notebook_folder=folder)
    assert not (tmp_path / "run" / "ran.txt").exists()


def test_notebooks_are_chosen_by_name_or_number_in_their_order(tmp_path):
    for name in ("01_setup.ipynb", "02_baseline.ipynb", "04_run.ipynb", "notes.ipynb"):
        write_notebook(tmp_path, name)
    chosen = notebook_paths(["04", "01_setup.ipynb", "01"], tmp_path)
    assert [path.name for path in chosen] == ["01_setup.ipynb", "04_run.ipynb"]
    assert len(notebook_paths(None, tmp_path)) == 3
    with pytest.raises(ConfigError, match="'03' does not exist: .*02_baseline, 04_run"):
        notebook_paths(["03"], tmp_path)
    with pytest.raises(ConfigError, match="no notebooks"):
        notebook_paths(None, tmp_path / "empty")


INTERRUPTED_RUN = """\
import sys
from pathlib import Path
from rlhf_helpers.notebook import pipeline
from rlhf_helpers.runs.files import atomic_write_json

def write_little(run, profile):
    atomic_write_json(run.manifest, {"assets": [], "notebooks": []})
    return {"assets": []}

pipeline.write_manifest = write_little
try:
    pipeline.run_pipeline("smoke", sys.argv[1], notebook_folder=Path(sys.argv[2]))
except pipeline.PipelineError as error:
    sys.exit(f"PipelineError: {error}")
"""
SAVES_WHEN_INTERRUPTED = """\
import os, time
open(run_dir + "/kernel.pid", "w").write(str(os.getpid()))
try:
    time.sleep(300)
except KeyboardInterrupt:
    open(run_dir + "/saved.txt", "w").write("saved")"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_no_kernel_outlives_an_interrupted_run(tmp_path, number):
    folder, run_dir = tmp_path / "notebooks", tmp_path / "run"
    write_notebook(
        folder, "01_long.ipynb", SAVES_WHEN_INTERRUPTED, "open(run_dir + '/next.txt', 'w')"
    )
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", INTERRUPTED_RUN, str(run_dir), str(folder)]
    process = subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE, text=True)
    try:
        kernel = psutil.Process(int(_wait_for_text(run_dir / "kernel.pid", process)))
        process.send_signal(number)
        stderr = process.communicate(timeout=60)[1]
        kernel.wait(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert not kernel.is_running()
    assert not (run_dir / "next.txt").exists()
    if number != signal.SIGKILL:  # which leaves no time to save
        assert (run_dir / "saved.txt").read_text() == "saved"
        assert "01_long.ipynb was interrupted in cell" in stderr
        assert read_json(run_dir / "manifest.json")["notebooks"][0]["status"] == "interrupted"


def _wait_for_text(path: Path, process: subprocess.Popen, seconds: float = 120) -> str:
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        if path.exists() and path.read_text():
            return path.read_text()
        time.sleep(0.1)
    raise AssertionError(f"{path.name} never came; exit code {process.poll()}")


def test_what_the_user_has_set_stays_in_the_kernels_environment(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    added = added_environment(Path("/repository"))
    assert "OMP_WAIT_POLICY" not in added
    assert added["PYTHONPATH"] == os.pathsep.join(["/repository", "/elsewhere"])


def test_cell_numbers_are_those_of_the_notebook_that_the_reader_has(tmp_path):
    path = write_notebook(tmp_path, "01_a.ipynb", "a", "b")  # parameters in cell 2
    numbers = CellNumbers.of(path)
    assert numbers.total == 4
    # Executed: heading, parameters, injected, a, b.
    assert [numbers.of_executed(index) for index in range(5)] == [1, 2, 2, 3, 4]
    untagged = CellNumbers(2, 0)  # papermill's cell comes first
    assert [untagged.of_executed(index) for index in range(3)] == [1, 1, 2]


def test_a_cell_that_papermill_replaces_moves_no_numbers(tmp_path):
    path = write_notebook(tmp_path, "01_a.ipynb", "reference_run = True", "a")
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[2].metadata["tags"] = ["injected-parameters"]
    nbformat.write(notebook, path)
    assert [CellNumbers.of(path).of_executed(index) for index in range(4)] == [1, 2, 3, 4]


def test_the_estimate_follows_the_pace_of_this_machine():
    estimate = TimeEstimate(["01", "02", "03"], {"01": 40.0, "02": 100.0, "03": 20.0})
    assert estimate.seconds_left("01", elapsed=10) == 30 + 100 + 20
    estimate.finish("01", 80.0)  # twice as slow
    assert estimate.seconds_left("02", elapsed=50) == 2 * 100 - 50 + 2 * 20
    assert estimate.seconds_left("02", elapsed=500) == 2 * 20
    assert estimate.opening("02") == " · notebook 2/3 · about 4:00 left in all"


def test_without_an_earlier_run_of_all_notebooks_there_is_no_estimate(tmp_path):
    run = RunDir(tmp_path)
    row = {"name": "01", "seconds": 5.0, "status": "executed"}
    failed = {"name": "02", "seconds": 5.0, "status": "failed"}
    atomic_write_json(run.manifest, {"notebooks": [row, failed]})
    both = TimeEstimate.from_earlier_runs(["01", "02"], "no-such-profile", run)
    assert both.seconds_left("01", 0) is None
    one = TimeEstimate.from_earlier_runs(["01"], "no-such-profile", run)
    assert one.seconds_left("01", 1) == 4


@pytest.mark.parametrize(
    "seconds, text", [(0, "0:00"), (65, "1:05"), (59.6, "1:00"), (3661, "1:01:01")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_lines_of_a_notebook_are_indented_once_however_they_arrive():
    out = io.StringIO()
    watch = NotebookWatch("01", TimeEstimate(["01"], {}), CellNumbers(3, None), out)
    for text in ("PPO 1/4", " · 0:30 left\nPPO", " 2/4\n\nend\n"):
        watch.write(text)
    assert out.getvalue() == "    PPO 1/4 · 0:30 left\n    PPO 2/4\n    \n    end\n"


REFERENCE_RUNS = sorted(
    path.parent for path in (repo_root() / "figures" / "reference_runs").glob("*/config.yml")
)


@pytest.mark.slow
@pytest.mark.parametrize("reference", REFERENCE_RUNS, ids=lambda path: path.name)
def test_every_notebook_opens_complete_with_every_reference_run(reference, tmp_path):
    """Without the model that the run tuned; in seconds but for 04, whose own loop learns live."""
    command = [sys.executable, "-m", "rlhf_helpers", "run", "--reference-run"]
    command += ["--profile", reference.name, "--run-dir", str(tmp_path / "shown")]
    done = subprocess.run(command, cwd=repo_root(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = read_json(RunDir(tmp_path / "shown").manifest)["notebooks"]
    assert [row["status"] for row in rows] == ["executed"] * len(NOTEBOOKS)
    seconds = {row["name"]: row["seconds"] for row in rows}
    assert seconds.pop("04_ppo_run") < 600  # about 60 on an idle machine
    assert max(seconds.values()) < 120  # some 20 on an idle machine
    shown = nbformat.read(tmp_path / "shown" / "notebooks" / "04_ppo_run.ipynb", as_version=4)
    assert sum("image/png" in str(cell.get("outputs", "")) for cell in shown.cells) >= 2
