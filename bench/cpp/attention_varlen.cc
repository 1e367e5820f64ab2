#include <numeric>

#include "bench.h"
#include "headwise/attention.h"
#include "testing/reference.h"

namespace headwise::bench {
namespace {

// Sequences of random lengths in [min_length, max_length]: packed one behind another, or padded to max_length and
// masked.
struct VarlenCase {
  const char* name;
  int64_t sequences, min_length, max_length, heads, kv_heads, head_dim;
  bool causal, one_query;
  bool padded = false;
};

// sequences x heads x lengths x head_dim
constexpr VarlenCase kCases[] = {
    {"attention_varlen/32x8x16-512x64", 32, 16, 512, 8, 8, 64, false, false},
    {"attention_varlen/32x8x16-512x64/causal", 32, 16, 512, 8, 8, 64, true, false},
    {"attention_varlen/64x32x1x128/keys:16-2048/kv_heads:8", 64, 16, 2048, 32, 8, 128, false, true},
};

template <typename T>
class VarlenProblem {
 public:
  using Type = T;

  explicit VarlenProblem(const VarlenCase& c)
      : lengths_(Lengths(c)),
        query_(Shape(c, c.heads, c.one_query)),
        key_(Shape(c, c.kv_heads, false)),
        value_(Shape(c, c.kv_heads, false)),
        output_(Shape(c, c.heads, c.one_query)),
        padding_({c.sequences, c.max_length}) {
    all_.query = HeadsFirst(query_.FillNormal(1).read());
    all_.key = HeadsFirst(key_.FillNormal(2).read());
    all_.value = HeadsFirst(value_.FillNormal(3).read());
    all_.output = HeadsFirst(output_.view());
    all_.spec.scale = 1 / std::sqrt(static_cast<double>(c.head_dim));
    if (c.causal) all_.spec.right = 0;
    for (int64_t s = 0, begin = 0; s < c.sequences; ++s) {
      const int64_t keys = lengths_[static_cast<std::size_t>(s)], queries = c.one_query ? 1 : keys;
      const auto sequence = [&](auto view, int64_t rows, int64_t packed) {
        return c.padded ? Slice(Slice(view, 0, s, 1), 2, 0, rows) : Slice(view, 2, packed, rows);
      };
      AttentionArgs<T> args = all_;
      args.query = sequence(all_.query, queries, c.one_query ? s : begin);
      args.key = sequence(all_.key, keys, begin);
      args.value = sequence(all_.value, keys, begin);
      args.output = sequence(all_.output, queries, c.one_query ? s : begin);
      sequences_.push_back(args);
      std::fill_n(padding_.view().at(s), keys, std::uint8_t{1});
      begin += keys;
      const int64_t pairs = c.causal ? keys * (keys + 1) / 2 : queries * keys;
      flops += 4 * static_cast<double>(c.heads * pairs * c.head_dim);
      bytes += 2 * static_cast<double>((c.heads * queries + c.kv_heads * keys) * c.head_dim) * sizeof(T);
    }
    if (c.padded) {
      all_.spec.keep.push_back(
          {padding_.data(), {c.sequences, c.heads, all_.query.shape[2], c.max_length}, {c.max_length, 0, 0, 1}});
    }
  }

  void Run() {
    if (all_.spec.keep.empty()) {
      AttentionVarlen(sequences_);
    } else {
      Attention(all_);
    }
  }

  double Error() const {
    double max_error = 0;
    for (const std::size_t s : {std::size_t{0}, sequences_.size() / 2, sequences_.size() - 1}) {
      const AttentionArgs<T>& args = sequences_[s];
      max_error =
          std::max(max_error, LargestOnSample(args.query.shape[2], [&](int64_t begin, int64_t size) {
                     AttentionArgs<T> some = args;
                     some.query = Slice(some.query, 2, begin, size);
                     some.spec.offset += begin;
                     return RelativeError(Slice(args.output, 2, begin, size), reference::Attention(some).output);
                   }));
    }
    return kIs16Bit<T> ? max_error / 2 : max_error;  // the bf16 backends round the weights of 16-bit types
  }

  double flops = 0, bytes = 0;

 private:
  static std::vector<int64_t> Lengths(const VarlenCase& c) {
    std::mt19937_64 random(5);
    std::vector<int64_t> lengths(static_cast<std::size_t>(c.sequences));
    const auto range = static_cast<std::uint64_t>(c.max_length - c.min_length + 1);
    for (int64_t& length : lengths) length = c.min_length + static_cast<int64_t>(random() % range);
    return lengths;
  }

  // (batch, rows, heads, head_dim), the layout of packed arrays.
  std::array<int64_t, 4> Shape(const VarlenCase& c, int64_t heads, bool one_row) const {
    if (c.padded) return {c.sequences, one_row ? 1 : c.max_length, heads, c.head_dim};
    const int64_t total = std::accumulate(lengths_.begin(), lengths_.end(), int64_t{0});
    return {1, one_row ? c.sequences : total, heads, c.head_dim};
  }

  template <typename U>
  static View<U, 4> HeadsFirst(View<U, 4> view) {
    std::swap(view.shape[1], view.shape[2]);
    std::swap(view.stride[1], view.stride[2]);
    return view;
  }

  std::vector<int64_t> lengths_;
  Tensor<T, 4> query_, key_, value_, output_;
  Tensor<std::uint8_t, 2> padding_;
  AttentionArgs<T> all_;
  std::vector<AttentionArgs<T>> sequences_;
};

}  // namespace

void RegisterAttentionVarlen(const Setting& setting) {
  for (VarlenCase c : kCases) {
    for (const bool padded : {false, true}) {
      c.padded = padded;
      const std::string name = std::string(c.name) + (padded ? "/padded" : "");
      Register<VarlenProblem<float>>(name, c, setting);
      Register<VarlenProblem<BFloat16>>(name, c, setting);
    }
  }
}

}  // namespace headwise::bench
