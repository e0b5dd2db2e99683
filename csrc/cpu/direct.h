// For calls from Python around PyTorch's dispatcher: Python's objects as tensors, and back. See
// crad_kernels/_direct.py.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <cstdint>
#include <exception>
#include <optional>
#include <tuple>
#include <type_traits>

#include "../operator/call.h"

// What is used of Python's limited API, so that a build needs no headers of Python; and of PyTorch
// 2.14. They are weak: programs without Python load this library, too, and so do older PyTorches.
extern "C" {
#define CRAD_WEAK __attribute__((weak))
using PyObject = struct _object;
struct PyMethodDef {
  const char* name;
  PyObject* (*function)(PyObject* self, PyObject* const* arguments, intptr_t number);
  int flags;
  const char* doc;
};
CRAD_WEAK PyObject* PyCFunction_NewEx(PyMethodDef*, PyObject* self, PyObject* module);
CRAD_WEAK PyObject* Py_BuildValue(const char* format, ...);
CRAD_WEAK int Py_IsNone(PyObject*);
CRAD_WEAK int PyObject_IsTrue(PyObject*);
CRAD_WEAK long long PyLong_AsLongLong(PyObject*);
CRAD_WEAK void PyErr_Clear();
CRAD_WEAK void* PyEval_SaveThread();
CRAD_WEAK void PyEval_RestoreThread(void*);
CRAD_WEAK AOTITorchError torch_has_storage(AtenTensorHandle, bool*);
CRAD_WEAK AOTITorchError torch_tensor_from_pyobject(void*, AtenTensorHandle*);
CRAD_WEAK AOTITorchError torch_tensor_to_pyobject(AtenTensorHandle, void* type, void**);
#undef CRAD_WEAK
}

namespace crad {
namespace {

constexpr int kFastCall = 0x80;  // METH_FASTCALL

bool can_convert_python_tensors() { return torch_tensor_from_pyobject != nullptr; }

// An argument of an operator.
template <class T>
T from_python(PyObject* object) {
  if constexpr (std::is_same_v<T, int64_t>) {
    return PyLong_AsLongLong(object);
  } else if constexpr (std::is_same_v<T, bool>) {
    return PyObject_IsTrue(object);
  } else if constexpr (std::is_same_v<T, std::optional<Tensor>>) {
    return Py_IsNone(object) ? std::nullopt : std::optional(from_python<Tensor>(object));
  } else {
    AtenTensorHandle handle = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(torch_tensor_from_pyobject(object, &handle));
    const Tensor tensor(handle);
    // The dispatcher knows what to do about a tensor that is not in the memory of the CPU.
    bool has_storage = false;
    STABLE_TORCH_ERROR_CODE_CHECK(torch_has_storage(handle, &has_storage));
    STD_TORCH_CHECK(tensor.device().type() == DeviceType::CPU && has_storage &&
                        (tensor.numel() == 0 || tensor.data_ptr() != nullptr),
                    "expected a dense tensor on the CPU");
    return tensor;
  }
}

PyObject* to_python(const Tensor& tensor) {
  void* object = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(torch_tensor_to_pyobject(tensor.get(), nullptr, &object));
  return static_cast<PyObject*>(object);
}
PyObject* to_python(const std::tuple<Tensor, Tensor>& tensors) {
  return Py_BuildValue("(NN)", to_python(std::get<0>(tensors)), to_python(std::get<1>(tensors)));
}

// While it lives, other threads run Python.
class Unlocked {
 public:
  Unlocked() : thread_(PyEval_SaveThread()) {}
  Unlocked(const Unlocked&) = delete;
  Unlocked& operator=(const Unlocked&) = delete;
  ~Unlocked() { PyEval_RestoreThread(thread_); }

 private:
  void* thread_;
};

// What f returns, or None if it throws: by way of the dispatcher, Python is told why.
template <class F>
PyObject* result_or_none(F f) {
  try {
    return f();
  } catch (const std::exception&) {
    PyErr_Clear();
    return Py_BuildValue("");
  }
}

// The same memory with an axis moved, as torch.movedim; but no view to autograd.
Tensor moved(const Tensor& tensor, int64_t from, int64_t to) {
  constexpr int64_t kMost = kMaxDim + 2;
  const int64_t dim = tensor.dim();
  STD_TORCH_CHECK(from < dim && to < dim && dim <= kMost, "unexpected number of axes");
  int64_t sizes[kMost], strides[kMost];
  for (int64_t axis = 0; axis < dim; ++axis) {
    // Where it was, with the moved axis taken out and put in again.
    const int64_t others = axis - (axis > to),
                  source = axis == to ? from : others + (others >= from);
    sizes[axis] = tensor.size(source);
    strides[axis] = tensor.stride(source);
  }
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch__reinterpret_tensor(tensor.get(), dim, sizes, strides, 0, &handle));
  return Tensor(handle);
}

}  // namespace
}  // namespace crad
