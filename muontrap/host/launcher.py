"""A description of a command, and its launch.

    host program ── Launcher.launch() ──► Process
        │  request socket: Launch + descriptors            ▲ channel: Started | Failed,
        ▼                                                  │ Suspended, Ended; Stop, Signal
    guard ── spawn or fork ──► command ── its descendants  ┘
        ▲ parent, and heir of all orphans
    watch

The host (this room) checks everything, makes the list of steps and sends it with all descriptors.
The guard starts the command, ends it when asked, when the host lets go of the channel or is
gone, and says so when nothing is left.  The watch ends what the guard leaves behind if it is killed.
The command's pipes go straight to the host: no byte of output passes through the guard.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from importlib import import_module

from muontrap.errors import ContainmentError
from muontrap.host.accounts import Identity
from muontrap.host.completion import Completion
from muontrap.host.link import StaleGuard, link_for
from muontrap.host.paths import are_local, candidates
from muontrap.host.process import Process, layers
from muontrap.host.results import CompletedProcess
from muontrap.host.situation import DIRECTORY, Situation, environment
from muontrap.host.status import NotPlaced, Status
from muontrap.host.streams import Streams, encoded
from muontrap.logic.command import PIPE, Command, check_seconds
from muontrap.logic.escalation import KILL_MODES
from muontrap.logic.steps import can_spawn, in_order
from muontrap.logic.window import CAP_POLICIES
from muontrap.logic.wire import RECORD_BYTES, Launch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Container
    from types import ModuleType
    from typing import Any, TypeVar

    from typing_extensions import Unpack

    from muontrap.host.cgroups import Placing
    from muontrap.host.exchange import Sink
    from muontrap.host.link import Link
    from muontrap.host.sinks import Into
    from muontrap.host.streams import Pipes
    from muontrap.logic.command import Args, Options
    from muontrap.logic.steps import Step
    from muontrap.logic.window import CapPolicy

    T = TypeVar("T")


_STANDARD = [0, 1, 2]


class Launcher:
    """What to run, checked at once, immutable, to be launched any number of times.

    Args:
        args: the program and its arguments: a sequence of str, bytes or path-likes.
        options: keyword options; those of `subprocess` have its meaning.
            `docs/reference/options.md` explains each.

    Raises:
        TypeError, ValueError: an option that does not exist, or a value that can't be.
        KeyError: a user or group that does not exist.
    """

    _options: Options
    _command: Command
    _identity: Identity

    def __init__(self, args: Args, **options: Unpack[Options]) -> None:
        command = Command(args, **options)
        self.__dict__.update(_options=options, _command=command, _identity=Identity(command))

    @property
    def args(self) -> Args:
        """The program and its arguments, as given: a tuple, or a list of its own."""
        args: Args = self._command.args
        return args

    def launch(
        self,
        *,
        timeout: float | None = None,
        on_stdout: Callable[[bytes], object] | None = None,
        on_stderr: Callable[[bytes], object] | None = None,
        explicit_ack: bool = False,
        into: Into | None = None,
    ) -> Process:
        """Start the command.

        Callbacks and `into` are called from a thread of muontrap's, one for all commands.  What they
        raise ends the reading of this command, and is raised by `Process.wait`.

        Args:
            timeout: seconds for the launch itself, which a file system that does not answer can
                hold up; None for no limit.
            on_stdout, on_stderr: called with bytes of that stream as they come, which makes it `PIPE`.
            explicit_ack: these bytes count against `stdio_window` until they are acknowledged by
                `Process.reader.ack`, and not just until the callback returns.
            into: where output goes: as with `run`.

        Raises:
            ValueError, TypeError: a stream can't go there.
            TimeoutExpired: `execve` was not done in time; it never will be.
            OSError: as `subprocess` raises it: `FileNotFoundError`, `PermissionError` ... with the path of
                the program or of `cwd`, or with the step that failed.  Nothing is left then.
            GuardError: the guard could not be started.
            GuardDied: the guard was killed meanwhile.
        """
        if timeout is not None:
            timeout = check_seconds("timeout", timeout)
        command = self._command
        sinks: dict[int, Sink] = {}
        if explicit_ack or any(each is not None for each in (on_stdout, on_stderr, into)):
            command, sinks = _sinks().of_launch(
                command, on_stdout, on_stderr, into, explicit_ack=explicit_ack
            )

        def start(command: Command) -> Process:
            process = Process(*self._launch(command, announce=True, sinks=sinks))
            try:
                process.wait_started(timeout)
                if sinks:
                    process.call_back(sinks, explicit=explicit_ack)
            except BaseException:
                process.close()
                raise
            return process

        return _as_possible(command, start)

    def begin(self, *, without_cgroup: bool = False) -> Process:
        """Ask for the command, and return before it runs. For supervisors, whose loop hears the guard."""
        command = self._command.but(cgroup=False) if without_cgroup else self._command
        return Process(*self._launch(command, announce=True, sinks=(1,)))

    def run(
        self,
        *,
        input: Any = None,
        capture_output: bool = False,
        into: Into | None = None,
        max_output: int | None = None,
        max_output_policy: CapPolicy = "stop",
        timeout: float | None = None,
        check: bool = False,
    ) -> CompletedProcess:
        """Run the command until nothing of it is left.

        Args:
            input: str or bytes for its stdin.
            capture_output: read stdout and stderr.
            into: where stdout goes instead of into the result (stderr, if stdout is sent elsewhere), or
                a pair for both: a list or a callable, of lines; a binary or text file; a
                `logging.Logger` or `LogLines`.
            max_output: bytes of stdout and stderr together that are kept or passed on.
            max_output_policy: what a command gets that writes more: "stop" ends it, with the reason
                "max-output"; "drop" lets it go on. `CompletedProcess.dropped` says how much was lost.
            timeout: seconds after which it is ended; None for no limit.
            check: raise `CalledProcessError` if the return code is not 0, or output was too much or
                too long in coming (`inactivity_timeout`).

        Raises:
            TimeoutExpired: with the output so far, at the latest `timeout` + `delay_to_sigkill` + 0.5 s
                after the call.
            CalledProcessError: see `check`.
            OSError, GuardError, GuardDied: as `launch`.
        """
        if timeout is not None:
            timeout = check_seconds("timeout", timeout)
        deadline = None if timeout is None else time.monotonic() + timeout
        if max_output_policy not in CAP_POLICIES:
            raise ValueError(f"max_output_policy must be 'stop' or 'drop', not {max_output_policy!r}")
        (command, written), cap = self._with_pipes(input, capture_output), None
        sinks: dict[int, Sink] = {}
        if into is not None:
            command, sinks = _sinks().direct(command, into)
        if max_output is not None:
            cap = _sinks().cap(command, max_output, max_output_policy)

        def run(command: Command) -> CompletedProcess:
            _, pipes, status = launched = self._launch(command, announce=False)
            try:
                result = Completion(*launched, sinks, cap).run(written, deadline, timeout)
            except BaseException:
                with Process(*launched):
                    raise
            pipes.close()
            status.give_back()
            return result

        result = _as_possible(command, run)
        if check:
            result.check_returncode()
        return result

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a Launcher can't be changed: make another for {name}")

    def __repr__(self) -> str:
        shown = [f"{name}={value!r}" for name, value in self._options.items() if not name.startswith("env")]
        return f"Launcher({', '.join([repr(self.args), *shown])})"

    def _with_pipes(self, input: Any, capture_output: bool) -> tuple[Command, memoryview | None]:
        """Return the command with the pipes that are needed, and the bytes of its input."""
        streams, written = {}, None
        if input is not None:
            if self._command.stdin is not None:
                raise ValueError("stdin and input may not both be given")
            written = encoded(self._command, input)
            streams["stdin"] = PIPE
        if capture_output:
            if self._command.stdout is not None or self._command.stderr is not None:
                raise ValueError("stdout and stderr may not be given with capture_output")
            streams.update(stdout=PIPE, stderr=PIPE)
        return self._command.but(**streams) if streams else self._command, written

    def _launch(
        self, command: Command, *, announce: bool, sinks: Container[int] = ()
    ) -> tuple[Command, Pipes, Status]:
        """Ask the guard for the command; the status has a pid when the guard has announced it."""
        if command.inactivity_timeout and PIPE not in (command.stdout, command.stderr):
            raise ValueError("inactivity_timeout needs stdout or stderr to be PIPE")
        directory, channel = self._open_directory(), None
        try:
            streams = Streams(command)
        except BaseException:
            os.close(directory)
            raise
        try:
            situation = Situation()
            link = link_for(situation)
            placing = _placing(command, link)
            launch = self._plan(situation, link, streams, directory, placing, announce=announce)
            if placing:
                link.bases.update(map(os.path.dirname, placing.cgroup.paths.values()))
            payload = launch.encode()
            if len(payload) > RECORD_BYTES:
                raise self._refused(errno.E2BIG)
            channel = link.request(payload, [directory, *streams.sources.values()])
            if announce:
                streams.pipes.open_files(command, sinks)
            elif not command.inactivity_timeout:
                streams.keep_outputs_open()
            return command, streams.pipes, Status(command, link, channel, placing)
        except BaseException:
            streams.pipes.close()
            if channel:  # by which the guard ends what it may have started
                channel.close()
            raise
        finally:
            os.close(directory)
            streams.close()

    def _open_directory(self) -> int:
        path = self._command.cwd
        try:
            return os.open(b"." if path is None else path, DIRECTORY)
        except OSError as error:
            raise OSError(error.errno, error.strerror, None if path is None else os.fsdecode(path)) from None

    def _plan(
        self,
        situation: Situation,
        link: Link,
        streams: Streams,
        directory: int,
        placing: Placing | None,
        *,
        announce: bool,
    ) -> Launch:
        command = self._command
        inherits, env = self._environment(link)
        if not command.program:
            raise self._refused(errno.EACCES)
        path = env.get(b"PATH", link.environment.get(b"PATH") if inherits else None)
        try:
            found = candidates(command.program, path, directory)
        except OSError as error:
            raise self._refused(error.errno or 0) from None
        steps = in_order(self._steps(situation, link, streams, placing))
        paths, targets = list(found), list(streams.sources)
        session: bool = command.start_new_session
        return Launch(
            announce=int(announce),
            thread=threading.get_native_id(),
            inherits=int(inherits),
            session=int(session),
            umask=-1 if command.umask is None else command.umask,
            spawn=int(can_spawn(steps, streams.sources, session=session) and are_local(found, directory)),
            kill_mode=KILL_MODES.index(command.kill_mode),
            delay_to_sigkill=command.delay_to_sigkill,
            stop_signal=command.stop_signal,
            candidates=paths if paths != [command.argv[0]] else [],
            argv=command.argv,
            env=env,
            steps=steps,
            targets=targets if targets != _STANDARD else [],
            cgroup=placing.placement.encode() if placing else b"",
        )

    def _environment(self, link: Link) -> tuple[bool, dict[bytes, bytes]]:
        """Return what is added to the guard's environment, or whether that is not it, the whole one."""
        command, inherits = self._command, False
        changes: dict[bytes, bytes | None] = {
            **(self._identity.variables if command.env is None else command.env),
            **(command.env_update or {}),
        }
        if command.env is None:
            base = environment()
            inherits = base == link.environment and None not in changes.values()
            if not inherits:
                changes = {**base, **changes}
        if not changes:
            return inherits, {}
        return inherits, {name: value for name, value in changes.items() if value is not None and name}

    def _steps(
        self, situation: Situation, link: Link, streams: Streams, placing: Placing | None
    ) -> list[Step]:
        """Return what the options ask for, and what the host has changed of itself since."""
        command = self._command
        steps = self._identity.steps()
        if placing:
            steps.append(("join", ()))
        if command.foreground:
            steps.append(("foreground", (streams.terminal(),)))
        if command.nice is not None:
            steps.append(("nice", (command.nice,)))
        if command.cpu_affinity is not None:
            steps.append(("cpu_affinity", command.cpu_affinity))
        if command.oom_score_adj is not None:
            steps.append(("oom_score_adj", (command.oom_score_adj,)))
        if command.no_new_privs:
            steps.append(("no_new_privs", ()))
        if command.pdeathsig is not None:
            steps.append(("pdeathsig", (command.pdeathsig,)))
        changed = situation.steps_from(link.situation)
        if changed:
            given = vars(command)
            steps += [step for step in changed if given.get(step[0]) is None]
        if command.rlimits:
            steps += [("rlimit", limits) for limits in command.rlimits]
        return steps

    def _refused(self, code: int) -> OSError:
        """Return what `subprocess` raises for a program that can't be executed."""
        return OSError(code, os.strerror(code), os.fsdecode(self._command.program))


