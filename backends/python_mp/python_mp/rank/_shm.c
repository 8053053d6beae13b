/* Collectives between the processes of one host, over one shared mapping.
 *
 * The region, the same for every rank of a replica (T = tensor_size, S = stages):
 *
 *   0        abort   u32: not 0 once the group is to die; every wait ends in GroupAborted
 *   4096     S x stage { T x line      128 B: a rank's sequence number, what it does, sleepers
 *                        T x 2 slots   SLOT_BYTES each: what the rank shows its peers }
 *   ...      (S - 1) x T x link { sent, received: two lines
 *                                 DEPTH x piece { header 128 B, PIECE_BYTES } }
 *
 * A step of a collective: fill the slot of this step's parity, publish the step's number in the
 * own line, wait for the peers' numbers, read their slots. Who publishes step k has read all of
 * step k-1, so two slots and one meeting a step are enough.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum {
    MAX_RANKS = 64,
    MAX_DIMS = 12,
    PAGE = 4096,
    DEPTH = 4,            /* pieces a link holds: two messages even where each takes two pieces */
    ONE_SHOT_BYTES = 16 << 10,
    SPINS = 50,           /* about a microsecond: longer only starves a peer on this core */
    YIELD_NS = 300000,    /* then give way to whoever shares the core; then sleep */
    NAP_NS = 10000000,    /* the parent wakes nobody: a sleeper looks at the abort word this often */
};
#define SLOT_BYTES ((size_t)64 << 10)
#define PIECE_BYTES ((size_t)8 << 20) /* pages nobody touches cost nothing */

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__has_attribute)
#if __has_attribute(target_clones)
#define VECTORISED __attribute__((target_clones("avx512f", "avx2", "default")))
#endif
#endif
#ifndef VECTORISED
#define VECTORISED
#endif

static inline size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

/* Copies into the region. A line that a peer has read costs an ordinary store the round trip to
 * take it back; on AMD, streaming stores go around that (Zen 3, 48 KiB: 2.3 us, not 11). */
static void show(char *slot, const char *x, size_t bytes) {
#if defined(__x86_64__)
    if (__builtin_cpu_is("amd")) {
        size_t whole = bytes / 16 * 16;
        for (size_t i = 0; i < whole; i += 16)
            _mm_stream_si128((__m128i *)(slot + i), _mm_loadu_si128((const __m128i *)(x + i)));
        memcpy(slot + whole, x + whole, bytes - whole);
        _mm_sfence();
        return;
    }
#endif
    memcpy(slot, x, bytes);
}

static inline void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* ---- sums: in float32, in rank order, rounded once, so that every rank gets the same bits ---- */

enum { BLOCK = 512 }; /* elements summed at a time, in L1 */

/* `out` may be one of the parts, so it is not written before all of them are read (ivdep: or only
 * where that very element was). */
VECTORISED static void sum_float32(char *out, const char *const *parts, int ranks, size_t count) {
    for (size_t at = 0; at < count; at += BLOCK) {
        size_t n = smaller(count - at, BLOCK);
        float scratch[BLOCK], *total = (float *)out + at, *sum = ranks > 2 ? scratch : total;
        const float *first = (const float *)parts[0] + at, *second = (const float *)parts[1] + at;
#pragma GCC ivdep
        for (size_t i = 0; i < n; i++) sum[i] = first[i] + second[i];
        for (int rank = 2; rank < ranks; rank++) {
            const float *part = (const float *)parts[rank] + at;
            for (size_t i = 0; i < n; i++) scratch[i] += part[i];
        }
        if (sum == scratch) memcpy(total, scratch, n * sizeof *scratch);
    }
}

static inline float as_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* The upper half is the nearest bfloat16, ties to even. */
static inline uint32_t rounded(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (bits & 0x7fffffff) <= 0x7f800000 ? bits + 0x7fff + ((bits >> 16) & 1) : 0x7fc00000;
}

