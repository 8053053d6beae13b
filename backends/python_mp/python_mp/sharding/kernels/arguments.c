#include "arguments.h"

/* Sizes are parsed as Py_ssize_t, which has the bits of size_t. */
typedef unsigned long long Pointer;

int parse_product(PyObject *args, Product *p) {
    Pointer y, x, weight, bias;
    if (!PyArg_ParseTuple(args, "KKKKnnnpip", &y, &x, &weight, &bias, &p->rows, &p->outputs,
                          &p->inputs, &p->bfloat16, &p->threads, &p->panels))
        return 0;
    p->y = (float *)(uintptr_t)y;
    p->x = (const float *)(uintptr_t)x;
    p->weight = (const char *)(uintptr_t)weight;
    p->bias = (const float *)(uintptr_t)bias;
    return 1;
}

int parse_norm(PyObject *args, Norm *n) {
    Pointer y, x, gain;
    if (!PyArg_ParseTuple(args, "KKKnnfi", &y, &x, &gain, &n->rows, &n->width, &n->epsilon,
                          &n->threads))
        return 0;
    n->y = (float *)(uintptr_t)y;
    n->x = (const float *)(uintptr_t)x;
    n->gain = (const float *)(uintptr_t)gain;
    return 1;
}

int parse_layer_norm(PyObject *args, LayerNorm *n) {
    Pointer y, a, b, gain, bias;
    if (!PyArg_ParseTuple(args, "KKKKKnnfi", &y, &a, &b, &gain, &bias, &n->rows, &n->width,
                          &n->epsilon, &n->threads))
        return 0;
    n->y = (float *)(uintptr_t)y;
    n->a = (const float *)(uintptr_t)a;
    n->b = (const float *)(uintptr_t)b;
    n->gain = (const float *)(uintptr_t)gain;
    n->bias = (const float *)(uintptr_t)bias;
    return 1;
}

int parse_rotation(PyObject *args, Rotation *r) {
    Pointer to, from, cos, sin;
    if (!PyArg_ParseTuple(args, "KKKKnnnni", &to, &from, &cos, &sin, &r->tokens, &r->heads,
                          &r->head, &r->stride, &r->threads))
        return 0;
    r->to = (float *)(uintptr_t)to;
    r->from = (const float *)(uintptr_t)from;
    r->cos = (const float *)(uintptr_t)cos;
    r->sin = (const float *)(uintptr_t)sin;
    return 1;
}

int parse_combination(PyObject *args, Combination *c) {
    Pointer y, a, b;
    if (!PyArg_ParseTuple(args, "iKKKnnnnnfi", &c->what, &y, &a, &b, &c->rows, &c->width,
                          &c->y_stride, &c->a_stride, &c->b_stride, &c->factor, &c->threads))
        return 0;
    c->y = (float *)(uintptr_t)y;
    c->a = (const float *)(uintptr_t)a;
    c->b = (const float *)(uintptr_t)b;
    if (c->what >= 0 && c->what < COMBINATIONS) return 1;
    PyErr_Format(PyExc_ValueError, "no combination has the number %d", c->what);
    return 0;
}

int parse_store(PyObject *args, Store *s) {
    Pointer keys, values, k, v, places;
    if (!PyArg_ParseTuple(args, "KKKKKnnnnnp", &keys, &values, &k, &v, &places, &s->tokens,
                          &s->blocks, &s->kv_heads, &s->head, &s->filled, &s->bfloat16))
        return 0;
    s->keys = (char *)(uintptr_t)keys;
    s->values = (char *)(uintptr_t)values;
    s->k = (const char *)(uintptr_t)k;
    s->v = (const char *)(uintptr_t)v;
    s->places = (const int64_t *)(uintptr_t)places;
    return 1;
}

int parse_attention(PyObject *args, Attention *a) {
    Pointer out, q, keys, values, table, contexts, starts, sinks;
    if (!PyArg_ParseTuple(args, "KKKKKKKKnnnnnnnnnpffpi", &out, &q, &keys, &values, &table,
                          &contexts, &starts, &sinks, &a->tokens, &a->sequences, &a->width,
                          &a->blocks, &a->heads, &a->kv_heads, &a->head, &a->filled, &a->window,
                          &a->causal, &a->scale, &a->softcap, &a->bfloat16, &a->threads))
        return 0;
    a->out = (float *)(uintptr_t)out;
    a->q = (const float *)(uintptr_t)q;
    a->keys = (const char *)(uintptr_t)keys;
    a->values = (const char *)(uintptr_t)values;
    a->table = (const int32_t *)(uintptr_t)table;
    a->contexts = (const int32_t *)(uintptr_t)contexts;
    a->starts = (const int32_t *)(uintptr_t)starts;
    a->sinks = (const float *)(uintptr_t)sinks;
    a->q_stride = a->heads * a->head;
    return 1;
}

int parse_packed(PyObject *args, Packed *p) {
    Pointer out, q, k, v, starts, sinks;
    if (!PyArg_ParseTuple(args, "KKKKKKnnnnnnnnnpffi", &out, &q, &k, &v, &starts, &sinks,
                          &p->tokens, &p->sequences, &p->heads, &p->kv_heads, &p->head,
                          &p->q_stride, &p->k_stride, &p->v_stride, &p->window, &p->causal,
                          &p->scale, &p->softcap, &p->threads))
        return 0;
    p->out = (float *)(uintptr_t)out;
    p->q = (const float *)(uintptr_t)q;
    p->k = (const float *)(uintptr_t)k;
    p->v = (const float *)(uintptr_t)v;
    p->starts = (const int32_t *)(uintptr_t)starts;
    p->sinks = (const float *)(uintptr_t)sinks;
    return 1;
}

static const char *refusal_of_starts(const int32_t *starts, size_t sequences, size_t tokens) {
    int is_whole = starts[0] == 0 && (size_t)starts[sequences] == tokens;
    return is_whole ? NULL : "cu_seqlens does not begin at 0 and end with the rows of q";
}

const char *refusal_of_packed(const Packed *p) {
    for (size_t i = 0; i < p->sequences; i++)
        if (p->starts[i + 1] < p->starts[i]) return "cu_seqlens falls";
    return refusal_of_starts(p->starts, p->sequences, p->tokens);
}

const char *refusal(const Attention *a) {
    const char *why = refusal_of_starts(a->starts, a->sequences, a->tokens);
    if (why) return why;
    for (size_t i = 0; i < a->sequences; i++) {
        int64_t rows = (int64_t)a->starts[i + 1] - a->starts[i], context = a->contexts[i];
        if (rows < 0 || context < rows || context > (int64_t)(a->width * BLOCK))
            return "a sequence's context is shorter than its rows, or longer than its table";
        size_t end = context - rows + 1, first = end > a->window ? end - a->window : 0;
        for (size_t block = first / BLOCK; rows && block * BLOCK < (size_t)context; block++) {
            int32_t id = a->table[i * a->width + block];
            if (id < 0 || (size_t)id >= a->blocks) return "block_table names no block of the cache";
        }
    }
    return NULL;
}
