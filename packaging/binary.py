"""``make binary``: Pylon as one file, and as a tarball of what that file unpacks.

    python packaging/binary.py [--model NAME|none] [--out DIR]

In a virtual environment of its own, which holds the runtime and PyInstaller and nothing else. PyInstaller's loader is
compiled where there is a C compiler, so that it needs nothing but the C library; the one that comes compiled wants zlib
on the machine as well. The C library must be as new as the one that is built with, at least (docs/install.md).
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import os
import platform
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

from distribution import made_at

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
WORK = ROOT / "build" / "binary"
_STORED = (".gguf",)
"""What does not get smaller."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", metavar="NAME", help="to carry inside; none: none")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", metavar="DIR")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    os.environ.update(SOURCE_DATE_EPOCH=str(made_at()), PYTHONHASHSEED="1", PYTHONDONTWRITEBYTECODE="")
    os.environ.pop("PYTHONPATH", None)
    python = environment()
    program = build_program(python)
    if options.model != "none":
        carry_model(program, options.model)
    version = said(program / "pylon", "--version").split()[-1]
    name = f"pylon-{version}-{platform.system().lower()}-{platform.machine()}"
    archive(program, options.out / f"{name}.tar.gz", name)
    if sys.platform.startswith("linux"):
        build_file(python, program, version, name, options.out)
    else:
        print("the single file is made on Linux only; the tarball holds the same program", file=sys.stderr)
    for path in sorted(options.out.glob(f"{name}*")):
        print(f"{path}  {path.stat().st_size / 1e6:.1f} MB")
    if sys.platform.startswith("linux"):
        print(f"runs where the C library is glibc {newest_glibc(program)} or newer")
    return 0


def environment() -> Path:
    """The interpreter of the virtual environment, which is made or brought up to date."""
    venv = WORK / "venv"
    python = venv / "bin" / "python"
    if not python.exists():
        say("making the environment to build in")
        run(sys.executable, "-m", "venv", "--clear", venv)
    more = {name: str(ROOT / "constraints.txt") for name in ("PIP_CONSTRAINT", "PIP_BUILD_CONSTRAINT")}
    pip = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    say("installing the runtime and PyInstaller")
    if shutil.which("cc") or shutil.which("gcc"):
        more |= {"PYINSTALLER_COMPILE_BOOTLOADER": "1", "PYI_STATIC_ZLIB": "1"}
        pip += ["--no-binary", "pyinstaller"]
    else:
        say("there is no C compiler: the result needs libz.so.1 on the machine that it runs on")
    run(*pip, f"{ROOT}[binary]", more=more)
    run(*pip, "--force-reinstall", "--no-deps", ROOT, more=more)  # the version stays the same while the code changes
    return python


def build_program(python: Path) -> Path:
    """The directory with the program."""
    say("building the program")
    run(*pyinstaller(python), HERE / "pylon.spec")
    return WORK / "dist" / "pylon"


def newest_glibc(program: Path) -> str:
    """The version of the C library that something inside asks for."""
    wanted = {"2.17"}
    for path in everything(program):
        if not path.is_symlink() and (".so" in path.name or path.name == "pylon"):
            wanted |= set(re.findall(r"GLIBC_(2\.\d+)", said("objdump", "-T", path)))
    return max(wanted, key=lambda text: int(text.split(".")[1]))


def carry_model(program: Path, name: str) -> None:
    """Lay a model of the catalogue into the program, from where ``pylon models`` keeps it."""
    found = said(program / "pylon", "models", "pull", name)
    source = Path(found.split(maxsplit=1)[1])
    target = program / "_internal" / "models" / source.name
    target.parent.mkdir(exist_ok=True)
    shutil.copyfile(source, target)


def archive(program: Path, path: Path, name: str) -> None:
    say(f"packing {path.name}")
    epoch = int(os.environ["SOURCE_DATE_EPOCH"])

    def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = ""
        entry.mtime = epoch
        return entry

    with path.open("wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=epoch) as packed:
        with tarfile.open(fileobj=packed, mode="w") as tar:
            for each in everything(program):
                tar.add(each, f"{name}/{each.relative_to(program)}", recursive=False, filter=plain)


def build_file(python: Path, program: Path, version: str, name: str, out: Path) -> None:
    """The single file: the program in a zip, in a section of a loader's executable."""
    say(f"packing {name}")
    inside = WORK / "inside"
    shutil.rmtree(inside, ignore_errors=True)
    inside.mkdir()
    payload = inside / "payload.zip"
    date = time.gmtime(max(int(os.environ["SOURCE_DATE_EPOCH"]), 315_532_800))[:6]
    with zipfile.ZipFile(payload, "w") as packed:
        for each in everything(program):
            entry = zipfile.ZipInfo(str(each.relative_to(program)), date)
            entry.external_attr = each.lstat().st_mode << 16
            entry.compress_type = zipfile.ZIP_STORED if each.suffix in _STORED else zipfile.ZIP_DEFLATED
            if each.is_symlink():
                packed.writestr(entry, os.readlink(each))
            else:
                with each.open("rb") as source, packed.open(entry, "w") as sink:
                    shutil.copyfileobj(source, sink, 1 << 20)
    with payload.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    (inside / "payload.py").write_text(f"IDENTITY = {f'{version}-{digest[:16]}'!r}\n")
    made = WORK / "dist" / name
    made.unlink(missing_ok=True)
    run(*pyinstaller(python), HERE / "onefile.spec", more={"PYLON_PAYLOAD": str(payload), "PYLON_FILE_NAME": name})
    shutil.copy2(made, out / name)


def everything(program: Path) -> list[Path]:
    """Files and links, in an order that is always the same."""
    found = (path for path in program.rglob("*") if path.is_symlink() or stat.S_ISREG(path.stat().st_mode))
    return sorted(found, key=str)


def pyinstaller(python: Path) -> list[str | Path]:
    return [
        *(python, "-m", "PyInstaller", "--noconfirm", "--log-level", "WARN"),
        *("--distpath", WORK / "dist", "--workpath", WORK / "work"),
    ]


def said(*command: str | Path) -> str:
    return subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def run(*command: str | Path, more: dict[str, str] | None = None) -> None:
    subprocess.run(list(map(str, command)), check=True, env={**os.environ, **(more or {})}, cwd=ROOT)


def say(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
