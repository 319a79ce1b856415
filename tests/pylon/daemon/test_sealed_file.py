from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylon.daemon import sealed_file
from pylon.daemon.sealed_file import read_sealed, write_sealed
from pylon.errors import BackupError
from pylon.passphrase import Passphrase

WORDS = Passphrase("four words at random")


@pytest.fixture(autouse=True, scope="module")
def quick():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pylon.passphrase.LOG_N", 10)
        patch.setattr(sealed_file, "FRAME_BYTES", 64)
        yield


def sealed(content: bytes, *, pieces: int = 1) -> bytes:
    file = io.BytesIO()
    size = max(1, -(-len(content) // pieces))
    write_sealed(file, WORDS, (content[start : start + size] for start in range(0, len(content), size)))
    return file.getvalue()


def opened(raw: bytes, words: Passphrase = WORDS) -> bytes:
    return b"".join(read_sealed(io.BytesIO(raw), words))


@given(st.binary(max_size=400) | st.sampled_from([0, 63, 64, 65, 128, 129, 256]).map(bytes), st.integers(1, 9))
def test_what_was_sealed_opens(content, pieces):
    raw = sealed(content, pieces=pieces)
    assert opened(raw) == content
    assert len(content) < 16 or content not in raw


RAW = None


@given(st.data())
def test_no_byte_can_change_and_no_frame_be_left_out(data):
    global RAW
    RAW = RAW or sealed(bytes(range(250)) * 2)
    head = RAW.index(b"\n", RAW.index(b"\n") + 1) + 1
    frames = [RAW[start : start + 80] for start in range(head, len(RAW), 80)]
    match data.draw(st.sampled_from(["flip", "cut", "drop", "swap", "double", "more"])):
        case "flip":
            at = data.draw(st.integers(0, len(RAW) - 1))
            bad = RAW[:at] + bytes([RAW[at] ^ data.draw(st.integers(1, 255))]) + RAW[at + 1 :]
        case "cut":
            bad = RAW[: data.draw(st.integers(0, len(RAW) - 1))]
        case "drop":
            bad = RAW[:head] + b"".join(frames[:-1])
        case "swap":
            one, two = data.draw(st.permutations(range(len(frames) - 1)))[:2]
            frames[one], frames[two] = frames[two], frames[one]
            bad = RAW[:head] + b"".join(frames)
        case "double":
            bad = RAW[:head] + frames[0] + b"".join(frames)
        case _:
            bad = RAW + data.draw(st.binary(min_size=1, max_size=100))
    with pytest.raises(BackupError) as caught:
        opened(bad)
    assert caught.value.hint


def test_another_passphrase():
    with pytest.raises(BackupError, match="another passphrase, or a damaged file") as caught:
        opened(sealed(b"secret"), Passphrase("four words"))
    assert "secret" not in str(caught.value)


@given(st.binary(max_size=300))
def test_any_file_is_an_error(raw):
    with pytest.raises(BackupError):
        opened(raw)


def test_what_costs_too_much_is_not_computed():
    raw = sealed(b"x").replace(b'"log_n":10', b'"log_n":30')
    with pytest.raises(BackupError, match="second line"):
        opened(raw)
