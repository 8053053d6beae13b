/* Waits for a peer's number, and what ends them: the number, the abort word, a signal. */
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum {
    SPINS = 50,        /* about a microsecond: longer only starves a peer on this core */
    YIELD_NS = 300000, /* then give way to whoever shares the core; then sleep */
    NAP_NS = 10000000, /* the parent wakes nobody: a sleeper looks at the abort word this often */
};

static inline void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + t.tv_nsec;
}

static inline int reached(Line *line, uint32_t number) {
    uint32_t seen = atomic_load_explicit(&line->number, memory_order_acquire);
    return (int32_t)(seen - number) >= 0;
}

static inline int aborted(Group *group) {
    return atomic_load_explicit(group->abort, memory_order_relaxed) != 0;
}

/* Python's handlers run between two naps, so Ctrl-C ends a wait. */
static Status handle_signals(void) {
    PyGILState_STATE gil = PyGILState_Ensure();
    int raised = PyErr_CheckSignals();
    PyGILState_Release(gil);
    return raised ? INTERRUPTED : OK;
}

static Status nap(Line *line, uint32_t number) {
    uint32_t seen = atomic_load(&line->number);
    atomic_store(&line->sleepers, 1);
    if (reached(line, number)) return OK;
    struct timespec limit = {.tv_nsec = NAP_NS};
    long woken = syscall(SYS_futex, &line->number, FUTEX_WAIT, seen, &limit, NULL, 0);
    return woken < 0 && errno != EAGAIN ? handle_signals() : OK;
}

static Status wait_long(Group *group, Line *line, uint32_t number) {
    uint64_t start = now_ns(), now = start;
    Status status = OK;
    while (status == OK && !reached(line, number)) {
        if (aborted(group))
            status = ABORTED;
        else if (now - start < YIELD_NS)
            sched_yield();
        else
            status = nap(line, number);
        now = now_ns();
    }
    group->waited_ns += now - start;
    return status;
}

static Status wait_for(Group *group, Line *line, uint32_t number) {
    for (int spin = 0; spin < SPINS; spin++) {
        if (reached(line, number)) return OK;
        relax();
    }
    return wait_long(group, line, number);
}

/* The exchange orders the number before the look at the sleepers; `nap` does it the other way. */
static void publish(Line *line, uint32_t number) {
    atomic_exchange(&line->number, number);
    if (atomic_load(&line->sleepers)) {
        atomic_store(&line->sleepers, 0);
        syscall(SYS_futex, &line->number, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
    }
}
