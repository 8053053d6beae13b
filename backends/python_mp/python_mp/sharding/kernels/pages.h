/* Attention over pages, bound by how fast keys and values come out of memory.
 *
 * A task is up to ROWS queries that see the same keys: those of one key head, of one or more rows
 * of a sequence. It goes through the sequence's blocks once, in groups of GROUP that begin at the
 * same tokens whatever is asked: scores, their softmax so far (arXiv:2205.14135), and the values'
 * sum so far. What is one task for its sequence, a decode, is cut into parts of PART tokens, so that
 * few long sequences keep many threads busy. So a row's result depends on its own sequence only.
 */
#include <math.h>

enum { GROUP = 8, KEYS = GROUP * BLOCK, PART = 4 * KEYS, VECTORS = BLOCK / LANES };
#define WIDE (LANES == 16 ? 2 * VECTORS : VECTORS) /* vectors of values summed at a time */

typedef struct {
    const Attention *a;
    size_t sequence, kv_head;
    size_t rows, first; /* of the sequence, of this step; the first query, by row and group */
    int count;
    size_t part, parts;
} Task;

typedef struct {
    float totals[ROWS][MAX_HEAD], top[ROWS], sum[ROWS];
} Result;

typedef struct {
    float queries[ROWS][MAX_HEAD], scores[ROWS][KEYS];
    Result *so_far;
    size_t begin[ROWS], end[ROWS]; /* the tokens a query sees */
    const char *values[GROUP];
} State;

INLINE Vector either(Ints which, Vector yes, Vector no) {
    return (Vector)(((Words)which & (Words)yes) | (~(Words)which & (Words)no));
}

INLINE Vector all(float value) { return (Vector){0} + value; }

/* Of x <= 0, to 1e-7 of it; 0 below -87. Polynomial: Cephes, expf. */
INLINE Vector exponential(Vector x) {
    const float whole = 12582912.0f; /* 1.5 * 2^23: what is added to it is rounded */
    Vector bounded = either(x > -87.0f, x, all(-87.0f));
    Vector power = (bounded * 1.44269504f + whole) - whole;
    Vector r = (bounded - power * 0.693359375f) - power * -2.12194440e-4f;
    Vector p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    Vector scale = (Vector)((__builtin_convertvector(power, Ints) + 127) << 23);
    return either(x > -87.0f, p * scale, all(0));
}

INLINE Vector capped(Vector scores, float cap) {
    Vector size = either(scores < 0.0f, -scores, scores) / cap, e = exponential(-2.0f * size);
    Vector tanh = (1.0f - e) / (1.0f + e) * cap;
    return either(scores < 0.0f, -tanh, tanh);
}

INLINE void score_rows(const Attention *a, State *state, const char *keys, size_t place,
                       const int rows, const int bfloat16) {
    Vector totals[ROWS][VECTORS], key[VECTORS];
    UNROLL for (int row = 0; row < rows; row++)
        UNROLL for (int i = 0; i < VECTORS; i++) totals[row][i] = (Vector){0};
    for (size_t at = 0; at < a->head; at++) {
        UNROLL for (int i = 0; i < VECTORS; i++)
            key[i] = load(keys, at * BLOCK + i * LANES, bfloat16);
        UNROLL for (int row = 0; row < rows; row++)
            UNROLL for (int i = 0; i < VECTORS; i++)
                totals[row][i] += key[i] * state->queries[row][at];
    }
    UNROLL for (int row = 0; row < rows; row++)
        UNROLL for (int i = 0; i < VECTORS; i++)
            save(&state->scores[row][place + i * LANES], totals[row][i]);
}

INLINE void add_values(const Attention *a, State *state, size_t keys, size_t at, const int rows,
                       const int vectors, const int bfloat16) {
    Vector totals[ROWS][WIDE], value[WIDE];
    UNROLL for (int row = 0; row < rows; row++)
        UNROLL for (int i = 0; i < vectors; i++)
            totals[row][i] = load(state->so_far->totals[row], at + i * LANES, 0);
    for (size_t key = 0; key < keys; key++) {
        size_t place = key % BLOCK * a->filled + at;
        UNROLL for (int i = 0; i < vectors; i++)
            value[i] = load(state->values[key / BLOCK], place + i * LANES, bfloat16);
        UNROLL for (int row = 0; row < rows; row++)
            UNROLL for (int i = 0; i < vectors; i++)
                totals[row][i] += value[i] * state->scores[row][key];
    }
    UNROLL for (int row = 0; row < rows; row++)
        UNROLL for (int i = 0; i < vectors; i++)
            save(&state->so_far->totals[row][at + i * LANES], totals[row][i]);
}