/* Two elements in a word: masks and shifts instead of the packing that vectorises badly. */
typedef uint32_t Pair __attribute__((aligned(2), may_alias));

VECTORISED static void sum_pairs(char *out, const char *const *parts, int ranks, size_t count) {
    for (size_t at = 0; at < count; at += BLOCK) {
        size_t n = smaller(count - at, BLOCK);
        float low[BLOCK], high[BLOCK];
        for (int rank = 0; rank < ranks; rank++) {
            const Pair *part = (const Pair *)parts[rank] + at;
            if (rank == 0)
                for (size_t i = 0; i < n; i++)
                    low[i] = as_float(part[i] << 16), high[i] = as_float(part[i] & 0xffff0000);
            else
                for (size_t i = 0; i < n; i++)
                    low[i] += as_float(part[i] << 16), high[i] += as_float(part[i] & 0xffff0000);
        }
        Pair *total = (Pair *)out + at;
        for (size_t i = 0; i < n; i++)
            total[i] = rounded(low[i]) >> 16 | (rounded(high[i]) & 0xffff0000);
    }
}

static void sum_bfloat16(char *out, const char *const *parts, int ranks, size_t count) {
    sum_pairs(out, parts, ranks, count / 2);
    if (count % 2) { /* the last one */
        float sum = -0.0f;
        for (int rank = 0; rank < ranks; rank++) {
            uint16_t last;
            memcpy(&last, parts[rank] + 2 * (count - 1), 2);
            sum += as_float((uint32_t)last << 16);
        }
        uint16_t half = rounded(sum) >> 16;
        memcpy(out + 2 * (count - 1), &half, 2);
    }
}

typedef void (*Sum)(char *, const char *const *, int, size_t);

/* ---- the region ---- */

typedef struct {
    _Alignas(128) _Atomic uint32_t number; /* also the futex word */
    _Atomic uint32_t sleepers;
    uint64_t tag[2]; /* what the rank does in the step of this parity */
} Line;

typedef struct {
    uint64_t bytes, dtype, dims, shape[MAX_DIMS];
} Header;

typedef struct {
    _Alignas(128) Header header;
    _Alignas(128) char data[PIECE_BYTES];
} Piece;

typedef struct {
    Line sent, received;
    _Alignas(PAGE) Piece pieces[DEPTH];
} Link;

typedef enum { OK, ABORTED, INTERRUPTED, OUT_OF_STEP } Status;

typedef struct {
    PyObject_HEAD
    Py_buffer region;
    int rank, size;
    uint32_t step, sent, received;
    _Atomic uint32_t *abort;
    Line *lines;
    char *slots;
    Link *next, *previous;
    uint64_t waited_ns, operations;
} Group;

static size_t stage_bytes(int size) {
    size_t lines = (size * sizeof(Line) + PAGE - 1) / PAGE * PAGE;
    return lines + 2 * SLOT_BYTES * size;
}

static size_t region_bytes(int size, int stages) {
    return PAGE + stages * stage_bytes(size) + (size_t)(stages - 1) * size * sizeof(Link);
}

static char *slot(Group *group, int rank) {
    return group->slots + (2 * (size_t)rank + (group->step & 1)) * SLOT_BYTES;
}

/* ---- waiting ---- */

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

/* ---- the steps of a collective ---- */

static Status begin_step(Group *group) {
    if (aborted(group)) return ABORTED;
    for (int peer = 0; peer < group->size; peer++) {
        Status status = wait_for(group, &group->lines[peer], group->step);
        if (status != OK) return status;
    }
    group->step++;
    return OK;
}

static void publish_step(Group *group, uint64_t tag) {
    Line *line = &group->lines[group->rank];
    line->tag[group->step & 1] = tag;
    publish(line, group->step);
}

