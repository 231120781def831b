"""Output that goes somewhere: into lists, files, callables, loggers; by lines and chunks; up to a bound."""

from __future__ import annotations

import fcntl
import io
import logging
import os
import signal
import socket
import sys
import termios
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from arena import BOUND, Arena, wait_readable
from commands import argv
from hostlib import GRACE, hear, kind, muontrap, say

from muontrap import DEVNULL, PIPE, STDOUT, Cut, GuardDied, Launcher, LogLines
from muontrap.host.exchange import Exchange
from muontrap.host.status import Status
from muontrap.host.streams import Streams
from muontrap.logic.command import DEFAULT_WINDOW, Command

pytestmark = pytest.mark.slow

# Every end of line, an empty line, and a last one without an end.
DATA = b"one\ntwo\r\n\nthree\rfour % %s {}\n last "
LINES = DATA.splitlines()
PAGE = 4096
NOISE = 2.0  # seconds that a loaded machine may add to a bound


def sh(script: str) -> list[str]:
    return ["/bin/sh", "-c", script]


def printing(stdout: bytes, stderr: bytes = b"") -> list[str]:
    """A command that writes just these bytes."""
    first, second = ("".join(f"\\{byte:03o}" for byte in data) for data in (stdout, stderr))
    return sh(f"printf '{first}'; printf '{second}' >&2")


def run_into(args: list[str], into: Any, **options: Any) -> None:
    muontrap.run(args, into=into, **options)


def launch_into(args: list[str], into: Any, **options: Any) -> None:
    with Launcher(args, **options).launch(into=into) as process:
        process.wait(BOUND)


