"""Packets: the end of a channel, however the kernel says it."""

from __future__ import annotations

from typing import Any

import pytest

from muontrap.kernel import sockets


class Reset:
    """A socket whose other end has left everything unread, and closed it."""

    def __init__(self, times: int) -> None:
        self.times = times

    def recvmsg(self, *_: object) -> Any:
        self.times -= 1
        if self.times >= 0:
            raise ConnectionResetError
        return b"word", [], 0, None

    def recvmsg_into(self, buffers: list[bytearray], *_: object) -> Any:
        data, *rest = self.recvmsg()
        buffers[0][: len(data)] = data
        return len(data), *rest


@pytest.mark.parametrize("times", [0, 1, 2])
def test_a_reset_comes_before_the_last_word_or_is_the_end(times: int) -> None:
    word = b"word" if times < 2 else b""
    assert sockets.receive_longest(Reset(times))[0] == word  # type: ignore[arg-type]
    answers: list[Any] = []
    for _ in range(2):  # until it is cleared
        assert sockets.receive(Reset(times), answers)[0] == word  # type: ignore[arg-type]
