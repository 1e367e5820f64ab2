// The gradients of a row's scores, where an option needs whole rows, and of what is added to scores: biases and slopes.
//
// A score modifier with a gradient of its own computes it here, from dS.

#if defined(HEADWISE_ATTENTION_BACKWARD_SCORE_GRADIENTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADWISE_ATTENTION_BACKWARD_SCORE_GRADIENTS_INL_H_
#undef HEADWISE_ATTENTION_BACKWARD_SCORE_GRADIENTS_INL_H_
#else
#define HEADWISE_ATTENTION_BACKWARD_SCORE_GRADIENTS_INL_H_
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <variant>

#include "attention/backward/kernel.h"
#include "attention/backward/products-inl.h"
#include "attention/modifiers/keep-inl.h"
#include "attention/modifiers/window-inl.h"
#include "attention/softmax-inl.h"
#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "matmul/fma-inl.h"
#include "simd/rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

// Columns of P and dS, counted from the first key of the block; `from` is a multiple of a panel.
struct BlockKeys {
  int64_t from = 0, to = 0;
  bool empty() const { return from >= to; }
};

// For a chunk of keys; `entry` is its batch entry in the gradients, `batch` that in the arguments.
template <typename S>
class ScoreGradients {
  using T = Accumulator<S>;

 public:
  ScoreGradients(const AttentionArgs<S>& args, const AttentionGradients<S>& gradients,
                 const BackwardPartials<S>& partials, int64_t batch, int64_t entry)
      : args_(args), gradients_(gradients), partials_(partials), batch_(batch), entry_(entry) {
    const auto* const end = partials.d_bias + gradients.d_bias.size();
    const auto* const found = std::find_if(partials.d_bias, end, [](const auto& bias) { return bias.stored; });
    if (found != end) first_stored_ = found;
  }

  // Whether a gradient of a bias is written where nothing is kept, too.
  bool StoresBias() const { return first_stored_ != nullptr; }
  // Whether the steps after the products go through whole rows.
  bool NeedsRows() const {
    return args_.spec.dropout_keep || gradients_.d_weights || partials_.d_alibi_slopes || partials_.d_relative_bias ||
           std::any_of(partials_.d_bias, partials_.d_bias + gradients_.d_bias.size(),
                       [](const auto& bias) { return static_cast<bool>(bias.array); });
  }

  // Fetches biases and dropout masks for the rows of a tile, which arrive while the tile's products are computed: the
  // processor's own prefetching does not follow rows that are pages apart.
  void Prefetch(const Row* rows, int count, int64_t begin, const BlockKeys& keys) const {
    const auto fetch = [&](const auto* row, int64_t stride) {
      const auto* const first = reinterpret_cast<const std::uint8_t*>(row + keys.from);
      const auto* const last = reinterpret_cast<const std::uint8_t*>(row + keys.to - 1);
      for (const std::uint8_t* line = first; stride != 0 && line < last; line += kCacheLine) hwy::Prefetch(line);
      if (stride != 0) hwy::Prefetch(last);
    };
    const auto& dropout = args_.spec.dropout_keep;
    for (int r = 0; r < count; ++r) {
      const auto fetch_row = [&](const auto& view) {
        fetch(view.at(batch_, rows[r].head, rows[r].query, begin), view.stride[3]);
      };
      for (const Bias<S>& bias : args_.spec.bias) std::visit(fetch_row, bias);
      if (dropout) fetch_row(dropout);
    }
  }

  // ds: a row's products of d_output and values, which become gradients of its scores, and are stored as that of a
  // bias if no other task adds to it. Dropout is applied to the probabilities p.
  void Compute(const Row& row, int64_t begin, const BlockKeys& keys, T row_delta, T* p, T* ds) const {
    const Tag<T> d;
    const auto& dropout = args_.spec.dropout_keep;
    const std::uint8_t* const keep = dropout ? dropout.at(batch_, row.head, row.query, begin) : nullptr;
    const S* const d_weights =
        gradients_.d_weights ? gradients_.d_weights.at(entry_, row.head, row.query, begin) : nullptr;
    T* const stored = first_stored_ ? first_stored_->array.at(entry_, row.head, row.query, begin) : nullptr;
    const auto scale = hn::Set(d, static_cast<T>(args_.spec.dropout_scale)), delta = hn::Set(d, row_delta);
    ForEachVector(d, keys.to - keys.from, [&](auto lanes, int64_t i) HWY_ATTR {
      const int64_t j = keys.from + i;
      const auto weight = hn::LoadU(d, p + j);
      auto gradient = hn::LoadU(d, ds + j);
      if (keep) {
        const auto kept = dropout.stride[3] != 0 ? LoadKeep(d, keep + j, keys.to - j)
                                                 : hn::Ne(hn::Set(d, static_cast<T>(*keep)), hn::Zero(d));
        gradient = hn::IfThenElseZero(kept, hn::Mul(gradient, scale));
        hn::StoreU(hn::IfThenElseZero(kept, hn::Mul(weight, scale)), d, p + j);
      }
      if (d_weights) gradient = hn::Add(gradient, lanes.Load(d, d_weights + j));
      gradient = WhereKept(d, weight, hn::Sub(gradient, delta));
      hn::StoreU(gradient, d, ds + j);
      if (stored) lanes.Store(gradient, d, stored + j);
    });
  }

