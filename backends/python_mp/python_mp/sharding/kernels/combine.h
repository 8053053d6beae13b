/* Numbers by themselves, along rows that need not lie side by side. */

INLINE Vector combined(Vector a, Vector b, float factor, const int what) {
    switch (what) {
    case ADD: return a + b;
    case TIMES: return a * b;
    case SCALE: return a * factor;
    case SILU: return a * sigmoid(a);
    case SILU_TIMES: return a * sigmoid(a) * b;
    case GELU: return gelu_of(a);
    case GELU_TANH: return gelu_tanh_of(a);
    default: return a;
    }
}

INLINE void combine_rows(const Combination *c, size_t first, size_t last, const int what) {
    const int of_two = what == ADD || what == TIMES || what == SILU_TIMES;
    for (size_t row = first; row < last; row++) {
        float *y = c->y + row * c->y_stride;
        const float *a = c->a + row * c->a_stride, *b = c->b + row * c->b_stride;
        size_t i = 0, left = c->width % LANES;
        for (; i + LANES <= c->width; i += LANES)
            save(y + i, combined(load(a, i, 0), of_two ? load(b, i, 0) : all(0), c->factor, what));
        if (!left) continue;
        Vector rest = {0}, other = {0};
        memcpy(&rest, a + i, left * sizeof *a);
        if (of_two) memcpy(&other, b + i, left * sizeof *b);
        rest = combined(rest, other, c->factor, what);
        memcpy(y + i, &rest, left * sizeof *y);
    }
}

static void combine(const Combination *c) {
    int is_much = c->what >= SILU; /* each number takes some fifty operations */
    int threads = c->rows * c->width < (is_much ? SMALL / 8 : SMALL) ? 1 : c->threads;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int thread = 0; thread < threads; thread++) {
        size_t first = c->rows * thread / threads, last = c->rows * (thread + 1) / threads;
        switch (c->what) {
        case ADD: combine_rows(c, first, last, ADD); break;
        case TIMES: combine_rows(c, first, last, TIMES); break;
        case SCALE: combine_rows(c, first, last, SCALE); break;
        case COPY: combine_rows(c, first, last, COPY); break;
        case SILU: combine_rows(c, first, last, SILU); break;
        case SILU_TIMES: combine_rows(c, first, last, SILU_TIMES); break;
        case GELU: combine_rows(c, first, last, GELU); break;
        case GELU_TANH: combine_rows(c, first, last, GELU_TANH); break;
        }
    }
}