@pytest.fixture(params=[run_into, launch_into])
def deliver(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Either way to have output go somewhere."""
    return request.param  # type: ignore[no-any-return]


# 1: a window of one byte, so that each byte comes by itself.
windows = pytest.mark.parametrize("window", [None, 1])


def waiting(stream: Any) -> int:
    """How many bytes wait in a pipe."""
    count = bytearray(4)
    fcntl.ioctl(stream, termios.FIONREAD, count)
    return int.from_bytes(count, sys.byteorder)


def wait_waiting(stream: Any, count: int) -> None:
    """Wait until so many do; no event says so."""
    deadline = time.monotonic() + BOUND
    while waiting(stream) != count:
        assert time.monotonic() < deadline, waiting(stream)


WAYS = ("run", "run-into", "communicate", "lines", "chunks", "callback", "launch-into", "explicit-ack")


def read(launcher: Launcher, way: str) -> tuple[bytes, Any]:
    """Read all output of a command in one of the ways; return that, and how the command ended."""
    file = io.BytesIO()
    if way == "run":
        result = launcher.run()
        return result.stdout, result
    if way == "run-into":
        result = launcher.run(into=file)
        return file.getvalue(), result
    arguments: dict[str, Any] = {
        "callback": {"on_stdout": file.write},
        "explicit-ack": {"on_stdout": file.write, "explicit_ack": True},
        "launch-into": {"into": file},
    }.get(way, {})
    with launcher.launch(**arguments) as process:
        if way == "communicate":
            file.write(process.communicate()[0])
        elif way == "lines":
            file.writelines(line + b"\n" for line in process.lines())
        elif way == "chunks":
            file.writelines(process.chunks())
        process.wait(4 * BOUND)
        return file.getvalue(), process.result


# --- Captured


def test_a_character_that_max_output_cuts_is_left_out() -> None:
    command = ["printf", "a\\303\\244b"]
    found = muontrap.run(
        command, capture_output=True, encoding="utf-8", max_output=2, max_output_policy="drop"
    )
    assert (found.stdout, found.dropped) == ("a", 2)


# --- Lists and callables


@windows
def test_a_list_gets_the_lines(deliver: Callable[..., None], window: int | None) -> None:
    lines: list[bytes] = []
    deliver(printing(DATA), lines, stdio_window=window)
    assert lines == LINES
    assert {type(line) for line in lines} == {bytes}


@windows
def test_a_list_gets_text_where_streams_are_text(deliver: Callable[..., None], window: int | None) -> None:
    lines: list[str] = []
    deliver(printing("é€😀\nü".encode() + b"\xff\xe2\x82"), lines, text=True, stdio_window=window)
    assert lines == ["é€😀", "ü\ufffd\ufffd"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"encoding": "latin-1"}, "\xc3\xa9\xff"),
        ({"errors": "surrogateescape"}, "é\udcff"),
        ({"encoding": "ascii", "errors": "ignore"}, ""),
        ({"text": True, "errors": "backslashreplace"}, "é\\xff"),
    ],
)
def test_encoding_and_errors(deliver: Callable[..., None], options: dict[str, Any], text: str) -> None:
    lines: list[str] = []
    deliver(printing(b"\xc3\xa9\xff\n"), lines, **options)
    assert lines == [text]


def test_a_callable_gets_each_line(deliver: Callable[..., None]) -> None:
    lines: list[bytes] = []
    deliver(printing(DATA), lines.append)
    assert lines == LINES


def test_strict_raises_and_has_the_bytes(deliver: Callable[..., None]) -> None:
    lines: list[str] = []
    with pytest.raises(UnicodeDecodeError) as caught:
        deliver(printing(b"good\nb\xffd\n"), lines, errors="strict")
    assert caught.value.object == b"good\nb\xffd"


@windows
@pytest.mark.parametrize(("options", "kind_of_line"), [({}, bytes), ({"text": True}, str)])
def test_a_long_line_is_cut(
    deliver: Callable[..., None], options: dict[str, Any], kind_of_line: type, window: int | None
) -> None:
    lines: list[Any] = []
    deliver(printing(b"abcdefghij\nabcd\nabcde"), lines, max_line=4, stdio_window=window, **options)
    whole = [line if isinstance(line, str) else line.decode() for line in lines]
    assert whole == ["abcd", "efgh", "ij", "abcd", "abcd", "e"]
    assert [isinstance(line, Cut) for line in lines] == [True, True, False, False, True, False]
    assert all(isinstance(line, kind_of_line) for line in lines)


@pytest.mark.parametrize("options", [{}, {"text": True}])
def test_no_output_is_no_line(deliver: Callable[..., None], options: dict[str, Any]) -> None:
    lines: list[Any] = []
    text, binary = io.StringIO(), io.BytesIO()
    for into in (lines, lines.append, text, binary, logging.getLogger("muontrap.nothing")):
        deliver(["/bin/true"], into, **options)
    assert (lines, text.getvalue(), binary.getvalue()) == ([], "", b"")


# --- Files


class Partly(io.RawIOBase):
    """A raw file that takes no more than three bytes at a time."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, data: Any) -> int:
        self.data += bytes(data[:3])
        return len(data[:3])


class Silent:
    """An object with `write` alone, which does not say what it took, or says something else."""

    def __init__(self, says: Any = None) -> None:
        self.data = b""
        self.says = says

    def write(self, data: Any) -> Any:
        self.data += data
        return self.says


@windows
def test_binary_files_get_the_bytes(deliver: Callable[..., None], tmp_path: Path, window: int | None) -> None:
    """Also where streams are text."""
    data = DATA + b"\xff\xe2\x82" + bytes(range(256))
    files = Partly(), Silent(), Silent(0), Silent("ok")
    for into in (memory := io.BytesIO(), *files):
        deliver(printing(data), into, text=True, stdio_window=window)
    assert [memory.getvalue(), *(file.data for file in files)] == 5 * [data]
    for buffering in (-1, 0):
        with open(tmp_path / "file", "wb", buffering=buffering) as file:
            deliver(printing(data), file, stdio_window=window)
        assert (tmp_path / "file").read_bytes() == data


@windows
def test_text_files_get_text(deliver: Callable[..., None], tmp_path: Path, window: int | None) -> None:
    """Decoded with the command's encoding, encoded with the file's, with ends of lines as they are."""
    data = "é\r\n€\r😀\n".encode() + b"\xff" + b"\xe2\x82"
    text = "é\r\n€\r😀\n\ufffd\ufffd"
    memory = io.StringIO(newline="")
    deliver(printing(data), memory, stdio_window=window)
    assert memory.getvalue() == text
    with open(tmp_path / "file", "w", encoding="utf-16", newline="") as file:
        deliver(printing(data), file, stdio_window=window)
    assert (tmp_path / "file").read_bytes() == text.encode("utf-16")
    memory = io.StringIO()
    deliver(printing("ü".encode("utf-16")), memory, encoding="utf-16", stdio_window=window)
    assert memory.getvalue() == "ü"


def test_a_file_is_neither_flushed_nor_closed(deliver: Callable[..., None]) -> None:
    class File(Silent):
        def flush(self) -> None:
            raise AssertionError("flushed")

        close = __enter__ = __exit__ = flush

    file = File()
    deliver(printing(DATA), file)
    assert file.data == DATA


def test_a_file_gets_no_more_at_once_than_the_window(deliver: Callable[..., None]) -> None:
    class Sizes:
        def __init__(self) -> None:
            self.sizes: list[int] = []

        def write(self, data: Any) -> None:
            self.sizes.append(len(data))

    file = Sizes()
    deliver(["dd", "if=/dev/zero", "bs=60000", "count=1", "status=none"], file)  # one write
    assert file.sizes == [*5 * [DEFAULT_WINDOW], 60_000 - 5 * DEFAULT_WINDOW]


def test_a_file_that_would_block(deliver: Callable[..., None]) -> None:
    """A pipe that does not wait takes a part, and then nothing, which is no reason to lose the rest."""
    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    with open(reading, "rb", 0) as pipe, open(writing, "wb", 0) as file:
        with pytest.raises(BlockingIOError, match="output goes into would block"):
            deliver(["yes"], file, delay_to_sigkill=GRACE)
        assert pipe.read(10) == 5 * b"y\n"


# --- Loggers


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, "muontrap.test")
    return caplog


LOGGER = logging.getLogger("muontrap.test")


def messages(log: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in log.records]


def test_a_logger_gets_each_line_as_text(deliver: Callable[..., None], log: pytest.LogCaptureFixture) -> None:
    """Whatever % is in it, and whatever byte."""
    deliver(printing(DATA + b"\xff"), LOGGER)
    assert messages(log) == [*(line.decode() for line in LINES[:-1]), " last \ufffd"]
    assert {record.levelno for record in log.records} == {logging.INFO}
    assert {(record.command, record.stream) for record in log.records} == {("/bin/sh", "stdout")}  # type: ignore[attr-defined]


def test_log_lines(deliver: Callable[..., None], log: pytest.LogCaptureFixture) -> None:
    """Level, prefix, transform, extra; the other stream."""
    into = LogLines(
        LOGGER,
        logging.WARNING,
        prefix="%d cmd: ",
        transform=lambda line: None if line == "two" else line.upper(),
        extra={"job": 7},
    )
    deliver(printing(b"out\n", b"one\ntwo\n\nthree"), (None, into), stdout=DEVNULL)
    assert messages(log) == ["%d cmd: ONE", "%d cmd: ", "%d cmd: THREE"]
    record = log.records[0]
    assert (record.levelno, record.job, record.stream) == (logging.WARNING, 7, "stderr")  # type: ignore[attr-defined]


