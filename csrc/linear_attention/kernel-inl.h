// Linear attention of one key head and some value columns: chunks of tokens as products (chunk-inl.h), single tokens by
// the recurrence (recurrence-inl.h). Here, rows are read, mapped, written and converted.
//
// Products of a chunk multiply 0 by the rows of later tokens. If an output or the state after a chunk is not finite,
// the chunk is therefore computed again by the recurrence.

#if defined(HEADWISE_LINEAR_ATTENTION_KERNEL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADWISE_LINEAR_ATTENTION_KERNEL_INL_H_
#undef HEADWISE_LINEAR_ATTENTION_KERNEL_INL_H_
#else
#define HEADWISE_LINEAR_ATTENTION_KERNEL_INL_H_
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "base/interruption.h"
#include "hwy/highway.h"
#include "linear_attention/chunk-inl.h"
#include "linear_attention/kernel.h"
#include "linear_attention/recurrence-inl.h"
#include "simd/exp-inl.h"
#include "simd/rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

// x becomes elu(x) + 1: exp(x) up to 0, x + 1 above.
template <typename A>
HWY_NOINLINE void MapElu(A* x, int64_t n) {
  const Tag<A> d;
  const auto unscale = hn::Set(d, static_cast<A>(ExpTraits<A>::kUnscale));
  ForEachVector(d, n, [&](auto lanes, int64_t i) HWY_ATTR {
    const auto v = lanes.Load(d, x + i);
    const auto positive = hn::Gt(v, hn::Zero(d));
    const auto power = hn::Mul(ScaledExp(d, hn::IfThenZeroElse(positive, v)), unscale);
    lanes.Store(hn::IfThenElse(positive, hn::Add(v, hn::Set(d, A{1})), power), d, x + i);
  });
}

// Whether x[0, n), whole vectors, holds neither NaN nor infinity.
template <typename A>
HWY_NOINLINE bool IsFiniteRow(const A* x, int64_t n) {
  const Tag<A> d;
  const auto zero = hn::Zero(d);
  auto sum0 = zero, sum1 = zero, sum2 = zero, sum3 = zero;  // independent of each other, to hide latencies
  int64_t i = 0;
  for (; i + 4 * kLanes<A> <= n; i += 4 * kLanes<A>) {
    sum0 = hn::MulAdd(hn::Load(d, x + i), zero, sum0);
    sum1 = hn::MulAdd(hn::Load(d, x + i + kLanes<A>), zero, sum1);
    sum2 = hn::MulAdd(hn::Load(d, x + i + 2 * kLanes<A>), zero, sum2);
    sum3 = hn::MulAdd(hn::Load(d, x + i + 3 * kLanes<A>), zero, sum3);
  }
  for (; i < n; i += kLanes<A>) sum0 = hn::MulAdd(hn::Load(d, x + i), zero, sum0);
  return hn::AllTrue(d, hn::Eq(hn::Add(hn::Add(sum0, sum1), hn::Add(sum2, sum3)), zero));
}

// The head of a task, and its arrays.
template <typename T>
struct Head {
  using A = Accumulator<T>;
  const LinearAttentionArgs<T>& args;
  const LinearAttentionTask& task;

  int64_t group() const { return args.query.shape[1] / args.key.shape[1]; }
  int64_t features() const { return args.key.shape[3]; }
  int64_t width() const { return task.end - task.begin; }
  int64_t columns() const { return width() + (args.normalize ? 1 : 0); }
  bool by_feature() const { return args.decay && args.decay.shape[3] > 1; }

