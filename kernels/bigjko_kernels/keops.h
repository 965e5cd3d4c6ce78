// What Python calls of a compiled KeOps formula, in plain C where KeOps' own text takes pybind11: g++ needs 1.5 s for a
// formula instead of 13. The file that includes this names the formula: FORMULA, its REAL type, and its INIT function.

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <exception>
#include <vector>

// A sequence of whole numbers, or of addresses; a Python error is set where it is none.
template <typename T> static std::vector<T> list(PyObject* sequence) {
    std::vector<T> out;
    PyObject* items = PySequence_Fast(sequence, "need a sequence");
    for (Py_ssize_t k = 0; items && k < PySequence_Fast_GET_SIZE(items); ++k)
        out.push_back((T)PyLong_AsSsize_t(PySequence_Fast_GET_ITEM(items, k)));
    Py_XDECREF(items);
    return out;
}

static PyObject* launch(PyObject*, PyObject* args) {
    long dim_y, nx, ny, dim_reduced, dim;
    int tag_i, tag_zero, half, chunks;
    Py_ssize_t out;
    PyObject *inds_i, *inds_j, *inds_p, *dims_x, *dims_y, *dims_p, *ranges, *shape, *inputs, *shapes;
    if (!PyArg_ParseTuple(args, "llliiiliOOOlOOOOOnOO", &dim_y, &nx, &ny, &tag_i, &tag_zero, &half, &dim_reduced,
                          &chunks, &inds_i, &inds_j, &inds_p, &dim, &dims_x, &dims_y, &dims_p, &ranges, &shape, &out,
                          &inputs, &shapes))
        return nullptr;
    auto of_ranges = list<long*>(ranges);
    auto of_inputs = list<REAL*>(inputs);
    std::vector<std::vector<long>> of_shapes;
    for (Py_ssize_t k = 0; k < (Py_ssize_t)of_inputs.size(); ++k) {
        PyObject* one = PySequence_GetItem(shapes, k);
        if (!one) return nullptr;
        of_shapes.push_back(list<long>(one));
        Py_DECREF(one);
    }
    auto i = list<int>(inds_i), j = list<int>(inds_j), p = list<int>(inds_p);
    auto of_x = list<long>(dims_x), of_y = list<long>(dims_y), of_p = list<long>(dims_p), of_out = list<long>(shape);
    if (PyErr_Occurred()) return nullptr;
    try {
        return PyLong_FromLong(FORMULA<REAL>(dim_y, nx, ny, tag_i, tag_zero, half, dim_reduced, chunks, i, j, p, dim,
                                             of_x, of_y, of_p, of_ranges.data(), of_out, (REAL*)out, of_inputs.data(),
                                             of_shapes));
    } catch (const std::exception& error) {
        PyErr_SetString(PyExc_RuntimeError, error.what());
        return nullptr;
    }
}

static PyMethodDef methods[] = {{"launch_pykeops_cpu", launch, METH_VARARGS, nullptr}, {nullptr, nullptr, 0, nullptr}};
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "keops", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

PyMODINIT_FUNC INIT(void) { return PyModule_Create(&module); }
