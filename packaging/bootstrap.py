"""The single file, before it is the program: it unpacks that once, into the user's cache, and becomes it.

PyInstaller's own single file unpacks everything at every start, into a temporary directory that a cleaner may empty
under a daemon that runs for weeks, and again for every process. Here only this script and the interpreter are unpacked
so; the program lies in a section of the executable (``.pylon``), as a zip. It is unpacked beside its place and moved
there, whole or not at all. What other versions have left, and no process uses, is removed.

Every start pays for what is imported here: what unpacks is imported when something is to be unpacked.
"""

import os
import stat
import sys

from payload import IDENTITY  # written by the build: version and hash of what is in the section

SECTION = b".pylon"
USED = ".used"
"""Open and locked by each process of the program, for as long as it lives."""


def main() -> None:
    own = os.path.abspath(os.path.realpath(sys.executable))
    program = os.path.join(unpacked(own), "pylon")
    environment = dict(os.environ)
    # This process becomes the program: what its own libraries needed is of no use to that.
    before = environment.pop("LD_LIBRARY_PATH_ORIG", None)
    environment.pop("LD_LIBRARY_PATH", None)
    if before is not None:
        environment["LD_LIBRARY_PATH"] = before
    if environment.get("WATCHDOG_PID") == str(os.getppid()):
        environment["WATCHDOG_PID"] = str(os.getpid())  # the manager knows the process that has started this one
    environment["_PYLON_FILE"] = own
    os.execve(program, [program, *sys.argv[1:]], environment)


def unpacked(own: str) -> str:
    """The directory of the program, which is unpacked if it is not there."""
    refused = ""
    for root in roots():
        place = os.path.join(root, IDENTITY)
        try:
            if not is_ours(place):
                make(root)
                clear(root)
                unpack(own, place)
            return place
        except OSError as error:
            refused = f"{refused}; {place}: {error.strerror or error}"
    sys.exit(f"error: pylon cannot unpack itself{refused}\nhint: set XDG_CACHE_HOME to a directory that has room")


def roots():
    """Where to unpack: the user's cache, else a directory of the user's own among the temporary ones."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(cache):
        home = os.path.expanduser("~")
        cache = os.path.join(home, ".cache") if os.path.isabs(home) else ""
    if cache:
        yield os.path.join(cache, "pylon", "program")
    yield os.path.join(os.environ.get("TMPDIR") or "/tmp", f"pylon-{os.getuid()}", "program")


def make(root: str) -> None:
    """A directory that nobody else can write to."""
    os.makedirs(root, mode=0o700, exist_ok=True)
    for path in (root, os.path.dirname(root)):
        if not is_ours(path):
            raise OSError(f"{path} is somebody else's, or may be written by others")


def is_ours(path: str) -> bool:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022


def unpack(own: str, place: str) -> None:
    import shutil
    import zipfile

    draft = f"{place}.{os.getpid()}"
    os.mkdir(draft, 0o700)
    try:
        with section(own) as data, zipfile.ZipFile(data) as archive:
            for entry in archive.infolist():
                put(archive, entry, os.path.join(draft, entry.filename))
        os.close(os.open(os.path.join(draft, USED), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        try:
            os.rename(draft, place)
        except OSError:
            if not is_ours(place):  # else another process was quicker
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def put(archive, entry, path: str) -> None:
    import shutil

    mode = entry.external_attr >> 16
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    if stat.S_ISLNK(mode):
        os.symlink(archive.read(entry).decode(), path)
        return
    with archive.open(entry) as source, open(path, "xb") as sink:
        shutil.copyfileobj(source, sink, 1 << 20)
        os.fchmod(sink.fileno(), mode & 0o755)


def clear(root: str) -> None:
    """Remove what other versions have left and nobody uses, and what was never unpacked to its end."""
    import fcntl
    import shutil

    for name in os.listdir(root):
        path = os.path.join(root, name)
        try:
            descriptor = os.open(os.path.join(path, USED), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            owner = name.rpartition(".")[2]
            if not (owner.isdecimal() and os.path.exists(f"/proc/{owner}")):
                shutil.rmtree(path, ignore_errors=True)
            continue
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        except OSError:
            pass  # somebody runs it
        finally:
            os.close(descriptor)


def section(own: str):
    """The section of this executable, as a file. Raises ``OSError`` where it has none."""
    import mmap
    import struct

    class Mapped(mmap.mmap):
        """As ``zipfile`` wants its files to be, before Python 3.13 too."""

        def seekable(self) -> bool:
            return True

    with open(own, "rb") as file:
        head = file.read(64)
        if head[:6] != b"\x7fELF\x02\x01":
            raise OSError(f"{own} is no executable of this kind")
        (table,) = struct.unpack_from("<Q", head, 0x28)
        size, count, names = struct.unpack_from("<HHH", head, 0x3A)
        file.seek(table)
        entries = [struct.unpack_from("<IIQQQQ", file.read(size)) for _ in range(count)]
        file.seek(entries[names][4])
        words = file.read(entries[names][5])
        for name, _, _, _, offset, length in entries:
            if words[name : words.index(b"\0", name)] == SECTION:
                start = offset - offset % mmap.ALLOCATIONGRANULARITY
                return Mapped(file.fileno(), offset + length - start, access=mmap.ACCESS_READ, offset=start)
    raise OSError(f"{own} has nothing inside")


if __name__ == "__main__":
    main()
