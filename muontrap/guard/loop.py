"""The guard's one thread: wait, turn readiness into events, do what they ask for."""

from __future__ import annotations

import _socket
import errno
import os
import resource
import select
import time
from _functools import partial  # type: ignore[import-not-found]  # `functools` itself imports much more

from muontrap.containment.processes import Held
from muontrap.containment.tagged import TagReader
from muontrap.errors import ProtocolError
from muontrap.guard import transport
from muontrap.guard.child import fork
from muontrap.guard.commands import Command
from muontrap.guard.family import Family
from muontrap.guard.fork_exec import ForkExec, failure
from muontrap.guard.priority import raise_priority, restore_priority
from muontrap.guard.spawn import Assumed, NotStarted, Reserve, StepFailed, spawn
from muontrap.kernel import process, signals, sockets
from muontrap.kernel.spawn import Spawner
from muontrap.logic.wire import Failed, Hello, decode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from muontrap.containment.groups import Group
    from muontrap.guard.asker import Asker
    from muontrap.guard.placement import Placed, Placer
    from muontrap.logic.wire import Launch

# epoll_wait(2) takes no more than 2**31 ms; to wake up without a need does no harm.
_LONGEST_SLEEP = 1e6
# A watch that a command has stopped is needed when the guard dies, seldom so soon after.
_WAKE_PAUSE = 0.1


