"""Make Colab's image ready for the notebooks; the bootstrap cell runs this file as a script.

Only what is missing gets installed. torch and numpy stay as the image has them: the running
kernel has perhaps imported them already, and replacing them would ask for a restart.
Safe to run again. Standard library only, since nothing else may be installed yet.
"""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import tempfile
from pathlib import Path

# jupyterlab would replace the server that Colab itself runs on; import-linter, which only
# `make lint` needs, wants a newer rich than the image has.
LEFT_OUT = ("jupyterlab", "import-linter")
KEPT = ("torch", "torchvision", "torchaudio", "numpy")


def installed_version(name: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def constraints_text(versions: dict[str, str | None]) -> str:
    """Lines for pip that hold every installed one of `versions` where it is.

    A local part such as +cu126 is left off: the package index does not know it, and `==2.11.0`
    is met by 2.11.0+cu126.
    """
    pinned = {name: version.split("+")[0] for name, version in versions.items() if version}
    return "".join(f"{name}=={version}\n" for name, version in pinned.items())


def requirements_for_colab(text: str) -> str:
    """The lines of requirements.txt without what would replace something of Colab's own."""
    lines = text.splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith(LEFT_OUT))


def main() -> None:
    """Install the requirements around what the image has."""
    pip = [sys.executable, "-m", "pip"]
    requirements = Path(__file__).resolve().parents[2] / "requirements.txt"
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text(constraints_text({name: installed_version(name) for name in KEPT}))
        wanted = Path(folder) / "requirements.txt"
        wanted.write_text(requirements_for_colab(requirements.read_text()))
        subprocess.run(
            [*pip, "install", "--quiet", "-r", str(wanted), "-c", str(constraints)], check=True
        )


if __name__ == "__main__":
    main()
