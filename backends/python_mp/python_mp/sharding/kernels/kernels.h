/* What computes on one instruction set, and what is asked of it. */
#ifndef KERNELS_H
#define KERNELS_H

#include <stddef.h>
#include <stdint.h>

/* y = x W^T + b, by rows. */
typedef struct {
    float *y;       /* [rows, outputs] */
    const float *x; /* [rows, inputs] */
    const char *weight; /* float32 or bfloat16, [outputs, inputs], or as below */
    const float *bias;  /* [outputs], or NULL */
    size_t rows, outputs, inputs;
    int bfloat16, threads;
    int panels; /* whether it is [outputs / 32, inputs, 32] */
} Product;

enum { BLOCK = 16, MAX_HEAD = 512 };

/* Attention of the last rows of sequences to what they have in a cache of pages. */
typedef struct {
    float *out;                 /* [tokens, heads, head] */
    const float *q;             /* the same, but `q_stride` floats from token to token */
    const char *keys, *values;  /* [blocks, kv heads, head, 16], [blocks, kv heads, 16, filled] */
    const int32_t *table;       /* [sequences, width]: ids of blocks; NULL: 0, 1, ... of one head */
    const int32_t *contexts;    /* [sequences]: tokens in the cache, this step's included */
    const int32_t *starts;      /* [sequences + 1]: where the rows of each begin */
    const float *sinks;         /* [heads], or NULL */
    size_t tokens, sequences, width, blocks, heads, kv_heads, head, filled, q_stride;
    size_t window;              /* tokens that a row sees, at most, its own included; each way */
    int causal;                 /* none behind its own */
    float scale, softcap;       /* 0: no cap */
    int bfloat16, threads;
} Attention;

/* The same of rows that lie end to end, to those of their own sequence. */
typedef struct {
    float *out;             /* [tokens, heads, head] */
    const float *q, *k, *v; /* the same, k and v of kv heads; strides are floats between tokens */
    const int32_t *starts;  /* as above, and all from here on */
    const float *sinks;
    size_t tokens, sequences, heads, kv_heads, head, q_stride, k_stride, v_stride;
    size_t window;
    int causal;
    float scale, softcap;
    int threads;
} Packed;

/* What `attend` is to find: keys and values of new tokens. */
typedef struct {
    char *keys, *values;    /* as above */
    const char *k, *v;      /* [tokens, kv heads, head], of the pages' type */
    const int64_t *places;  /* [tokens]: block * 16 + place in the block */
    size_t tokens, blocks, kv_heads, head, filled;
    int bfloat16;
} Store;

int store(const Store *); /* -1: a place that is not in the pages; nothing was written */

/* Rows, each divided by its root mean square. */
typedef struct {
    float *y;          /* [rows, width] */
    const float *x;    /* the same */
    const float *gain; /* [width] */
    size_t rows, width;
    float epsilon;
    int threads;
} Norm;

/* Rows, their mean taken off and divided by their deviation: arXiv:1607.06450. */
typedef struct {
    float *y;                 /* [rows, width] */
    const float *a, *b;       /* the same: what is added to each other first; b: or NULL */
    const float *gain, *bias; /* [width]; bias: or NULL */
    size_t rows, width;
    float epsilon;
    int threads;
} LayerNorm;

/* Heads of tokens turned by their positions: arXiv:2104.09864, with halves for pairs. */
typedef struct {
    float *to;              /* [tokens, heads, head] */
    const float *from;      /* the same, but `stride` floats from token to token */
    const float *cos, *sin; /* [tokens, head] */
    size_t tokens, heads, head, stride;
    int threads;
} Rotation;

/* What is done to each number by itself: y = a b, a + b, silu(a) b, ... */
enum { ADD, TIMES, SCALE, COPY, SILU, SILU_TIMES, GELU, GELU_TANH, COMBINATIONS };

typedef struct {
    int what;
    float *y;
    const float *a, *b; /* [rows, width] each, so many floats from row to row; b: of two */
    size_t rows, width, y_stride, a_stride, b_stride;
    float factor; /* of SCALE */
    int threads;
} Combination;

typedef struct {
    const char *name;
    void (*multiply)(const Product *);
    int (*attend)(const Attention *); /* -1: no memory */
    int (*attend_packed)(const Packed *); /* -1: no memory */
    void (*normalise)(const Norm *);
    void (*standardise)(const LayerNorm *);
    void (*rotate)(const Rotation *);
    void (*combine)(const Combination *);
} Kernels;

extern const Kernels kernels_avx512, kernels_avx2, kernels_baseline;
extern const Kernels *chosen;

#endif
