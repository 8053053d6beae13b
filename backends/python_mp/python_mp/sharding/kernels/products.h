/* A product with a weight that lies row by row.
 *
 * It is read as it lies, row by row, once, by each thread its rows. Four of its rows and
 * up to ROWS of x at a time, as many as there are registers for; more rows of x pass over the four
 * again while they are in the first cache, and meanwhile the next four are fetched. A result is
 * summed in the same order whatever else is computed with it.
 */
enum {
    FOUR = 4,
    CHUNK = 96, /* rows of x, which stay in the second cache */
    SMALL = 1 << 16, /* multiplications that waking a thread is not worth */
};

/* Arguments of a tile, in registers: what lies in memory holds up the loads of the next tile. */
#define CORNER const Product *p, const float *x, const char *weight, const float *bias, float *y

/* What whole vectors have left over. */
static __attribute__((noinline)) void add_rest(const Product *p, const float *x,
                                               const char *weight, float *y, size_t from, int rows,
                                               int outputs, int bfloat16) {
    for (int row = 0; row < rows; row++)
        for (int output = 0; output < outputs; output++)
            for (size_t i = from; i < p->inputs; i++)
                y[row * p->outputs + output] +=
                    x[row * p->inputs + i] *
                    load_one(weight, output * p->inputs + i, bfloat16);
}

INLINE void tile(CORNER, const int rows, const int outputs, const int bfloat16) {
    Vector totals[ROWS][FOUR], some[ROWS];
    size_t inputs = p->inputs, ahead = (outputs == FOUR ? FOUR : 2) * inputs, i = 0;
    UNROLL for (int row = 0; row < rows; row++)
        UNROLL for (int output = 0; output < outputs; output++) totals[row][output] = (Vector){0};
    for (; i + LANES <= inputs; i += LANES) {
        UNROLL for (int row = 0; row < rows; row++) some[row] = load(x, row * inputs + i, 0);
        UNROLL for (int output = 0; output < outputs; output++) {
            size_t place = output * inputs + i;
            __builtin_prefetch(weight + (place + ahead) * width(bfloat16), 0, 3);
            Vector four = load(weight, place, bfloat16);
            UNROLL for (int row = 0; row < rows; row++) totals[row][output] += four * some[row];
        }
    }
    UNROLL for (int row = 0; row < rows; row++) {
        float *to = y + row * p->outputs;
        if (outputs == FOUR) {
            Quad four = sums(totals[row]);
            *(QuadAnywhere *)to = bias ? four + *(const QuadAnywhere *)bias : four;
        } else {
            *to = sum(totals[row][0]) + (bias ? *bias : 0);
        }
    }
    if (i < inputs) add_rest(p, x, weight, y, i, rows, outputs, bfloat16);
}

#define TILE(rows, outputs, bfloat16)                                                        \
    static __attribute__((noinline)) void tile_##rows##_##outputs##_##bfloat16(CORNER) {     \
        tile(p, x, weight, bias, y, rows, outputs, bfloat16);                                \
    }
#define TILES(rows) TILE(rows, 1, 0) TILE(rows, 1, 1) TILE(rows, 4, 0) TILE(rows, 4, 1)
#define NAMES(rows)                                                                          \
    {{tile_##rows##_1_0, tile_##rows##_1_1}, {tile_##rows##_4_0, tile_##rows##_4_1}}

TILES(1) TILES(2) TILES(3)
#if ROWS == 6
TILES(4) TILES(5) TILES(6)
#endif

/* By rows, by four outputs or one, by type. */
static void (*const tiles[ROWS][2][2])(CORNER) = {
    NAMES(1), NAMES(2), NAMES(3),
#if ROWS == 6
    NAMES(4), NAMES(5), NAMES(6),
#endif
};

/* Four rows of a bfloat16 weight as float32, for many passes; the next four are fetched. */
static void widen(const Product *p, const char *weight, float *wide, size_t outputs) {
    size_t count = outputs * p->inputs, i = 0;
    for (; i + LANES <= count; i += LANES) {
        __builtin_prefetch(weight + (i + count) * width(1), 0, 3);
        save(wide + i, load(weight, i, 1));
    }
    for (; i < count; i++) wide[i] = load_one(weight, i, 1);
}

/* Some outputs of some rows, the rows in passes of about the same size. */
static void multiply_part(const Product *p, size_t first, size_t last, size_t row, size_t rows) {
    size_t passes = (rows + ROWS - 1) / ROWS;
    int in_one_stream = rows == 1 && !p->bfloat16; /* which memory delivers a little faster */
    float *wide = p->bfloat16 && passes > 3 ? malloc(FOUR * p->inputs * sizeof *wide) : NULL;
    for (size_t output = first, outputs; output < last; output += outputs) {
        outputs = output + FOUR > last || in_one_stream ? 1 : FOUR;
        const char *weight = p->weight + output * p->inputs * width(p->bfloat16);
        const float *x = p->x + row * p->inputs, *bias = p->bias ? p->bias + output : NULL;
        float *y = p->y + row * p->outputs + output;
        if (wide) {
            widen(p, weight, wide, outputs);
            weight = (const char *)wide;
        }
        for (size_t pass = 0, left = rows, now; pass < passes; pass++, left -= now) {
            now = left / (passes - pass);
            tiles[now - 1][outputs == FOUR][p->bfloat16 && !wide](p, x, weight, bias, y);
            x += now * p->inputs;
            y += now * p->outputs;
        }
    }
    free(wide);
}

static void multiply_rows(const Product *p, int thread, int threads) {
    size_t fours = (p->outputs + FOUR - 1) / FOUR;
    size_t first = fours * thread / threads * FOUR;
    size_t last = smaller(fours * (thread + 1) / threads * FOUR, p->outputs);
    for (size_t row = 0; row < p->rows; row += CHUNK)
        multiply_part(p, first, last, row, smaller(CHUNK, p->rows - row));
}

static void multiply(const Product *p) {
    int threads = p->rows * p->outputs * p->inputs < SMALL ? 1 : p->threads;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int thread = 0; thread < threads; thread++)
        (p->panels ? multiply_panels : multiply_rows)(p, thread, threads);
}