def test_a_level_that_is_not_logged(log: pytest.LogCaptureFixture, deliver: Callable[..., None]) -> None:
    log.set_level(logging.WARNING, "muontrap.test")
    deliver(printing(DATA), LOGGER)
    assert log.records == []


@pytest.mark.parametrize(
    "name", ["message", "asctime", "msg", "args", "levelname", "name", "command", "stream"]
)
def test_extra_may_not_hide_what_a_record_has(name: str) -> None:
    with pytest.raises(ValueError, match=f"extra can't have {name}:"):
        LogLines(LOGGER, extra={name: 1, "other": 2})


@pytest.mark.parametrize(
    ("arguments", "options", "named"),
    [
        (("root",), {}, "'root'"),
        ((LOGGER, "INFO"), {}, "'INFO'"),
        ((LOGGER, True), {}, "True"),
        ((LOGGER,), {"prefix": 5}, "5"),
        ((LOGGER,), {"transform": "upper"}, "'upper'"),
    ],
)
def test_log_lines_checks_its_arguments(arguments: Any, options: Any, named: str) -> None:
    with pytest.raises(TypeError, match=f"not {named}$"):
        LogLines(*arguments, **options)


# --- Which stream


def test_a_pair_is_for_both_streams(deliver: Callable[..., None]) -> None:
    out: list[bytes] = []
    err = io.BytesIO()
    deliver(printing(b"o1\no2", b"e1\ne2"), (out, err))
    assert (out, err.getvalue()) == ([b"o1", b"o2"], b"e1\ne2")


@pytest.mark.parametrize("options", [{"stdout": DEVNULL, "stderr": PIPE}, {"stdout": DEVNULL}])
def test_stderr_alone(deliver: Callable[..., None], options: dict[str, Any]) -> None:
    lines: list[bytes] = []
    deliver(printing(b"out", b"err"), lines if "stderr" in options else (None, lines), **options)
    assert lines == [b"err"]


def test_stderr_merged_is_in_order(deliver: Callable[..., None]) -> None:
    lines: list[bytes] = []
    script = "for i in 1 2 3 4 5 6 7 8 9; do echo o$i; echo e$i >&2; done"
    deliver(sh(script), lines, stderr=STDOUT)
    assert lines == [b"%c%d" % (stream, number) for number in range(1, 10) for stream in b"oe"]


def test_what_does_not_go_elsewhere_is_in_the_result() -> None:
    lines: list[bytes] = []
    result = muontrap.run(printing(b"out", b"err"), into=lines, capture_output=True)
    assert (lines, result.stdout, result.stderr) == ([b"out"], None, b"err")
    result = muontrap.run(printing(b"out", b"err"), into=(None, lines), stdout=PIPE, text=True)
    assert (lines, result.stdout, result.stderr) == ([b"out", "err"], "out", None)


def test_what_was_launched_into_is_not_to_be_read() -> None:
    lines: list[bytes] = []
    with Launcher(printing(b"out", b"err"), stderr=PIPE).launch(into=lines) as process:
        assert process.stdout is None
        assert isinstance(process.reader, muontrap.Reader)
        assert process.stderr is not None
        assert process.stderr.read() == b"err"
        for read in (process.communicate, process.lines, process.chunks):
            with pytest.raises(ValueError, match="goes to callbacks already"):
                read()
        process.wait(BOUND)
    assert lines == [b"out"]


def test_input_and_output_of_any_size_at_the_same_time(deliver: Callable[..., None]) -> None:
    data = b"".join(b"%d\n" % number for number in range(200_000))
    file = io.BytesIO()
    if deliver is run_into:
        deliver(["cat"], file, input=data)
    else:
        with Launcher(["cat"], stdin=PIPE).launch(into=file) as process:
            assert process.stdin is not None
            process.stdin.write(data)
            process.stdin.close()
            process.wait(BOUND)
    assert file.getvalue() == data


# --- A sink that raises


def raising_host(*, line: list[str], error: str) -> None:
    """Run a command with a tree of processes into something that raises at its first line."""
    calls: list[Any] = []

    def take(line: bytes) -> None:
        calls.append(line.decode())
        raise {"key": KeyError, "interrupt": KeyboardInterrupt, "exit": SystemExit}[error](line.decode())

    script = ["/bin/sh", "-c", 'printf "first\\nsecond\\nlast"; exec "$@"', "sh", *line]
    try:
        muontrap.run(script, into=take, delay_to_sigkill=GRACE)
    except BaseException as caught:
        say(raised=repr(caught), calls=calls, context=repr(caught.__context__))
    hear()


@pytest.mark.parametrize(
    ("error", "shown"), [("key", "KeyError"), ("interrupt", "KeyboardInterrupt"), ("exit", "SystemExit")]
)
@pytest.mark.parametrize("program", ["tree_of_sessions.py", "ignore_signals.py"])
def test_a_sink_that_raises_ends_the_command(arena: Arena, program: str, error: str, shown: str) -> None:
    """The exception arrives, nothing is left, and the sink is not called again."""
    started = arena.host(raising_host, line=argv(arena, program), error=error)
    answer = started.hear()
    arena.assert_left({started.pid, *arena.named("muontrap-guard"), *arena.named("muontrap-watch")})
    assert answer == {"raised": f"{shown}('first')", "calls": ["first"], "context": "None"}


