// NumPy arrays as views. The Python layer has checked its arguments already; the checks here only keep a wrong direct
// call from accessing memory out of bounds.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>
#ifdef __GLIBCXX__
#include <cxxabi.h>
#endif

#include "base/interruption.h"
#include "base/targets.h"
#include "headwise/dtype.h"
#include "headwise/precision.h"
#include "headwise/tensor.h"

namespace headwise::bindings {

namespace py = pybind11;

template <typename T>
bool HasType(const py::array& array) {
  const py::dtype dtype = array.dtype();
  if constexpr (std::is_same_v<T, std::uint8_t>) return dtype.kind() == 'b';
  if constexpr (kIs16Bit<T>) {
    // bfloat16 is the type that ml_dtypes registers, with a letter that no other type has.
    const bool named = std::is_same_v<T, Float16> ? dtype.char_() == 'e' : dtype.kind() == 'V' && dtype.char_() == 'E';
    return named && dtype.itemsize() == sizeof(T) && dtype.byteorder() == '=';
  }
  using Element = std::conditional_t<std::is_same_v<T, std::byte>, std::uint8_t, T>;
  return py::isinstance<py::array_t<Element>>(array);
}

[[noreturn]] inline void Refuse(const char* name, const char* problem) {
  throw py::value_error(std::string(name) + ": " + problem);
}

// Reads the shape and the strides, in elements, once: the owner of the array may change both while the GIL is
// released. Throws TypeError for another rank. An aligned array has strides that are multiples of the element size.
inline void ReadLayout(const py::array& array, int rank, std::int64_t* shape, std::int64_t* stride, const char* name) {
  if (array.ndim() != rank) throw py::type_error(std::string(name) + ": rank does not match the other arrays");
  if (!(array.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_)) Refuse(name, "not aligned");
  const auto size = static_cast<std::int64_t>(array.itemsize());
  for (int axis = 0; axis < rank; ++axis) {
    shape[axis] = array.shape()[axis];
    stride[axis] = array.strides()[axis] / size;
  }
}

// The array as a view. T is const if the array is only read. Throws TypeError for another dtype or rank.
template <typename T, int kRank>
View<T, kRank> ToView(const py::array& array, const char* name) {
  using Value = std::remove_const_t<T>;
  if (!HasType<Value>(array)) throw py::type_error(std::string(name) + ": dtype does not match the other arrays");
  View<T, kRank> view;
  ReadLayout(array, kRank, view.shape.data(), view.stride.data(), name);
  if constexpr (std::is_const_v<T>) {
    view.data = static_cast<T*>(array.data());
  } else {
    view.data = static_cast<T*>(const_cast<py::array&>(array).mutable_data());
    bool broadcast = false, empty = false;
    for (int axis = 0; axis < kRank; ++axis) {
      broadcast |= view.shape[axis] > 1 && view.stride[axis] == 0;
      empty |= view.shape[axis] == 0;
    }
    if (broadcast && !empty) Refuse(name, "an output with broadcast axes");
  }
  return view;
}

template <typename T, int kRank>
void CheckShape(const View<T, kRank>& view, const decltype(view.shape)& shape, const char* name) {
  if (view.shape != shape) Refuse(name, "shape does not match the other arrays");
}

// Entries along `axis` are adjacent.
template <typename T, int kRank>
void CheckContiguous(const View<T, kRank>& view, int axis, const char* name) {
  if (view.shape[axis] > 1 && view.stride[axis] != 1) Refuse(name, "axis is not contiguous");
}

// The view broadcast to `shape`: axes of size 1 get stride 0.
template <typename T, int kRank>
View<T, kRank> Broadcast(View<T, kRank> view, const decltype(view.shape)& shape, const char* name) {
  for (int axis = 0; axis < kRank; ++axis) {
    if (view.shape[axis] == 1) {
      view.shape[axis] = shape[axis];
      view.stride[axis] = 0;
    } else if (view.shape[axis] != shape[axis]) {
      throw py::value_error(std::string(name) + ": expected each axis to be 1 or to match the other arrays");
    }
  }
  return view;
}

// The thread on which Python runs signal handlers: the interpreter's main thread, and in a forked child the thread
// that called fork.
inline std::atomic<unsigned long> main_thread{0};

// Releases the GIL for the computation. The target is selected first: selection holds a lock, and a child forked by
// another thread meanwhile would wait for that lock forever.
//
// On the main thread the computation is interruptible: about every 50 ms it takes the GIL and runs the handlers of
// signals that have arrived. If one raises, as Python's own handler of SIGINT does, CallInterrupted is thrown, while
// the exception waits in the thread state (module.cc).
//
// A daemon thread whose computation ends while the interpreter is being finalized does not get the GIL back. Up to
// Python 3.13, Python ends such a thread by pthread_exit, which unwinds the C++ stack: std::terminate in a
// destructor, and reference counts that change without the GIL. The thread waits for the end of the process instead,
// as in Python 3.14.
class ReleasedGil {
 public:
  ReleasedGil() {
    EnsureTargetChosen();
    state_ = PyEval_SaveThread();
    if (PyThread_get_thread_ident() == main_thread.load(std::memory_order_relaxed)) {
      interruption_.emplace(&RunSignalHandlers, this);
    }
  }
  ReleasedGil(const ReleasedGil&) = delete;
  ReleasedGil& operator=(const ReleasedGil&) = delete;

#ifdef __GLIBCXX__
  // A forced unwind has no object, so its reference is null, which UndefinedBehaviorSanitizer reports.
  __attribute__((no_sanitize("null")))
#endif
  ~ReleasedGil() {
    interruption_.reset();
#ifdef __GLIBCXX__
    try {
      PyEval_RestoreThread(state_);
    } catch (abi::__forced_unwind&) {
      while (true) std::this_thread::sleep_for(std::chrono::hours(1));
    }
#else
    PyEval_RestoreThread(state_);
#endif
  }

