"""Parsers of /proc files, bytes in. See proc(5)."""

from __future__ import annotations

from muontrap.errors import ProtocolError


def parse_children(text: bytes) -> list[int]:
    """Return the pids in /proc/PID/task/TID/children."""
    return list(map(int, text.split()))


def parse_stat(text: bytes) -> tuple[str, int, int]:
    """Return (state letter, parent's pid, start in clock ticks since boot) of /proc/PID/stat.

    The name, in parentheses, may itself have spaces and parentheses.
    """
    fields = text.rpartition(b")")[2].split()
    try:
        return fields[0].decode("ascii"), int(fields[1]), int(fields[19])
    except (IndexError, ValueError) as error:
        raise ProtocolError(f"not a /proc/PID/stat: {text!r}") from error


def parse_soft_limit(text: bytes, name: bytes) -> int | None:
    """Return the soft limit called `name` of /proc/PID/limits, None for unlimited or missing."""
    for line in text.splitlines():
        if line.startswith(name):
            word = line[len(name) :].split()[0:1]
            return int(word[0]) if word and word[0].isdigit() else None
    return None


def parse_last_pid(text: bytes) -> int:
    """Return the pid allocated last in the reader's namespace, of /proc/loadavg."""
    return int(text.rpartition(b" ")[2])


def parse_umask(text: bytes) -> int:
    """Return the umask in /proc/PID/status, Linux 4.7; `ProtocolError` for that of one that is exiting."""
    at = text.find(b"\nUmask:\t")
    if at < 0:
        raise ProtocolError("no umask")
    return int(text[at + 8 : at + 12], 8)


# Ids and groups, capabilities, no_new_privs, and the seccomp mode with the number of filters.
_PRIVILEGES = (b"Uid:", b"Gid:", b"Groups:", b"Cap", b"NoNewPrivs:", b"Seccomp")


def privileges(text: bytes) -> list[bytes]:
    """Return the parts of /proc/PID/status that say what a process may do.

    Another status that has them all, as they stand there, is that of a process that may do the same.
    `ProtocolError` for one that is not whole.
    """
    parts, part = [], b"\n"
    for line in text.split(b"\n"):
        if line.startswith(_PRIVILEGES):
            part += line + b"\n"
        elif part != b"\n":
            parts.append(part)
            part = b"\n"
    said = b"".join(parts)
    # Only seccomp may be missing in a kernel; what is missing here would be the same for all.
    if part != b"\n" or not all(b"\n" + label in said for label in _PRIVILEGES[:-1]):
        raise ProtocolError("not a whole /proc/PID/status")
    return parts