static Status meet(Group *group, int peer, uint64_t tag) {
    Line *line = &group->lines[peer];
    Status status = wait_for(group, line, group->step);
    if (status == OK && line->tag[group->step & 1] != tag) status = OUT_OF_STEP;
    return status;
}

static Status meet_all(Group *group, uint64_t tag) {
    publish_step(group, tag);
    Status status = OK;
    for (int peer = 0; status == OK && peer < group->size; peer++)
        status = meet(group, peer, tag);
    return status;
}

/* Every rank sums everything: one meeting. */
static Status reduce_at_once(Group *group, char *x, size_t count, size_t width, Sum sum,
                             uint64_t tag) {
    const char *parts[MAX_RANKS];
    Status status = begin_step(group);
    if (status != OK) return status;
    show(slot(group, group->rank), x, count * width);
    if ((status = meet_all(group, tag)) != OK) return status;
    for (int rank = 0; rank < group->size; rank++)
        parts[rank] = rank == group->rank ? x : slot(group, rank);
    sum(x, parts, group->size, count);
    return OK;
}

/* Every rank sums its share (reduce-scatter), then shows it to the others (all-gather). */
static Status reduce_by_shares(Group *group, char *x, size_t count, size_t width, Sum sum,
                               uint64_t tag) {
    const char *parts[MAX_RANKS];
    size_t start[MAX_RANKS + 1], line = 64, end = count * width;
    size_t share = (end / group->size + line) / line * line;
    for (int rank = 0; rank <= group->size; rank++) start[rank] = smaller(rank * share, end);
    size_t mine = start[group->rank], after = start[group->rank + 1];

    Status status = begin_step(group);
    if (status != OK) return status;
    show(slot(group, group->rank), x, mine);
    show(slot(group, group->rank) + after, x + after, end - after);
    if ((status = meet_all(group, tag)) != OK) return status;
    for (int rank = 0; rank < group->size; rank++)
        parts[rank] = (rank == group->rank ? x : slot(group, rank)) + mine;
    sum(x + mine, parts, group->size, (after - mine) / width);

    if ((status = begin_step(group)) != OK) return status;
    show(slot(group, group->rank), x + mine, after - mine);
    if ((status = meet_all(group, tag)) != OK) return status;
    for (int rank = 0; rank < group->size; rank++)
        if (rank != group->rank)
            memcpy(x + start[rank], slot(group, rank), start[rank + 1] - start[rank]);
    return OK;
}

static Status all_reduce(Group *group, char *x, size_t count, size_t width, Sum sum, uint64_t tag) {
    Status status = OK;
    size_t most = SLOT_BYTES / width;
    for (size_t done = 0; status == OK && done < count; done += most) {
        size_t part = smaller(count - done, most);
        int at_once = group->size == 2 || part * width <= ONE_SHOT_BYTES;
        status = (at_once ? reduce_at_once : reduce_by_shares)(group, x + done * width, part,
                                                               width, sum, tag);
    }
    return status;
}

/* Bytes [at, at + bytes) of one rank's rows go to its columns of the wider output rows. */
static void place(char *out, const char *rows, size_t at, size_t bytes, size_t row, size_t pitch) {
    while (bytes) {
        size_t column = at % row, run = smaller(row - column, bytes);
        memcpy(out + at / row * pitch + column, rows, run);
        at += run, rows += run, bytes -= run;
    }
}

static Status all_gather(Group *group, char *out, const char *x, size_t bytes, size_t row,
                         uint64_t tag) {
    size_t pitch = row * group->size;
    for (size_t done = 0; done < bytes; done += SLOT_BYTES) {
        size_t part = smaller(bytes - done, SLOT_BYTES);
        Status status = begin_step(group);
        if (status != OK) return status;
        show(slot(group, group->rank), x + done, part);
        if ((status = meet_all(group, tag)) != OK) return status;
        for (int rank = 0; rank < group->size; rank++)
            place(out + rank * row, rank == group->rank ? x + done : slot(group, rank), done, part,
                  row, pitch);
    }
    return OK;
}

