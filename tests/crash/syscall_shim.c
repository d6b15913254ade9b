// Faults in the file operations of this process, for tests: at operation number `at` below a folder
// the process dies, or the operation fails.
//
// A seccomp filter sends every operation that changes files to a SIGSYS handler, which counts it and
// carries it out. So it also sees those that go round libc (the `tempfile` crate, by which Lance
// names its data files, renames by raw system call), which a preloaded library would not.
//
// arm() holds for the calling thread and all it starts later: call it before there are others.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <ucontext.h>
#include <unistd.h>

#if defined(__x86_64__)
#define ARCH AUDIT_ARCH_X86_64
#define RESULT(c) (c)->uc_mcontext.gregs[REG_RAX]
#define ARG(c, i) (c)->uc_mcontext.gregs[(int[]){REG_RDI, REG_RSI, REG_RDX, REG_R10, REG_R8}[i]]
#elif defined(__aarch64__)
#define ARCH AUDIT_ARCH_AARCH64
#define RESULT(c) (c)->uc_mcontext.regs[0]
#define ARG(c, i) (c)->uc_mcontext.regs[i]
#else
#error "no register names for this processor"
#endif

// The filter lets a call with this sixth argument pass: the handler's own. No call here uses six.
#define PASS 0x7265656dUL

enum { NONE, KILL_BEFORE, KILL_AFTER, TORN, NO_SPACE, IO_ERROR, DISK_FULL, LAST_WRITE };

// Shared with the parent, which reads what happened after this process is gone.
struct state {
  int kind;
  int at;           // which operation; LAST_WRITE: which data file
  int paused;
  int counted;      // operations so far
  int injected;     // faults so far
  char operation[16];
  char path[512];   // of the operation that met the fault
  char folder[256]; // only operations below it count
  int log;          // where to write "operation path" of each, or -1
};

static struct state *state;

struct call {
  const char *name;
  int number;
  char where; // f: its first argument is a descriptor; p: a path; a: the path is the second
              // argument; r: the second path of a rename or link; R: the same, with folders
  char grows; // needs space on the disk
};

static const struct call CALLS[] = {
#ifdef SYS_open
    {"open", SYS_open, 'p', 1},
    {"creat", SYS_creat, 'p', 1},
    {"rename", SYS_rename, 'r', 1},
    {"link", SYS_link, 'r', 1},
    {"symlink", SYS_symlink, 'r', 1},
    {"unlink", SYS_unlink, 'p', 0},
    {"mkdir", SYS_mkdir, 'p', 1},
    {"rmdir", SYS_rmdir, 'p', 0},
#endif
#ifdef SYS_renameat
    {"renameat", SYS_renameat, 'R', 1},
#endif
    {"openat", SYS_openat, 'a', 1},
    {"renameat2", SYS_renameat2, 'R', 1},
    {"linkat", SYS_linkat, 'R', 1},
    {"unlinkat", SYS_unlinkat, 'a', 0},
    {"mkdirat", SYS_mkdirat, 'a', 1},
    {"write", SYS_write, 'f', 1},
    {"pwrite", SYS_pwrite64, 'f', 1},
    {"writev", SYS_writev, 'f', 1},
    {"ftruncate", SYS_ftruncate, 'f', 1},
    {"fallocate", SYS_fallocate, 'f', 1},
    {"fsync", SYS_fsync, 'f', 1},
    {"fdatasync", SYS_fdatasync, 'f', 1},
};
enum { HOW_MANY = sizeof CALLS / sizeof *CALLS };

static long really(int number, const long *a) {
  long got = syscall(number, a[0], a[1], a[2], a[3], a[4], PASS);
  return got < 0 ? -errno : got;
}

_Noreturn static void die(void) {
  syscall(SYS_kill, getpid(), SIGKILL);
  for (;;) pause();
}

static int for_reading(const struct call *call, const long *a) {
  int flags;
  if (!strcmp(call->name, "open")) flags = a[1];
  else if (!strcmp(call->name, "openat")) flags = a[2];
  else return 0;
  return (flags & O_ACCMODE) == O_RDONLY && !(flags & (O_CREAT | O_TRUNC));
}

