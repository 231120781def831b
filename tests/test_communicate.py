"""`communicate` and `input`: what is written and read, and what is refused before anything has started."""

from __future__ import annotations

import copy
import io
import os
import pickle
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from arena import BOUND
from hostlib import close_idle_channels, muontrap

from muontrap import PIPE, Launcher, TimeoutExpired

STEPS = "printf 'eins\\nzwei\\n\\303'; read _; printf '\\251\\ndrei\\n'"
FLOOD = "echo first; exec head -c 3000000 /dev/zero"


@pytest.mark.parametrize("options", [{}, {"text": True}], ids=["bytes", "text"])
@pytest.mark.parametrize("bufsize", [-1, 0, 3])
def test_what_was_read_ahead_is_there(options: dict[str, Any], bufsize: int) -> None:
    """As with one pipe of subprocess; here the last character is cut where the file object has stopped."""
    encoding: dict[str, Any] = {"encoding": "utf-8"} if options else {}
    launcher = Launcher(
        ["sh", "-c", STEPS], stdin=PIPE, stdout=PIPE, stderr=PIPE, bufsize=bufsize, **options, **encoding
    )
    with launcher.launch() as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        name = process.stdout.name
        stdout, stderr = process.communicate("\n" if options else b"\n", timeout=BOUND)
        assert process.stdout.name == name
    assert stderr == ("" if options else b"")
    whole = first + stdout
    assert (whole if options else whole.decode()) == "eins\nzwei\né\ndrei\n"


DECODED = [
    (b"x\na\r", b"\nb\n", {"encoding": "utf-8"}, "a\nb\n"),
    (b"x\na\xc3", b"\xa9b", {"encoding": "utf-8", "errors": "replace"}, "aéb"),
    (b"x\na\xc3", b"\xa9b", {"encoding": "utf-8", "errors": "ignore"}, "aéb"),
    (b"x\na\xff", b"b", {"encoding": "ascii", "errors": "replace"}, "a\ufffdb"),
    ("\ufeffx\na".encode("utf-16-be"), "b\n".encode("utf-16-be"), {"encoding": "utf-16"}, "ab\n"),
    (b"\xef\xbb\xbfx\na", b"b", {"encoding": "utf-8-sig"}, "ab"),
    ("x\nあ".encode("iso2022_jp")[:-3], "い".encode("iso2022_jp")[3:], {"encoding": "iso2022_jp"}, "あい"),
    ("x\néц".encode("utf-7")[:-3], "éц".encode("utf-7")[-3:], {"encoding": "utf-7"}, "éц"),
]


@pytest.mark.parametrize(("first", "second", "options", "expected"), DECODED)
@pytest.mark.parametrize("bufsize", [-1, 0])
def test_the_decoder_goes_on_where_the_file_object_has_stopped(
    tmp_path: Path, first: bytes, second: bytes, options: dict[str, Any], expected: str, bufsize: int
) -> None:
    for name, data in ("first", first), ("second", second):
        (tmp_path / name).write_bytes(data)
    os.mkfifo(tmp_path / "go")
    line = ["sh", "-c", "cat first; read _ <go; cat second"]
    launcher = Launcher(line, stdout=PIPE, stderr=PIPE, bufsize=bufsize, cwd=tmp_path, **options)
    with launcher.launch() as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "x\n"
        with pytest.raises(TimeoutExpired):
            process.communicate(timeout=0.1)
        (tmp_path / "go").write_bytes(b"\n")
        for _ in range(2):
            assert process.communicate(timeout=BOUND) == (expected, "")


def test_no_more_than_that_is_taken_of_a_flood() -> None:
    with Launcher(["sh", "-c", FLOOD], stdout=PIPE, text=True).launch() as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "first\n"
        assert len(process.communicate(timeout=BOUND)[0]) == 3_000_000


