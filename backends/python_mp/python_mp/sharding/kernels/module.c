/* Python's side of the kernels. */
#include "arguments.h"
#include "program.h"

const Kernels *chosen = &kernels_baseline;
static PyObject *record; /* a list of what is called, or NULL */

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

/* From here on what is called stands in a list, too, as (name, arguments); or no more, with None. */
static PyObject *record_in(PyObject *Py_UNUSED(module), PyObject *list) {
    if (list != Py_None && !PyList_Check(list))
        return PyErr_Format(PyExc_TypeError, "a list or None");
    Py_XDECREF(record);
    record = list == Py_None ? NULL : Py_NewRef(list);
    return Py_NewRef(Py_None);
}

static int is_noted(const char *name, PyObject *args) {
    if (!record) return 1;
    PyObject *entry = Py_BuildValue("(sO)", name, args);
    int status = entry ? PyList_Append(record, entry) : -1;
    Py_XDECREF(entry);
    return status == 0;
}

static PyObject *multiply(PyObject *Py_UNUSED(module), PyObject *args) {
    Product p = {0};
    if (!parse_product(args, &p) || !is_noted("multiply", args)) return NULL;
    Py_BEGIN_ALLOW_THREADS chosen->multiply(&p);
    Py_END_ALLOW_THREADS return Py_NewRef(Py_None);
}

static PyObject *combine(PyObject *Py_UNUSED(module), PyObject *args) {
    Combination c = {0};
    if (!parse_combination(args, &c) || !is_noted("combine", args)) return NULL;
    Py_BEGIN_ALLOW_THREADS chosen->combine(&c);
    Py_END_ALLOW_THREADS return Py_NewRef(Py_None);
}

static PyObject *attend(PyObject *Py_UNUSED(module), PyObject *args) {
    Attention a = {0};
    if (!parse_attention(args, &a) || !is_noted("attend", args)) return NULL;
    const char *why = refusal(&a);
    if (why) {
        PyErr_SetString(PyExc_ValueError, why);
        return NULL;
    }
    int status;
    Py_BEGIN_ALLOW_THREADS status = chosen->attend(&a);
    Py_END_ALLOW_THREADS return status ? PyErr_NoMemory() : Py_NewRef(Py_None);
}

static PyObject *attend_packed(PyObject *Py_UNUSED(module), PyObject *args) {
    Packed p = {0};
    if (!parse_packed(args, &p) || !is_noted("attend_packed", args)) return NULL;
    const char *why = refusal_of_packed(&p);
    if (why) {
        PyErr_SetString(PyExc_ValueError, why);
        return NULL;
    }
    int status;
    Py_BEGIN_ALLOW_THREADS status = chosen->attend_packed(&p);
    Py_END_ALLOW_THREADS return status ? PyErr_NoMemory() : Py_NewRef(Py_None);
}

static PyObject *store_tokens(PyObject *Py_UNUSED(module), PyObject *args) {
    Store s = {0};
    if (!parse_store(args, &s) || !is_noted("store", args)) return NULL;
    if (store(&s))
        return PyErr_Format(PyExc_IndexError, "a place is not in the cache's %zd blocks",
                            (Py_ssize_t)s.blocks);
    return Py_NewRef(Py_None);
}

static PyObject *normalise(PyObject *Py_UNUSED(module), PyObject *args) {
    Norm n = {0};
    if (!parse_norm(args, &n) || !is_noted("normalise", args)) return NULL;
    Py_BEGIN_ALLOW_THREADS chosen->normalise(&n);
    Py_END_ALLOW_THREADS return Py_NewRef(Py_None);
}

static PyObject *standardise(PyObject *Py_UNUSED(module), PyObject *args) {
    LayerNorm n = {0};
    if (!parse_layer_norm(args, &n) || !is_noted("standardise", args)) return NULL;
    Py_BEGIN_ALLOW_THREADS chosen->standardise(&n);
    Py_END_ALLOW_THREADS return Py_NewRef(Py_None);
}

static PyObject *rotate(PyObject *Py_UNUSED(module), PyObject *args) {
    Rotation r = {0};
    if (!parse_rotation(args, &r) || !is_noted("rotate", args)) return NULL;
    Py_BEGIN_ALLOW_THREADS chosen->rotate(&r);
    Py_END_ALLOW_THREADS return Py_NewRef(Py_None);
}

static PyMethodDef methods[] = {
    {"instruction_sets", instruction_sets, METH_NOARGS, NULL},
    {"is_amd", is_amd, METH_NOARGS, NULL},
    {"choose", choose, METH_VARARGS, NULL},
    {"record", record_in, METH_O, NULL},
    {"program", new_program, METH_VARARGS, NULL},
    {"run", run_program, METH_VARARGS, NULL},
    {"multiply", multiply, METH_VARARGS, NULL},
    {"combine", combine, METH_VARARGS, NULL},
    {"store", store_tokens, METH_VARARGS, NULL},
    {"attend", attend, METH_VARARGS, NULL},
    {"attend_packed", attend_packed, METH_VARARGS, NULL},
    {"normalise", normalise, METH_VARARGS, NULL},
    {"standardise", standardise, METH_VARARGS, NULL},
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
