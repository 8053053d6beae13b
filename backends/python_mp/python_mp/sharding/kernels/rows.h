/* What is done to each row by itself, and torch does in many small steps. */

/* Rows of floats, RMS-normalised: x / sqrt(mean(x^2) + epsilon) * gain. */
static void normalise(const Norm *n) {
    int threads = n->rows * n->width < SMALL ? 1 : n->threads;
#pragma omp parallel for num_threads(threads)
    for (size_t row = 0; row < n->rows; row++) {
        const float *x = n->x + row * n->width;
        float *y = n->y + row * n->width;
        size_t i = 0;
        Vector squares = {0};
        for (; i + LANES <= n->width; i += LANES) squares += load(x, i, 0) * load(x, i, 0);
        float total = sum(squares);
        for (; i < n->width; i++) total += x[i] * x[i];
        float scale = 1 / sqrtf(total / n->width + n->epsilon);
        for (i = 0; i + LANES <= n->width; i += LANES)
            save(y + i, load(x, i, 0) * scale * load(n->gain, i, 0));
        for (; i < n->width; i++) y[i] = x[i] * scale * n->gain[i];
    }
}

INLINE void standardise_row(const LayerNorm *n, const float *a, const float *b, float *y) {
    size_t width = n->width, whole = width / LANES * LANES, i = 0;
    Vector totals = {0}, squares = {0};
    for (; i < whole; i += LANES) {
        Vector some = b ? load(a, i, 0) + load(b, i, 0) : load(a, i, 0);
        totals += some;
        save(y + i, some);
    }
    float total = sum(totals), square = 0;
    for (; i < width; i++) total += y[i] = b ? a[i] + b[i] : a[i];
    float mean = total / width;
    for (i = 0; i < whole; i += LANES) {
        Vector apart = load(y, i, 0) - mean;
        squares += apart * apart;
    }
    for (; i < width; i++) square += (y[i] - mean) * (y[i] - mean);
    float scale = 1 / sqrtf((sum(squares) + square) / width + n->epsilon);
    for (i = 0; i < whole; i += LANES)
        save(y + i, (load(y, i, 0) - mean) * scale * load(n->gain, i, 0) +
                        (n->bias ? load(n->bias, i, 0) : all(0)));
    for (; i < width; i++)
        y[i] = (y[i] - mean) * scale * n->gain[i] + (n->bias ? n->bias[i] : 0);
}

static void standardise(const LayerNorm *n) {
    int threads = n->rows * n->width < SMALL / 4 ? 1 : n->threads; /* it goes over a row three times */
#pragma omp parallel for num_threads(threads)
    for (size_t row = 0; row < n->rows; row++) {
        size_t at = row * n->width;
        standardise_row(n, n->a + at, n->b ? n->b + at : NULL, n->y + at);
    }
}

INLINE void rotate_head(float *to, const float *from, const float *cos, const float *sin,
                        size_t half) {
    size_t i = 0;
    for (; i + LANES <= half; i += LANES) {
        Vector low = load(from, i, 0), high = load(from, half + i, 0);
        save(to + i, low * load(cos, i, 0) - high * load(sin, i, 0));
        save(to + half + i, high * load(cos, half + i, 0) + low * load(sin, half + i, 0));
    }
    for (; i < half; i++) {
        to[i] = from[i] * cos[i] - from[half + i] * sin[i];
        to[half + i] = from[half + i] * cos[half + i] + from[i] * sin[half + i];
    }
}

static void rotate(const Rotation *r) {
    int threads = r->tokens * r->heads * r->head < SMALL ? 1 : r->threads;
#pragma omp parallel for num_threads(threads)
    for (size_t token = 0; token < r->tokens; token++)
        for (size_t head = 0; head < r->heads; head++)
            rotate_head(r->to + (token * r->heads + head) * r->head,
                        r->from + token * r->stride + head * r->head, r->cos + token * r->head,
                        r->sin + token * r->head, r->head / 2);
}