def test_a_file_object_can_be_read_after_a_timeout(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "go")
    line = ["sh", "-c", "echo one; read _ <go; echo two"]
    with Launcher(line, stdout=PIPE, cwd=tmp_path).launch() as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"one\n"
        with pytest.raises(TimeoutExpired):
            process.communicate(timeout=0.1)
        (tmp_path / "go").write_bytes(b"\n")
        assert process.stdout.readline() == b"two\n"


@pytest.mark.parametrize("read", ["communicate", "chunks"])
def test_a_closed_stream_is_not_read(tmp_path: Path, read: str) -> None:
    """Its number may be that of another file by then."""
    stranger = tmp_path / "stranger"
    stranger.write_bytes(b"not of the command")
    launcher = Launcher(["sh", "-c", "echo err >&2"], stdout=PIPE, stderr=PIPE)
    with launcher.launch() as process:
        assert process.stdout is not None
        number = process.stdout.fileno()
        process.stdout.close()
        other = os.open(stranger, os.O_RDONLY)
        os.dup2(other, number)
        try:
            if read == "communicate":
                assert process.communicate(timeout=BOUND) == (b"", b"err\n")
            else:
                with pytest.raises(ValueError, match="'stdout' is not PIPE and open"):
                    process.chunks("stdout")
                assert b"".join(process.chunks("stderr")) == b"err\n"
        finally:
            for fd in {other, number}:
                os.close(fd)


def test_a_stream_that_is_closed_between_two_calls_is_not_read(tmp_path: Path) -> None:
    stranger = tmp_path / "stranger"
    stranger.write_bytes(b"not of the command")
    os.mkfifo(tmp_path / "go")
    line = ["sh", "-c", "echo out; read _ <go; echo err >&2"]
    launcher = Launcher(line, stdout=PIPE, stderr=PIPE, cwd=tmp_path)
    with launcher.launch() as process:
        assert process.stdout is not None
        with pytest.raises(TimeoutExpired):
            process.communicate(timeout=0.5)
        number = process.stdout.fileno()
        process.stdout.close()
        other = os.open(stranger, os.O_RDONLY)
        os.dup2(other, number)
        (tmp_path / "go").write_bytes(b"\n")
        try:
            assert process.communicate(timeout=BOUND) == (b"out\n", b"err\n")
        finally:
            for fd in {other, number}:
                os.close(fd)


def test_a_handler_that_closes_it_meanwhile_is_told_of() -> None:
    with Launcher(["sleep", "1000"], stdout=PIPE).launch() as process:
        before = signal.signal(signal.SIGALRM, lambda *_: process.close())
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        try:
            with pytest.raises(ValueError, match="was closed"):
                process.communicate(timeout=BOUND)
        finally:
            signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("asks", [True, False])
def test_leaving_waits_for_nobody_who_could_read_the_input(asks: bool) -> None:
    """What kill_mode="process" leaves alone may have stdin, and never read it."""
    script = "exec 3<&0; sleep 1000 & echo $!; exec sleep 1000"
    launcher = Launcher(
        ["sh", "-c", script], stdin=PIPE, stdout=PIPE, bufsize=2**20, kill_mode="process", delay_to_sigkill=0
    )
    began = time.monotonic()
    with launcher.launch() as process:
        assert process.stdin is not None
        assert process.stdout is not None
        left = int(process.stdout.readline())
        process.stdin.write(bytes(200_000))
        if asks:
            with pytest.raises(TimeoutExpired):
                process.communicate(timeout=0.1)
    try:
        assert time.monotonic() - began < BOUND
        assert process.stdin.closed
        assert process.pidfd == -1
    finally:
        os.kill(left, signal.SIGKILL)


BAD_INPUT = [
    ("\ud800", {"text": True}, UnicodeEncodeError),
    ("ä", {"encoding": "ascii"}, UnicodeEncodeError),
    (b"bytes", {"text": True}, TypeError),
    ("text", {}, TypeError),
    (5, {}, TypeError),
    (memoryview(b"every second")[::2], {}, TypeError),
]