/* Only the readers wait: the source is at most one step ahead of them. */
static Status broadcast(Group *group, char *x, size_t bytes, int source, uint64_t tag) {
    for (size_t done = 0; done < bytes; done += SLOT_BYTES) {
        size_t part = smaller(bytes - done, SLOT_BYTES);
        Status status = begin_step(group);
        if (status != OK) return status;
        if (group->rank == source) show(slot(group, source), x + done, part);
        publish_step(group, tag);
        if (group->rank == source) continue;
        if ((status = meet(group, source, tag)) != OK) return status;
        memcpy(x + done, slot(group, source), part);
    }
    return OK;
}

/* ---- the links between stages: a message is one piece or more, its header in the first ---- */

static Status send_message(Group *group, const char *x, const Header *header) {
    Link *link = group->next;
    size_t left = header->bytes;
    if (aborted(group)) return ABORTED;
    do {
        Status status = wait_for(group, &link->received, group->sent + 1 - DEPTH);
        if (status != OK) return status;
        Piece *piece = &link->pieces[group->sent % DEPTH];
        size_t part = smaller(left, PIECE_BYTES);
        piece->header = *header;
        show(piece->data, x, part);
        x += part, left -= part;
        publish(&link->sent, ++group->sent);
    } while (left);
    return OK;
}

static Status wait_message(Group *group, Piece **piece) {
    if (aborted(group)) return ABORTED;
    *piece = &group->previous->pieces[group->received % DEPTH];
    return wait_for(group, &group->previous->sent, group->received + 1);
}

static Status receive_message(Group *group, char *x, size_t bytes) {
    do {
        Piece *piece;
        Status status = wait_message(group, &piece);
        if (status != OK) return status;
        size_t part = smaller(bytes, PIECE_BYTES);
        memcpy(x, piece->data, part);
        x += part, bytes -= part;
        publish(&group->previous->received, ++group->received);
    } while (bytes);
    return OK;
}

/* ---- Python: pointers and counts come in as integers; `collectives` checks the tensors ---- */

static PyObject *group_aborted; /* python_mp.model.errors.GroupAborted */

static PyObject *result(Group *group, Status status) {
    group->operations++;
    if (status == OK) return Py_NewRef(Py_None);
    if (status == ABORTED)
        PyErr_SetString(group_aborted, "the group of ranks has ended");
    else if (status == OUT_OF_STEP)
        PyErr_SetString(PyExc_RuntimeError,
                        "the ranks are out of step: not all of them called the same collective "
                        "with the same shape and dtype");
    return NULL;
}

/* Reads `wanted` unsigned integers, and checks that the group is open. */
static int read_numbers(Group *group, PyObject *const *args, Py_ssize_t given, Py_ssize_t wanted,
                        uint64_t *numbers) {
    if (!group->region.buf) {
        PyErr_SetString(PyExc_ValueError, "the group is closed");
        return 0;
    }
    if (given != wanted) {
        PyErr_Format(PyExc_TypeError, "takes %zd integers, not %zd", wanted, given);
        return 0;
    }
    for (Py_ssize_t i = 0; i < wanted; i++) {
        numbers[i] = PyLong_AsUnsignedLongLong(args[i]);
        if (PyErr_Occurred()) return 0;
    }
    return 1;
}

/* What all ranks must agree on: which collective (never 0), on how many bytes, how arranged. */
static uint64_t tag_of(int collective, uint64_t bytes, uint64_t arrangement) {
    return (uint64_t)collective << 60 | (arrangement & 0xfffff) << 40 | (bytes & 0xffffffffff);
}

