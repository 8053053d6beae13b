/* A product of many rows, bound by the processor's multiplications.
 *
 * Outputs lie side by side in vectors: WIDE_PANEL vectors of them are a panel, whose weights are
 * turned on their side once, into the second cache, for all rows. A tile is up to HIGH rows of a
 * panel, as many sums as there are registers for. To turn a panel costs about what two rows do.
 */
enum {
    PANEL = WIDE_PANEL * LANES, /* outputs */
    DEEP = 1536,                /* inputs of a panel that are turned at a time */
    MANY = HIGH * (HIGH - 1) / 2, /* rows, from which on all tiles have about HIGH of them */
};

/* Rows become columns: LANES vectors of LANES. */
INLINE void turn(Vector *rows) {
    UNROLL for (int step = LANES / 2; step > 0; step /= 2) {
        Ints low, high;
        UNROLL for (int i = 0; i < LANES; i++) {
            low[i] = i & step ? i - step + LANES : i;
            high[i] = i & step ? i + LANES : i + step;
        }
        UNROLL for (int i = 0; i < LANES; i++) {
            if (i & step) continue;
            Vector first = rows[i], second = rows[i + step];
            rows[i] = __builtin_shuffle(first, second, low);
            rows[i + step] = __builtin_shuffle(first, second, high);
        }
    }
}

/* Weights of `outputs` outputs from `first` on, of inputs [from, to), as [to - from, PANEL]; zeros
 * where there are no more outputs. */
static void turn_panel(const Product *p, float *panel, size_t first, size_t outputs, size_t from,
                       size_t to) {
    for (size_t output = 0; output < PANEL; output += LANES) {
        size_t i = from, here = output < outputs ? smaller(LANES, outputs - output) : 0;
        const size_t place = (first + output) * p->inputs;
        for (; i + LANES <= to; i += LANES) {
            Vector rows[LANES] = {0};
            for (size_t row = 0; row < here; row++)
                rows[row] = load(p->weight, place + row * p->inputs + i, p->bfloat16);
            turn(rows);
            for (size_t row = 0; row < LANES; row++)
                save(panel + (i - from + row) * PANEL + output, rows[row]);
        }
        for (; i < to; i++)
            for (size_t row = 0; row < LANES; row++)
                panel[(i - from) * PANEL + output + row] =
                    row < here ? load_one(p->weight, place + row * p->inputs + i, p->bfloat16) : 0;
    }
}

/* y += x panel^T, of `rows` rows; y begins as it is. */
INLINE void high_tile(const float *panel, const float *x, float *y, size_t inputs, size_t deep,
                      size_t outputs, const int rows) {
    Vector totals[HIGH][WIDE_PANEL];
    UNROLL for (int row = 0; row < rows; row++)
        UNROLL for (int i = 0; i < WIDE_PANEL; i++)
            totals[row][i] = load(y, row * outputs + i * LANES, 0);
    for (size_t at = 0; at < deep; at++, panel += PANEL) {
        Vector weight[WIDE_PANEL];
        UNROLL for (int i = 0; i < WIDE_PANEL; i++) weight[i] = load(panel, i * LANES, 0);
        UNROLL for (int row = 0; row < rows; row++)
            UNROLL for (int i = 0; i < WIDE_PANEL; i++)
                totals[row][i] += weight[i] * x[row * inputs + at];
    }
    UNROLL for (int row = 0; row < rows; row++)
        UNROLL for (int i = 0; i < WIDE_PANEL; i++)
            save(y + row * outputs + i * LANES, totals[row][i]);
}

#define HIGH_TILE(rows)                                                                       \
    static __attribute__((noinline)) void high_tile_##rows(                                  \
        const float *panel, const float *x, float *y, size_t inputs, size_t deep,            \
        size_t outputs) {                                                                     \
        high_tile(panel, x, y, inputs, deep, outputs, rows);                                  \
    }
HIGH_TILE(1) HIGH_TILE(2) HIGH_TILE(3) HIGH_TILE(4) HIGH_TILE(5) HIGH_TILE(6)
#if HIGH == 12
HIGH_TILE(7) HIGH_TILE(8) HIGH_TILE(9) HIGH_TILE(10) HIGH_TILE(11) HIGH_TILE(12)
#endif

static void (*const high_tiles[HIGH])(const float *, const float *, float *, size_t, size_t,
                                      size_t) = {
    high_tile_1, high_tile_2, high_tile_3, high_tile_4, high_tile_5, high_tile_6,
#if HIGH == 12
    high_tile_7, high_tile_8, high_tile_9, high_tile_10, high_tile_11, high_tile_12,
#endif
};

/* One tile of the outputs from `first` on; a panel with fewer goes by way of `edge`. */
static void one_tile(const Product *p, const float *panel, size_t first, size_t row, size_t rows,
                     size_t from, size_t to) {
    size_t outputs = smaller(PANEL, p->outputs - first);
    float *y = p->y + row * p->outputs + first, edge[HIGH * PANEL] = {0};
    const float *x = p->x + row * p->inputs + from, *bias = p->bias ? p->bias + first : NULL;
    if (from == 0)
        for (size_t r = 0; r < rows; r++)
            for (size_t i = 0; i < outputs; i++) y[r * p->outputs + i] = bias ? bias[i] : 0;
    if (outputs == PANEL) {
        high_tiles[rows - 1](panel, x, y, p->inputs, to - from, p->outputs);
        return;
    }
    for (size_t r = 0; r < rows; r++)
        memcpy(edge + r * PANEL, y + r * p->outputs, outputs * sizeof *y);
    high_tiles[rows - 1](panel, x, edge, p->inputs, to - from, PANEL);
    for (size_t r = 0; r < rows; r++)
        memcpy(y + r * p->outputs, edge + r * PANEL, outputs * sizeof *y);
}

static void multiply_panel(const Product *p, float *panel, size_t first) {
    size_t passes = (p->rows + HIGH - 1) / HIGH;
    for (size_t from = 0; from < p->inputs; from += DEEP) {
        size_t to = smaller(from + DEEP, p->inputs);
        turn_panel(p, panel, first, smaller(PANEL, p->outputs - first), from, to);
        for (size_t pass = 0, row = 0, now; pass < passes; pass++, row += now) {
            now = (p->rows - row) / (passes - pass);
            one_tile(p, panel, first, row, now, from, to);
        }
    }
}

static int multiply_many(const Product *p) {
    size_t panels = (p->outputs + PANEL - 1) / PANEL;
    size_t bytes = (smaller(DEEP, p->inputs) * PANEL * sizeof(float) + 63) / 64 * 64;
    char *room = aligned_alloc(64, bytes * p->threads);
    if (!room) return -1;
#pragma omp parallel for schedule(static) num_threads(p->threads)
    for (int thread = 0; thread < p->threads; thread++)
        for (size_t i = panels * thread / p->threads; i < panels * (thread + 1) / p->threads; i++)
            multiply_panel(p, (float *)(room + bytes * thread), i * PANEL);
    free(room);
    return 0;
}