INLINE void sum_rows(const Attention *a, State *state, size_t keys, const int rows,
                     const int bfloat16) {
    size_t at = 0;
    for (; at + WIDE * LANES <= a->filled; at += WIDE * LANES)
        add_values(a, state, keys, at, rows, WIDE, bfloat16);
    if (at < a->filled) add_values(a, state, keys, at, rows, VECTORS, bfloat16);
}

/* Functions of their own for each number of rows and type: what varies is in registers. */
#define FOR_ROWS(rows)                                                                        \
    static __attribute__((noinline)) void score_##rows(const Attention *a, State *state,     \
                                                       const char *keys, size_t place) {     \
        if (a->bfloat16)                                                                      \
            score_rows(a, state, keys, place, rows, 1);                                       \
        else                                                                                  \
            score_rows(a, state, keys, place, rows, 0);                                       \
    }                                                                                         \
    static __attribute__((noinline)) void sum_##rows(const Attention *a, State *state,       \
                                                     size_t keys) {                          \
        if (a->bfloat16)                                                                      \
            sum_rows(a, state, keys, rows, 1);                                                \
        else                                                                                  \
            sum_rows(a, state, keys, rows, 0);                                                \
    }

FOR_ROWS(1) FOR_ROWS(2) FOR_ROWS(3)
#if ROWS == 6
FOR_ROWS(4) FOR_ROWS(5) FOR_ROWS(6)
#endif

static void (*const score[ROWS])(const Attention *, State *, const char *, size_t) = {
    score_1, score_2, score_3,
#if ROWS == 6
    score_4, score_5, score_6,
#endif
};
static void (*const sum_values[ROWS])(const Attention *, State *, size_t) = {
    sum_1, sum_2, sum_3,
#if ROWS == 6
    sum_4, sum_5, sum_6,
#endif
};

/* Scores of the `keys` tokens from `first` on become weights, relative to the largest score so far.
 * What a query does not see weighs nothing, whatever lies there. */
static void weigh(const Attention *a, State *state, int row, size_t first, size_t keys) {
    float *scores = state->scores[row], top = state->so_far->top[row];
    int begin = (int)(state->begin[row] > first ? state->begin[row] - first : 0);
    int end = (int)(state->end[row] > first ? smaller(state->end[row] - first, keys) : 0);
    Ints places;
    for (int i = 0; i < LANES; i++) places[i] = i;
    Vector tops = all(-INFINITY);
    for (size_t at = 0; at < keys; at += LANES, places += LANES) {
        Vector some = load(scores, at, 0);
        if (a->softcap > 0) some = capped(some, a->softcap);
        some = either((places >= begin) & (places < end), some, all(-INFINITY));
        tops = either(some > tops, some, tops);
        save(scores + at, some);
    }
    for (int i = 0; i < LANES; i++) top = tops[i] > top ? tops[i] : top;
    float scale = top == -INFINITY ? 1 : expf(state->so_far->top[row] - top);
    float bound = top == -INFINITY ? 0 : top;
    Vector sums = {0};
    for (size_t at = 0; at < keys; at += LANES) {
        Vector weights = exponential(load(scores, at, 0) - bound);
        sums += weights;
        save(scores + at, weights);
    }
    state->so_far->top[row] = top;
    state->so_far->sum[row] = state->so_far->sum[row] * scale + sum(sums);
    if (scale != 1)
        for (size_t at = 0; at < a->filled; at += LANES)
            save(state->so_far->totals[row] + at, load(state->so_far->totals[row], at, 0) * scale);
}

/* The float of a query or its output. */
static size_t place_of(const Task *task, int row) {
    const Attention *a = task->a;
    size_t groups = a->heads / a->kv_heads, query = task->first + row;
    size_t token = a->starts[task->sequence] + query / groups;
    return (token * a->heads + task->kv_head * groups + query % groups) * a->head;
}

static void begin(const Task *task, State *state) {
    const Attention *a = task->a;
    size_t groups = a->heads / a->kv_heads;
    for (int row = 0; row < task->count; row++) {
        const float *query = a->q + place_of(task, row);
        size_t token = a->contexts[task->sequence] - task->rows + (task->first + row) / groups;
        state->end[row] = token + 1;
        state->begin[row] = token + 1 > a->window ? token + 1 - a->window : 0;
        for (size_t i = 0; i < a->head; i++) state->queries[row][i] = query[i] * a->scale;
        memset(state->so_far->totals[row], 0, a->filled * sizeof(float));
        size_t head = task->kv_head * groups + (task->first + row) % groups;
        int has_sink = a->sinks && task->part == 0;
        state->so_far->top[row] = has_sink ? a->sinks[head] : -INFINITY;
        state->so_far->sum[row] = has_sink ? 1 : 0;
    }
}

static void finish(const Task *task, const Result *result) {
    const Attention *a = task->a;
    for (int row = 0; row < task->count; row++) {
        float *out = a->out + place_of(task, row);
        for (size_t i = 0; i < a->head; i++) out[i] = result->totals[row][i] / result->sum[row];
    }
}