static PyObject *group_all_reduce(Group *self, PyObject *const *args, Py_ssize_t given) {
    uint64_t n[3]; /* pointer, count, whether bfloat16 */
    if (!read_numbers(self, args, given, 3, n)) return NULL;
    size_t width = n[2] ? 2 : 4;
    Status status;
    Py_BEGIN_ALLOW_THREADS;
    status = all_reduce(self, (char *)(uintptr_t)n[0], n[1], width,
                        n[2] ? sum_bfloat16 : sum_float32, tag_of(1, n[1] * width, width));
    Py_END_ALLOW_THREADS;
    return result(self, status);
}

static PyObject *group_all_gather(Group *self, PyObject *const *args, Py_ssize_t given) {
    uint64_t n[4]; /* pointer to the output, to the input, bytes of the input, of a row of it */
    if (!read_numbers(self, args, given, 4, n)) return NULL;
    Status status;
    Py_BEGIN_ALLOW_THREADS;
    status = all_gather(self, (char *)(uintptr_t)n[0], (char *)(uintptr_t)n[1], n[2], n[3],
                        tag_of(2, n[2], n[3]));
    Py_END_ALLOW_THREADS;
    return result(self, status);
}

static PyObject *group_broadcast(Group *self, PyObject *const *args, Py_ssize_t given) {
    uint64_t n[3]; /* pointer, bytes, source */
    if (!read_numbers(self, args, given, 3, n)) return NULL;
    Status status;
    Py_BEGIN_ALLOW_THREADS;
    status = broadcast(self, (char *)(uintptr_t)n[0], n[1], (int)n[2], tag_of(3, n[1], n[2]));
    Py_END_ALLOW_THREADS;
    return result(self, status);
}

static PyObject *group_send(Group *self, PyObject *const *args, Py_ssize_t given) {
    uint64_t n[3 + MAX_DIMS]; /* pointer, bytes, dtype, shape... */
    if (given < 3 || given > 3 + MAX_DIMS || !self->next) {
        PyErr_SetString(PyExc_ValueError, "no next stage, or a tensor of too many dimensions");
        return NULL;
    }
    if (!read_numbers(self, args, given, given, n)) return NULL;
    Header header = {.bytes = n[1], .dtype = n[2], .dims = given - 3};
    memcpy(header.shape, n + 3, (given - 3) * sizeof *n);
    Status status;
    Py_BEGIN_ALLOW_THREADS;
    status = send_message(self, (char *)(uintptr_t)n[0], &header);
    Py_END_ALLOW_THREADS;
    return result(self, status);
}

