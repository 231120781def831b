"""Which files a program's name may mean, and whether executing one can hang."""

from __future__ import annotations

import errno
import os

from muontrap.kernel.process import filesystem_type
from muontrap.logic.executable import HEAD_SIZE, interpreter_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

# File systems that answer from this machine alone (statfs(2), <linux/magic.h>): an `execve` on any
# other (NFS, FUSE, autofs ...) can hang, and with `posix_spawn` the guard would hang with it.
_LOCAL = frozenset({
    0xEF53,  # ext2, ext3, ext4
    0x58465342,  # xfs
    0x9123683E,  # btrfs
    0x2FC12FC1,  # zfs
    0xCA451A4E,  # bcachefs
    0xF2F52010,  # f2fs
    0x01021994,  # tmpfs
    0x858458F6,  # ramfs
    0x794C7630,  # overlayfs
    0x73717368,  # squashfs
    0xE0F5E1E2,  # erofs
    0x52654973,  # reiserfs
    0x3153464A,  # jfs
    0x24051905,  # ubifs
    0x72B6,  # jffs2
    0x4D44,  # vfat
    0x9660,  # iso9660
    0x00C0FFEE,  # hostfs of user-mode-linux
})  # fmt: skip
# A script's interpreter may be a script, up to this depth (BINPRM_MAX_RECURSION, execve(2)).
_DEPTH = 5
# Of programs by device, inode and times: what they are interpreted by does not change with the launch.
_verdicts: dict[tuple[int, int, int, int], bool] = {}
_MOST_VERDICTS = 1000


def candidates(program: bytes, path: bytes | None, directory: int) -> dict[bytes, os.stat_result | None]:
    """Return the files that `execvp` would try, as found now, without those that are not there.

    Args:
        program: its name; searched for in PATH if there is no slash in it.
        path: PATH of the command's environment, which counts, as with `subprocess`.
        directory: descriptor of the command's working directory, which relative paths start from.

    Raises:
        FileNotFoundError, NotADirectoryError: there is none.
    """
    paths = [program]
    if b"/" not in program:
        folders = (os.fsencode(os.defpath) if path is None else path).split(b":")
        paths = [os.path.join(folder, program) for folder in folders]
    found: dict[bytes, os.stat_result | None] = {}
    missing = errno.ENOENT
    for path in paths:
        try:
            found[path] = os.stat(path, dir_fd=directory)
        except (FileNotFoundError, NotADirectoryError) as error:
            missing = error.errno or missing
        except OSError:
            found[path] = None  # for `execve` to say, with the command's credentials
    if not found:
        raise OSError(missing, os.strerror(missing))
    return found


def are_local(found: Mapping[bytes, os.stat_result | None], directory: int) -> bool:
    """Tell whether programs, what interprets them, and the working directory are on local file systems."""
    try:
        device = os.fstat(directory).st_dev
        for path, seen in found.items():
            if seen is None:
                return False
            key = (seen.st_dev, seen.st_ino, seen.st_mtime_ns, seen.st_ctime_ns)
            if key not in _verdicts:
                if len(_verdicts) >= _MOST_VERDICTS:
                    _verdicts.clear()
                _verdicts[key] = _is_local_program(os.path.join(_path_of(directory), path))
            if not _verdicts[key]:
                return False
            if seen.st_dev != device and filesystem_type(_path_of(directory)) not in _LOCAL:
                return False
    except OSError:
        return False
    return True


def _path_of(directory: int) -> bytes:
    return b"/proc/self/fd/%d" % directory


def _is_local_program(path: bytes) -> bool:
    for _ in range(_DEPTH):
        if filesystem_type(path) not in _LOCAL:
            return False
        with open(path, "rb", buffering=0) as file:
            interpreter = interpreter_of(file.read(HEAD_SIZE))
        if interpreter is None:
            return True
        if not interpreter.startswith(b"/"):
            return False  # relative to wherever the command will be
        path = interpreter
    return False