@pytest.mark.parametrize(("data", "options", "kind"), BAD_INPUT)
def test_bad_input_is_refused_before_anything_is_started(
    tmp_path: Path, data: Any, options: dict[str, Any], kind: type[Exception]
) -> None:
    trace = tmp_path / "started"
    with pytest.raises(kind):
        muontrap.run(["touch", os.fspath(trace)], input=data, **options)
    assert not trace.exists()
    with Launcher(["cat"], stdin=PIPE, stdout=PIPE, **options).launch() as process:
        with pytest.raises(kind):
            process.communicate(data)
        good = "good" if options else b"good"
        assert process.communicate(good, timeout=BOUND)[0] == good


BUFFERS = [bytearray(b"abc"), memoryview(b"abcabc")[3:], memoryview(b"abcd").cast("I")]


@pytest.mark.parametrize("data", BUFFERS)
def test_input_of_any_buffer(data: Any) -> None:
    assert muontrap.run(["cat"], input=data, stdout=PIPE).stdout == bytes(data)


def test_input_is_given_once() -> None:
    """subprocess refuses it as well."""
    with Launcher(["sh", "-c", "cat; read _; sleep 1000"], stdin=PIPE, stdout=PIPE).launch() as process:
        with pytest.raises(TimeoutExpired):
            process.communicate(b"one", timeout=0.1)
        with pytest.raises(ValueError, match="given again"):
            process.communicate(b"two", timeout=0.1)


def test_what_was_written_and_not_flushed_goes_first_and_holds_nothing_up(tmp_path: Path) -> None:
    """Also when it is more than the pipe takes, and nobody reads yet."""
    os.mkfifo(tmp_path / "go")
    line = ["sh", "-c", "read _ <go; wc -c"]
    with Launcher(line, stdin=PIPE, stdout=PIPE, bufsize=2**20, cwd=tmp_path).launch() as process:
        assert process.stdin is not None
        process.stdin.write(bytes(200_000))
        with pytest.raises(TimeoutExpired):
            process.communicate(b"and this", timeout=0.2)
        (tmp_path / "go").write_bytes(b"\n")
        assert process.communicate(timeout=BOUND)[0].split() == [b"200008"]


def test_who_else_has_the_pipe_may_write_as_before() -> None:
    """A pipeline: O_NONBLOCK would be for all who have it."""
    with Launcher(["wc", "-c"], stdin=PIPE, stdout=PIPE).launch() as counting:
        assert counting.stdin is not None
        kept = os.dup(counting.stdin.fileno())
        feeding = Launcher(["head", "-c", "3000000", "/dev/zero"], stdout=counting.stdin)
        with feeding.launch() as process:
            with pytest.raises(TimeoutExpired):
                counting.communicate(b"and this", timeout=0)
            assert os.get_blocking(kept)
            os.close(kept)
            assert process.wait(BOUND) == 0
        assert counting.communicate(timeout=BOUND)[0].split() == [b"3000008"]


def test_what_is_written_between_two_calls_comes_after_the_input(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "go")
    line = ["sh", "-c", "read _ <go; tr -s xy"]
    with Launcher(line, stdin=PIPE, stdout=PIPE, cwd=tmp_path).launch() as process:
        assert process.stdin is not None
        with pytest.raises(TimeoutExpired):
            process.communicate(200_000 * b"x", timeout=0.2)
        process.stdin.write(b"yyy")
        (tmp_path / "go").write_bytes(b"\n")
        assert process.communicate(timeout=BOUND)[0] == b"xy"


