/* What Python gives each kernel: pointers as torch's `data_ptr` says, and sizes, which are checked by
 * the callers in Python, which know the tensors. Each is 0 with a Python error where the arguments
 * are others. */
#ifndef ARGUMENTS_H
#define ARGUMENTS_H

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include "kernels.h"

int parse_product(PyObject *args, Product *p);
int parse_norm(PyObject *args, Norm *n);
int parse_rotation(PyObject *args, Rotation *r);
int parse_combination(PyObject *args, Combination *c);
int parse_store(PyObject *args, Store *s);
int parse_attention(PyObject *args, Attention *a);
int parse_packed(PyObject *args, Packed *p);
int parse_layer_norm(PyObject *args, LayerNorm *n);

/* Why pages cannot be read as asked, or NULL. */
const char *refusal(const Attention *a);

/* Why rows do not lie end to end as said, or NULL. */
const char *refusal_of_packed(const Packed *p);

#endif
