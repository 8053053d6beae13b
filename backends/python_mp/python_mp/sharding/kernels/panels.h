/* A product with a weight in panels, as `sharding/panels.py` arranges it.
 *
 * A panel is PANEL outputs; their weights for one input lie side by side, so that each vector holds
 * outputs, all of them take the same number of x, and nothing is summed across a vector. A tile is
 * some rows of a panel, as many sums as there are registers for. Each result is summed in the order
 * of the inputs, whatever else is computed with it.
 */
enum {
    PANEL = 32,               /* outputs */
    COLUMNS = ACROSS * LANES, /* of a tile */
    CHUNK_OF_ROWS = 96,       /* of x, which stay in the second cache */
    AHEAD = 4096,             /* bytes by which memory is fetched in advance */
    LINE = 64,
};

#define OF_PANEL                                                                              \
    const Product *p, const float *x, const char *panel, const float *bias, float *y,         \
        const char *next, size_t step

/* next: where to fetch from meanwhile, and how much further for each input. */
INLINE void panel_tile(OF_PANEL, const int rows, const int bfloat16) {
    Vector totals[HIGH][ACROSS];
    const float *thirds[(HIGH + 2) / 3]; /* A pointer for each row would not fit the registers. */
    size_t inputs = p->inputs, bytes = PANEL * width(bfloat16);
    UNROLL for (int i = 0; i < (HIGH + 2) / 3; i++) {
        thirds[i] = x + 3 * i * inputs;
        __asm__("" : "+r"(thirds[i])); /* The compiler would make them pointers of rows again. */
    }
    UNROLL for (int row = 0; row < rows; row++)
        UNROLL for (int i = 0; i < ACROSS; i++)
            totals[row][i] = bias ? load(bias, i * LANES, 0) : (Vector){0};
    for (size_t at = 0; at < inputs; at++, panel += bytes) {
        Vector weight[ACROSS];
        __builtin_prefetch(next, 0, 2);
        if (!bfloat16) __builtin_prefetch(next + LINE, 0, 2);
        next += step;
        UNROLL for (int i = 0; i < ACROSS; i++) weight[i] = load(panel, i * LANES, bfloat16);
        UNROLL for (int row = 0; row < rows; row++)
            UNROLL for (int i = 0; i < ACROSS; i++)
                totals[row][i] += weight[i] * thirds[row / 3][row % 3 * inputs + at];
    }
    UNROLL for (int row = 0; row < rows; row++)
        UNROLL for (int i = 0; i < ACROSS; i++)
            save(y + row * p->outputs + i * LANES, totals[row][i]);
}

#define PANEL_TILE(rows, bfloat16)                                                            \
    static __attribute__((noinline)) void panel_tile_##rows##_##bfloat16(OF_PANEL) {         \
        panel_tile(p, x, panel, bias, y, next, step, rows, bfloat16);                            \
    }
#define PANEL_TILES(rows) PANEL_TILE(rows, 0) PANEL_TILE(rows, 1)
#define OF_ROWS(rows) {panel_tile_##rows##_0, panel_tile_##rows##_1}

PANEL_TILES(1) PANEL_TILES(2) PANEL_TILES(3)
#if HIGH == 12
PANEL_TILES(4) PANEL_TILES(5) PANEL_TILES(6) PANEL_TILES(7) PANEL_TILES(8)
PANEL_TILES(9) PANEL_TILES(10) PANEL_TILES(11) PANEL_TILES(12)
#endif

/* By rows, by type. */
static void (*const panel_tiles[HIGH][2])(OF_PANEL) = {
    OF_ROWS(1), OF_ROWS(2), OF_ROWS(3),
#if HIGH == 12
    OF_ROWS(4), OF_ROWS(5), OF_ROWS(6), OF_ROWS(7), OF_ROWS(8),
    OF_ROWS(9), OF_ROWS(10), OF_ROWS(11), OF_ROWS(12),
#endif
};

/* Some rows of a panel, in passes of about the same size. One that is all runs behind what it
 * fetches; of several each fetches its part of the next panel. */
static void multiply_panel(const Product *p, size_t number, size_t row, size_t rows) {
    size_t passes = (rows + HIGH - 1) / HIGH, each = width(p->bfloat16);
    size_t bytes = p->inputs * PANEL * each, output = number * PANEL;
    const char *panel = p->weight + number * bytes;
    for (size_t pass = 0, left = rows, now; pass < passes; pass++, left -= now, row += now) {
        now = left / (passes - pass);
        const char *next = panel + (passes == 1 ? AHEAD : bytes + bytes / passes * pass);
        size_t step = passes == 1 ? PANEL * each : LINE;
        for (size_t column = 0; column < PANEL; column += COLUMNS)
            panel_tiles[now - 1][p->bfloat16](
                p, p->x + row * p->inputs, panel + column * each,
                p->bias ? p->bias + output + column : NULL,
                p->y + row * p->outputs + output + column, next, step);
    }
}

static void multiply_panels(const Product *p, int thread, int threads) {
    size_t panels = p->outputs / PANEL, chunks = (p->rows + CHUNK_OF_ROWS - 1) / CHUNK_OF_ROWS;
    size_t first = panels * thread / threads, last = panels * (thread + 1) / threads;
    for (size_t chunk = 0, row = 0, now; chunk < chunks; chunk++, row += now) {
        now = (p->rows - row) / (chunks - chunk);
        for (size_t i = first; i < last; i++) multiply_panel(p, i, row, now);
    }
}
