// SPDX-License-Identifier: Apache-2.0
#include "core/tensor_view.h"

#include <cstring>

namespace il {
namespace {

struct KnownType {
  PyTypeObject* type;
  const DLPackExchangeAPI* api;  // null: no table, use __dlpack__
  bool plain;                    // torch.Tensor or Parameter: surely backed by memory
};

// The exchange table was renamed between torch 2.10 and 2.13; both spellings are tried.
const DLPackExchangeAPI* find_table(PyTypeObject* type) {
  for (const char* name : {"__dlpack_c_exchange_api__", "__c_dlpack_exchange_api__"}) {
    PyObject* attr = PyObject_GetAttrString(reinterpret_cast<PyObject*>(type), name);
    const DLPackExchangeAPI* api = nullptr;
    if (attr != nullptr && PyCapsule_CheckExact(attr)) {
      api = static_cast<const DLPackExchangeAPI*>(PyCapsule_GetPointer(attr, PyCapsule_GetName(attr)));
    } else if (attr != nullptr && PyLong_Check(attr)) {
      api = static_cast<const DLPackExchangeAPI*>(PyLong_AsVoidPtr(attr));
    }
    Py_XDECREF(attr);
    PyErr_Clear();
    if (api != nullptr && api->header.version.major == DLPACK_MAJOR_VERSION &&
        api->dltensor_from_py_object_no_sync != nullptr) {
      return api;
    }
  }
  return nullptr;
}

// Looked up once for each of the first few tensor types; the types are kept alive so that no address is reused.
KnownType known_type(PyTypeObject* type) {
  static KnownType cache[8];
  static int used = 0;
  for (int i = 0; i < used; ++i) {
    if (cache[i].type == type) return cache[i];
  }
  const bool plain = std::strcmp(type->tp_name, "Tensor") == 0 || std::strcmp(type->tp_name, "Parameter") == 0;
  const KnownType found{type, find_table(type), plain};
  if (found.api != nullptr && used < 8) {
    Py_INCREF(type);
    cache[used++] = found;
  }
  return found;
}

DType convert_dtype(DLDataType t, const char* op, const char* arg) {
  if (t.lanes == 1) {
    if (t.code == kDLFloat && t.bits == 32) return DType::kFloat32;
    if (t.code == kDLFloat && t.bits == 64) return DType::kFloat64;
    if (t.code == kDLFloat && t.bits == 16) return DType::kFloat16;
    if (t.code == kDLBfloat && t.bits == 16) return DType::kBFloat16;
    if (t.code == kDLInt && t.bits == 32) return DType::kInt32;
    if (t.code == kDLInt && t.bits == 64) return DType::kInt64;
    if (t.code == kDLBool && t.bits == 8) return DType::kBool;
    if (t.code == kDLUInt && t.bits == 8) return DType::kUInt8;
  }
  fail(op, arg, "DLPack type code " + std::to_string(t.code) + " with " + std::to_string(t.bits) + " bits",
       "float32, float64, bfloat16, float16, int32, int64 or bool");
}

TensorView from_dltensor(const DLTensor& t, const char* op, const char* arg) {
  TensorView v;
  v.data = static_cast<char*>(t.data) + t.byte_offset;
  v.ndim = t.ndim;
  v.shape = t.shape;
  v.strides = t.strides;
  v.dtype = convert_dtype(t.dtype, op, arg);
  v.device = t.device;
  if (t.data == nullptr) {
    v.data = nullptr;
    IL_CHECK(v.numel() == 0, op, arg, "a tensor without memory (fake or meta tensor)",
             "a real tensor; call torch.ops.innerloop, not the compiled module, under tracing");
  }
  return v;
}

TensorView from_capsule(py::handle obj, const char* op, const char* arg) {
  if (!py::hasattr(obj, "__dlpack__")) {
    throw py::type_error(std::string(op) + ": " + arg + " is " +
                         std::string(py::str(py::type::handle_of(obj).attr("__name__"))) +
                         ", expected a tensor (anything with __dlpack__)");
  }
  py::object capsule = obj.attr("__dlpack__")();
  auto* managed = static_cast<DLManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
  if (managed == nullptr) throw py::error_already_set();
  TensorView v = from_dltensor(managed->dl_tensor, op, arg);
  v.owner = std::move(capsule);  // an unconsumed capsule frees its tensor when it dies
  return v;
}

}  // namespace

bool TensorView::contiguous() const {
  if (strides == nullptr) return true;
  for (int i = 0; i < ndim; ++i) {
    if (shape[i] == 0) return true;  // torch leaves any strides on an empty tensor
  }
  int64_t expect = 1;
  for (int i = ndim - 1; i >= 0; --i) {
    if (shape[i] != 1 && strides[i] != expect) return false;
    expect *= shape[i];
  }
  return true;
}

std::string shape_str(const TensorView& t) {
  std::string s = "(";
  for (int i = 0; i < t.ndim; ++i) s += (i ? ", " : "") + std::to_string(t.shape[i]);
  return s + ")";
}

void fail(const char* op, const char* arg, const std::string& got, const std::string& want) {
  throw py::value_error(std::string(op) + ": " + arg + " has " + got + ", expected " + want);
}

TensorView strided_view(py::handle obj, const char* op, const char* arg) {
  TensorView v;
  const KnownType known = known_type(Py_TYPE(obj.ptr()));
  if (known.api != nullptr) {
    // A view of a fake tensor has null plus an offset as its address, which no check on the address can tell.
    IL_CHECK(known.plain || !py::hasattr(obj, "fake_mode"), op, arg, "no memory (a fake tensor)",
             "a real tensor; call torch.ops.innerloop, not the compiled module, under tracing");
    DLTensor t;
    if (known.api->dltensor_from_py_object_no_sync(obj.ptr(), &t) != 0) throw py::error_already_set();
    v = from_dltensor(t, op, arg);
  } else {
    v = from_capsule(obj, op, arg);
  }
  IL_CHECK(v.device.device_type == kDLCPU, op, arg, "device type " + std::to_string(v.device.device_type),
           "a CPU tensor");
  return v;
}

TensorView cpu_view(py::handle obj, const char* op, const char* arg) {
  TensorView v = strided_view(obj, op, arg);
  IL_CHECK(v.contiguous(), op, arg, "strides that are not contiguous", "a contiguous tensor");
  return v;
}

}  // namespace il
