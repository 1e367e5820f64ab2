#include <algorithm>

#include "activation/kernel.h"
#include "base/parallel.h"
#include "base/stream.h"
#include "headwise/activation.h"

namespace headwise {
namespace {

// Cost of an element in floating-point operations, memory sweeps included.
constexpr double kWorkPerElement = 20;

// Elements of a task, the most of a row that one thread computes at a time.
constexpr std::int64_t kTask = 4096;

// Calls function(row, first, size) for pieces of rows of n elements.
template <typename Function>
void ForPieces(std::int64_t rows, std::int64_t n, Function&& function) {
  const std::int64_t pieces = (n + kTask - 1) / kTask;
  ParallelRanges(rows * pieces, kWorkPerElement * static_cast<double>(rows) * static_cast<double>(n),
                 [&](std::int64_t begin, std::int64_t end) {
                   while (begin < end) {
                     const std::int64_t row = begin / pieces, p = begin % pieces;
                     const std::int64_t count = std::min(end - begin, pieces - p);
                     function(row, p * kTask, std::min(count * kTask, n - p * kTask));
                     begin += count;
                   }
                   FlushNonTemporalStores();
                 });
}

// Contiguous rows are one row.
template <typename... Views>
bool AreOneRow(std::int64_t n, const Views&... views) {
  return ((!views || views.stride[0] == n) && ...);
}

template <typename T>
View<T, 2> OneRow(View<T, 2> view) {
  return {view.data, {1, view.shape[0] * view.shape[1]}, {0, 1}};
}

template <typename T>
double BytesOf(View<T, 2> out) {
  return sizeof(T) * static_cast<double>(out.shape[0]) * static_cast<double>(out.shape[1]);
}

}  // namespace

template <typename T>
void Activate(Activation f, View<const T, 2> x, View<const T, 2> up, View<T, 2> out) {
  const auto [rows, n] = out.shape;
  if (rows > 1 && AreOneRow(n, x, up, out)) return Activate(f, OneRow(x), up ? OneRow(up) : up, OneRow(out));
  const ActivationKernel<T>& kernel = ChosenActivationKernels().Of<T>();
  const bool streamed = UseNonTemporalStores(x.data, out.data, BytesOf(out));
  ForPieces(rows, n, [&](std::int64_t row, std::int64_t first, std::int64_t size) {
    kernel.forward(f, x.at(row, first), up ? up.at(row, first) : nullptr, size, out.at(row, first), streamed);
  });
}

template <typename T>
void ActivateBackward(Activation f, View<const T, 2> d_out, View<const T, 2> x, View<const T, 2> up, View<T, 2> d_x,
                      View<T, 2> d_up) {
  const auto [rows, n] = d_x.shape;
  if (rows > 1 && AreOneRow(n, d_out, x, up, d_x, d_up)) {
    return ActivateBackward(f, OneRow(d_out), OneRow(x), up ? OneRow(up) : up, OneRow(d_x), up ? OneRow(d_up) : d_up);
  }
  const ActivationKernel<T>& kernel = ChosenActivationKernels().Of<T>();
  const bool streamed = UseNonTemporalStores(d_out.data, d_x.data, BytesOf(d_x));
  ForPieces(rows, n, [&](std::int64_t row, std::int64_t first, std::int64_t size) {
    kernel.backward(f, d_out.at(row, first), x.at(row, first), up ? up.at(row, first) : nullptr, size,
                    d_x.at(row, first), up ? d_up.at(row, first) : nullptr, streamed);
  });
}

template void Activate(Activation, View<const Float16, 2>, View<const Float16, 2>, View<Float16, 2>);
template void Activate(Activation, View<const BFloat16, 2>, View<const BFloat16, 2>, View<BFloat16, 2>);
template void Activate(Activation, View<const float, 2>, View<const float, 2>, View<float, 2>);
template void Activate(Activation, View<const double, 2>, View<const double, 2>, View<double, 2>);

template void ActivateBackward(Activation, View<const Float16, 2>, View<const Float16, 2>, View<const Float16, 2>,
                               View<Float16, 2>, View<Float16, 2>);
template void ActivateBackward(Activation, View<const BFloat16, 2>, View<const BFloat16, 2>, View<const BFloat16, 2>,
                               View<BFloat16, 2>, View<BFloat16, 2>);
template void ActivateBackward(Activation, View<const float, 2>, View<const float, 2>, View<const float, 2>,
                               View<float, 2>, View<float, 2>);
template void ActivateBackward(Activation, View<const double, 2>, View<const double, 2>, View<const double, 2>,
                               View<double, 2>, View<double, 2>);

}  // namespace headwise
