/* What computes on one instruction set, and what is asked of it. */
#ifndef KERNELS_H
#define KERNELS_H

#include <stddef.h>
#include <stdint.h>

/* y = x W^T + b, by rows. */
typedef struct {
    float *y;       /* [rows, outputs] */
    const float *x; /* [rows, inputs] */
    const char *weight; /* [outputs, inputs], float32 or bfloat16 */
    const float *bias;  /* [outputs], or NULL */
    size_t rows, outputs, inputs;
    int bfloat16, threads;
} Product;

typedef struct {
    const char *name;
    void (*multiply)(const Product *);
} Kernels;

extern const Kernels kernels_avx512, kernels_avx2, kernels_baseline;

#endif
