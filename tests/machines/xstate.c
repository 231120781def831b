/* Loaded into linux.uml where the CPU has AMX: `boot.py` says why.
 *
 * PTRACE_SETREGSET wants the extended state (NT_X86_XSTATE) whole, which is more than Linux 6.1's
 * buffer has room for: what was cut off is put behind it again. That is the state of AMX, which no
 * process in there uses, for none asks for the permission to (arch_prctl(2)).
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>

typedef long ptrace_function(int, int, void *, void *);

long ptrace(enum __ptrace_request request, ...)
{
    static ptrace_function *libc_ptrace;
    static char state[1 << 16];
    static struct iovec whole = {state, 0};
    __builtin_va_list arguments;
    __builtin_va_start(arguments, request);
    int pid = __builtin_va_arg(arguments, int);
    void *address = __builtin_va_arg(arguments, void *);
    void *data = __builtin_va_arg(arguments, void *);
    __builtin_va_end(arguments);

    if (!libc_ptrace)
        libc_ptrace = (ptrace_function *)dlsym(RTLD_NEXT, "ptrace");
    if (request == PTRACE_SETREGSET && address == (void *)NT_X86_XSTATE) {
        struct iovec *part = data;
        if (!whole.iov_len) {
            whole.iov_len = sizeof state;
            if (libc_ptrace(PTRACE_GETREGSET, pid, address, &whole)) {
                whole.iov_len = 0;
                return -1;
            }
        }
        memcpy(state, part->iov_base, part->iov_len);
        data = &whole;
    }
    return libc_ptrace(request, pid, address, data);
}
