"""A shell with job control, for one job: it says what it sees of the job, and does as it is told.

Arguments: a terminal, whose session this process will lead; a descriptor with orders, "fg" or
"bg", for a stopped job; a descriptor that takes a line of JSON each time that the job stops or
ends, with what the job left; "foreground", "background", "raised" (from the background while it runs, by
an order), or "leader" (no shell: the command leads the session itself); the job's command.
"""

import json
import os
import signal
import sys
import termios

_JOB_CONTROL = (signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)


def main() -> None:
    terminal, orders_fd, events_fd, mode, *command = sys.argv[1:]
    os.setsid()
    fd = os.open(terminal, os.O_RDWR)  # and so it is the session's
    for stream in (0, 1, 2):
        os.dup2(fd, stream)
    os.close(fd)
    for fd in (int(orders_fd), int(events_fd)):
        os.set_inheritable(fd, False)
    if mode == "leader":
        os.execvp(command[0], command)
    for signum in _JOB_CONTROL:
        signal.signal(signum, signal.SIG_IGN)
    orders, events = os.fdopen(int(orders_fd)), os.fdopen(int(events_fd), "w", buffering=1)
    own, modes = os.getpgrp(), termios.tcgetattr(0)
    job = start(command, foreground=mode == "foreground")
    if mode == "raised":
        orders.readline()
        os.tcsetpgrp(0, job)  # as bash does, which sends SIGCONT to a stopped job alone
    while True:
        _, status = os.waitpid(job, os.WUNTRACED)
        front = os.tcgetpgrp(0)
        event = {
            "stopped": os.WSTOPSIG(status) if os.WIFSTOPPED(status) else None,
            "status": None if os.WIFSTOPPED(status) else os.waitstatus_to_exitcode(status),
            "front": {job: "job", own: "shell"}.get(front, front),
            "modes_as_before": termios.tcgetattr(0) == modes,
        }
        os.tcsetpgrp(0, own)
        termios.tcsetattr(0, termios.TCSANOW, modes)
        print(json.dumps(event), file=events)
        if not os.WIFSTOPPED(status):
            break
        if orders.readline() == "fg\n":
            os.tcsetpgrp(0, job)
        os.killpg(job, signal.SIGCONT)


def start(command: list[str], *, foreground: bool) -> int:
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        if foreground:
            os.tcsetpgrp(0, os.getpid())
        for signum in _JOB_CONTROL:
            signal.signal(signum, signal.SIG_DFL)
        os.execvp(command[0], command)
    return pid


if __name__ == "__main__":
    main()
