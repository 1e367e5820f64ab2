#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "base/interruption.h"
#include "base/parallel.h"
#include "base/scratch.h"
#include "base/stream.h"
#include "headwise/softmax.h"
#include "softmax/kernel.h"

namespace headwise {
namespace {

// Schedules softmax, log-softmax and log-sum-exp: rows, parts of rows, or blocks of columns, on threads.
//
// Cost of an element (exponential and memory sweeps) in floating-point operations.
constexpr double kWorkPerElement = 25;

// Elements of a long row whose results are written by one task.
constexpr std::int64_t kResultBlock = 16 * kPart;

template <typename T>
using Functions = SoftmaxFunctions<T> SoftmaxKernel<T>::*;

double Work(std::int64_t outer, std::int64_t n, std::int64_t inner) {
  return kWorkPerElement * static_cast<double>(outer) * static_cast<double>(n) * static_cast<double>(inner);
}

template <typename T>
bool Streamed(View<const T, 3> x, View<T, 3> out) {
  const auto [outer, n, inner] = out.shape;
  return UseNonTemporalStores(x.data, out.data, sizeof(T) * static_cast<double>(outer) * static_cast<double>(n));
}

// Each row on one thread.
template <typename T>
void RunRows(View<const T, 3> x, const SoftmaxFunctions<T>& functions, View<T, 3> out) {
  const auto [outer, n, inner] = x.shape;
  const int threads = ThreadsFor(outer, Work(outer, n, 1));
  const std::int64_t tasks = threads == 1 ? 1 : std::min<std::int64_t>(outer, 8 * threads);
  const bool streamed = Streamed(x, out);
  std::unique_ptr<const Scratch> scratch;
  if (streamed || kIs16Bit<T>) {
    scratch = std::make_unique<Scratch>(threads, static_cast<std::size_t>(n) * sizeof(Accumulator<T>));
  }
  ParallelFor(tasks, threads, [&, outer = outer, n = n](std::int64_t task, int thread) {
    Accumulator<T>* const terms = scratch ? reinterpret_cast<Accumulator<T>*>(scratch->thread(thread)) : nullptr;
    InterruptibleRanges(
        outer * task / tasks, outer * (task + 1) / tasks, Work(1, n, 1), [&](std::int64_t begin, std::int64_t end) {
          functions.rows({end - begin, n, x.at(begin), x.stride[0], out.at(begin), out.stride[0], terms, streamed});
        });
  });
}

// The state of two parts together, in double.
template <typename A>
SoftmaxPart<A> Join(SoftmaxPart<A> a, SoftmaxPart<A> b) {
  constexpr double kMax = std::numeric_limits<A>::max();
  const A max = std::max(a.max, b.max);
  const auto sum = [&](SoftmaxPart<A> part) {
    return part.sum * std::exp(std::clamp<double>(part.max, -kMax, kMax) - std::clamp<double>(max, -kMax, kMax));
  };
  return {max, sum(a) + sum(b)};
}

// Long rows: their parts are distributed over the threads, and combined in the order of the row.
template <typename T>
void RunParts(View<const T, 3> x, const SoftmaxKernel<T>& kernel, const SoftmaxFunctions<T>& functions,
              View<T, 3> out) {
  const auto [outer, n, inner] = x.shape;
  const std::int64_t parts = (n + kPart - 1) / kPart;
  const bool streamed = Streamed(x, out);
  using Part = SoftmaxPart<Accumulator<T>>;
  std::vector<Part> found(Bytes(1, outer, parts));
  // Parts [begin, end) of all rows.
  const auto measure = [&, n = n](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end && !Interrupted(Work(1, kPart, 1)); ++i) {
      const T* const row = x.at(i / parts);
      const std::int64_t first = i % parts * kPart, size = std::min(kPart, n - first);
      const std::int64_t next = first + size + kPart <= n ? first + size : first;
      found[static_cast<std::size_t>(i)] = kernel.part(row + first, size, row + next);
    }
  };
  const auto join = [&](std::int64_t row) {
    Part* const of_row = &found[static_cast<std::size_t>(row * parts)];
    for (std::int64_t p = 1; p < parts; ++p) of_row[0] = Join(of_row[0], of_row[p]);
  };
  const std::int64_t results = out.shape[1];  // n or 1
  const std::int64_t blocks = (results + kResultBlock - 1) / kResultBlock;
  // Blocks [begin, end) of all results.
  const auto finish = [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end && !Interrupted(Work(1, std::min(kResultBlock, results), 1)); ++i) {
      const std::int64_t row = i / blocks, first = i % blocks * kResultBlock;
      functions.finish(x.at(row, first), std::min(kResultBlock, results - first),
                       found[static_cast<std::size_t>(row * parts)], out.at(row, first), streamed);
    }
  };
  const double work = Work(outer, n, 1);
  // With enough rows, one thread computes a whole row, and the second sweep finds it in cache.
  if (outer >= 4 * ThreadsFor(outer, work)) {
    ParallelRanges(outer, work, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t row = begin; row < end; ++row) {
        measure(row * parts, (row + 1) * parts);
        join(row);
        finish(row * blocks, (row + 1) * blocks);
      }
    });
  } else {
    ParallelRanges(outer * parts, work, measure);
    for (std::int64_t row = 0; row < outer; ++row) join(row);
    ParallelRanges(outer * blocks, work, finish);
  }
}

