/* What the processes of one host share, and how a process sees it.
 *
 * The region, the same for every rank of a replica (T = tensor_size, S = stages):
 *
 *   0        abort   u32: not 0 once the group is to die; every wait ends in GroupAborted
 *   4096     S x stage { T x line      128 B: a rank's sequence number, what it does, sleepers
 *                        T x 2 slots   SLOT_BYTES each: what the rank shows its peers }
 *   ...      (S - 1) x T x link { sent, received: two lines
 *                                 DEPTH x piece { header 128 B, PIECE_BYTES } }
 */
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

enum {
    MAX_RANKS = 64,
    MAX_DIMS = 12,
    PAGE = 4096,
    DEPTH = 4, /* pieces a link holds: two messages even where each takes two pieces */
};
#define SLOT_BYTES ((size_t)64 << 10)
#define PIECE_BYTES ((size_t)8 << 20) /* pages nobody touches cost nothing */

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