def test_a_file_that_raises_ends_the_command() -> None:
    class Full:
        def write(self, _: Any) -> None:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        muontrap.run(["yes"], into=Full(), delay_to_sigkill=GRACE)


def test_the_last_line_may_raise() -> None:
    def take(line: bytes) -> None:
        if line == b"last":
            raise KeyError(line)

    with pytest.raises(KeyError, match="last"):
        muontrap.run(printing(b"one\nlast"), into=take)


def test_a_timeout_is_kept_though_lines_are_taken_slowly() -> None:
    """One piece of output may be thousands of lines."""
    lines: list[bytes] = []

    def take(line: bytes) -> None:
        lines.append(line)
        time.sleep(0.01)  # it works that long

    begin = time.monotonic()
    with pytest.raises(muontrap.TimeoutExpired):
        muontrap.run(["yes"], into=take, timeout=0.2, delay_to_sigkill=GRACE)
    assert time.monotonic() - begin < 0.2 + GRACE + 0.5 + NOISE
    assert set(lines) == {b"y"}


def test_what_came_before_a_timeout_is_delivered() -> None:
    """A last line without an end too."""
    lines: list[bytes] = []
    with pytest.raises(muontrap.TimeoutExpired) as caught:
        muontrap.run(sh("printf 'one\\ntwo'; sleep 1000"), into=lines, timeout=0.3)
    assert lines == [b"one", b"two"]
    assert caught.value.stdout is None


# --- What is refused

RUNS: list[tuple[dict[str, Any], dict[str, Any], type[Exception], str]] = [
    ({}, {"max_output": -1, "capture_output": True}, ValueError, "max_output .*not -1$"),
    ({}, {"max_output": True, "capture_output": True}, TypeError, "max_output .*not True$"),
    ({}, {"max_output": "1", "capture_output": True}, TypeError, "max_output .*not '1'$"),
    ({}, {"max_output": 1.0, "capture_output": True}, TypeError, "max_output .*not 1.0$"),
    ({}, {"max_output": 1}, ValueError, "max_output needs output"),
    ({"stderr": STDOUT}, {"max_output": 1}, ValueError, "max_output needs output"),
    (
        {},
        {"max_output": 1, "max_output_policy": "halt", "into": []},
        ValueError,
        "max_output_policy .*'halt'$",
    ),
    ({"stdout": DEVNULL}, {"capture_output": True}, ValueError, "capture_output"),
]
BOTH: list[tuple[dict[str, Any], dict[str, Any], type[Exception], str]] = [
    ({}, {"into": 3}, TypeError, "not 3$"),
    ({}, {"into": "file"}, TypeError, "not 'file'$"),
    ({}, {"into": b""}, TypeError, "not b''$"),
    ({}, {"into": ()}, ValueError, r"not \(\)$"),
    ({}, {"into": ([],)}, ValueError, r"not \(\[\],\)$"),
    ({}, {"into": ([], [], [])}, ValueError, r"not \(\[\], \[\], \[\]\)$"),
    ({}, {"into": (None, None)}, ValueError, r"not \(None, None\)$"),
    ({}, {"into": ([], 3)}, TypeError, "not 3$"),
    ({}, {"into": ({}, None)}, TypeError, r"not {}$"),
    ({"stdout": DEVNULL}, {"into": []}, ValueError, "stdout .*-3"),
    ({"stdout": 1}, {"into": []}, ValueError, "stdout .* 1"),
    ({"stderr": STDOUT}, {"into": ([], [])}, ValueError, "stderr .*-2"),
    ({"stderr": DEVNULL}, {"into": (None, [])}, ValueError, "stderr .*-3"),
    ({"encoding": "utf-16"}, {"into": []}, ValueError, "utf-16"),
    ({"inactivity_timeout": 1}, {}, ValueError, "inactivity_timeout needs"),
    ({"inactivity_timeout": 1, "stdout": DEVNULL}, {}, ValueError, "inactivity_timeout needs"),
]
LAUNCHES: list[tuple[dict[str, Any], dict[str, Any], type[Exception], str]] = [
    ({}, {"on_stdout": 3}, TypeError, "on_stdout .*not 3$"),
    ({}, {"on_stdout": 0}, TypeError, "on_stdout .*not 0$"),
    ({}, {"on_stderr": []}, TypeError, r"on_stderr .*not \[\]$"),
    ({}, {"explicit_ack": True}, ValueError, "explicit_ack=True"),
    ({}, {"explicit_ack": True, "into": []}, ValueError, "explicit_ack=True"),
    ({}, {"into": [], "on_stdout": print}, ValueError, "into .*on_stdout"),
    ({}, {"into": [], "on_stderr": print}, ValueError, "into .*on_stderr"),
    ({"stdout": DEVNULL}, {"on_stdout": print}, ValueError, "stdout .*-3"),
    ({"stderr": STDOUT}, {"on_stderr": print}, ValueError, "stderr .*-2"),
]
CALLS = [
    *(("run", *row) for row in RUNS + BOTH),
    *(("launch", *row) for row in BOTH + LAUNCHES),
]


