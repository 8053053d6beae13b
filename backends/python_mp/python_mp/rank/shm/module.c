/* Collectives between the processes of one host, over one shared mapping: Python's side. Pointers
 * and counts come in as integers; `collectives/shared_memory.py` checks the tensors. */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include "region.h"
#include "waiting.h"
#include "sums.h"
#include "collectives.h"
#include "links.h"

static PyObject *group_aborted; /* python_mp.model.errors.GroupAborted */

static PyObject *result(Group *group, Status status) {
    group->operations++;
    if (status == OK) return Py_NewRef(Py_None);
    if (status == ABORTED)
        PyErr_SetString(group_aborted, "the group of ranks has ended");
    else if (status == OUT_OF_STEP)
        PyErr_SetString(PyExc_RuntimeError,
                        "the ranks are out of step: not all of them called the same collective "
                        "with the same shape and dtype");
    return NULL;
}

/* Reads `wanted` unsigned integers, and checks that the group is open. */
static int read_numbers(Group *group, PyObject *const *args, Py_ssize_t given, Py_ssize_t wanted,
                        uint64_t *numbers) {
    if (!group->region.buf) {
        PyErr_SetString(PyExc_ValueError, "the group is closed");
        return 0;
    }
    if (given != wanted) {
        PyErr_Format(PyExc_TypeError, "takes %zd integers, not %zd", wanted, given);
        return 0;
    }
    for (Py_ssize_t i = 0; i < wanted; i++) {
        numbers[i] = PyLong_AsUnsignedLongLong(args[i]);
        if (PyErr_Occurred()) return 0;
    }
    return 1;
}

/* What all ranks must agree on: which collective (never 0), on how many bytes, how arranged. */
static uint64_t tag_of(int collective, uint64_t bytes, uint64_t arrangement) {
    return (uint64_t)collective << 60 | (arrangement & 0xfffff) << 40 | (bytes & 0xffffffffff);
}

static PyObject *group_all_reduce(Group *self, PyObject *const *args, Py_ssize_t given) {
    uint64_t n[3]; /* pointer, count, whether bfloat16 */
    if (!read_numbers(self, args, given, 3, n)) return NULL;
    size_t width = n[2] ? 2 : 4;
    Status status;
    Py_BEGIN_ALLOW_THREADS;
    status = all_reduce(self, (char *)(uintptr_t)n[0], n[1], width,
                        n[2] ? sum_bfloat16 : sum_float32, tag_of(1, n[1] * width, width));
    Py_END_ALLOW_THREADS;
    return result(self, status);
}

static PyObject *group_all_gather(Group *self, PyObject *const *args, Py_ssize_t given) {
    uint64_t n[4]; /* pointer to the output, to the input, bytes of the input, of a row of it */
    if (!read_numbers(self, args, given, 4, n)) return NULL;
    Status status;
    Py_BEGIN_ALLOW_THREADS;
    status = all_gather(self, (char *)(uintptr_t)n[0], (char *)(uintptr_t)n[1], n[2], n[3],
                        tag_of(2, n[2], n[3]));
    Py_END_ALLOW_THREADS;
    return result(self, status);
}

static PyObject *group_broadcast(Group *self, PyObject *const *args, Py_ssize_t given) {
    uint64_t n[3]; /* pointer, bytes, source */
    if (!read_numbers(self, args, given, 3, n)) return NULL;
    Status status;
    Py_BEGIN_ALLOW_THREADS;
    status = broadcast(self, (char *)(uintptr_t)n[0], n[1], (int)n[2], tag_of(3, n[1], n[2]));
    Py_END_ALLOW_THREADS;
    return result(self, status);
}

static PyObject *group_send(Group *self, PyObject *const *args, Py_ssize_t given) {
    uint64_t n[3 + MAX_DIMS]; /* pointer, bytes, dtype, shape... */
    if (given < 3 || given > 3 + MAX_DIMS || !self->next) {
        PyErr_SetString(PyExc_ValueError, "no next stage, or a tensor of too many dimensions");
        return NULL;
    }
    if (!read_numbers(self, args, given, given, n)) return NULL;
    Header header = {.bytes = n[1], .dtype = n[2], .dims = given - 3};
    memcpy(header.shape, n + 3, (given - 3) * sizeof *n);
    Status status;
    Py_BEGIN_ALLOW_THREADS;
    status = send_message(self, (char *)(uintptr_t)n[0], &header);
    Py_END_ALLOW_THREADS;
    return result(self, status);
}