  // A row of query or key in the accumulator type, mapped; `factor` is that of the output.
  HWY_NOINLINE void ReadFeatures(const T* from, A factor, A* to) const {
    const Tag<A> d;
    const auto times = hn::Set(d, factor);
    ForEachVector(d, features(),
                  [&](auto lanes, int64_t i) HWY_ATTR { lanes.Store(lanes.Load(d, from + i), d, to + i); });
    if (args.elu) MapElu(to, features());
    if (factor != A{1}) {
      ForEachVector(d, features(), [&](auto lanes, int64_t i) HWY_ATTR {
        lanes.Store(hn::Mul(lanes.Load(d, to + i), times), d, to + i);
      });
    }
  }
  void ReadQuery(int64_t g, int64_t i, A* to) const {
    const A scale = args.normalize ? A{1} : static_cast<A>(args.scale);
    ReadFeatures(args.query.at(task.batch, task.kv_head * group() + g, i), scale, to);
  }
  void ReadKey(int64_t t, A* to) const { ReadFeatures(args.key.at(task.batch, task.kv_head, t), A{1}, to); }
  HWY_NOINLINE void ReadValue(int64_t t, A* to) const {
    const Tag<A> d;
    const T* const from = args.value.at(task.batch, task.kv_head, t) + task.begin;
    ForEachVector(d, width(), [&](auto lanes, int64_t i) HWY_ATTR { lanes.Store(lanes.Load(d, from + i), d, to + i); });
    if (args.normalize) to[width()] = A{1};
  }
  A Decay(int64_t t, int64_t f) const { return *args.decay.at(task.batch, task.kv_head, t, f); }
  A Beta(int64_t t) const { return *args.beta.at(task.batch, task.kv_head, t); }

  HWY_NOINLINE void WriteOutput(int64_t g, int64_t i, const A* from) const {
    const Tag<A> d;
    T* const to = args.output.at(task.batch, task.kv_head * group() + g, i) + task.begin;
    if (!args.normalize) {
      ForEachVector(d, width(),
                    [&](auto lanes, int64_t c) HWY_ATTR { lanes.Store(lanes.Load(d, from + c), d, to + c); });
      return;
    }
    const A total = from[width()];
    const auto divisor = hn::Set(d, total);
    const bool none = total == A{0};
    ForEachVector(d, width(), [&](auto lanes, int64_t c) HWY_ATTR {
      lanes.Store(none ? hn::Zero(d) : hn::Div(lanes.Load(d, from + c), divisor), d, to + c);
    });
  }
};

// Token t by the recurrence, of all columns of the task.
template <typename T>
HWY_NOINLINE void StepToken(const Head<T>& head, const ChunkData<Accumulator<T>>& buffers, int64_t t,
                            const StateRows<Accumulator<T>>& state) {
  using A = Accumulator<T>;
  const auto& args = head.args;
  const int64_t features = head.features(), columns = head.columns();
  A *const key = buffers.keys, *const query = buffers.queries, *const value = buffers.out;
  A *const u = buffers.row, *const out = buffers.u;
  A* decays = nullptr;
  head.ReadKey(t, key);
  head.ReadValue(t, value);
  const A* weighted = key;
  if (args.decay) {
    decays = buffers.scaled;
    for (int64_t f = 0; f < features; ++f) decays[f] = head.Decay(t, head.by_feature() ? f : 0);
    if (args.beta) {
      A* const product = buffers.scaled + buffers.stride;
      for (int64_t f = 0; f < features; ++f) product[f] = decays[f] * key[f];
      weighted = product;
    }
  }
  head.ReadQuery(0, t, query);
  for (int64_t c = 0; c < columns; c += kStepColumns<A>) {
    const int64_t n = std::min<int64_t>(kStepColumns<A>, columns - c);
    const StateRows<A> part{state.from ? state.from + c : nullptr, state.from_stride, state.to + c, state.to_stride};
    const A* written = value + c;
    if (args.beta) {
      std::fill_n(u, n, A{0});
      if (part.from) ReadState(features, n, part.from, part.from_stride, weighted, u);
      Correct(n, head.Beta(t), value + c, u, u);
      written = u;
    }
    UpdateState(features, n, part, decays, key, written, query, out + c);
  }
  head.WriteOutput(0, t, out);
  for (int64_t g = 1; g < head.group(); ++g) {
    head.ReadQuery(g, t, query);
    ReadState(features, columns, state.to, state.to_stride, query, out);
    head.WriteOutput(g, t, out);
  }
}

// All tokens by the recurrence, in the caller's state.
template <typename T>
HWY_NOINLINE void RunTokens(const Head<T>& head, const ChunkData<Accumulator<T>>& buffers) {
  const auto& args = head.args;
  const auto& task = head.task;
  StateRows<Accumulator<T>> state{args.state ? args.state.at(task.batch, task.kv_head) : nullptr, args.state.stride[2],
                                  args.new_state.at(task.batch, task.kv_head), args.new_state.stride[2]};
  for (int64_t t = 0; t < args.key.shape[2]; ++t) {
    StepToken(head, buffers, t, state);
    state.from = state.to;
    state.from_stride = state.to_stride;
  }
}

