/* Up to ROWS queries that see the same keys, over a few blocks: scores, their softmax so far
 * (arXiv:2205.14135), and the sum of values so far.
 */
#include <math.h>

enum { GROUP = 8, KEYS = GROUP * BLOCK, VECTORS = BLOCK / LANES };
#define WIDE (LANES == 16 ? 2 * VECTORS : VECTORS) /* vectors of values summed at a time */

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

INLINE Vector sigmoid(Vector x) {
    Vector e = exponential(either(x < 0.0f, x, -x)); /* of -|x| */
    return either(x < 0.0f, e, all(1)) / (1.0f + e);
}

/* By halves, since one after the other each would wait for the one before. */
INLINE float largest(Vector vector) {
    UNROLL for (int step = LANES / 2; step > 0; step /= 2) {
        Ints other;
        UNROLL for (int i = 0; i < LANES; i++) other[i] = i ^ step;
        Vector shuffled = __builtin_shuffle(vector, other);
        vector = either(shuffled > vector, shuffled, vector);
    }
    return vector[0];
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
    float highest = largest(tops), before = state->so_far->top[row];
    top = highest > top ? highest : top;
    float scale = top == before ? 1 : before == -INFINITY ? 0 : expf(before - top);
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