class Guard:
    """Launches what the host asks for, until the host is gone and everything else too."""

    def __init__(
        self,
        *,
        requests: _socket.socket,
        host: Held,
        watch: Held,
        guard_id: int,
        reader: TagReader,
        note_grace: Callable[[float], None],
        asker: Asker,
        environment: dict[bytes, bytes],
        files: tuple[int, int],
        placer: Placer,
    ) -> None:
        self._requests = requests
        self._host = host
        self._watch = watch
        self._guard_id = guard_id
        self._tags = reader.format
        self._note_grace = note_grace
        self._family = Family(guard_id, reader)
        self._commands: dict[int, Command] = {}
        self._busy: dict[int, Command] = {}  # those to be looked at: what has happened, or a time
        self._in_hosts_session: dict[int, Command] = {}
        self._last_number = 0
        self._host_gone = False
        self._wake_again = 0.0
        self._children_changed = False
        self._policy: int | None = None  # for after a hunt, while there is one
        self._spawner = Spawner()
        self._fork_exec = ForkExec()
        self._environments = process.Environments(environment)
        self._asker = asker
        self._placer = placer
        self._litter: list[Group] = []
        self._home = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._locks = resource.getrlimit(process.RLIMIT_LOCKS)
        self._files = files
        self._reserve = Reserve(files[1])
        self._signals = signals.open_signalfd(signals.SIGCHLD)
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[], None]] = {}
        # A handler may close a descriptor whose number comes up again in the same list of events, as
        # another's: for those that are new, nothing in it is meant.
        self._new_handlers: dict[int, Callable[[], None]] = {}
        self._listen(requests.fileno(), self._take_requests)
        self._listen(host.fd, self._host_died)
        self._listen(watch.fd, lambda: self._ignore(watch.fd))
        self._listen(self._signals, self._child_changed)

    def greet(self) -> None:
        """Tell the host that there is a guard, and a watch."""
        hello = Hello(
            guard_id=self._guard_id,
            guard_pid=os.getpid(),
            watch_pid=self._watch.pid,
            tag_width=self._tags.width if self._tags else 0,
        )
        own = process.pidfd_open(os.getpid())
        transport.send(self._requests, hello, [self._watch.fd, own])
        os.close(own)

    def run(self) -> None:
        """Serve until the host is gone and nothing is left of any command."""
        while self._commands or not self._host_gone:
            if self._new_handlers:
                self._handlers.update(self._new_handlers)
                self._new_handlers.clear()
            for fd, _ in self._epoll.poll(self._timeout()):
                handler = self._handlers.get(fd)
                if handler:
                    handler()
            self._tick()

    def _timeout(self) -> float | None:
        if not self._busy:
            return None
        times = [at for command in self._busy.values() if (at := command.wake_at()) is not None]
        return min(max(0.0, min(times) - time.monotonic()), _LONGEST_SLEEP) if times else None

    def _tick(self) -> None:
        """Reap, look for what is left of commands, and forget those of which nothing is."""
        changed, self._children_changed = self._children_changed, False
        if changed:
            self._family.reap()
            self._litter = [group for group in self._litter if not group.remove()]
            for command in self._in_hosts_session.values():
                command.report_suspended()
        if not self._busy and self._policy is None:
            return
        now = time.monotonic()
        for command in list(self._busy.values()):
            command.tick(now, children_changed=changed)
            if command.is_gone:
                self._forget(command)
            elif command.wake_at() is None:
                del self._busy[command.number]
        if not any(command.is_hard for command in self._busy.values()):
            self._end_hunt()
        elif self._policy is None:
            self._policy = raise_priority()

    def _end_hunt(self) -> None:
        if self._policy is not None:
            restore_priority(self._policy)
            self._policy = None

    def _host_died(self) -> None:
        """The host is dead, or runs another program: end everything, each with its grace."""
        if self._host_gone:
            return
        self._host_gone = True
        self._ignore(self._host.fd)
        self._ignore(self._requests.fileno())
        self._requests.close()
        now = time.monotonic()
        self._wake_again = 0.0
        self._wake_watch(now)
        self._busy.update(self._commands)
        for command in list(self._commands.values()):
            command.stop(now, b"host-gone")

    def _wake_watch(self, now: float) -> None:
        """Undo what a command of the same user may have done to the watch: SIGSTOP."""
        if now >= self._wake_again:
            self._wake_again = now + _WAKE_PAUSE
            process.pidfd_send_signal(self._watch.fd, signals.SIGCONT)

    def _child_changed(self) -> None:
        if not self._children_changed:
            self._children_changed = self._family.has_news = True
            signals.drain(self._signals)

    def _listen(self, fd: int, handler: Callable[[], None]) -> None:
        """Have this called while `fd` is readable, in place of what was before."""
        handlers = self._handlers if fd in self._handlers else self._new_handlers
        if fd not in handlers:
            self._epoll.register(fd, select.EPOLLIN)
        handlers[fd] = handler

    def _ignore(self, fd: int) -> None:
        if self._handlers.pop(fd, None) or self._new_handlers.pop(fd, None):
            self._epoll.unregister(fd)

    def _take_requests(self) -> None:
        with self._reserve:
            try:
                data, fds, sender = sockets.receive_longest(self._requests)
            except (BlockingIOError, sockets.Truncated):
                return  # the host sees its channel closed by a guard that is alive
            if fds and sender == self._host.pid:
                sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, fileno=fds[0])
                channel = transport.Channel(sock)
                self._listen(channel.fd, partial(self._hear, channel))
                self._feed(channel, data, fds[1:])
            else:
                sockets.close(fds)  # a child's that the host forked without Python's knowing
        if sender is None:
            self._host_died()

    def _hear(self, channel: transport.Channel) -> None:
        if channel.command:
            self._obey(channel, channel.command)
        else:
            with self._reserve:
                self._take_more(channel)

    def _take_more(self, channel: transport.Channel) -> None:
        """Take what comes over a channel on which no command is running."""
        try:
            data, fds, sender = sockets.receive_longest(channel.socket)
        except BlockingIOError:
            return
        except sockets.Truncated:
            self._refuse(channel, StepFailed(errno.EMFILE, "descriptors"))
            return
        if sender is None:
            self._drop(channel)
        elif sender == self._host.pid and not self._host_gone:
            self._feed(channel, data, fds)
        else:
            sockets.close(fds)

    def _obey(self, channel: transport.Channel, command: Command) -> None:
        """Take what the host says of a command."""
        try:
            data, fds, sender = sockets.receive_longest(channel.socket)
            sockets.close(fds)
            if sender is None:
                channel.is_open = False
                self._ignore(channel.fd)
            elif sender != self._host.pid:
                return  # as above
            self._busy[command.number] = command
            command.hear(data, time.monotonic())
        except (BlockingIOError, sockets.Truncated, ProtocolError):
            return

    def _feed(self, channel: transport.Channel, data: bytes, fds: Sequence[int]) -> None:
        request = channel.request
        try:
            request.take(data, fds)
        except ProtocolError:
            self._refuse(channel, StepFailed(errno.EPROTO, "request"))
            return
        except MemoryError:
            self._refuse(channel, StepFailed(errno.ENOMEM, "request"))
            return
        if request.launch is None:
            return
        channel.request = transport.Request()
        try:
            umask = self._asker.umask(request.launch.thread)
            if request.launch.umask < 0:
                request.launch.umask = umask
            self._launch(request.launch, request, channel)
        except StepFailed as failure:
            self._refuse(channel, failure)
        finally:
            request.close()

    def _refuse(self, channel: transport.Channel, failure: StepFailed) -> None:
        path = os.fsencode(failure.path)
        channel.tell(Failed(errno=failure.code, step=failure.step.encode(), path=path))
        self._drop(channel)

    def _drop(self, channel: transport.Channel) -> None:
        self._ignore(channel.fd)
        channel.socket.close()
        channel.request.close()

    def _launch(self, launch: Launch, request: transport.Request, channel: transport.Channel) -> None:
        self._end_hunt()
        try:
            number = self._family.next_number(self._last_number, self._tags)
        except BlockingIOError as error:
            raise StepFailed(error.errno or 0, "tag") from error
        self._last_number = number  # in any case: what a launch that fails has forked may live for a moment
        # Before there is a process: the host may die at any moment, and then the watch waits that long.
        self._note_grace(launch.delay_to_sigkill)
        began = time.monotonic()
        placed = self._placer.place(request.placement) if request.placement else None
        try:
            main, pipe = self._begin(launch, request, number, placed)
        except BaseException:
            if placed and not placed.close():
                self._litter.append(placed.group)
            raise
        self._family.add(number, main, placed.group if placed else None)
        channel.command = command = Command(number, launch, channel, main, self._family, placed, began=began)
        command.errors = pipe
        self._commands[number] = command
        if command.in_hosts_session:
            self._in_hosts_session[number] = command
        self._wake_watch(began)
        if pipe is None:
            command.report_started()
        else:
            command.terminal = self._terminal(launch, request)
            self._listen(pipe, partial(self._executed, command))
            self._executed(command)
        if not command.is_gone:
            self._listen(main.fd, partial(self._main_exited, command))
            if placed and placed.oom_kills:
                self._listen(placed.oom_kills.fd, partial(self._out_of_memory, command))

    def _begin(
        self, launch: Launch, request: transport.Request, number: int, placed: Placed | None
    ) -> tuple[Held, int | None]:
        """Make the command's first process, in one way or the other."""
        tag = self._tags.encode(self._guard_id, number) if self._tags else None
        assumed = Assumed(
            launch,
            request.directory,
            request.sources,
            home=self._home,
            files=self._files,
            reserve=self._reserve,
            locks=self._locks,
            tag=tag,
            env=self._environments.strings(launch.env, inherits=bool(launch.inherits)),
        )
        pipe: int | None = None
        try:
            if not launch.spawn:
                raise NotStarted
            if launch.steps:
                # A SIGCHLD may come while none is blocked.
                self._children_changed = self._family.has_news = True
                pid, pipe = self._fork_exec(launch, assumed)
            else:
                pid = spawn(self._spawner, launch, assumed, self._files[0])
        except NotStarted:
            pid, pipe = fork(launch, assumed, placed.group if placed else None)
        return self._hold(pid), pipe

    def _out_of_memory(self, command: Command) -> None:
        if command.placed and command.placed.oom_kills:
            os.eventfd_read(command.placed.oom_kills.fd)
            self._busy[command.number] = command
            command.out_of_memory(time.monotonic())

    def _hold(self, pid: int) -> Held:
        """Open the pidfd of a new child, or undo the launch."""
        try:
            return Held(pid, process.pidfd_open(pid))
        except OSError as error:
            os.kill(pid, signals.SIGKILL)
            os.waitpid(pid, 0)
            raise StepFailed(error.errno or 0, "pidfd_open") from error

    def _terminal(self, launch: Launch, request: transport.Request) -> tuple[int, int] | None:
        """Return the terminal that the command is about to take, and the group it is taken from."""
        for name, numbers in launch.steps:
            if name == "foreground":
                try:
                    source = request.sources[launch.targets.index(numbers[0])]
                    host_group = os.getpgid(self._host.pid)
                    return os.dup(source), host_group
                except (OSError, LookupError, ValueError):
                    # The host is gone, or no descriptor is left: it is not given back.  Or the step makes no
                    # sense, as the child says.
                    return None
        return None

    def _executed(self, command: Command) -> None:
        """The pipe of a forked child has ended: in `execve`, or with what failed before it."""
        assert command.errors is not None
        try:
            while piece := os.read(command.errors, 4096):
                command.said += piece
        except BlockingIOError:
            return
        self._close_errors(command)
        if command.said:
            os.waitpid(command.main.pid, 0)  # it exits next
            is_of_c = command.said.startswith(b"OSError:")
            command.abandon((failure if is_of_c else decode)(command.said))
            self._forget(command)
        else:
            command.report_started()

    def _close_errors(self, command: Command) -> None:
        if command.errors is not None:
            self._ignore(command.errors)
            os.close(command.errors)
            command.errors = None

    def _main_exited(self, command: Command) -> None:
        if command.errors is not None:
            self._executed(command)
            if command.is_gone:
                return
        self._child_changed()  # its SIGCHLD is there by now: no need to wake up for it
        command.main_exited(time.monotonic())  # soon, for that may be what the host waits for
        if command.is_gone:
            self._forget(command)
        else:
            self._ignore(command.main.fd)
            self._busy[command.number] = command

    def _forget(self, command: Command) -> None:
        self._ignore(command.main.fd)
        self._close_errors(command)  # its time was over before `execve`
        command.channel.command = None
        if command.announces or not command.channel.is_open:
            self._drop(command.channel)
        if command.terminal:
            os.close(command.terminal[0])
        if command.placed:
            if command.placed.oom_kills:
                self._ignore(command.placed.oom_kills.fd)
            if not command.placed.close():
                if command.leaves_rest:
                    command.placed.group.close()
                else:
                    self._litter.append(command.placed.group)
        del self._commands[command.number]
        self._busy.pop(command.number, None)
        self._in_hosts_session.pop(command.number, None)
        self._family.remove(command.number, spare=command.leaves_rest, not_permitted=command.not_permitted)
        command.main.close()