/* The next message's (bytes, dtype, *shape); the message stays where it is. */
static PyObject *group_incoming(Group *self, PyObject *const *args, Py_ssize_t given) {
    Piece *piece;
    Status status;
    if (!read_numbers(self, args, given, 0, NULL)) return NULL;
    if (!self->previous) {
        PyErr_SetString(PyExc_ValueError, "no previous stage");
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS;
    status = wait_message(self, &piece);
    Py_END_ALLOW_THREADS;
    if (status != OK) return result(self, status);
    const Header *header = &piece->header;
    PyObject *fields = PyTuple_New(2 + header->dims);
    for (uint64_t i = 0; fields && i < 2 + header->dims; i++) {
        uint64_t field = i == 0 ? header->bytes : i == 1 ? header->dtype : header->shape[i - 2];
        PyTuple_SetItem(fields, i, PyLong_FromUnsignedLongLong(field));
    }
    return fields;
}

static PyObject *group_receive(Group *self, PyObject *const *args, Py_ssize_t given) {
    uint64_t n[2]; /* pointer, bytes: those of `incoming` */
    if (!read_numbers(self, args, given, 2, n)) return NULL;
    Status status;
    Py_BEGIN_ALLOW_THREADS;
    status = receive_message(self, (char *)(uintptr_t)n[0], n[1]);
    Py_END_ALLOW_THREADS;
    return result(self, status);
}

static PyObject *group_waited_ns(Group *self, PyObject *Py_UNUSED(ignored)) {
    return PyLong_FromUnsignedLongLong(self->waited_ns);
}

static PyObject *group_operations(Group *self, PyObject *Py_UNUSED(ignored)) {
    return PyLong_FromUnsignedLongLong(self->operations);
}

static PyObject *group_close(Group *self, PyObject *Py_UNUSED(ignored)) {
    if (self->region.buf) PyBuffer_Release(&self->region);
    self->region.buf = NULL;
    return Py_NewRef(Py_None);
}

static int lay_out(Group *self, int stage, int stages) {
    if (self->size < 1 || self->size > MAX_RANKS || self->rank < 0 || self->rank >= self->size ||
        stage < 0 || stage >= stages ||
        (size_t)self->region.len < region_bytes(self->size, stages))
        return 0;
    char *base = self->region.buf;
    char *own = base + PAGE + stage * stage_bytes(self->size);
    Link *links = (Link *)(base + PAGE + stages * stage_bytes(self->size));
    self->abort = (_Atomic uint32_t *)base;
    self->lines = (Line *)own;
    self->slots = own + stage_bytes(self->size) - 2 * SLOT_BYTES * self->size;
    self->next = stage + 1 < stages ? &links[stage * self->size + self->rank] : NULL;
    self->previous = stage > 0 ? &links[(stage - 1) * self->size + self->rank] : NULL;
    return 1;
}

static PyObject *group_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(kwargs)) {
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Group *self = (Group *)alloc(type, 0);
    int stage, stages;
    if (!self) return NULL;
    if (!PyArg_ParseTuple(args, "w*iiii", &self->region, &self->rank, &self->size, &stage, &stages))
        goto failed;
    if (lay_out(self, stage, stages)) return (PyObject *)self;
    PyErr_SetString(PyExc_ValueError, "no such rank or stage, or the region is too small");
failed:
    Py_DECREF(self);
    return NULL;
}

static void group_dealloc(Group *self) {
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    if (self->region.buf) PyBuffer_Release(&self->region);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

#define FAST(name) {#name, (PyCFunction)(void (*)(void))group_##name, METH_FASTCALL, NULL}
#define BARE(name) {#name, (PyCFunction)group_##name, METH_NOARGS, NULL}
static PyMethodDef group_methods[] = {
    FAST(all_reduce), FAST(all_gather), FAST(broadcast),  FAST(send),  FAST(incoming),
    FAST(receive),    BARE(waited_ns),  BARE(operations), BARE(close), {0},
};

static PyType_Spec group_spec = {
    .name = "python_mp.rank._shm.Group",
    .basicsize = sizeof(Group),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = (PyType_Slot[]){{Py_tp_new, group_new},
                             {Py_tp_dealloc, group_dealloc},
                             {Py_tp_methods, group_methods},
                             {0}},
};

static PyObject *shm_region_bytes(PyObject *Py_UNUSED(module), PyObject *args) {
    int size, stages;
    if (!PyArg_ParseTuple(args, "ii", &size, &stages)) return NULL;
    return PyLong_FromSize_t(region_bytes(size, stages));
}

static int fill_module(PyObject *module) {
    PyObject *errors = PyImport_ImportModule("python_mp.model.errors");
    if (!errors) return -1;
    group_aborted = PyObject_GetAttrString(errors, "GroupAborted");
    Py_DECREF(errors);
    if (!group_aborted) return -1;
    PyObject *type = PyType_FromSpec(&group_spec);
    int status = type ? PyModule_AddObjectRef(module, "Group", type) : -1;
    Py_XDECREF(type);
    return status;
}

static PyModuleDef shm_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_shm",
    .m_methods = (PyMethodDef[]){{"region_bytes", shm_region_bytes, METH_VARARGS, NULL}, {0}},
    .m_slots = (PyModuleDef_Slot[]){{Py_mod_exec, fill_module}, {0}},
};

PyMODINIT_FUNC PyInit__shm(void) { return PyModuleDef_Init(&shm_module); }