/* The first token that any row of this step sees. */
static size_t first_seen(const Attention *a, size_t sequence) {
    size_t rows = a->starts[sequence + 1] - a->starts[sequence];
    size_t end = a->contexts[sequence] - rows + 1;
    return end > a->window ? end - a->window : 0;
}

static void attend_task(const Task *task, Result *result) {
    const Attention *a = task->a;
    State state = {.so_far = result};
    begin(task, &state);
    size_t block = state.begin[0] / BLOCK, end = state.end[task->count - 1];
    if (task->parts > 1) {
        size_t part = first_seen(a, task->sequence) / PART + task->part;
        if (task->part) block = part * (PART / BLOCK);
        end = smaller(end, (part + 1) * PART);
    }
    size_t key_bytes = a->head * BLOCK * width(a->bfloat16);
    size_t value_bytes = a->filled * BLOCK * width(a->bfloat16);
    const int32_t *table = a->table + task->sequence * a->width;
    while (block * BLOCK < end) {
        size_t first = block * BLOCK, last = smaller((block / GROUP + 1) * KEYS, end);
        for (size_t i = 0; block * BLOCK < last; i++, block++) {
            size_t page = table[block] * a->kv_heads + task->kv_head;
            score[task->count - 1](a, &state, a->keys + page * key_bytes, i * BLOCK);
            state.values[i] = a->values + page * value_bytes;
        }
        for (int row = 0; row < task->count; row++) weigh(a, &state, row, first, last - first);
        sum_values[task->count - 1](a, &state, last - first);
    }
    if (task->parts == 1) finish(task, result);
}

/* The parts of a task, whose results lie one after another, in that order. */
static void join(const Task *task, Result *results) {
    for (int row = 0; row < task->count; row++) {
        float top = -INFINITY;
        for (size_t i = 0; i < task->parts; i++) top = fmaxf(top, results[i].top[row]);
        for (size_t i = 0; i < task->parts; i++) {
            float scale = expf(results[i].top[row] - top);
            results[i].sum[row] *= scale;
            for (size_t at = 0; at < task->a->head; at++) results[i].totals[row][at] *= scale;
            if (i == 0) continue;
            results->sum[row] += results[i].sum[row];
            for (size_t at = 0; at < task->a->head; at++)
                results->totals[row][at] += results[i].totals[row][at];
        }
    }
    finish(task, results);
}

/* Tasks of a sequence for one key head. */
static size_t tiles_of(const Attention *a, size_t sequence) {
    size_t rows = a->starts[sequence + 1] - a->starts[sequence];
    return (rows * (a->heads / a->kv_heads) + ROWS - 1) / ROWS;
}

static size_t parts_of(const Attention *a, size_t sequence) {
    if (tiles_of(a, sequence) != 1) return 1;
    return (a->contexts[sequence] - 1) / PART - first_seen(a, sequence) / PART + 1;
}

/* Task number `number`; `before` counts the tasks before each sequence. */
static Task task_of(const Attention *a, const size_t *before, size_t number) {
    size_t low = 0, high = a->sequences;
    while (high - low > 1) {
        size_t middle = (low + high) / 2;
        if (before[middle] <= number)
            low = middle;
        else
            high = middle;
    }
    size_t tiles = tiles_of(a, low), parts = parts_of(a, low), within = number - before[low];
    size_t rows = a->starts[low + 1] - a->starts[low], first = within / parts % tiles * ROWS;
    int count = (int)smaller(ROWS, rows * (a->heads / a->kv_heads) - first);
    return (Task){a, low, within / parts / tiles, rows, first, count, within % parts, parts};
}

static int attend(const Attention *a) {
    size_t *before = malloc((a->sequences + 1) * sizeof *before), work = 0;
    if (!before) return -1;
    before[0] = 0;
    for (size_t i = 0; i < a->sequences; i++) {
        size_t tasks = tiles_of(a, i) * parts_of(a, i) * a->kv_heads;
        before[i + 1] = before[i] + tasks;
        work += tiles_of(a, i) * a->heads * a->contexts[i] * a->head;
    }
    size_t tasks = before[a->sequences];
    Result *results = malloc(tasks * sizeof *results + 1); /* untouched where a task has no parts */
    if (!results) return free(before), -1;
    int threads = work < SMALL ? 1 : a->threads;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (size_t number = 0; number < tasks; number++) {
        Task task = task_of(a, before, number);
        Result alone;
        attend_task(&task, task.parts > 1 ? results + number : &alone);
    }
    for (size_t i = 0; i < a->sequences; i++)
        for (size_t head = 0; parts_of(a, i) > 1 && head < a->kv_heads; head++) {
            size_t number = before[i] + head * parts_of(a, i);
            Task task = task_of(a, before, number);
            join(&task, results + number);
        }
    free(results);
    free(before);
    return 0;
}