/* The next message's (bytes, dtype, *shape); the message stays where it is. */
static PyObject *group_incoming(Group *self, PyObject *const *args, Py_ssize_t given) {
    Piece *piece;
    Status status;
    if (!read_numbers(self, args, given, 0, NULL)) return NULL;
    if (!self->previous) {
        PyErr_SetString(PyExc_ValueError, "no previous stage");
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS;
    status = wait_message(self, &piece);
    Py_END_ALLOW_THREADS;
    if (status != OK) return result(self, status);
    const Header *header = &piece->header;
    PyObject *fields = PyTuple_New(2 + header->dims);
    for (uint64_t i = 0; fields && i < 2 + header->dims; i++) {
        uint64_t field = i == 0 ? header->bytes : i == 1 ? header->dtype : header->shape[i - 2];
        PyTuple_SetItem(fields, i, PyLong_FromUnsignedLongLong(field));
    }
    return fields;
}

static PyObject *group_receive(Group *self, PyObject *const *args, Py_ssize_t given) {
    uint64_t n[2]; /* pointer, bytes: those of `incoming` */
    if (!read_numbers(self, args, given, 2, n)) return NULL;
    Status status;
    Py_BEGIN_ALLOW_THREADS;
    status = receive_message(self, (char *)(uintptr_t)n[0], n[1]);
    Py_END_ALLOW_THREADS;
    return result(self, status);
}

static PyObject *group_waited_ns(Group *self, PyObject *Py_UNUSED(ignored)) {
    return PyLong_FromUnsignedLongLong(self->waited_ns);
}

static PyObject *group_operations(Group *self, PyObject *Py_UNUSED(ignored)) {
    return PyLong_FromUnsignedLongLong(self->operations);
}

static PyObject *group_close(Group *self, PyObject *Py_UNUSED(ignored)) {
    if (self->region.buf) PyBuffer_Release(&self->region);
    self->region.buf = NULL;
    return Py_NewRef(Py_None);
}

static int lay_out(Group *self, int stage, int stages) {
    if (self->size < 1 || self->size > MAX_RANKS || self->rank < 0 || self->rank >= self->size ||
        stage < 0 || stage >= stages ||
        (size_t)self->region.len < region_bytes(self->size, stages))
        return 0;
    char *base = self->region.buf;
    char *own = base + PAGE + stage * stage_bytes(self->size);
    Link *links = (Link *)(base + PAGE + stages * stage_bytes(self->size));
    self->abort = (_Atomic uint32_t *)base;
    self->lines = (Line *)own;
    self->slots = own + stage_bytes(self->size) - 2 * SLOT_BYTES * self->size;
    self->next = stage + 1 < stages ? &links[stage * self->size + self->rank] : NULL;
    self->previous = stage > 0 ? &links[(stage - 1) * self->size + self->rank] : NULL;
    return 1;
}

static PyObject *group_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(kwargs)) {
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Group *self = (Group *)alloc(type, 0);
    int stage, stages;
    if (!self) return NULL;
    if (!PyArg_ParseTuple(args, "w*iiii", &self->region, &self->rank, &self->size, &stage, &stages))
        goto failed;
    if (lay_out(self, stage, stages)) return (PyObject *)self;
    PyErr_SetString(PyExc_ValueError, "no such rank or stage, or the region is too small");
failed:
    Py_DECREF(self);
    return NULL;
}

static void group_dealloc(Group *self) {
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    if (self->region.buf) PyBuffer_Release(&self->region);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

#define FAST(name) {#name, (PyCFunction)(void (*)(void))group_##name, METH_FASTCALL, NULL}
#define BARE(name) {#name, (PyCFunction)group_##name, METH_NOARGS, NULL}
static PyMethodDef group_methods[] = {
    FAST(all_reduce), FAST(all_gather), FAST(broadcast),  FAST(send),  FAST(incoming),
    FAST(receive),    BARE(waited_ns),  BARE(operations), BARE(close), {0},
};

static PyType_Spec group_spec = {
    .name = "python_mp.rank._shm.Group",
    .basicsize = sizeof(Group),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = (PyType_Slot[]){{Py_tp_new, group_new},
                             {Py_tp_dealloc, group_dealloc},
                             {Py_tp_methods, group_methods},
                             {0}},
};

static PyObject *shm_region_bytes(PyObject *Py_UNUSED(module), PyObject *args) {
    int size, stages;
    if (!PyArg_ParseTuple(args, "ii", &size, &stages)) return NULL;
    return PyLong_FromSize_t(region_bytes(size, stages));
}

static int fill_module(PyObject *module) {
    PyObject *errors = PyImport_ImportModule("python_mp.model.errors");
    if (!errors) return -1;
    group_aborted = PyObject_GetAttrString(errors, "GroupAborted");
    Py_DECREF(errors);
    if (!group_aborted) return -1;
    PyObject *type = PyType_FromSpec(&group_spec);
    int status = type ? PyModule_AddObjectRef(module, "Group", type) : -1;
    Py_XDECREF(type);
    return status;
}

static PyModuleDef shm_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_shm",
    .m_methods = (PyMethodDef[]){{"region_bytes", shm_region_bytes, METH_VARARGS, NULL}, {0}},
    .m_slots = (PyModuleDef_Slot[]){{Py_mod_exec, fill_module}, {0}},
};

PyMODINIT_FUNC PyInit__shm(void) { return PyModuleDef_Init(&shm_module); }
