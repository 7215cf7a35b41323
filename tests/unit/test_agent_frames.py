"""Frames of shims: what is one, what is not, and that no descriptor stays open."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni.agent.frames import FrameReader, Invocation, MalformedFrame, parse
from cni.start import offer
from tests.descriptors import none_left_open

BUILD = b"0123456789abcdef"
TWO = offer.STDIN | offer.STDERR


def frame(
    body: bytes = b"/opt/cni/bin/sriov\0CNI_COMMAND=ADD\0", *, which: int = TWO, size: int | None = None
) -> bytes:
    length = (len(body) if size is None else size).to_bytes(4, "little")
    return offer.MAGIC + BUILD + (77).to_bytes(8, "little") + bytes((which,)) + length + body


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    both = os.pipe()
    yield both
    for each in both:
        os.close(each)


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def read_all(reader: FrameReader) -> Invocation:
    found = reader.read()
    assert found is not None
    return found


def test_frame_in_one_piece(ends, pipe):
    ours, theirs = ends
    socket.send_fds(theirs, [frame() + b"\x0f"], list(pipe))
    found = read_all(FrameReader(ours))
    assert (found.build_id, found.netns_inode, found.plugin, found.command) == (BUILD.decode(), 77, "sriov", "ADD")
    assert sorted(found.descriptors) == [offer.STDIN, offer.STDERR]
    # What is behind it, a forwarded signal, is not the reader's.
    assert ours.recv(10) == b"\x0f"
    descriptors = list(found.descriptors.values())
    assert all(map(is_open, descriptors))
    found.close()
    assert not any(map(is_open, descriptors))


def test_frame_byte_by_byte(ends, pipe):
    ours, theirs = ends
    reader = FrameReader(ours)
    whole = frame()
    socket.send_fds(theirs, [whole[:1]], list(pipe))
    for byte in whole[1:]:
        assert reader.read() is None
        theirs.send(bytes((byte,)))
    read_all(reader).close()


@pytest.mark.parametrize(
    ("sent", "descriptors", "complaint"),
    [
        (b"x" * 40, 0, "no frame"),
        (frame(size=1 << 30), 2, "announced"),
        (frame(size=0), 2, "announced"),
        (frame(), 0, "0 descriptors came"),
        (frame(), 1, "1 descriptors came"),
        (frame(which=offer.STDIN | offer.SANDBOX), 2, "descriptors came"),
        (frame(), 8, "8 descriptors came"),
        (frame(), 20, "too many"),
        (frame()[:-3], 2, "ended after"),
    ],
)
def test_what_is_no_frame_is_said_and_closed(ends, pipe, sent, descriptors, complaint):
    ours, theirs = ends
    with none_left_open():
        socket.send_fds(theirs, [sent], [pipe[0]] * descriptors)
        theirs.shutdown(socket.SHUT_WR)
        reader = FrameReader(ours)
        with pytest.raises(MalformedFrame, match=complaint):
            reader.read()
        reader.close()


VARIABLES = st.dictionaries(
    st.from_regex(r"CNI_[A-Z]{1,5}", fullmatch=True), st.binary().map(lambda value: value.replace(b"\0", b"="))
)


@given(VARIABLES)
def test_environment_comes_as_it_was(environ):
    body = b"\0".join([b"/x/static", *(key.encode() + b"=" + value for key, value in environ.items())])
    found = parse(frame(body + b"\0"), [100, 101])
    assert found.environ == {key: os.fsdecode(value) for key, value in environ.items()}


@given(st.binary(max_size=200))
def test_no_bytes_break_the_parser(body):
    found = parse(frame(body), [100, 101])
    assert isinstance(found.called_as, str)
