/* Python's side of the kernels. Pointers are what torch's `data_ptr` says; sizes are checked by the
 * callers in Python, which know the tensors. */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include "kernels.h"

static const Kernels *chosen = &kernels_baseline;

/* Those that this processor has, the best one first. */
static int available(const Kernels **found) {
    int count = 0;
#if defined(__x86_64__)
    __builtin_cpu_init();
    int has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (has_avx2 && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        found[count++] = &kernels_avx512;
    if (has_avx2) found[count++] = &kernels_avx2;
#endif
    found[count++] = &kernels_baseline;
    return count;
}

static PyObject *instruction_sets(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none)) {
    const Kernels *found[3];
    int count = available(found);
    PyObject *names = PyTuple_New(count);
    for (int i = 0; names && i < count; i++)
        PyTuple_SetItem(names, i, PyUnicode_FromString(found[i]->name));
    return names;
}

/* MKL takes slow ways there. */
static PyObject *is_amd(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none)) {
#if defined(__x86_64__)
    return PyBool_FromLong(__builtin_cpu_is("amd"));
#else
    return PyBool_FromLong(0);
#endif
}

static PyObject *choose(PyObject *Py_UNUSED(module), PyObject *args) {
    const Kernels *found[3];
    int which, count = available(found);
    if (!PyArg_ParseTuple(args, "i", &which)) return NULL;
    if (which < 0 || which >= count)
        return PyErr_Format(PyExc_ValueError, "this processor has %d sets, no number %d", count,
                            which);
    chosen = found[which];
    return Py_NewRef(Py_None);
}

static PyObject *multiply(PyObject *Py_UNUSED(module), PyObject *args) {
    unsigned long long y, x, weight, bias;
    Py_ssize_t rows, outputs, inputs;
    Product p = {0};
    if (!PyArg_ParseTuple(args, "KKKKnnnpip", &y, &x, &weight, &bias, &rows, &outputs, &inputs,
                          &p.bfloat16, &p.threads, &p.many))
        return NULL;
    p.y = (float *)(uintptr_t)y;
    p.x = (const float *)(uintptr_t)x;
    p.weight = (const char *)(uintptr_t)weight;
    p.bias = (const float *)(uintptr_t)bias;
    p.rows = rows;
    p.outputs = outputs;
    p.inputs = inputs;
    int status;
    Py_BEGIN_ALLOW_THREADS status = chosen->multiply(&p);
    Py_END_ALLOW_THREADS return status ? PyErr_NoMemory() : Py_NewRef(Py_None);
}

static PyObject *gelu(PyObject *Py_UNUSED(module), PyObject *args) {
    unsigned long long y, x;
    Py_ssize_t count;
    int threads;
    if (!PyArg_ParseTuple(args, "KKni", &y, &x, &count, &threads)) return NULL;
    Py_BEGIN_ALLOW_THREADS chosen->gelu((float *)(uintptr_t)y, (const float *)(uintptr_t)x, count,
                                        threads);
    Py_END_ALLOW_THREADS return Py_NewRef(Py_None);
}

/* Why pages cannot be read as asked, or NULL. */
static const char *refusal(const Attention *a, size_t tokens) {
    if (a->starts[0] != 0 || (size_t)a->starts[a->sequences] != tokens)
        return "cu_seqlens does not begin at 0 and end with the rows of q";
    for (size_t i = 0; i < a->sequences; i++) {
        int64_t rows = (int64_t)a->starts[i + 1] - a->starts[i], context = a->contexts[i];
        if (rows < 0 || context < rows || context > (int64_t)(a->width * BLOCK))
            return "a sequence's context is shorter than its rows, or longer than its table";
        int64_t seen = context - rows + 1 - (int64_t)a->window;
        int64_t block = seen > 0 ? seen / BLOCK : 0;
        for (; rows && block * BLOCK < context; block++) {
            int32_t id = a->table[i * a->width + block];
            if (id < 0 || (size_t)id >= a->blocks) return "block_table names no block of the cache";
        }
    }
    return NULL;
}