def _sinks() -> ModuleType:
    return import_module("muontrap.host.sinks")  # which most hosts never need


def _placing(command: Command, link: Link) -> Placing | None:
    """Return the cgroup to be made, and see to it that all layers that are required are there."""
    placing = None
    if command.cgroup or command.insists_on_cgroup:
        cgroups = import_module("muontrap.host.cgroups")  # which most hosts never need
        placing = cgroups.place(command, link.hello.guard_id)
    for layer in command.require:
        found = layers(link, placing)
        if not any(name.startswith(layer) for name in found):
            raise ContainmentError(f"require={layer!r}: there are {', '.join(found)}; see `muontrap doctor`")
    return placing


def _as_possible(command: Command, act: Callable[[Command], T], *, guards: int = 5) -> T:
    """Launch.

    Again, with a new guard, if this thread's privileges are not those of the guard: more than once, for
    other threads may have others, and start theirs in between.  Or without a cgroup, if there can be none
    for a command that does not need it.
    """
    try:
        return act(command)
    except StaleGuard as error:
        if guards == 1:
            raise
        guards -= 1
        error.__traceback__ = None  # part of a cycle that would hold the guard, idle, until it is collected
    except NotPlaced:
        command = command.but(cgroup=False)
    return _as_possible(command, act, guards=guards)
