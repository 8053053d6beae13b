/* Sums: in float32, in rank order, rounded once, so that every rank gets the same bits. */
#include <string.h>

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__has_attribute)
#if __has_attribute(target_clones)
#define VECTORISED __attribute__((target_clones("avx512f", "avx2", "default")))
#endif
#endif
#ifndef VECTORISED
#define VECTORISED
#endif

static inline size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

enum { BLOCK = 512 }; /* elements summed at a time, in L1 */

/* `out` may be one of the parts, so it is not written before all of them are read (ivdep: or only
 * where that very element was). */
VECTORISED static void sum_float32(char *out, const char *const *parts, int ranks, size_t count) {
    for (size_t at = 0; at < count; at += BLOCK) {
        size_t n = smaller(count - at, BLOCK);
        float scratch[BLOCK], *total = (float *)out + at, *sum = ranks > 2 ? scratch : total;
        const float *first = (const float *)parts[0] + at, *second = (const float *)parts[1] + at;
#pragma GCC ivdep
        for (size_t i = 0; i < n; i++) sum[i] = first[i] + second[i];
        for (int rank = 2; rank < ranks; rank++) {
            const float *part = (const float *)parts[rank] + at;
            for (size_t i = 0; i < n; i++) scratch[i] += part[i];
        }
        if (sum == scratch) memcpy(total, scratch, n * sizeof *scratch);
    }
}

static inline float as_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* The upper half is the nearest bfloat16, ties to even. */
static inline uint32_t rounded(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (bits & 0x7fffffff) <= 0x7f800000 ? bits + 0x7fff + ((bits >> 16) & 1) : 0x7fc00000;
}

/* Two elements in a word: masks and shifts instead of the packing that vectorises badly. */
typedef uint32_t Pair __attribute__((aligned(2), may_alias));

VECTORISED static void sum_pairs(char *out, const char *const *parts, int ranks, size_t count) {
    for (size_t at = 0; at < count; at += BLOCK) {
        size_t n = smaller(count - at, BLOCK);
        float low[BLOCK], high[BLOCK];
        for (int rank = 0; rank < ranks; rank++) {
            const Pair *part = (const Pair *)parts[rank] + at;
            if (rank == 0)
                for (size_t i = 0; i < n; i++)
                    low[i] = as_float(part[i] << 16), high[i] = as_float(part[i] & 0xffff0000);
            else
                for (size_t i = 0; i < n; i++)
                    low[i] += as_float(part[i] << 16), high[i] += as_float(part[i] & 0xffff0000);
        }
        Pair *total = (Pair *)out + at;
        for (size_t i = 0; i < n; i++)
            total[i] = rounded(low[i]) >> 16 | (rounded(high[i]) & 0xffff0000);
    }
}

static void sum_bfloat16(char *out, const char *const *parts, int ranks, size_t count) {
    sum_pairs(out, parts, ranks, count / 2);
    if (count % 2) { /* the last one */
        float sum = -0.0f;
        for (int rank = 0; rank < ranks; rank++) {
            uint16_t last;
            memcpy(&last, parts[rank] + 2 * (count - 1), 2);
            sum += as_float((uint32_t)last << 16);
        }
        uint16_t half = rounded(sum) >> 16;
        memcpy(out + 2 * (count - 1), &half, 2);
    }
}

typedef void (*Sum)(char *, const char *const *, int, size_t);