static PyObject *attend(PyObject *Py_UNUSED(module), PyObject *args) {
    unsigned long long out, q, keys, values, table, contexts, starts, sinks;
    Py_ssize_t tokens, sequences, width, blocks, heads, kv_heads, head, filled, window;
    Attention a = {0};
    if (!PyArg_ParseTuple(args, "KKKKKKKKnnnnnnnnnpffpi", &out, &q, &keys, &values, &table,
                          &contexts, &starts, &sinks, &tokens, &sequences, &width, &blocks, &heads,
                          &kv_heads, &head, &filled, &window, &a.causal, &a.scale, &a.softcap,
                          &a.bfloat16, &a.threads))
        return NULL;
    a.out = (float *)(uintptr_t)out;
    a.q = (const float *)(uintptr_t)q;
    a.keys = (const char *)(uintptr_t)keys;
    a.values = (const char *)(uintptr_t)values;
    a.table = (const int32_t *)(uintptr_t)table;
    a.contexts = (const int32_t *)(uintptr_t)contexts;
    a.starts = (const int32_t *)(uintptr_t)starts;
    a.sinks = (const float *)(uintptr_t)sinks;
    a.sequences = sequences, a.width = width, a.blocks = blocks, a.heads = heads;
    a.kv_heads = kv_heads, a.head = head, a.filled = filled, a.window = window;
    const char *why = refusal(&a, tokens);
    if (why) {
        PyErr_SetString(PyExc_ValueError, why);
        return NULL;
    }
    int status;
    Py_BEGIN_ALLOW_THREADS status = chosen->attend(&a);
    Py_END_ALLOW_THREADS return status ? PyErr_NoMemory() : Py_NewRef(Py_None);
}

static PyObject *store_tokens(PyObject *Py_UNUSED(module), PyObject *args) {
    unsigned long long keys, values, k, v, places;
    Py_ssize_t tokens, blocks, kv_heads, head, filled;
    Store s = {0};
    if (!PyArg_ParseTuple(args, "KKKKKnnnnnp", &keys, &values, &k, &v, &places, &tokens, &blocks,
                          &kv_heads, &head, &filled, &s.bfloat16))
        return NULL;
    s.keys = (char *)(uintptr_t)keys;
    s.values = (char *)(uintptr_t)values;
    s.k = (const char *)(uintptr_t)k;
    s.v = (const char *)(uintptr_t)v;
    s.places = (const int64_t *)(uintptr_t)places;
    s.tokens = tokens, s.blocks = blocks, s.kv_heads = kv_heads, s.head = head, s.filled = filled;
    if (store(&s))
        return PyErr_Format(PyExc_IndexError, "a place is not in the cache's %zd blocks", blocks);
    return Py_NewRef(Py_None);
}

static PyObject *normalise(PyObject *Py_UNUSED(module), PyObject *args) {
    unsigned long long y, x, gain;
    Py_ssize_t rows, width;
    Norm n = {0};
    if (!PyArg_ParseTuple(args, "KKKnnfi", &y, &x, &gain, &rows, &width, &n.epsilon, &n.threads))
        return NULL;
    n.y = (float *)(uintptr_t)y;
    n.x = (const float *)(uintptr_t)x;
    n.gain = (const float *)(uintptr_t)gain;
    n.rows = rows, n.width = width;
    Py_BEGIN_ALLOW_THREADS chosen->normalise(&n);
    Py_END_ALLOW_THREADS return Py_NewRef(Py_None);
}

static PyObject *rotate(PyObject *Py_UNUSED(module), PyObject *args) {
    unsigned long long to, from, cos, sin;
    Py_ssize_t tokens, heads, head, stride;
    Rotation r = {0};
    if (!PyArg_ParseTuple(args, "KKKKnnnni", &to, &from, &cos, &sin, &tokens, &heads, &head, &stride,
                          &r.threads))
        return NULL;
    r.to = (float *)(uintptr_t)to;
    r.from = (const float *)(uintptr_t)from;
    r.cos = (const float *)(uintptr_t)cos;
    r.sin = (const float *)(uintptr_t)sin;
    r.tokens = tokens, r.heads = heads, r.head = head, r.stride = stride;
    Py_BEGIN_ALLOW_THREADS chosen->rotate(&r);
    Py_END_ALLOW_THREADS return Py_NewRef(Py_None);
}

static PyMethodDef methods[] = {
    {"instruction_sets", instruction_sets, METH_NOARGS, NULL},
    {"is_amd", is_amd, METH_NOARGS, NULL},
    {"choose", choose, METH_VARARGS, NULL},
    {"multiply", multiply, METH_VARARGS, NULL},
    {"gelu", gelu, METH_VARARGS, NULL},
    {"store", store_tokens, METH_VARARGS, NULL},
    {"attend", attend, METH_VARARGS, NULL},
    {"normalise", normalise, METH_VARARGS, NULL},
    {"rotate", rotate, METH_VARARGS, NULL},
    {0},
};

static int fill_module(PyObject *Py_UNUSED(module)) {
    const Kernels *found[3];
    available(found);
    chosen = found[0];
    return 0;
}

static PyModuleDef kernels_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_kernels",
    .m_methods = methods,
    .m_slots = (PyModuleDef_Slot[]){{Py_mod_exec, fill_module}, {0}},
};

PyMODINIT_FUNC PyInit__kernels(void) { return PyModuleDef_Init(&kernels_module); }