@pytest.mark.parametrize(
    ("call", "options", "arguments", "error", "message"),
    CALLS,
    ids=["-".join(map(str, (*row[:1], *row[1].items(), *row[2].items()))) for row in CALLS],
)
def test_bad_input_is_refused_before_anything_is_started(
    call: str,
    options: dict[str, Any],
    arguments: dict[str, Any],
    error: type[Exception],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The message names the value."""
    launcher = Launcher(["/bin/true"], **options)
    monkeypatch.setattr("muontrap.host.launcher.link_for", lambda _: pytest.fail("was started"))
    before = os.listdir("/proc/self/fd")
    with pytest.raises(error, match=message):
        getattr(launcher, call)(**arguments)
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("stdio_window", (0, -1, True, "1", 1.5, 2**63)),
        ("max_line", (0, -1, True, None, "1", 1.5)),
        ("inactivity_timeout", (0, 0.0, -1, float("nan"), float("inf"), True, "1")),
    ],
)
def test_options_are_checked_at_once(name: str, values: tuple[Any, ...]) -> None:
    for value in values:
        with pytest.raises((TypeError, ValueError)) as caught:
            Launcher(["true"], **{name: value})
        assert str(caught.value).startswith(f"{name} must be ")
        assert repr(value) in str(caught.value) or value in (0, 0.0)
        assert (
            isinstance(caught.value, TypeError) == isinstance(value, (bool, str, type(None))) or value == 1.5
        )


@pytest.mark.parametrize("name", ["chunks", "lines"])
@pytest.mark.parametrize(
    ("streams", "asked", "message"),
    [
        ({"stdout": PIPE}, "stdin", "not 'stdin'$"),
        ({"stdout": PIPE}, "", "not ''$"),
        ({"stdout": PIPE}, 1, "not 1$"),
        ({"stdout": PIPE}, [], r"not \[\]$"),
        ({"stdout": PIPE, "stderr": PIPE}, None, "both PIPE"),
        ({}, None, "no stream is PIPE"),
        ({"stdin": PIPE}, None, "no stream is PIPE"),
        ({"stderr": PIPE}, "stdout", "'stdout' is not PIPE"),
        ({"stdout": PIPE, "stderr": STDOUT}, "stderr", "'stderr' is not PIPE"),
        ({"stdout": PIPE}, "both", "'both' is not PIPE"),
    ],
)
def test_a_stream_that_can_not_be_read(name: str, streams: dict[str, int], asked: Any, message: str) -> None:
    """Said by the call, and not when the first piece is asked for."""
    with Launcher(["/bin/true"], **streams).launch() as process, pytest.raises(ValueError, match=message):
        getattr(process, name)(asked)


def test_a_process_that_is_closed_has_nothing_to_read() -> None:
    with Launcher(["/bin/true"], stdout=PIPE).launch() as process:
        pass
    for read in (process.chunks, process.lines):
        with pytest.raises(ValueError, match="the Process was closed"):
            read()


# --- chunks and lines


def test_chunks_are_all_output_and_within_the_window() -> None:
    data = os.urandom(300_000)
    with Launcher(["cat"], stdin=PIPE, stdout=PIPE).launch() as process:
        assert process.stdin is not None
        writer = threading.Thread(target=lambda file: (file.write(data), file.close()), args=(process.stdin,))
        writer.start()
        chunks = list(process.chunks())
        writer.join()
    assert b"".join(chunks) == data
    assert all(0 < len(chunk) <= DEFAULT_WINDOW for chunk in chunks)


def test_both_streams_come_in_pairs() -> None:
    args = printing(DATA, b"e1\ne2")
    with Launcher(args, stdout=PIPE, stderr=PIPE).launch() as process:
        pieces = list(process.chunks("both"))
    for stream, data in (("stdout", DATA), ("stderr", b"e1\ne2")):
        assert b"".join(piece for name, piece in pieces if name == stream) == data
    with Launcher(args, stdout=PIPE, stderr=PIPE, text=True).launch() as process:
        lines = list(process.lines("both"))
    assert [line for name, line in lines if name == "stdout"] == [line.decode() for line in LINES]
    assert [line for name, line in lines if name == "stderr"] == ["e1", "e2"]


@pytest.mark.parametrize("asked", [None, "stderr"])
def test_lines_of_stderr_alone(asked: Any) -> None:
    with Launcher(printing(b"out", DATA), stdout=DEVNULL, stderr=PIPE).launch() as process:
        assert list(process.lines(asked)) == LINES


@windows
@pytest.mark.parametrize(("options", "kind_of_line"), [({}, bytes), ({"text": True}, str)])
def test_lines(options: dict[str, Any], kind_of_line: type, window: int | None) -> None:
    """A last one without an end, and a long one cut."""
    args = printing(DATA + b"\n" + 9 * b"x" + b"\xff\xc3")
    with Launcher(
        args, stdout=PIPE, stderr=STDOUT, max_line=8, stdio_window=window, **options
    ).launch() as process:
        lines = list(process.lines())
    expected = [b"one", b"two", b"", b"three", b"four % %", b"s {}", b" last ", 8 * b"x", b"x\xff\xc3"]
    assert (
        lines == expected if kind_of_line is bytes else [line.decode(errors="replace") for line in expected]
    )
    assert {index for index, line in enumerate(lines) if isinstance(line, Cut)} == {4, 7}


@windows
@pytest.mark.parametrize(("options", "kind_of_line"), [({}, bytes), ({"text": True}, str)])
def test_lines_with_their_ends(options: dict[str, Any], kind_of_line: type, window: int | None) -> None:
    """Of one stream and of both; joined they are the output."""
    expected = [b"one\n", b"two\r\n", b"\r", b"\xc3\xa9 \n", b"12345678", b"9\r\n", b"x\xff\xc3"]
    data = b"".join(expected)
    if kind_of_line is str:
        expected = [line.decode(errors="replace") for line in expected]  # type: ignore[misc]
    launcher = Launcher(
        printing(data, data), stdout=PIPE, stderr=PIPE, max_line=8, stdio_window=window, **options
    )
    with launcher.launch() as process:
        lines = list(process.lines("stdout", keepends=True))
        assert list(process.lines("stderr", keepends=True)) == lines
    assert lines == expected
    assert {index for index, line in enumerate(lines) if isinstance(line, Cut)} == {4}
    with launcher.launch() as process:
        both = list(process.lines("both", keepends=True))
    for stream in ("stdout", "stderr"):
        assert [line for name, line in both if name == stream] == expected


def test_lines_are_strict_when_asked() -> None:
    with Launcher(printing(b"good\nb\xffd"), stdout=PIPE, errors="strict").launch() as process:
        lines = process.lines()
        assert next(lines) == "good"
        with pytest.raises(UnicodeDecodeError):
            next(lines)


def test_between_two_pieces_nothing_is_read() -> None:
    with Launcher(printing(b"abcd"), stdout=PIPE, stdio_window=1).launch() as process:
        wait_waiting(process.stdout, 4)
        chunks, lines = process.chunks(), process.lines()
        assert waiting(process.stdout) == 4
        assert next(chunks) == b"a"
        assert process.wait(BOUND) == 0
        assert waiting(process.stdout) == 3
        del chunks
        assert list(lines) == [b"bcd"]


def test_a_loop_that_was_left_leaves_the_rest() -> None:
    """For another iterator, or for the file object."""
    with Launcher(["head", "-c", "300000", "/dev/zero"], stdout=PIPE).launch() as process:
        count = len(next(iter(process.chunks())))
        for chunk in process.chunks():
            count += len(chunk)
            if count > 100_000:
                break
        del chunk
        assert process.stdout is not None
        count += len(process.stdout.read())
    assert count == 300_000


def test_the_end_of_a_stream_is_no_end_of_the_command() -> None:
    with Launcher(sh("echo x; exec >&-; exec sleep 1000"), stdout=PIPE).launch() as process:
        assert list(process.chunks()) == [b"x\n"]
        assert process.poll() is None


def test_a_process_that_is_closed_under_its_iterator() -> None:
    with Launcher(["yes"], stdout=PIPE).launch() as process:
        begun, new = process.chunks(), process.lines()
        next(begun)
    for pieces in (begun, new):
        with pytest.raises(ValueError, match=f"command {process.pid} was closed while it was read"):
            next(pieces)


def test_the_file_object_reads_and_blocks_again_after_all_iterators() -> None:
    """They do not wait in read(2); a file object is to."""
    with Launcher(["cat"], stdin=PIPE, stdout=PIPE).launch() as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"one\n")
        process.stdin.flush()
        chunks = process.chunks()
        assert next(chunks) == b"one\n"
        second = process.lines()
        process.stdin.write(b"two\n")
        process.stdin.flush()
        assert next(second) == b"two"
        del chunks
        assert not os.get_blocking(process.stdout.fileno())
        del second
        assert os.get_blocking(process.stdout.fileno())


def guard_host(*, name: str) -> None:
    """Read what a command wrote before its guard is killed."""
    lines: list[str] = []
    launcher = muontrap.Launcher(
        ["/bin/sh", "-c", "echo one; echo two; printf last; exec sleep 1000"], stdout=-1
    )
    process = (
        launcher.launch(on_stdout=lambda data: lines.append(data.decode()))
        if name == "callback"
        else launcher.launch()
    )
    say(pid=process.pid)
    hear()

    def read() -> None:
        if name != "callback":
            lines.extend(piece.decode() for piece in getattr(process, name)())
        process.wait()

    raised = kind(read)[0]
    say(raised=raised, output="|".join(lines), closed=kind(process.close)[0], again=kind(process.close)[0])
    hear()


@pytest.mark.parametrize(
    ("name", "output"),
    [("lines", "one|two|last"), ("chunks", "one\ntwo\nlast"), ("callback", "one\ntwo\nlast")],
)
def test_a_guard_that_was_killed_takes_no_output_with_it(arena: Arena, name: str, output: str) -> None:
    started = arena.host(guard_host, name=name)
    sleep = started.hear()["pid"]
    wait_named(arena, sleep, "sleep")
    guard = arena.the("muontrap-guard")
    os.kill(guard, signal.SIGKILL)
    arena.wait_dead(sleep)
    answer = started.ask("read")
    if name != "lines":
        answer["output"] = answer["output"].replace("\n|", "\n")
    assert answer == {"raised": "GuardDied", "output": output, "closed": "returned", "again": "returned"}


def wait_named(arena: Arena, pid: int, name: str) -> None:
    """Wait until a process has executed a program: no event says so."""
    deadline = time.monotonic() + BOUND
    while arena.named(name) != [pid]:
        assert time.monotonic() < deadline, arena.explain(arena.left())


# --- The end of output


@pytest.mark.parametrize("way", WAYS)
def test_output_ends_with_the_command_though_another_process_writes_on(way: str) -> None:
    """One that was left alone; it ends when nobody is left to read."""
    launcher = Launcher(sh("echo x; yes & exit 3"), stdout=PIPE, kill_mode="process", stdio_window=2**25)
    output, result = read(launcher, way)
    assert (result.returncode, result.reason) == (3, "exited")
    assert output.startswith(b"x\n")


# --- stdio_window


@pytest.mark.parametrize("streams", [("stdout",), ("stderr",), ("stdout", "stderr")], ids="+".join)
@pytest.mark.parametrize("size", [1, PAGE, 2 * PAGE, 10_240, 4 * PAGE, 65_536, 100_000, 2**20, 5_000_000])
def test_the_window_and_the_pipes_are_what_was_asked_for(size: int, streams: tuple[str, ...]) -> None:
    launcher = Launcher(["/bin/true"], stdio_window=size, **dict.fromkeys(streams, PIPE))  # type: ignore[arg-type]
    with launcher.launch() as process:
        files = [getattr(process, name) for name in streams]
        pipes = [fcntl.fcntl(file, fcntl.F_GETPIPE_SZ) for file in files]
        window = process._pipes.window
    assert window >= max(1, size // 2)
    if size >= 2 * PAGE * len(streams):
        assert size // 8 < sum(pipes)
        assert window + sum(pipes) <= size
    else:
        assert pipes == len(streams) * [PAGE]


def test_without_the_option_pipes_are_as_the_kernel_makes_them() -> None:
    usual = os.pipe2(os.O_CLOEXEC)
    with Launcher(["/bin/true"], stdout=PIPE).launch() as process:
        sizes = [fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ) for fd in (usual[0], process.stdout)]  # type: ignore[arg-type]
        assert process._pipes.window == DEFAULT_WINDOW
    assert sizes[0] == sizes[1]
    for fd in usual:
        os.close(fd)


def test_a_user_who_may_have_no_larger_pipes(monkeypatch: pytest.MonkeyPatch) -> None:
    real = fcntl.fcntl

    def refuse(fd: int, command: int, *arguments: int) -> int:
        if command == fcntl.F_SETPIPE_SZ:
            raise PermissionError(1, "Operation not permitted")
        return real(fd, command, *arguments)

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    lines: list[bytes] = []
    muontrap.run(printing(DATA), into=lines, stdio_window=2**20)
    assert lines == LINES


# --- max_output

TEN = "printf 1234567890"


def test_a_command_that_writes_too_much_is_stopped() -> None:
    result = muontrap.run(["yes"], capture_output=True, max_output=1001)
    assert result.stdout == 500 * b"y\n" + b"y"
    assert result.stderr == b""
    assert (result.reason, result.returncode) == ("max-output", -signal.SIGTERM)
    assert [sent.signal for sent in result.signals_sent] == [signal.SIGTERM]
    assert result.dropped > 0
    assert result.explanation == "more output than max_output"


@pytest.mark.parametrize("how", ["trap 'exit 0' TERM", "trap '' TERM"], ids=["ends", "ends-by-itself"])
def test_check_raises_for_too_much_output_though_the_return_code_is_0(how: str) -> None:
    stays = "sleep 1000 & wait" if "exit" in how else ":"
    with pytest.raises(muontrap.CalledProcessError, match="ended: more output than max_output") as caught:
        muontrap.run(sh(f"{how}; {TEN}; {stays}"), capture_output=True, max_output=9, check=True)
    result = caught.value.result
    assert (result.returncode, result.reason, result.dropped) == (0, "max-output", 1)
    assert (caught.value.returncode, caught.value.stdout) == (0, b"123456789")


def test_the_rest_is_dropped_and_counted() -> None:
    options: dict[str, Any] = {"capture_output": True, "max_output_policy": "drop", "check": True}
    result = muontrap.run(["head", "-c", "300000", "/dev/zero"], max_output=5, **options)
    assert (result.stdout, result.dropped) == (5 * b"\0", 299_995)
    assert (result.reason, result.returncode, result.signals_sent) == ("exited", 0, ())


@pytest.mark.parametrize("policy", ["stop", "drop"])
@pytest.mark.parametrize("most", [10, 11])
def test_as_much_as_allowed_is_not_too_much(policy: Any, most: int) -> None:
    result = muontrap.run(sh(TEN), capture_output=True, max_output=most, max_output_policy=policy)
    assert (result.stdout, result.dropped, result.reason) == (b"1234567890", 0, "exited")


def test_no_output_at_all_may_be_wanted() -> None:
    result = muontrap.run(sh(TEN), capture_output=True, max_output=0, max_output_policy="drop")
    assert (result.stdout, result.dropped) == (b"", 10)
    assert muontrap.run(["/bin/true"], capture_output=True, max_output=0, check=True).dropped == 0


def test_the_bound_is_for_both_streams_together() -> None:
    script = "printf 12345; printf abcde >&2; printf 67890; printf fghij >&2"
    result = muontrap.run(sh(script), capture_output=True, max_output=7, max_output_policy="drop")
    assert len(result.stdout) + len(result.stderr) == 7
    assert b"1234567890".startswith(result.stdout)
    assert b"abcdefghij".startswith(result.stderr)
    assert result.dropped == 13


def test_the_bound_is_for_what_is_passed_on_too() -> None:
    """A line at the bound is cut."""
    lines: list[bytes] = []
    result = muontrap.run(printing(b"one\ntwo\nthree\n"), into=lines, max_output=6, max_output_policy="drop")
    assert (lines, result.dropped) == ([b"one", b"tw"], 8)
    file = io.StringIO()
    result = muontrap.run(["yes"], into=file, max_output=6)
    assert (file.getvalue(), result.reason) == ("y\ny\ny\n", "max-output")


def test_a_timeout_says_what_was_dropped() -> None:
    options: dict[str, Any] = {"capture_output": True, "max_output": 4, "max_output_policy": "drop"}
    with pytest.raises(muontrap.TimeoutExpired) as caught:
        muontrap.run(sh(f"{TEN}; sleep 1000"), timeout=0.3, **options)
    assert caught.value.result is not None
    assert (caught.value.stdout, caught.value.result.dropped) == (b"1234", 6)


# --- Text that is captured


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_text_that_does_not_decode_is_not_lost(stream: str) -> None:
    args = printing(b"a\xffb", b"fine") if stream == "stdout" else printing(b"fine", b"a\xffb")
    with pytest.raises(UnicodeDecodeError) as caught:
        muontrap.run(args, capture_output=True, text=True)
    assert caught.value.object == b"a\xffb"
    result = caught.value.result  # type: ignore[attr-defined]
    assert getattr(result, stream) == b"a\xffb"
    assert {result.stdout, result.stderr} == {b"a\xffb", b"fine"}
    assert (result.returncode, result.reason) == (0, "exited")
    launcher = Launcher(args, stdout=PIPE, stderr=PIPE, text=True)
    with launcher.launch() as process, pytest.raises(UnicodeDecodeError) as caught:
        process.communicate()
    assert caught.value.object == b"a\xffb"


def test_ends_of_lines_in_captured_text_are_those_of_python() -> None:
    assert muontrap.run(printing(b"a\r\nb\rc\n"), capture_output=True, text=True).stdout == "a\nb\nc\n"


# --- inactivity_timeout

SILENCE = 1.0


def test_a_silent_command_is_ended_and_output_postpones_it() -> None:
    """In each way to read, all at once, as they take time."""
    script = "for i in 1 2 3 4 5; do echo $i; sleep 0.3; done; exec sleep 1000"
    launcher = Launcher(sh(script), stdout=PIPE, inactivity_timeout=SILENCE)
    with ThreadPoolExecutor(len(WAYS)) as pool:
        ended = dict(zip(WAYS, pool.map(lambda way: read(launcher, way), WAYS), strict=True))
    for way, (output, result) in ended.items():
        assert output == b"1\n2\n3\n4\n5\n", way
        assert (result.reason, result.returncode) == ("inactivity", -signal.SIGTERM), way
        assert result.explanation == "no output for inactivity_timeout"
        assert result.usage.wall > 4 * 0.3 + SILENCE, way


def test_a_stream_that_was_closed_is_not_silent() -> None:
    launcher = Launcher(sh("echo x; exec >&-; sleep 0.6"), stdout=PIPE, inactivity_timeout=0.2)
    with ThreadPoolExecutor(len(WAYS)) as pool:
        ended = dict(zip(WAYS, pool.map(lambda way: read(launcher, way), WAYS), strict=True))
    assert {way: (output, result.reason) for way, (output, result) in ended.items()} == dict.fromkeys(
        WAYS, (b"x\n", "exited")
    )


def test_check_raises_for_silence_though_the_return_code_is_0() -> None:
    script = "trap 'exit 0' TERM; echo x; sleep 1000 & wait"
    with pytest.raises(
        muontrap.CalledProcessError, match="ended: no output for inactivity_timeout"
    ) as caught:
        muontrap.run(sh(script), stdout=PIPE, inactivity_timeout=0.3, check=True)
    assert (caught.value.returncode, caught.value.result.reason) == (0, "inactivity")
    assert caught.value.stdout == b"x\n"


def test_output_of_either_stream_postpones_it() -> None:
    script = "for i in 1 2 3 4 5; do echo >&2; sleep 0.3; done"
    result = muontrap.run(sh(script), capture_output=True, inactivity_timeout=SILENCE)
    assert (result.reason, result.stderr) == ("exited", 5 * b"\n")


def test_nobody_is_silent_between_two_calls_of_communicate(tmp_path: Path) -> None:
    """What the command wrote meanwhile is in the pipe."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    script = "echo one; read -r _; echo two; read -r _"
    launcher = Launcher(sh(f'exec < "{fifo}"; {script}'), stdout=PIPE, inactivity_timeout=0.5)
    with open(fifo, "rb+", 0) as go, launcher.launch() as process:
        wait_waiting(process.stdout, 4)
        with pytest.raises(muontrap.TimeoutExpired):
            process.communicate(timeout=0.01)
        go.write(b"\n")
        wait_waiting(process.stdout, 4)
        assert not wait_readable([process.fileno()], time.monotonic() + 0.6)
        with pytest.raises(muontrap.TimeoutExpired):
            process.communicate(timeout=0.01)
        go.write(b"\n")
        assert process.communicate()[0] == b"one\ntwo\n"
        assert process.result is not None
        assert process.result.reason == "exited"


def test_what_is_written_until_the_end_is_known_is_read() -> None:
    """Between a guard's death and that of its commands, say: the pipe was empty when poll looked at it."""
    streams = Streams(Command(["true"], stdout=PIPE))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    class Late(Status):
        def __init__(self) -> None:
            self._users, self._unclosed = set(), []

        def fileno(self) -> int:
            return ours.fileno()

        def sooner(self, deadline: float | None) -> float | None:
            return deadline

        def has_ended(self) -> bool:
            os.write(streams.sources[1], b"late")
            raise GuardDied("the guard died")

    with ours, theirs:
        theirs.send(b"word")
        exchange = Exchange(Command(["true"], stdout=PIPE), streams.pipes, Late())
        with pytest.raises(GuardDied):
            exchange.until_end(None)
        assert exchange.so_far() == (b"late", None)
    streams.close()
    streams.pipes.close()
