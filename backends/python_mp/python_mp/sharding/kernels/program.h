/* Calls of kernels that are made again and again, with other rows. */
#ifndef PROGRAM_H
#define PROGRAM_H

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

/* (rows, [(name, arguments)]): what was called for so many rows -> a program. */
PyObject *new_program(PyObject *module, PyObject *args);

/* (program, rows, places, table, contexts, starts, sequences, width, threads): the calls, for other
 * rows of other sequences. Raises ValueError or IndexError where these have no pages. */
PyObject *run_program(PyObject *module, PyObject *args);

#endif
