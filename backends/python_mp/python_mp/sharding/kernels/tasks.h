/* Attention over pages, bound by how fast keys and values come out of memory.
 *
 * A task is up to ROWS queries that see the same keys: those of one key head, of one or more rows
 * of a sequence. It goes through the sequence's blocks once, in groups of GROUP that begin at the
 * same tokens whatever is asked. What is one task for its sequence, a decode, is cut into parts of
 * PART tokens, so that few long sequences keep many threads busy. So a row's result depends on its
 * own sequence only.
 */
enum { PART = 4 * KEYS };

typedef struct {
    const Attention *a;
    size_t sequence, kv_head;
    size_t rows, first; /* of the sequence, of this step; the first query, by row and group */
    int count;
    size_t part, parts;
} Task;

/* a / b, where b mostly is 1 and a division would take longer than a key of a short head. */
INLINE size_t over(size_t a, size_t b) { return b == 1 ? a : a / b; }

/* The float of a query or its output, of tokens that are `stride` floats apart. */
static size_t place_of(const Task *task, int row, size_t stride) {
    const Attention *a = task->a;
    size_t groups = a->heads / a->kv_heads, query = task->first + row;
    size_t place = over(query, groups), token = a->starts[task->sequence] + place;
    size_t head = task->kv_head * groups + query - place * groups;
    return token * stride + head * a->head;
}

static void begin(const Task *task, State *state) {
    const Attention *a = task->a;
    size_t groups = a->heads / a->kv_heads;
    for (int row = 0; row < task->count; row++) {
        const float *query = a->q + place_of(task, row, a->q_stride);
        size_t place = over(task->first + row, groups);
        size_t token = a->contexts[task->sequence] - task->rows + place;
        size_t context = a->contexts[task->sequence];
        state->end[row] = a->causal              ? token + 1
                          : context - token > a->window ? token + a->window
                                                        : context;
        state->begin[row] = token + 1 > a->window ? token + 1 - a->window : 0;
        for (size_t i = 0; i < a->head; i++) state->queries[row][i] = query[i] * a->scale;
        memset(state->so_far->totals[row], 0, a->filled * sizeof(float));
        size_t head = task->kv_head * groups + task->first + row - place * groups;
        int has_sink = a->sinks && task->part == 0;
        state->so_far->top[row] = has_sink ? a->sinks[head] : -INFINITY;
        state->so_far->sum[row] = has_sink ? 1 : 0;
    }
}

static void finish(const Task *task, const Result *result) {
    const Attention *a = task->a;
    for (int row = 0; row < task->count; row++) {
        float *out = a->out + place_of(task, row, a->heads * a->head);
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
    State state; /* not zeros: it is larger than what a short sequence has to compute */
    state.so_far = result;
    begin(task, &state);
    size_t block = state.begin[0] / BLOCK, end = state.end[task->count - 1];
    if (task->parts > 1) {
        size_t part = first_seen(a, task->sequence) / PART + task->part;
        if (task->part) block = part * (PART / BLOCK);
        end = smaller(end, (part + 1) * PART);
    }
    size_t key_bytes = a->head * BLOCK * width(a->bfloat16);
    size_t value_bytes = a->filled * BLOCK * width(a->bfloat16);
    const int32_t *table = a->table ? a->table + task->sequence * a->width : NULL;
    while (block * BLOCK < end) {
        size_t first = block * BLOCK, last = smaller((block / GROUP + 1) * KEYS, end);
        for (size_t i = 0; block * BLOCK < last; i++, block++) {
            size_t page = table ? table[block] * a->kv_heads + task->kv_head : block;
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

/* Whose task has this number; `before` counts the tasks before each sequence. */
static size_t owner_of(const size_t *before, size_t sequences, size_t number) {
    size_t low = 0, high = sequences;
    while (high - low > 1) {
        size_t middle = (low + high) / 2;
        if (before[middle] <= number)
            low = middle;
        else
            high = middle;
    }
    return low;
}

static Task task_of(const Attention *a, const size_t *before, size_t number) {
    size_t low = owner_of(before, a->sequences, number);
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
    size_t at_a_time = tasks / (threads * 32) + 1; /* to take some costs about as much as one */
#pragma omp parallel for schedule(dynamic, at_a_time) num_threads(threads)
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
