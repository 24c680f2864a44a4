"""Every notebook in JupyterLab, in a browser: Run All, no error, and the fields answer.

The notebooks are the repository's own, with the profile `smoke` written into their parameters (a
few steps of the small model), in one run directory, as the tutorial has them.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest
from notebook_checks import NOTEBOOKS, OUTPUT_FOLDED, is_folded

pytestmark = [pytest.mark.slow, pytest.mark.browser]
ROOT = Path(__file__).resolve().parents[2]
START, SECONDS = 300, 900  # at most, for a start and for a notebook, on a busy machine
ERROR = '[data-mime-type="application/vnd.jupyter.error"]'
IDLE = "Python 3 (ipykernel) | Idle"  # in the line at the foot of the window
# An error; or a number at each cell whose code is in sight, and a kernel that was idle for three
# looks (behind the last of those cells come some whose code is folded).
DONE = """([error, idle]) => {
    const prompts = [...document.querySelectorAll('.jp-CodeCell .jp-InputArea-prompt')];
    const texts = prompts.map(prompt => prompt.textContent.trim()).filter(text => text !== '');
    const ended = texts.length >= 10 && texts.every(text => /^\\[\\d+\\]:?$/.test(text))
        && document.querySelector('#jp-main-statusbar').textContent.includes(idle);
    window.looks = ended ? (window.looks || 0) + 1 : 0;
    return document.querySelector(error) !== null || window.looks >= 3;
}"""
# JupyterLab draws only the cells in sight; the tests look at all of them.
SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none", "autoStartDefaultKernel": True},
    "apputils-extension/notification": {"checkForUpdates": False, "fetchNews": "false"},
}
NO_MODELS = {"HF_HUB_OFFLINE": "1"}  # as everywhere in the tests: nothing comes from a hub
TYPED = "The music was lovely."


def write_notebooks(folder: Path) -> None:
    """Copies of the committed notebooks, not run yet, with the parameters of this run."""
    parameters = (
        f'profile, run_dir, seed = "smoke", {str(folder / "run")!r}, 3\nreference_run = False'
    )
    for name in NOTEBOOKS:
        notebook = nbformat.read(ROOT / "notebooks" / name, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.execution_count = None
            if "injected-parameters" in cell.metadata.get("tags", []):
                cell.source = parameters
        nbformat.write(notebook, folder / name)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a JupyterLab in a folder with the notebooks."""
    folder, own = tmp_path_factory.mktemp("lab"), tmp_path_factory.mktemp("jupyter")
    write_notebooks(folder)
    for name, setting in SETTINGS.items():
        path = own / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(setting))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ, **NO_MODELS, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1",
        "JUPYTER_CONFIG_DIR": str(own / "config"), "JUPYTER_RUNTIME_DIR": str(own / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(own / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(own / "workspaces"),
    }  # fmt: skip
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1",
               f"--port={address.rpartition(':')[2]}", f"--ServerApp.root_dir={folder}",
               "--IdentityProvider.token=", "--ServerApp.port_retries=0"]  # fmt: skip
    with (own / "log.txt").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        wait_for(address, server, own / "log.txt")
        yield address
    finally:
        server.terminate()
        server.wait(timeout=30)


def wait_for(address: str, server: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + START
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/api/status", timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"JupyterLab did not start: {log.read_text()[-2000:]}")


def open_notebook(page, address: str, name: str) -> None:
    """Open a notebook and wait until its kernel has started."""
    page.goto(f"{address}/lab/tree/{name}?reset")
    page.locator(".jp-Notebook .jp-CodeCell").first.wait_for(timeout=1000 * START)
    page.locator("#jp-main-statusbar", has_text=IDLE).wait_for(timeout=1000 * START)


def run_all(page) -> None:
    """Press Run All Cells, and wait until the kernel has nothing left to do."""
    page.locator(".lm-MenuBar-item", has_text="Run").first.click()
    page.locator(".lm-Menu-item", has_text="Run All Cells").first.click()
    page.wait_for_function(DONE, arg=[ERROR, IDLE], timeout=1000 * SECONDS, polling=500)


def fields(page):
    """The text fields of a notebook, each with its button and the place for its answer."""
    return page.locator(".jp-OutputArea .widget-vbox", has=page.locator(".widget-text input")).all()


def stop_kernels(page, address: str) -> None:
    page.evaluate(
        """async address => {
            const token = document.cookie.match('_xsrf=([^;]*)');
            const kernels = await (await fetch(address + '/api/sessions')).json();
            for (const kernel of kernels) {
                await fetch(address + '/api/sessions/' + kernel.id,
                            {method: 'DELETE', headers: {'X-XSRFToken': token ? token[1] : ''}});
            }
        }""",
        address,
    )


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_run_all_ends_without_an_error_and_the_fields_answer(lab, watched, name):
    page, notebook = watched.page, nbformat.read(ROOT / "notebooks" / name, as_version=4)
    open_notebook(page, lab, name)
    try:
        folded = [
            c for c in notebook.cells if c.cell_type == "code" and is_folded(c, OUTPUT_FOLDED)
        ]
        assert page.locator(".jp-OutputPlaceholder").count() == len(folded)
        run_all(page)  # which unfolds them
        assert page.locator(ERROR).all_inner_texts() == []
        assert page.locator(".jp-OutputArea-output").count() > 5

        expected = sum("try_it(" in c.source for c in notebook.cells if c.cell_type == "code")
        found = fields(page)
        assert len(found) == expected
        for box in found:
            answer = box.locator(".jp-OutputArea").first
            before = answer.inner_text()
            assert before.strip()
            box.locator("input").fill(TYPED)
            box.locator("button").click()
            handle = answer.element_handle()
            # Progress may come first, and stay: its lines do not count.
            page.wait_for_function(
                "([place, before]) => place.innerText !== before && /music|[0-9][.][0-9]/.test("
                "place.innerText.split('\\n').filter(x => !/%|sample/.test(x)).join('\\n'))",
                arg=[handle, before], timeout=1000 * START,
            )  # fmt: skip
            assert "Traceback" not in answer.inner_text()
        assert page.locator(ERROR).count() == 0
    finally:
        stop_kernels(page, lab)