 private:
  static bool RunSignalHandlers(void* released) {
    PyThreadState*& state = static_cast<ReleasedGil*>(released)->state_;
    PyEval_RestoreThread(state);
    const bool raised = PyErr_CheckSignals() != 0;
    state = PyEval_SaveThread();
    return raised;
  }

  PyThreadState* state_;
  std::optional<Interruption> interruption_;
};

using OptionalArray = std::optional<py::array>;

// Fields of a tuple, which pybind11 does not convert as it does arguments. No other type is accepted, so the views
// made of them stay valid as long as the tuple does.
inline py::tuple ToTuple(py::handle object, const char* name) {
  if (!py::isinstance<py::tuple>(object)) throw py::type_error(std::string(name) + ": expected a tuple");
  return py::reinterpret_borrow<py::tuple>(object);
}

inline py::array ToArray(py::handle object, const char* name) {
  if (!py::isinstance<py::array>(object)) throw py::type_error(std::string(name) + ": expected an array");
  return py::reinterpret_borrow<py::array>(object);
}

inline OptionalArray ToOptionalArray(py::handle object, const char* name) {
  if (object.is_none()) return std::nullopt;
  return ToArray(object, name);
}

template <typename T, int kRank>
View<T, kRank> ToView(const OptionalArray& array, const char* name) {
  return array ? ToView<T, kRank>(*array, name) : View<T, kRank>();
}

// Pointer to `length` contiguous values; null if there is no array.
template <typename T>
const T* ToVector(const OptionalArray& array, std::int64_t length, const char* name) {
  if (!array) return nullptr;
  const auto view = ToView<const T, 1>(*array, name);
  if (view.shape[0] != length || (length > 1 && view.stride[0] != 1)) {
    throw py::value_error(std::string(name) + ": expected " + std::to_string(length) + " contiguous values");
  }
  return view.data;
}

// Calls function(T()) for the array's element type, float or double.
template <class Function>
void WithType(const py::array& array, const Function& function) {
  if (HasType<float>(array)) return function(float());
  if (HasType<double>(array)) return function(double());
  throw py::type_error("expected an array of float32 or float64");
}

// Calls function(T()) for the array's element type: float, double, Float16 or BFloat16.
template <class Function>
void WithStoredType(const py::array& array, const Function& function) {
  if (HasType<float>(array)) return function(float());
  if (HasType<double>(array)) return function(double());
  if (HasType<Float16>(array)) return function(Float16());
  if (HasType<BFloat16>(array)) return function(BFloat16());
  throw py::type_error("expected an array of float16, bfloat16, float32 or float64");
}

inline Precision ToPrecision(const std::string& name) {
  if (name == "highest") return Precision::kHighest;
  if (name == "high") return Precision::kHigh;
  if (name == "medium") return Precision::kMedium;
  throw py::value_error("precision: '" + name + "'");
}

void RegisterActivation(py::module_& module);
void RegisterAlibi(py::module_& module);
void RegisterAttention(py::module_& module);
void RegisterAttentionBackward(py::module_& module);
void RegisterAttentionStatistics(py::module_& module);
void RegisterAttentionVarlen(py::module_& module);
void RegisterLayerNorm(py::module_& module);
void RegisterLinear(py::module_& module);
void RegisterLinearAttention(py::module_& module);
void RegisterRope(py::module_& module);
void RegisterRuntime(py::module_& module);
void RegisterSoftmax(py::module_& module);
void RegisterTestHooks(py::module_& module);  // testing/python_hooks.cc

}  // namespace headwise::bindings
