"""``make dist``: the wheel and the source distribution, checked, and the wheel tried in an environment of its own.

    python packaging/distribution.py [--out DIR] [--no-install]

Each is built twice and must come out the same, byte for byte: its files' dates are the last commit's. The wheel holds
the package and nothing else, the source distribution all that the repository needs to test itself.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("pylon", "protocols")
IN_SOURCE = (
    "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "Makefile", "constraints.txt",
    "tests/conftest.py", "docs/operating.md", "benchmarks/__main__.py", "packaging/pylon.spec", "pylon/py.typed",
)  # fmt: skip


class Wrong(Exception):
    """What was built is not what it should be."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "dist", metavar="DIR")
    parser.add_argument("--no-install", action="store_true", help="leave out what needs the package index")
    options = parser.parse_args()
    try:
        wheel, source = build(options.out)
        check_wheel(wheel)
        check_source(source)
        for path in (wheel, source):
            print(f"{path}  {path.stat().st_size / 1e6:.2f} MB  sha256 {digest(path)}")
        if not options.no_install:
            try_wheel(wheel)
            print("the wheel installs and runs")
    except Wrong as wrong:
        print(f"error: {wrong}", file=sys.stderr)
        return 1
    return 0


def build(out: Path) -> tuple[Path, Path]:
    """The wheel and the source distribution, in ``out``. Raises ``Wrong`` where a second build gives others."""
    found = []
    with tempfile.TemporaryDirectory(prefix="pylon-dist-") as name:
        for number in ("first", "second"):
            directory = Path(name) / number
            environment = {**os.environ, "SOURCE_DATE_EPOCH": str(made_at())}
            command = [sys.executable, "-m", "hatchling", "build", "-d", str(directory)]
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                raise Wrong(f"hatchling: {done.stderr.strip()}")
            found.append(sorted(directory.iterdir()))
        for one, other in zip(*found, strict=True):
            if one.name != other.name or digest(one) != digest(other):
                raise Wrong(f"two builds of {one.name} differ")
        out.mkdir(parents=True, exist_ok=True)
        built = {path.suffix: Path(shutil.copy2(path, out)) for path in found[0]}
    return built[".whl"], built[".gz"]


def made_at() -> int:
    """When what is built was made: of the last commit; for a source distribution, its newest file's."""
    if given := os.environ.get("SOURCE_DATE_EPOCH"):
        return int(given)
    done = subprocess.run(["git", "log", "-1", "--format=%ct"], cwd=ROOT, capture_output=True, text=True, check=False)
    return int(done.stdout) if done.returncode == 0 else int((ROOT / "CHANGELOG.md").stat().st_mtime)


def check_wheel(path: Path) -> None:
    """Its contents are the package's files, all of them, and its metadata is what an index accepts."""
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        info = next(name.split("/")[0] for name in names if ".dist-info/" in name)
        metadata, entries = archive.read(f"{info}/METADATA"), archive.read(f"{info}/entry_points.txt").decode()
    inside = {name for name in names if not name.startswith(f"{info}/")}
    wanted = {path.relative_to(ROOT).as_posix() for package in PACKAGES for path in sources(ROOT / package)}
    if inside != wanted:
        raise Wrong(f"the wheel lacks {sorted(wanted - inside)}, and has {sorted(inside - wanted)} too much")
    if f"{info}/licenses/LICENSE" not in names:
        raise Wrong("the wheel has no licence")
    if "pylon = pylon.cli.main:main" not in entries.splitlines():
        raise Wrong(f"the wheel's commands are {entries!r}")
    check_metadata(metadata)


def sources(package: Path) -> list[Path]:
    """What the package consists of: its modules, and whatever lies beside them."""
    return [path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts]


def check_metadata(raw: bytes) -> None:
    """By the rules of the index (PEP 566 and its successors), and the version is the one that the command tells."""
    from packaging.metadata import Metadata

    metadata = Metadata.from_email(raw, validate=True)
    version = version_in_package()
    if str(metadata.version) != version:
        raise Wrong(f"the distribution is version {metadata.version}, and pylon --version says {version}")
    if metadata.description_content_type != "text/markdown" or not metadata.description:
        raise Wrong("the index would show no description")


def version_in_package() -> str:
    """``pylon.__version__``, read and not imported: another one may be installed."""
    line = next(text for text in (ROOT / "pylon" / "__init__.py").read_text().splitlines() if "__version__" in text)
    return line.split('"')[1]


def check_source(path: Path) -> None:
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
        raw = archive.extractfile(f"{path.name.removesuffix('.tar.gz')}/PKG-INFO")
        assert raw is not None
        check_metadata(raw.read())
    if missing := [name for name in IN_SOURCE if name not in names]:
        raise Wrong(f"the source distribution lacks {missing}")
    if strange := [name for name in names if name.startswith((".venv", "build", "dist")) or "__pycache__" in name]:
        raise Wrong(f"the source distribution has {sorted(strange)[:5]}")


def try_wheel(wheel: Path) -> None:
    """Install it as a user does, with the versions that are tested, and run it."""
    with tempfile.TemporaryDirectory(prefix="pylon-dist-") as name:
        venv, home = Path(name) / "venv", Path(name) / "home"
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYLON_", "PYTHON"))}
        environment |= {"PIP_CONSTRAINT": str(ROOT / "constraints.txt"), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        _run([sys.executable, "-m", "venv", str(venv)], environment)
        _run([str(venv / "bin" / "python"), "-m", "pip", "install", "-q", str(wheel)], environment)
        pylon = [str(venv / "bin" / "pylon"), "--home", str(home)]
        said = _run([*pylon, "--version"], environment)
        if said != f"pylon {version_in_package()}":
            raise Wrong(f"pylon --version says {said!r}")
        _run([*pylon, "init", "--network", "simnet", "--json"], environment)
        _run([*pylon, "doctor"], environment)


def _run(command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd="/")
    if done.returncode:
        raise Wrong(f"{' '.join(command)} ends with {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout.strip()


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    sys.exit(main())