@pytest.mark.parametrize("options", [{}, {"text": True}, {"text": True, "bufsize": 0}])
def test_reads_between_two_calls_keep_the_order(tmp_path: Path, options: dict[str, Any]) -> None:
    for name in "one", "two":
        os.mkfifo(tmp_path / name)
    line = ["sh", "-c", "echo a; read _ <one; printf 'b\nc\n'; read _ <two; echo d"]
    with Launcher(line, stdout=PIPE, cwd=tmp_path, **options).launch() as process:
        assert process.stdout is not None
        with pytest.raises(TimeoutExpired) as caught:
            process.communicate(timeout=0.5)
        assert caught.value.stdout == b"a\n"
        (tmp_path / "one").write_bytes(b"\n")
        assert process.stdout.readline() in ("b\n", b"b\n")
        with pytest.raises(TimeoutExpired) as caught:
            process.communicate(timeout=0.5)
        assert caught.value.stdout == b"a\nc\n"
        (tmp_path / "two").write_bytes(b"\n")
        assert process.communicate(timeout=BOUND)[0] in ("a\nc\nd\n", b"a\nc\nd\n")


@pytest.mark.parametrize("layer", ["text", "bytes"])
def test_what_does_not_decode_is_there_each_time(layer: str) -> None:
    """With what was read ahead of it, decoded or not."""
    line = ["printf", r"x\nab\303\377q"]
    with Launcher(line, stdout=PIPE, encoding="utf-8", errors="strict").launch() as process:
        file: Any = process.stdout
        if layer == "bytes":
            assert file.buffer.readline() == b"x\n"
        before = b"x\n" if layer == "text" else b""
        for _ in range(2):
            with pytest.raises(UnicodeDecodeError) as caught:
                process.communicate(timeout=BOUND)
            assert caught.value.object == before + b"ab\303\377q"
            assert caught.value.object[caught.value.start :].startswith(b"\303")
        assert process.returncode == 0


def test_text_that_was_read_ahead_belongs_to_what_does_not_decode(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "go")
    line = ["sh", "-c", r"printf 'x\nab'; read _ <go; printf '\377q'"]
    with Launcher(line, stdout=PIPE, encoding="utf-8", cwd=tmp_path).launch() as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "x\n"
        (tmp_path / "go").write_bytes(b"\n")
        for _ in range(2):
            with pytest.raises(UnicodeDecodeError) as caught:
                process.communicate(timeout=BOUND)
            assert (caught.value.object, caught.value.start, caught.value.end) == (b"ab\377q", 2, 3)


def test_a_stream_that_is_closed_between_two_calls_is_not_waited_for(tmp_path: Path) -> None:
    """By `inactivity_timeout`: nobody can hear it any more."""
    os.mkfifo(tmp_path / "go")
    line = ["sh", "-c", "read _ <go; exit 3"]
    with Launcher(line, stdout=PIPE, inactivity_timeout=0.5, cwd=tmp_path).launch() as process:
        assert process.stdout is not None
        with pytest.raises(TimeoutExpired):
            process.communicate(timeout=0.1)
        process.stdout.close()
        with pytest.raises(TimeoutExpired):
            process.communicate(timeout=0.7)
        (tmp_path / "go").write_bytes(b"\n")
        process.communicate(timeout=BOUND)
        assert process.returncode == 3


def test_input_that_can_go_nowhere() -> None:
    with Launcher(["true"]).launch() as process, pytest.raises(ValueError, match="stdin is not PIPE"):
        process.communicate(b"lost")
    with Launcher(["true"], stdin=PIPE).launch() as process:
        assert process.stdin is not None
        process.stdin.close()
        with pytest.raises(ValueError, match="or was closed"):
            process.communicate(b"lost")
        assert process.communicate(b"", timeout=BOUND) == (None, None)


def test_after_close() -> None:
    with Launcher(["true"], stdout=PIPE).launch() as process:
        process.wait(BOUND)
    with pytest.raises(ValueError, match="was closed"):
        process.communicate()
    process.kill()
    process.resume()
    assert process.returncode == 0


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16", "utf-32"])
def test_text_without_a_byte_order_mark(encoding: str) -> None:
    """UTF-16 is the host's order then, to subprocess and here."""
    sent = "wört".encode("utf-32-le" if encoding == "utf-32" else "utf-16-le")
    octal = "".join(map("\\{:03o}".format, sent))
    line = ["sh", "-c", f"printf '{octal}'"]
    ours = muontrap.run(line, capture_output=True, encoding=encoding).stdout
    theirs = subprocess.run(line, capture_output=True, encoding=encoding, check=True).stdout
    assert ours == theirs
    with Launcher(line, stdout=PIPE, encoding=encoding).launch() as process:
        assert process.communicate()[0] == theirs


