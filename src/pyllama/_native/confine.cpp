// A filter of system calls for a process that computes and answers through pipes: it may read and
// write what is open, take and give back memory, and end. seccomp is a part of Linux; the filter is
// a program for its virtual machine.
#include "guard.hpp"

#include <cerrno>

#if defined(__linux__) && (defined(__x86_64__) || defined(__aarch64__))

#include <cstddef>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <vector>

namespace {

#ifdef __x86_64__
constexpr uint32_t ARCHITECTURE = AUDIT_ARCH_X86_64;
#else
constexpr uint32_t ARCHITECTURE = AUDIT_ARCH_AARCH64;
#endif

constexpr uint32_t ALLOW  = SECCOMP_RET_ALLOW;
constexpr uint32_t REFUSE = SECCOMP_RET_ERRNO | EPERM;

// Whatever their arguments are.
constexpr uint32_t ALLOWED[] = {
    SYS_read,         SYS_write,         SYS_readv,        SYS_writev,       SYS_close,
    SYS_fstat,        SYS_lseek,         SYS_brk,          SYS_munmap,       SYS_mremap,
    SYS_madvise,      SYS_futex,         SYS_rt_sigaction, SYS_rt_sigreturn, SYS_rt_sigprocmask,
    SYS_sigaltstack,  SYS_clock_gettime, SYS_gettimeofday, SYS_getrusage,    SYS_getrandom,
    SYS_sched_yield,  SYS_getpid,        SYS_gettid,       SYS_exit,         SYS_exit_group,
    SYS_restart_syscall,
};

class filter {
  public:
    filter() {
        load(offsetof(seccomp_data, arch));
        add(BPF_JMP | BPF_JEQ | BPF_K, ARCHITECTURE, 1, 0);
        add(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
        load(offsetof(seccomp_data, nr)); // calls of the x32 ABI have other numbers: none is allowed
    }

    void allow(uint32_t call) {
        add(BPF_JMP | BPF_JEQ | BPF_K, call, 0, 1);
        add(BPF_RET | BPF_K, ALLOW);
    }

    // Where the first two arguments have these values.
    void allow_with(uint32_t call, uint32_t first, uint32_t second) {
        add(BPF_JMP | BPF_JEQ | BPF_K, call, 0, 6);
        load_argument(0);
        add(BPF_JMP | BPF_JEQ | BPF_K, first, 0, 3);
        load_argument(1);
        add(BPF_JMP | BPF_JEQ | BPF_K, second, 0, 1);
        add(BPF_RET | BPF_K, ALLOW);
        add(BPF_RET | BPF_K, REFUSE);
    }

    // Where an argument has none of these bits.
    void allow_without(uint32_t call, size_t argument, uint32_t bits) {
        add(BPF_JMP | BPF_JEQ | BPF_K, call, 0, 4);
        load_argument(argument);
        add(BPF_JMP | BPF_JSET | BPF_K, bits, 1, 0);
        add(BPF_RET | BPF_K, ALLOW);
        add(BPF_RET | BPF_K, REFUSE);
    }

    bool install() {
        add(BPF_RET | BPF_K, REFUSE);
        sock_fprog program = {static_cast<unsigned short>(code.size()), code.data()};
        return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
    }

  private:
    void add(int operation, uint32_t value, uint8_t if_true = 0, uint8_t if_false = 0) {
        code.push_back({static_cast<uint16_t>(operation), if_true, if_false, value});
    }
    void load(size_t offset) { add(BPF_LD | BPF_W | BPF_ABS, static_cast<uint32_t>(offset)); }
    void load_argument(size_t argument) { // its low half: both architectures are little-endian
        load(offsetof(seccomp_data, args) + argument * sizeof(uint64_t));
    }

    std::vector<sock_filter> code;
};

int confine() {
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0) {
        return errno;
    }
    filter calls;
    for (const uint32_t call : ALLOWED) {
        calls.allow(call);
    }
    calls.allow_without(SYS_mmap, 2, PROT_EXEC);
    calls.allow_without(SYS_mprotect, 2, PROT_EXEC);
    calls.allow_with(SYS_prlimit64, 0, RLIMIT_CPU); // renewed for each request
    const auto self = static_cast<uint32_t>(getpid()); // and the number of its only thread
    calls.allow_with(SYS_tgkill, self, self);          // abort()
    return calls.install() ? 0 : errno;
}

} // namespace

#else

namespace {

int confine() {
    return ENOSYS;
}

} // namespace

#endif

extern "C" {

// 0, or the errno with which the system refused. Cannot be undone.
int32_t guarded_confine(void) {
    return pyllama::guarded(PYLLAMA_CAUGHT, [] { return static_cast<int32_t>(confine()); });
}

} // extern "C"