// The tokens [first, first + tokens) by the recurrence, from states[0] to states[1].
template <typename T>
HWY_NOINLINE void RepeatByTokens(const Head<T>& head, ChunkData<Accumulator<T>>& chunk, int64_t first, int64_t tokens) {
  using A = Accumulator<T>;
  const int64_t stride = chunk.packed, rows = TiledRows(chunk.features);
  for (int64_t f = 0; f < chunk.features; ++f) {
    FromPanels(chunk.states[0], f, rows, chunk.columns, chunk.states[1] + f * stride);
  }
  const StateRows<A> state{chunk.states[1], stride, chunk.states[1], stride};
  for (int64_t t = 0; t < tokens; ++t) StepToken(head, chunk, first + t, state);
  for (int64_t f = 0; f < chunk.features; ++f) {
    ToPanels(chunk.states[1] + f * stride, f, rows, chunk.columns, chunk.states[0]);
  }
  std::swap(chunk.states[0], chunk.states[1]);
}

template <typename T>
HWY_NOINLINE void ReadChunk(const Head<T>& head, const ChunkData<Accumulator<T>>& chunk, int64_t first,
                            int64_t tokens) {
  using A = Accumulator<T>;
  const auto& args = head.args;
  for (int64_t t = 0; t < tokens; ++t) {
    A* const key = chunk.keys + t * chunk.stride;
    std::fill(key + chunk.features, key + chunk.stride, A{0});
    head.ReadKey(first + t, key);
    std::fill_n(chunk.out, chunk.packed, A{0});
    head.ReadValue(first + t, chunk.out);
    ToPanels(chunk.out, t, kChunkRows, chunk.columns, chunk.u);
    if (args.beta) chunk.beta[t] = head.Beta(first + t);
    if (!args.decay) continue;
    if (!chunk.by_feature) {
      chunk.decays[t] = head.Decay(first + t, 0);
      continue;
    }
    A* const decays = chunk.decays + t * chunk.stride;
    for (int64_t f = 0; f < chunk.features; ++f) decays[f] = head.Decay(first + t, f);
    std::fill(decays + chunk.features, decays + chunk.stride, A{1});
  }
  if (args.decay) MultiplyDecays(chunk, tokens);
  PackKeys(chunk, tokens, bool{args.decay}, args.is_causal);
}

// Outputs of `rows` queries from `first` on; whether they are finite.
template <typename T>
HWY_NOINLINE bool WriteRows(const Head<T>& head, const ChunkData<Accumulator<T>>& chunk, int64_t g, int64_t first,
                            int64_t rows) {
  bool finite = true;
  for (int64_t r = 0; r < rows; ++r) {
    Accumulator<T>* const row = chunk.out + r * chunk.packed;
    std::fill(row + chunk.columns, row + chunk.packed, Accumulator<T>{0});
    finite &= IsFiniteRow(row, chunk.packed);
    head.WriteOutput(g, first + r, row);
  }
  return finite;
}

template <typename T>
HWY_NOINLINE void ReadQueries(const Head<T>& head, const ChunkData<Accumulator<T>>& chunk, int64_t g, int64_t first,
                              int64_t rows) {
  for (int64_t r = 0; r < rows; ++r) {
    auto* const row = chunk.queries + r * chunk.stride;
    std::fill(row + chunk.features, row + chunk.stride, Accumulator<T>{0});
    head.ReadQuery(g, first + r, row);
  }
}

// Writes the outputs of a chunk; whether they are finite.
template <typename T>
HWY_NOINLINE bool RunChunk(const Head<T>& head, const ChunkData<Accumulator<T>>& chunk, int64_t first, int64_t tokens) {
  const auto& args = head.args;
  const bool decay{args.decay};
  const int64_t block = chunk.by_feature ? int64_t{kTileRows} : tokens;
  bool finite = true;
  for (int64_t begin = 0; begin < tokens; begin += block) {
    const int64_t rows = std::min(block, tokens - begin);
    if (chunk.by_feature) AdvanceKeys(chunk, tokens, begin);
    if (args.beta) SolveBlock(chunk, tokens, begin, rows, decay);
    for (int64_t g = 0; g < head.group(); ++g) {
      ReadQueries(head, chunk, g, first + begin, rows);
      ScoreBlock(chunk, tokens, begin, rows, chunk.queries, decay);
      OutputBlock(chunk, begin, rows, decay, true);
      finite &= WriteRows(head, chunk, g, first + begin, rows);
    }
  }
  return finite;
}

