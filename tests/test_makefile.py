"""What `make` says where it can't have the packages."""

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
UV = Path(sys.executable).parent / "uv"
"""Not there where it could not be installed: then pip alone is what `make` has."""


def house(folder: Path, *, uv: bool) -> None:
    """A copy that was never set up, but for uv."""
    for file in (ROOT / "Makefile", ROOT / "pyproject.toml", *ROOT.glob("requirements*.lock")):
        shutil.copy(file, folder)
    if uv:
        subprocess.run([sys.executable, "-m", "venv", folder / ".venv"], check=True, timeout=120)
        (folder / ".venv/bin/uv").symlink_to(UV)
        (folder / ".venv/done-tools").touch()


def setup(folder: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    """`make setup` as in a shell that knows of no index but `environment`'s."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "UV_", "MAKE")) and not k.lower().endswith("_proxy")}
    environment |= {"PIP_CONFIG_FILE": os.devnull, "UV_NO_CONFIG": "1", "UV_NO_CACHE": "1", "LC_ALL": "C"}
    command = ["make", "setup", "EMBED=0", f"PYTHON={sys.executable}"]
    return subprocess.run(command, cwd=folder, env=inherited | environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("uv", [False, *([True] if UV.exists() else [])])
def test_without_an_index_make_says_what_is_missing_and_the_ways_round_it(uv: bool, tmp_path: Path) -> None:
    house(tmp_path, uv=uv)
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        index = f"http://127.0.0.1:{deaf.getsockname()[1]}/simple"
        done = setup(tmp_path, PIP_INDEX_URL=index, PIP_RETRIES="1", UV_HTTP_RETRIES="1")
    said = done.stdout + done.stderr
    assert done.returncode == 2
    assert not list(tmp_path.glob(".venv/done-requirements*"))
    missing = rf"Failed to fetch: {index}/[a-z]+" if uv else "No matching distribution found for [a-z]+=="
    assert re.search(missing, said), "the package that could not be fetched"
    assert "requirements.lock" in said
    for way in ("PIP_NO_INDEX=1 PIP_FIND_LINKS=", "PIP_INDEX_URL=", "HTTPS_PROXY="):
        assert way in said
    assert "Retrying" not in said
    assert len(said.splitlines()) < 30


@pytest.mark.parametrize("uv", [False, *([True] if UV.exists() else [])])
def test_with_a_folder_of_wheels_no_index_is_asked(uv: bool, tmp_path: Path) -> None:
    house(tmp_path, uv=uv)
    (tmp_path / "wheels").mkdir()
    done = setup(tmp_path, PIP_NO_INDEX="1", PIP_FIND_LINKS="wheels")
    said = done.stdout + done.stderr
    assert done.returncode == 2
    assert "aiohappyeyeballs" in said
    assert ("not found in the provided package locations" if uv else "from versions: none") in said
    assert "Failed to fetch" not in said
