"""The wheel: all that is needed is in it, and it runs without the repository. `make smoke` runs a study with it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

from tests.conftest import REPOSITORY


def _run(*arguments: str | Path, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ended = subprocess.run(arguments, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_wheel_holds_all_and_composes_a_study_in_an_empty_folder(tmp_path: Path) -> None:
    # A copy: what an earlier build left behind would get into the wheel.
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    for name in ("digitcnn", "conf"):
        shutil.copytree(REPOSITORY / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    _run(
        *(sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index"),
        *("--no-build-isolation", "--wheel-dir", tmp_path, source),
        cwd=tmp_path,
    )
    (wheel,) = tmp_path.glob("digitcnn-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for folder in ("conf", "digitcnn"):
        for path in (REPOSITORY / folder).rglob("*"):
            shipped = (
                path.relative_to(REPOSITORY) if folder == "digitcnn" else Path("digitcnn", path.relative_to(REPOSITORY))
            )
            if path.is_file() and "__pycache__" not in path.parts:
                assert shipped.as_posix() in names
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"digitcnn"}

    bare = tmp_path / "bare"
    venv.create(bare, with_pip=False)
    python = bare / "bin" / "python"
    _run(
        *(sys.executable, "-m", "pip", f"--python={python}", "install", "--quiet", "--disable-pip-version-check"),
        *("--no-deps", "--no-index", wheel),
        cwd=tmp_path,
    )
    packages = Path(_run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip())
    # The locked dependencies of this environment, behind the wheel's own files; .ci/smoke installs them for real.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    digitcnn = bare / "bin" / "digitcnn"
    empty = tmp_path / "empty"
    empty.mkdir()
    assert str(packages) in _run(python, "-c", "import digitcnn; print(digitcnn.__file__)", cwd=empty)
    assert "name: quick" in _run(digitcnn, "sweep", "study=quick", "--cfg", "job", cwd=empty)
    assert list(empty.iterdir()) == []