def test_an_encoding_that_the_user_has_changed() -> None:
    with Launcher(["printf", r"\351t\351"], stdout=PIPE, encoding="utf-8").launch() as process:
        assert isinstance(process.stdout, io.TextIOWrapper)
        process.stdout.reconfigure(encoding="latin-1")
        assert process.communicate()[0] == "\u00e9t\u00e9"


def test_a_byte_order_mark_that_is_cut_is_no_mark() -> None:
    launcher = Launcher(["printf", r"\357\273"], stdout=PIPE, encoding="utf-8-sig", errors="replace")
    with launcher.launch() as process:
        assert process.communicate()[0] == launcher.run().stdout == "\ufffd"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_no_input_has_no_byte_order_mark(encoding: str) -> None:
    line = ["sh", "-c", f"test $(wc -c) = 0 && printf ok | iconv -t {encoding.removesuffix('-sig')}"]
    assert muontrap.run(line, input="", stdout=PIPE, encoding=encoding).stdout == "ok"
    with Launcher(["true"], stdout=PIPE, encoding=encoding).launch() as process:
        assert process.communicate("")[0] == ""


def test_a_result_comes_with_what_was_cut_and_does_not_decode() -> None:
    with pytest.raises(UnicodeError) as caught:
        muontrap.run(["printf", "abcdefgh"], stdout=PIPE, encoding="utf-16", max_output=5)
    assert caught.value.result.stdout == b"abcde"  # type: ignore[attr-defined]


