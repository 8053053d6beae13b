/* Attention of rows that lie end to end, each to those of its own sequence, bound by multiplications.
 *
 * The keys and values of one head of a sequence are put into pages of the thread's own, where they
 * stay in its caches, and then a task after the other of `tasks.h` goes over them. A long sequence
 * is shared by several threads, TILES tasks at a time.
 */
#include <omp.h>

enum { TILES = 16 };

/* Up to BLOCK tokens' keys are turned on their side; what lies behind them is seen by nobody. */
static void fill_page(const Packed *p, size_t filled, const float *k, const float *v, size_t tokens,
                      float *keys, float *values) {
    for (size_t at = 0; at < tokens; at += LANES) {
        size_t here = smaller(LANES, tokens - at), i = 0;
        const float *from = k + at * p->k_stride;
        for (; i + LANES <= p->head; i += LANES) {
            Vector rows[LANES] = {0};
            for (size_t row = 0; row < here; row++) rows[row] = load(from, row * p->k_stride + i, 0);
            turn(rows);
            for (size_t row = 0; row < LANES; row++) save(keys + (i + row) * BLOCK + at, rows[row]);
        }
        for (; i < p->head; i++)
            for (size_t row = 0; row < here; row++)
                keys[i * BLOCK + at + row] = from[row * p->k_stride + i];
    }
    for (size_t token = 0; token < tokens; token++)
        memcpy(values + token * filled, v + token * p->v_stride, p->head * sizeof *v);
}

/* Tasks of a sequence for one key head, and in how many pieces they are done. */
static size_t pieces_of(const Attention *a, size_t sequence) {
    return (tiles_of(a, sequence) + TILES - 1) / TILES;
}

static void attend_piece(const Packed *p, const Attention *a, size_t sequence, size_t within,
                         float *room) {
    Attention own = *a;
    size_t pieces = pieces_of(a, sequence), kv_head = within / pieces, start = a->starts[sequence];
    size_t rows = a->contexts[sequence], blocks = (rows + BLOCK - 1) / BLOCK;
    float *keys = room, *values = room + blocks * BLOCK * a->head;
    for (size_t block = 0; block < blocks; block++) {
        size_t token = block * BLOCK, place = kv_head * a->head;
        fill_page(p, a->filled, p->k + (start + token) * p->k_stride + place,
                  p->v + (start + token) * p->v_stride + place, smaller(BLOCK, rows - token),
                  keys + token * a->head, values + token * a->filled);
    }
    own.keys = (const char *)keys;
    own.values = (const char *)values;
    size_t queries = rows * (a->heads / a->kv_heads), first = within % pieces * TILES * ROWS;
    size_t last = smaller(first + TILES * ROWS, queries);
    for (Result result; first < last; first += ROWS) {
        int count = (int)smaller(ROWS, last - first);
        Task task = {&own, sequence, kv_head, rows, first, count, 0, 1};
        attend_task(&task, &result);
    }
}

/* As pages without a table, whose contexts are the sequences' own rows: the longest one's. */
static size_t as_pages(const Packed *p, Attention *a, int32_t *contexts, size_t *before) {
    size_t longest = 0;
    *a = (Attention){.out = p->out, .q = p->q, .q_stride = p->q_stride, .contexts = contexts,
                     .starts = p->starts, .sinks = p->sinks, .tokens = p->tokens,
                     .sequences = p->sequences, .heads = p->heads, .kv_heads = p->kv_heads,
                     .head = p->head, .filled = (p->head + BLOCK - 1) / BLOCK * BLOCK,
                     .window = p->window, .causal = p->causal, .scale = p->scale,
                     .softcap = p->softcap};
    before[0] = 0;
    for (size_t i = 0; i < p->sequences; i++) {
        contexts[i] = p->starts[i + 1] - p->starts[i];
        before[i + 1] = before[i] + pieces_of(a, i) * a->kv_heads;
        if ((size_t)contexts[i] > longest) longest = contexts[i];
    }
    return longest;
}

static int attend_all(const Packed *p, const Attention *a, const size_t *before, size_t longest) {
    size_t pages = (longest + BLOCK - 1) / BLOCK * BLOCK * (a->head + a->filled) * sizeof(float);
    size_t pieces = before[a->sequences], work = pieces * longest * ROWS * a->head;
    int threads = work < SMALL ? 1 : p->threads;
    char *room = aligned_alloc(64, pages * threads + 64);
    if (!room) return -1;
#pragma omp parallel for schedule(dynamic, pieces / (threads * 32) + 1) num_threads(threads)
    for (size_t piece = 0; piece < pieces; piece++) {
        size_t sequence = owner_of(before, a->sequences, piece);
        float *mine = (float *)(room + pages * omp_get_thread_num());
        attend_piece(p, a, sequence, piece - before[sequence], mine);
    }
    free(room);
    return 0;
}

static int attend_packed(const Packed *p) {
    Attention a;
    int32_t *contexts = malloc((p->sequences + 1) * sizeof *contexts);
    size_t *before = malloc((p->sequences + 1) * sizeof *before);
    int status = -1;
    if (contexts && before) status = attend_all(p, &a, before, as_pages(p, &a, contexts, before));
    free(contexts);
    free(before);
    return status;
}
