/* Vectors of LANES floats, by GCC's and clang's own vector types. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h"

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

typedef float Vector __attribute__((vector_size(4 * LANES)));
typedef float Anywhere __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
typedef float Quad __attribute__((vector_size(16)));
typedef float QuadAnywhere __attribute__((vector_size(16), aligned(4), may_alias));
typedef int32_t Places __attribute__((vector_size(16)));

INLINE size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

INLINE size_t width(int bfloat16) { return bfloat16 ? 2 : 4; }

/* The vector that begins with element `at`. A bfloat16 is the upper half of a float. */
INLINE Vector load(const void *from, size_t at, int bfloat16) {
    if (bfloat16) {
        Halves halves = *(const Halves *)((const uint16_t *)from + at);
        return (Vector)(__builtin_convertvector(halves, Words) << 16);
    }
    return *(const Anywhere *)((const float *)from + at);
}

INLINE void save(float *to, Vector vector) { *(Anywhere *)to = vector; }

INLINE float load_one(const void *from, size_t at, int bfloat16) {
    uint32_t bits = bfloat16 ? (uint32_t)((const uint16_t *)from)[at] << 16
                             : ((const uint32_t *)from)[at];
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Four partial sums of a vector's elements. */
INLINE Quad in_four(Vector vector) {
    union {
        Vector whole;
        Quad parts[LANES / 4];
    } cut = {vector};
    Quad sum = cut.parts[0];
    for (int i = 1; i < LANES / 4; i++) sum += cut.parts[i];
    return sum;
}

INLINE float sum(Vector vector) {
    Quad four = in_four(vector);
    return (four[0] + four[2]) + (four[1] + four[3]);
}

/* The sums of four vectors; each adds in the same order as `sum`. */
INLINE Quad sums(const Vector *vectors) {
    const Places low = {0, 4, 1, 5}, high = {2, 6, 3, 7};
    const Places first = {0, 1, 4, 5}, second = {2, 3, 6, 7};
    Quad four[4];
    UNROLL for (int i = 0; i < 4; i++) four[i] = in_four(vectors[i]);
    Quad a = __builtin_shuffle(four[0], four[1], low) + __builtin_shuffle(four[0], four[1], high);
    Quad b = __builtin_shuffle(four[2], four[3], low) + __builtin_shuffle(four[2], four[3], high);
    return __builtin_shuffle(a, b, first) + __builtin_shuffle(a, b, second);
}

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