// The path a call is about, if it is below the folder. Programs here use absolute paths.
static int is_ours(const struct call *call, const long *a, char *path, size_t room) {
  if (call->where == 'f') {
    char link[48];
    snprintf(link, sizeof link, "/proc/self/fd/%ld", a[0]);
    ssize_t n = readlink(link, path, room - 1);
    path[n < 0 ? 0 : n] = 0;
  } else {
    int i = call->where == 'p' ? 0 : call->where == 'R' ? 3 : 1;
    snprintf(path, room, "%s", (const char *)a[i]);
  }
  size_t n = strlen(state->folder);
  return !strncmp(path, state->folder, n) && path[n] == '/';
}

static int is_data(const char *path) {
  return strstr(path, ".lance/data/.tmp") != NULL;
}

// The write after which a data file is complete: it ends with the format's magic number.
static int is_last(const struct call *call, const long *a) {
  if (strcmp(call->name, "write") || a[2] < 4) return 0;
  return !memcmp((const char *)a[1] + a[2] - 4, "LANC", 4);
}

// 0, or the error that the call is to fail with; may not return.
static long fault(const struct call *call, const long *a, const char *path, int number) {
  int kind = state->kind, data = 0;
  if (kind == LAST_WRITE) {
    static int files;
    data = is_data(path) && is_last(call, a) &&
           __atomic_add_fetch(&files, 1, __ATOMIC_SEQ_CST) == state->at;
  }
  int now = kind == LAST_WRITE ? data
            : kind == DISK_FULL ? number >= state->at && call->grows
                                : number == state->at;
  if (!now || kind == NONE) return 0;
  if (__atomic_fetch_add(&state->injected, 1, __ATOMIC_SEQ_CST) == 0) {
    snprintf(state->operation, sizeof state->operation, "%s", call->name);
    snprintf(state->path, sizeof state->path, "%s", path);
  }
  switch (kind) {
  case KILL_BEFORE:
    die();
  case KILL_AFTER:
    really(call->number, a);
    die();
  case TORN: {
    long half[5] = {a[0], a[1], a[2], a[3], a[4]};
    if (!strcmp(call->name, "write") || !strcmp(call->name, "pwrite")) half[2] /= 2;
    really(call->number, half);
    die();
  }
  case IO_ERROR:
    return -EIO;
  default:
    return -ENOSPC;
  }
}

static void on_call(int signal, siginfo_t *info, void *context) {
  (void)signal;
  int kept = errno;
  ucontext_t *c = context;
  long a[5], result = 0;
  char path[512];
  const struct call *call = NULL;
  for (int i = 0; i < 5; i++) a[i] = ARG(c, i);
  for (int i = 0; i < HOW_MANY; i++)
    if (CALLS[i].number == info->si_syscall) call = &CALLS[i];
  if (call && !state->paused && !for_reading(call, a) && is_ours(call, a, path, sizeof path)) {
    int number = __atomic_add_fetch(&state->counted, 1, __ATOMIC_SEQ_CST);
    if (state->log >= 0) {
      char line[600];
      int n = snprintf(line, sizeof line, "%s %s\n", call->name, path);
      syscall(SYS_write, state->log, line, n, 0, 0, PASS);
    }
    result = fault(call, a, path, number);
  }
  RESULT(c) = result ? result : really(info->si_syscall, a);
  errno = kept;
}

// 0, or the number of the error: this system allows no filter.
int arm(struct state *shared) {
  state = shared;
  struct sigaction action = {.sa_sigaction = on_call, .sa_flags = SA_SIGINFO | SA_NODEFER};
  if (sigaction(SIGSYS, &action, NULL)) return errno;
  struct sock_filter code[HOW_MANY + 9];
  int n = 0;
#define PUT(...) code[n++] = (struct sock_filter)__VA_ARGS__
  PUT(BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)));
  PUT(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ARCH, 0, HOW_MANY + 3));
  PUT(BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[5])));
  PUT(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, PASS, HOW_MANY + 1, 0));
  PUT(BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)));
  for (int i = 0; i < HOW_MANY; i++)
    PUT(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, CALLS[i].number, HOW_MANY - i, 0));
  PUT(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
  PUT(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP));
  struct sock_fprog program = {n, code};
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) return errno;
  if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) return errno;
  return 0;
}
