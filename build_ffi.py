"""C declarations of what muontrap calls, and the writer of `muontrap/kernel/_generated_ffi.py`.

Run `python build_ffi.py` after an edit: the output is committed, so that neither a wheel, an
editable install nor a checkout needs a compiler (cffi's out-of-line ABI mode).  Only functions,
numbers and layouts that are the same in glibc and musl and on every architecture stand here;
`tests/kernel/test_declarations.py` compiles the same text against the system's headers.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cffi

HEADERS = """
#define _GNU_SOURCE
#include <grp.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>
#include <linux/prctl.h>
#include <linux/close_range.h>
"""

DECLARATIONS = """
/* syscall(2): numbers from 424 on are the same everywhere but for a base, see kernel/abi.py */
#define SYS_pidfd_send_signal 424
#define SYS_pidfd_open 434
#define SYS_close_range 436
#define CLOSE_RANGE_CLOEXEC 4
long syscall(long number, ...);

/* prctl(2) */
#define PR_SET_PDEATHSIG 1
#define PR_SET_DUMPABLE 4
#define PR_SET_NAME 15
#define PR_GET_SECUREBITS 27
#define PR_SET_CHILD_SUBREAPER 36
#define PR_SET_NO_NEW_PRIVS 38
int prctl(int option, ...);

/* signalfd(2), sigsetops(3): a sigset_t is at most 128 bytes */
int sigemptyset(void *set);
int sigaddset(void *set, int signum);
int signalfd(int fd, const void *mask, int flags);

/* prlimit(2), in its form with 64 bits on every architecture */
#define RLIMIT_LOCKS 10
struct rlimit64 { uint64_t rlim_cur; uint64_t rlim_max; };
int prlimit64(int pid, int resource, const struct rlimit64 *new_limit, struct rlimit64 *old_limit);
int prlimit(int pid, int resource, const void *new_limit, void *old_limit);  /* musl's */

/* setresuid(2), setgroups(2) */
int setresuid(unsigned int ruid, unsigned int euid, unsigned int suid);
int setresgid(unsigned int rgid, unsigned int egid, unsigned int sgid);
int setgroups(size_t size, const unsigned int *list);

/* getgrouplist(3) */
int getgrouplist(const char *user, unsigned int gid, unsigned int *groups, int *count);

/* posix_spawn(3) */
#define POSIX_SPAWN_SETPGROUP 2
#define POSIX_SPAWN_SETSIGDEF 4
#define POSIX_SPAWN_SETSIGMASK 8
#define POSIX_SPAWN_SETSID 128
int posix_spawn(int *pid, const char *path, const void *actions, const void *attributes,
                char *const argv[], char *const envp[]);
int posix_spawnattr_init(void *attributes);
int posix_spawnattr_setflags(void *attributes, short flags);
int posix_spawnattr_setsigmask(void *attributes, const void *mask);
int posix_spawnattr_setsigdefault(void *attributes, const void *set);
int posix_spawn_file_actions_init(void *actions);
int posix_spawn_file_actions_destroy(void *actions);
int posix_spawn_file_actions_adddup2(void *actions, int source, int target);

/* execve(2), environ(7), getenv(3) */
extern char **environ;
char *getenv(const char *name);
int execve(const char *path, char *const argv[], char *const envp[]);

/* statfs(2): only f_type, the first word, is read */
int statfs(const char *path, void *buf);

/* statx(2): only stx_mnt_id is read; musl has it since 1.2.5 */
#define STATX_MNT_ID 4096
int statx(int directory, const char *path, int flags, unsigned int mask, void *buf);
"""

OUTPUT = Path(__file__).parent / "muontrap" / "kernel" / "_generated_ffi.py"


def builder() -> cffi.FFI:
    """Return the cffi builder whose output is committed."""
    ffi = cffi.FFI()
    ffi.cdef(DECLARATIONS)
    ffi.set_source("muontrap.kernel._generated_ffi", None)
    return ffi


if __name__ == "__main__":
    builder().emit_python_code(sys.argv[1] if len(sys.argv) > 1 else str(OUTPUT))
