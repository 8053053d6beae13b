#include "program.h"

#include <stdlib.h>
#include <string.h>

#include "arguments.h"

enum { MULTIPLY, NORMALISE, STANDARDISE, ROTATE, COMBINE, STORE, ATTEND, ATTEND_PACKED, KINDS };
static const char *const names[KINDS] = {"multiply", "normalise", "standardise", "rotate",
                                         "combine",  "store",     "attend",      "attend_packed"};
static const char NAME[] = "program";

typedef struct {
    int kind;
    size_t each; /* of what the kernel calls rows or tokens, for each row of the step */
    union {
        Product product;
        Norm norm;
        LayerNorm layer_norm;
        Rotation rotation;
        Combination combination;
        Store store;
        Attention attention;
        Packed packed;
    } of;
} Call;

typedef struct {
    Py_ssize_t count;
    Call calls[];
} Program;

static size_t *rows_of(Call *call) {
    switch (call->kind) {
    case MULTIPLY: return &call->of.product.rows;
    case NORMALISE: return &call->of.norm.rows;
    case STANDARDISE: return &call->of.layer_norm.rows;
    case ROTATE: return &call->of.rotation.tokens;
    case COMBINE: return &call->of.combination.rows;
    case STORE: return &call->of.store.tokens;
    case ATTEND_PACKED: return &call->of.packed.tokens;
    default: return &call->of.attention.tokens;
    }
}

/* NULL where it has one only. */
static int *threads_of(Call *call) {
    switch (call->kind) {
    case MULTIPLY: return &call->of.product.threads;
    case NORMALISE: return &call->of.norm.threads;
    case STANDARDISE: return &call->of.layer_norm.threads;
    case ROTATE: return &call->of.rotation.threads;
    case COMBINE: return &call->of.combination.threads;
    case ATTEND: return &call->of.attention.threads;
    case ATTEND_PACKED: return &call->of.packed.threads;
    default: return NULL;
    }
}

static int parse(Call *call, const char *name, PyObject *args) {
    for (call->kind = 0; call->kind < KINDS; call->kind++)
        if (strcmp(name, names[call->kind]) == 0) break;
    switch (call->kind) {
    case MULTIPLY: return parse_product(args, &call->of.product);
    case NORMALISE: return parse_norm(args, &call->of.norm);
    case STANDARDISE: return parse_layer_norm(args, &call->of.layer_norm);
    case ROTATE: return parse_rotation(args, &call->of.rotation);
    case COMBINE: return parse_combination(args, &call->of.combination);
    case STORE: return parse_store(args, &call->of.store);
    case ATTEND: return parse_attention(args, &call->of.attention);
    case ATTEND_PACKED: return parse_packed(args, &call->of.packed);
    }
    PyErr_Format(PyExc_ValueError, "a program has no %s", name);
    return 0;
}

static int fill(Call *call, PyObject *entry, size_t rows) {
    const char *name;
    PyObject *args;
    if (!PyArg_ParseTuple(entry, "sO", &name, &args) || !parse(call, name, args)) return 0;
    size_t count = *rows_of(call);
    call->each = count / rows;
    if (call->each * rows == count && count) return 1;
    PyErr_Format(PyExc_ValueError, "%s of %zu rows in a step of %zu", name, count, rows);
    return 0;
}

static void forget(PyObject *capsule) { free(PyCapsule_GetPointer(capsule, NAME)); }

PyObject *new_program(PyObject *Py_UNUSED(module), PyObject *args) {
    Py_ssize_t rows;
    PyObject *list;
    if (!PyArg_ParseTuple(args, "nO", &rows, &list)) return NULL;
    Py_ssize_t count = PyList_Size(list);
    if (count < 0 || rows < 1) return PyErr_Format(PyExc_ValueError, "(rows, a list of calls)");
    Program *program = calloc(1, sizeof *program + count * sizeof(Call));
    if (!program) return PyErr_NoMemory();
    program->count = count;
    for (Py_ssize_t i = 0; i < count; i++)
        if (!fill(program->calls + i, PyList_GetItem(list, i), rows)) return free(program), NULL;
    return PyCapsule_New(program, NAME, forget);
}

/* What a step brings: its rows, where they go, and what its sequences see. */
typedef struct {
    Py_ssize_t rows, sequences, width;
    unsigned long long places, table, contexts, starts;
    int threads;
} Step;

enum { DONE, NO_MEMORY, NO_PLACE, REFUSED };

static int attend(Attention *a, const Step *step, const char **why) {
    a->table = (const int32_t *)(uintptr_t)step->table;
    a->contexts = (const int32_t *)(uintptr_t)step->contexts;
    a->starts = (const int32_t *)(uintptr_t)step->starts;
    a->sequences = step->sequences;
    a->width = step->width;
    *why = refusal(a);
    return *why ? REFUSED : chosen->attend(a) ? NO_MEMORY : DONE;
}

static int attend_packed(Packed *p, const Step *step, const char **why) {
    p->starts = (const int32_t *)(uintptr_t)step->starts;
    p->sequences = step->sequences;
    *why = refusal_of_packed(p);
    return *why ? REFUSED : chosen->attend_packed(p) ? NO_MEMORY : DONE;
}

static int run_one(Call call, const Step *step, const char **why) {
    int *threads = threads_of(&call);
    *rows_of(&call) = call.each * step->rows;
    if (threads) *threads = step->threads;
    switch (call.kind) {
    case MULTIPLY: return chosen->multiply(&call.of.product), DONE;
    case NORMALISE: return chosen->normalise(&call.of.norm), DONE;
    case STANDARDISE: return chosen->standardise(&call.of.layer_norm), DONE;
    case ROTATE: return chosen->rotate(&call.of.rotation), DONE;
    case COMBINE: return chosen->combine(&call.of.combination), DONE;
    case STORE:
        call.of.store.places = (const int64_t *)(uintptr_t)step->places;
        return store(&call.of.store) ? NO_PLACE : DONE;
    case ATTEND_PACKED: return attend_packed(&call.of.packed, step, why);
    default: return attend(&call.of.attention, step, why);
    }
}

PyObject *run_program(PyObject *Py_UNUSED(module), PyObject *args) {
    PyObject *capsule;
    Step step = {0};
    if (!PyArg_ParseTuple(args, "OnKKKKnni", &capsule, &step.rows, &step.places, &step.table,
                          &step.contexts, &step.starts, &step.sequences, &step.width,
                          &step.threads))
        return NULL;
    const Program *program = PyCapsule_GetPointer(capsule, NAME);
    if (!program) return NULL;
    int status = DONE;
    const char *why = NULL;
    Py_BEGIN_ALLOW_THREADS;
    for (Py_ssize_t i = 0; status == DONE && i < program->count; i++)
        status = run_one(program->calls[i], &step, &why);
    Py_END_ALLOW_THREADS;
    switch (status) {
    case DONE: return Py_NewRef(Py_None);
    case NO_MEMORY: return PyErr_NoMemory();
    case NO_PLACE: return PyErr_Format(PyExc_IndexError, "a place is not in the cache");
    default: return PyErr_Format(PyExc_ValueError, "%s", why);
    }
}