  // Adds a row's dS to the gradients of the biases, or stores it in those that Compute has not stored.
  void AddToBiases(const Row& row, int64_t begin, const BlockKeys& keys, const T* ds) const {
    for (std::size_t i = 0; i < gradients_.d_bias.size(); ++i) {
      const View<T, 4>& d_bias = partials_.d_bias[i].array;
      if (!d_bias || &partials_.d_bias[i] == first_stored_) continue;
      if (partials_.d_bias[i].stored) {
        ScaleRow(ds + keys.from, keys.to - keys.from, T{1}, d_bias.at(entry_, row.head, row.query, begin + keys.from));
      } else {
        AddToBias(d_bias, row, begin, keys, ds);
      }
    }
    if (partials_.d_relative_bias) AddToRelativeBias(row, begin, keys, ds);
  }

  // Of biases that are stored, for `rows` queries from `query` on and keys [begin, end).
  void ClearBiases(int64_t head, int64_t query, int rows, int64_t begin, int64_t end) const {
    for (std::size_t i = 0; i < gradients_.d_bias.size(); ++i) {
      if (!partials_.d_bias[i].stored) continue;
      for (int r = 0; r < rows; ++r) {
        std::fill_n(partials_.d_bias[i].array.at(entry_, head, query + r, begin), end - begin, T{0});
      }
    }
  }

  // The sum of dS_j * |i + offset - j| of a row.
  double SumOfDistances(const Row& row, int64_t begin, const BlockKeys& keys, const T* ds) const {
    const Tag<T> d;
    auto sum = hn::Zero(d);
    const int64_t first = begin - row.query - args_.spec.offset;
    ForEachVector(d, keys.to - keys.from, [&](auto lanes, int64_t i) HWY_ATTR {
      const int64_t j = keys.from + i;
      const auto term = hn::Mul(hn::Abs(hn::Iota(d, static_cast<T>(first + j))), hn::LoadU(d, ds + j));
      sum = hn::Add(sum, lanes.Or(d, term, hn::Zero(d)));
    });
    return static_cast<double>(hn::GetLane(hn::SumOfLanes(d, sum)));
  }

 private:
  static constexpr int64_t kCacheLine = 64;

  // The gradient of a bias whose axes of size 1 are broadcast.
  void AddToBias(const View<T, 4>& d_bias, const Row& row, int64_t begin, const BlockKeys& keys, const T* ds) const {
    T* const to = GradientRow(d_bias, row);
    if (d_bias.shape[3] > 1) return AddToRow(ds + keys.from, keys.to - keys.from, to + begin + keys.from);
    *to += SumRow(ds + keys.from, keys.to - keys.from);
  }

  // Entries for adjacent keys are adjacent, and the first and the last one belong to all keys beyond their distances
  // (modifiers/relative_bias-inl.h).
  void AddToRelativeBias(const Row& row, int64_t begin, const BlockKeys& keys, const T* ds) const {
    const View<T, 4>& d_bias = partials_.d_relative_bias;
    T* const to = GradientRow(d_bias, row);
    const int64_t last = d_bias.shape[3] - 1, first = begin - row.query - args_.spec.offset + d_bias.shape[3] / 2;
    const int64_t low = std::clamp(-first, keys.from, keys.to), high = std::clamp(last + 1 - first, low, keys.to);
    to[0] += SumRow(ds + keys.from, low - keys.from);
    if (low < high) AddToRow(ds + low, high - low, to + first + low);
    to[last] += SumRow(ds + high, keys.to - high);
  }

  // The first entry of a row of a gradient, whose axes of size 1 are summed over.
  T* GradientRow(const View<T, 4>& gradient, const Row& row) const {
    const auto index = [&](int axis, int64_t i) { return gradient.shape[axis] == 1 ? 0 : i; };
    return gradient.at(index(0, entry_), index(1, row.head), index(2, row.query));
  }

  static void AddToRow(const T* from, int64_t n, T* to) {
    const Tag<T> d;
    ForEachVector(d, n, [&](auto lanes, int64_t i) HWY_ATTR {
      lanes.Store(hn::Add(lanes.Load(d, to + i), lanes.Load(d, from + i)), d, to + i);
    });
  }

  static T SumRow(const T* row, int64_t n) {
    const Tag<T> d;
    auto sum = hn::Zero(d);
    ForEachVector(d, n, [&](auto lanes, int64_t i) HWY_ATTR {
      sum = hn::Add(sum, lanes.Or(d, lanes.Load(d, row + i), hn::Zero(d)));
    });
    return hn::GetLane(hn::SumOfLanes(d, sum));
  }

  const AttentionArgs<S>& args_;
  const AttentionGradients<S>& gradients_;
  const BackwardPartials<S>& partials_;
  const int64_t batch_, entry_;
  const BiasPartial<S>* first_stored_ = nullptr;  // of the biases
};

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
