"""What is in the repository: installs that repeat, no trace of a machine, documents that agree with the code."""

import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from inference_engine.agents import topology
from inference_engine.agents.settings import Settings, env_names, load_settings

ROOT = Path(__file__).parent.parent
# Put together here, so that this file does not hold what it looks for.
REGISTRIES = ["py" + "pi.org", "python" + "hosted.org", "npm" + "js.org", "mav" + "en.org", "crates" + ".io", "proxy." + "golang.org"]
MACHINE = re.compile(r"(?<![\w.])/(?:ro" + r"ot|wo" + r"rk|home/\w+|Us" + r"ers/\w+)/\w")


def tracked() -> Iterator[tuple[str, str]]:
    """(name, text) of every text file that git keeps."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        path = ROOT / name
        if path.is_file():
            yield name, path.read_bytes().decode("utf-8", "ignore")


def test_no_file_names_a_folder_of_the_machine_it_was_written_on_or_a_package_registry() -> None:
    found = [
        f"{name}: {hit}"
        for name, text in tracked()
        for hit in [*(r for r in REGISTRIES if r in text), *(m[0] for m in MACHINE.finditer(text))]
    ]
    assert found == []


def locked(name: str) -> dict[str, str]:
    """Package -> version(s) as locked; fails for a package without a hash."""
    versions: dict[str, str] = {}
    for block in re.split(r"\n(?=[a-z0-9])", (ROOT / name).read_text("utf-8").strip()):
        package = re.match(r"([a-z0-9._-]+)==(\S+)", block)
        assert package is not None, f"{name}: {block[:60]} is not pinned"
        assert "--hash=sha256:" in block, f"{name}: {package[1]} has no hash"
        versions[package[1]] = f"{versions.get(package[1], '')} {package[2]}"
    return versions


def test_both_locks_pin_the_same_versions_with_hashes_and_nothing_else() -> None:
    small, whole = locked("requirements.lock"), locked("requirements-embed.lock")
    assert {p: v for p, v in small.items() if whole.get(p) != v} == {}
    assert {"torch", "sentence-transformers"} <= set(whole) - set(small)
    assert set(locked("requirements-uv.lock")) == {"uv"}


def test_every_dependency_of_the_project_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    extras = project["project"]["optional-dependencies"]
    base = [*project["project"]["dependencies"], *project["dependency-groups"]["dev"], *project["build-system"]["requires"]]

    def names(requirements: list[str]) -> set[str]:
        return {re.split(r"[\[<>=!~; ]", r)[0].lower().replace("_", "-") for r in requirements}

    assert names(base) <= set(locked("requirements.lock"))
    assert names(extras["embed"]) <= set(locked("requirements-embed.lock"))


def test_the_map_in_the_readme_is_the_one_of_the_topology() -> None:
    def the_map(text: str) -> list[str]:
        lines = text.splitlines()
        start = next(i for i, line in enumerate(lines) if line.strip() == "batch jobs, gateway, CLI")
        end = next(i for i, line in enumerate(lines) if i > start and line.strip().startswith("every stage ->"))
        return [line.rstrip() for line in lines[start : end + 1]]

    assert the_map((ROOT / "README.md").read_text("utf-8")) == the_map(topology.__doc__ or "")


def test_the_env_example_names_every_setting_and_shows_the_defaults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = (ROOT / ".env.example").read_text("utf-8")
    shown = re.findall(r"^# ([A-Z0-9_]+)=", text, re.MULTILINE)
    assert set(env_names()) == set(shown) - {"MODELS_GPT4_ENABLED"}
    monkeypatch.chdir(tmp_path)
    for name in env_names():
        monkeypatch.delenv(name, raising=False)
    defaults = Settings()
    (tmp_path / ".env").write_text(re.sub(r"^# (?=[A-Z0-9_]+=)", "", text, flags=re.MULTILINE), "utf-8")
    assert load_settings().model_dump(exclude={"models_enabled"}) == defaults.model_dump(exclude={"models_enabled"})


def test_every_file_that_the_readme_names_is_there() -> None:
    named = re.findall(r"`?((?:examples|docker|connectors|agents|tests|docs)/[\w./-]+\w)`?", (ROOT / "README.md").read_text("utf-8"))
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_rooms_in_the_package_are_relative_links() -> None:
    rooms = ("schemas", "pipeline", "connectors", "agents", "gateway", "cli")
    links = {room: (ROOT / "src" / "inference_engine" / room) for room in rooms}
    assert {room: link.readlink().as_posix() for room, link in links.items()} == {room: f"../../{room}" for room in rooms}