@pytest.mark.parametrize("layer", ["BufferedReader", "TextIOWrapper"])
def test_a_file_object_that_can_not_be_closes_its_pipe_once(
    monkeypatch: pytest.MonkeyPatch, layer: str
) -> None:
    """Closed twice, the number could be another's the second time."""
    closed: list[int] = []
    close = os.close

    def fails(*_: Any, **__: Any) -> None:
        raise MemoryError

    class Raw(io.FileIO):
        def close(self) -> None:
            if not self.closed:
                closed.append(self.fileno())
            super().close()

    muontrap.run(["true"])
    close_idle_channels()
    before = sorted(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patch:
        patch.setattr(io, layer, fails)
        patch.setattr(io, "FileIO", Raw)
        patch.setattr(os, "close", lambda fd: (closed.append(fd), close(fd)))
        with pytest.raises(MemoryError):
            Launcher(["sleep", "1000"], stdout=PIPE, text=True).launch()
    assert len(closed) == len(set(closed))
    assert sorted(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_process_is_not_copied(duplicate: Any) -> None:
    """A copy that is let go would end the command."""
    with Launcher(["sleep", "1000"]).launch() as process:
        with pytest.raises(TypeError, match="can't be copied"):
            duplicate(process)
        assert process.poll() is None


@pytest.mark.parametrize("number", [9.7, 2**40 + 9, -1, 65, True, "TERM"])
def test_what_is_no_signal_is_not_sent(number: Any) -> None:
    with Launcher(["sleep", "1000"]).launch() as process:
        with pytest.raises((TypeError, ValueError), match="signum must be"):
            process.send_signal(number)
        process.send_signal(0)
        assert process.poll() is None


def test_a_stdin_that_nobody_feeds_is_closed() -> None:
    assert muontrap.run(["cat"], stdin=PIPE, stdout=PIPE, timeout=BOUND).stdout == b""
    with Launcher(["cat"], stdin=PIPE, stdout=PIPE).launch() as process:
        assert process.communicate(timeout=BOUND)[0] == b""


def test_large_input_makes_progress_in_short_calls() -> None:
    data = bytes(50_000_000)
    began = time.monotonic()
    with Launcher(["wc", "-c"], stdin=PIPE, stdout=PIPE).launch() as process:
        given: Any = data
        while True:
            try:
                counted = process.communicate(given, timeout=0.01)[0]
                break
            except TimeoutExpired:
                given = None
    assert counted.split() == [b"50000000"]
    assert time.monotonic() - began < 2 * BOUND


@pytest.mark.parametrize("errors", ["strict", "replace"])
def test_reads_between_two_calls_change_nothing_of_newlines_and_characters(
    tmp_path: Path, errors: str
) -> None:
    for name in "one", "two":
        os.mkfifo(tmp_path / name)
    line = [
        "sh",
        "-c",
        r"printf 'a\r\nb\r\n'; read _ <one; printf 'c\r\nd\r\n'; read _ <two; printf '\303\251\r\n'",
    ]
    launcher = Launcher(line, stdout=PIPE, encoding="utf-8", errors=errors, cwd=tmp_path)
    with launcher.launch() as process:
        assert process.stdout is not None
        with pytest.raises(TimeoutExpired):
            process.communicate(timeout=0.5)
        (tmp_path / "one").write_bytes(b"\n")
        assert process.stdout.readline() == "c\n"
        with pytest.raises(TimeoutExpired):
            process.communicate(timeout=0.5)
        (tmp_path / "two").write_bytes(b"\n")
        assert process.communicate(timeout=BOUND)[0] == "a\nb\nd\né\n"


@pytest.mark.parametrize(
    ("pieces", "options", "expected"),
    [
        ([b"abc\n", b"dx\r", b"\nz"], {"text": True}, "abc\nx\nz"),
        ([b"abc", b"dx\303", b"\251z"], {"encoding": "utf-8"}, "abcx\u00e9z"),
        ([b"abc", b"d\377\376q", b"z"], {"encoding": "ascii", "errors": "replace"}, "abc\ufffd\ufffdqz"),
        ([b"\357\273\277abc", b"dx", b"z"], {"encoding": "utf-8-sig"}, "abcxz"),
        ([b"\376\377\0a", b"\376\377\0d\0x", b"\0z"], {"encoding": "utf-16"}, "axz"),
        ([b"\376\377\0a", b"\376\377\0d", b"\0z"], {"encoding": "utf-16"}, "az"),
        ([b"a\377", b"dx", b"z"], {"encoding": "utf-8"}, b"a\377xz"),
    ],
    ids=["newline", "character", "replaced", "mark", "marks", "nothing-ahead", "wrong"],
)  # fmt: skip
def test_each_piece_is_decoded_by_who_has_read_what_was_before(
    tmp_path: Path, pieces: list[bytes], options: dict[str, Any], expected: str | bytes
) -> None:
    """The file object, where the user has read in between; what came before that, it never saw."""
    for name in "one", "two":
        os.mkfifo(tmp_path / name)
    first, second, third = ("".join(f"\\{byte:03o}" for byte in piece) for piece in pieces)
    line = f"printf '{first}'; read _ <one; printf '{second}'; read _ <two; printf '{third}'"
    with Launcher(["sh", "-c", line], stdout=PIPE, cwd=tmp_path, **options).launch() as process:
        assert process.stdout is not None
        with pytest.raises(TimeoutExpired):
            process.communicate(timeout=0.5)
        (tmp_path / "one").write_bytes(b"\n")
        assert process.stdout.read(1) == "d"
        (tmp_path / "two").write_bytes(b"\n")
        if isinstance(expected, str):
            assert process.communicate(timeout=BOUND)[0] == expected
        else:
            with pytest.raises(UnicodeDecodeError) as caught:
                process.communicate(timeout=BOUND)
            assert caught.value.object == expected