template <typename T>
HWY_NOINLINE void ReadInitialState(const Head<T>& head, const ChunkData<Accumulator<T>>& chunk) {
  using A = Accumulator<T>;
  const int64_t rows = TiledRows(chunk.features);
  std::fill_n(chunk.states[0], rows * chunk.packed, A{0});
  std::fill_n(chunk.states[1], rows * chunk.packed, A{0});
  const auto& args = head.args;
  if (!args.state) return;
  for (int64_t f = 0; f < chunk.features; ++f) {
    const A* const from = args.state.at(head.task.batch, head.task.kv_head, f);
    std::fill_n(chunk.out, chunk.packed, A{0});
    std::copy_n(from + head.task.begin, head.width(), chunk.out);
    if (args.normalize) chunk.out[head.width()] = from[args.value.shape[3]];
    ToPanels(chunk.out, f, rows, chunk.columns, chunk.states[0]);
  }
}

template <typename T>
HWY_NOINLINE void WriteState(const Head<T>& head, const ChunkData<Accumulator<T>>& chunk) {
  const auto& args = head.args;
  const bool last = args.normalize && head.task.end == args.value.shape[3];
  for (int64_t f = 0; f < chunk.features; ++f) {
    FromPanels(chunk.states[0], f, TiledRows(chunk.features), chunk.columns, chunk.out);
    auto* const to = args.new_state.at(head.task.batch, head.task.kv_head, f) + head.task.begin;
    std::copy_n(chunk.out, head.width() + (last ? 1 : 0), to);
  }
}

template <typename T>
std::size_t LinearAttentionScratchBytes(const LinearAttentionArgs<T>& args, int64_t columns) {
  std::size_t used = 0;
  const bool by_feature = args.decay && args.decay.shape[3] > 1;
  const ChunkData<Accumulator<T>> layout(args.key.shape[3], columns + (args.normalize ? 1 : 0), by_feature, nullptr,
                                         &used);
  static_cast<void>(layout);
  return used;
}

template <typename T>
void RunLinearAttention(const LinearAttentionArgs<T>& args, const LinearAttentionTask& task, std::byte* scratch) {
  const Head<T> head{args, task};
  ChunkData<Accumulator<T>> chunk(head.features(), head.columns(), head.by_feature(), scratch, nullptr);
  const int64_t keys = args.key.shape[2], queries = args.query.shape[2];
  if (args.is_causal && keys > 0 && keys <= kTokenByToken) return RunTokens(head, chunk);
  ReadInitialState(head, chunk);
  const double token = 4.0 * static_cast<double>(chunk.features) * static_cast<double>(chunk.columns + kMaxChunk) *
                       static_cast<double>(args.is_causal ? 1 + head.group() : 1);
  const int64_t step = std::min(args.chunk, kMaxChunk);
  for (int64_t first = 0; first < keys; first += step) {
    const int64_t tokens = std::min(step, keys - first);
    ReadChunk(head, chunk, first, tokens);
    bool finite = !args.is_causal || RunChunk(head, chunk, first, tokens);
    UpdateStates(chunk, tokens, bool{args.decay});
    if (args.is_causal) {
      finite = finite &&
               IsFiniteRow(chunk.states[1], TiledRows(chunk.features) * PackedColumns<Accumulator<T>>(chunk.columns));
      if (HWY_UNLIKELY(!finite)) RepeatByTokens(head, chunk, first, tokens);
    }
    std::swap(chunk.states[0], chunk.states[1]);
    if (Interrupted(token * static_cast<double>(tokens))) return;
  }
  WriteState(head, chunk);
  if (args.is_causal) return;
  for (int64_t g = 0; g < head.group(); ++g) {
    for (int64_t first = 0; first < queries; first += kChunkRows) {
      const int64_t rows = std::min(kChunkRows, queries - first);
      ReadQueries(head, chunk, g, first, rows);
      PackBlock(chunk, rows, chunk.queries);
      OutputBlock(chunk, 0, rows, false, false);
      WriteRows(head, chunk, g, first, rows);
      if (Interrupted(token * static_cast<double>(rows))) return;
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