// out: (outer, n, inner), or (outer, 1, inner) for log-sum-exp.
template <typename T>
void Run(View<const T, 3> x, Functions<T> operation, View<T, 3> out) {
  const SoftmaxKernel<T>& kernel = ChosenSoftmaxKernels().Of<T>();
  const SoftmaxFunctions<T>& functions = kernel.*operation;
  const auto [outer, n, inner] = x.shape;
  if (outer == 0) return;
  // Rows of one element are a column each of a single row.
  if (n == 1 && outer > 1 && x.stride[0] == inner && out.stride[0] == inner) {
    return Run<T>({x.data, {1, 1, outer * inner}, {0, 0, 1}}, operation, {out.data, {1, 1, outer * inner}, {0, 0, 1}});
  }
  if (inner == 1 && n <= functions.longest_row) return RunRows(x, functions, out);
  if (inner == 1) return RunParts(x, kernel, functions, out);
  const std::int64_t blocks = (inner + kMaxColumns - 1) / kMaxColumns;
  ParallelRanges(outer * blocks, Work(outer, n, inner),
                 [&, n = n, inner = inner](std::int64_t begin, std::int64_t end) {
                   for (std::int64_t task = begin; task < end; ++task) {
                     const std::int64_t o = task / blocks, p = task % blocks * kMaxColumns;
                     functions.columns(x.data + o * x.stride[0] + p, x.stride[1], n, std::min(kMaxColumns, inner - p),
                                       out.data + o * out.stride[0] + p, out.stride[1]);
                   }
                 });
}

template <typename T>
View<T, 3> WithAxis(View<T, 2> lanes) {
  return {lanes.data, {lanes.shape[0], 1, lanes.shape[1]}, {lanes.stride[0], 0, lanes.stride[1]}};
}

}  // namespace

template <typename T>
void Softmax(View<const T, 3> x, View<T, 3> out) {
  Run(x, &SoftmaxKernel<T>::softmax, out);
}
template <typename T>
void LogSoftmax(View<const T, 3> x, View<T, 3> out) {
  Run(x, &SoftmaxKernel<T>::log_softmax, out);
}
template <typename T>
void LogSumExp(View<const T, 3> x, View<T, 2> out) {
  Run(x, &SoftmaxKernel<T>::log_sum_exp, WithAxis(out));
}

template void Softmax(View<const Float16, 3>, View<Float16, 3>);
template void Softmax(View<const BFloat16, 3>, View<BFloat16, 3>);
template void Softmax(View<const float, 3>, View<float, 3>);
template void Softmax(View<const double, 3>, View<double, 3>);

template void LogSoftmax(View<const Float16, 3>, View<Float16, 3>);
template void LogSoftmax(View<const BFloat16, 3>, View<BFloat16, 3>);
template void LogSoftmax(View<const float, 3>, View<float, 3>);
template void LogSoftmax(View<const double, 3>, View<double, 3>);

template void LogSumExp(View<const Float16, 3>, View<Float16, 2>);
template void LogSumExp(View<const BFloat16, 3>, View<BFloat16, 2>);
template void LogSumExp(View<const float, 3>, View<float, 2>);
template void LogSumExp(View<const double, 3>, View<double, 2>);

}  // namespace headwise
