// A keep-mask in blocks (BlockMask). Blocks that are dropped are skipped: key blocks of a block of queries (AnyKept)
// and the panels at both ends of a tile (KeptByBlocks). DropByBlocks drops the rest, by selection, so that NaN ends
// here.

#if defined(HEADWISE_ATTENTION_MODIFIERS_BLOCKS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADWISE_ATTENTION_MODIFIERS_BLOCKS_INL_H_
#undef HEADWISE_ATTENTION_MODIFIERS_BLOCKS_INL_H_
#else
#define HEADWISE_ATTENTION_MODIFIERS_BLOCKS_INL_H_
#endif

#include <algorithm>
#include <cstdint>

#include "attention/modifiers/keep-inl.h"
#include "attention/modifiers/window-inl.h"
#include "headwise/attention.h"
#include "hwy/highway.h"
#include "matmul/fma-inl.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

// The blocks of one query of one head.
class RowBlocks {
 public:
  RowBlocks(const CallBlocks& blocks, int64_t batch, int64_t head, int64_t query) : mask_(*blocks.mask) {
    const auto& shape = mask_.shape;
    const int64_t n = shape[0] == 1 ? 0 : blocks.batch + batch, h = shape[1] == 1 ? 0 : head;
    const int64_t row = blocks.query + query;
    entries_ = mask_.index.data() + ((n * shape[1] + h) * shape[2] + row / mask_.query_size) * shape[3];
    row_ = row % mask_.query_size;
  }

  const std::int32_t* entries() const { return entries_; }

  // 64 bits of the row of a pattern, of which bit 0 keeps key `at` of the block; 0 behind the block.
  std::uint64_t Bits(std::int32_t entry, int64_t at) const {
    const int64_t words = mask_.Words(), word = at / 64, shift = at % 64;
    const std::uint64_t* row = mask_.bits + ((entry - BlockMask::kFirstBits) * mask_.query_size + row_) * words;
    if (shift == 0) return row[word];
    return row[word] >> shift | (word + 1 < words ? row[word + 1] << (64 - shift) : 0);
  }

  // visit(entry, at, from, to) for the blocks of the keys [from, to), counted from key `begin`; `at` is the place of
  // `from` in the block.
  template <class Visit>
  HWY_INLINE void ForBlocks(int64_t begin, int64_t from, int64_t to, const Visit& visit) const {
    for (int64_t block = (begin + from) / mask_.key_size; from < to; ++block) {
      const int64_t first = block * mask_.key_size - begin, end = std::min(to, first + mask_.key_size);
      visit(entries_[block], from - first, from, end);
      from = end;
    }
  }

 private:
  const BlockMask& mask_;
  const std::int32_t* entries_;
  int64_t row_;  // of the block
};

// Whether the blocks keep all of the keys [from, to), counted from key_begin, for all of the rows.
inline bool AllKept(const CallBlocks& blocks, int64_t batch, const Row* rows, int count, int64_t key_begin,
                    int64_t from, int64_t to) {
  bool all = true;
  for (int r = 0; r < count && all; ++r) {
    const RowBlocks row(blocks, batch, rows[r].head, rows[r].query);
    row.ForBlocks(key_begin, from, to, [&](std::int32_t entry, int64_t at, int64_t begin, int64_t end) {
      if (entry == BlockMask::kAll) return;
      if (entry == BlockMask::kNone) all = false;
      for (int64_t j = begin; j < end && all; j += 64) {
        std::uint64_t dropped = ~row.Bits(entry, at + j - begin);
        if (end - j < 64) dropped &= (std::uint64_t{1} << (end - j)) - 1;
        all = dropped == 0;
      }
    });
  }
  return all;
}

// Narrows the keys [from, to) of a block, counted from key_begin, to the panels in which the blocks keep a key for some
// of the rows.
template <typename T>
HWY_NOINLINE KeptKeys KeptByBlocks(const CallBlocks& blocks, int64_t batch, const Row* rows, int count,
                                   int64_t key_begin, int64_t from, int64_t to) {
  int64_t low = to, high = from;
  bool all = true;
  const std::int32_t* previous = nullptr;
  bool some = true;  // the previous row has patterns, which differ from row to row
  for (int r = 0; r < count && !(low == from && high == to && !all); ++r) {
    const RowBlocks row(blocks, batch, rows[r].head, rows[r].query);
    if (row.entries() == previous && !some) continue;
    previous = row.entries(), some = false;
    row.ForBlocks(key_begin, from, to, [&](std::int32_t entry, int64_t at, int64_t begin, int64_t end) {
      if (entry != BlockMask::kAll) all = false;
      if (entry == BlockMask::kNone) return;
      if (entry == BlockMask::kAll) {
        low = std::min(low, begin), high = std::max(high, end);
        return;
      }
      some = true;
      for (int64_t j = begin; j < end; j += 64) {
        if (j >= low && std::min(j + 64, end) <= high) continue;
        std::uint64_t bits = row.Bits(entry, at + j - begin);
        if (end - j < 64) bits &= (std::uint64_t{1} << (end - j)) - 1;
        if (bits == 0) continue;
        low = std::min(low, j + static_cast<int64_t>(hwy::Num0BitsBelowLS1Bit_Nonzero64(bits)));
        high = std::max(high, j + 64 - static_cast<int64_t>(hwy::Num0BitsAboveMS1Bit_Nonzero64(bits)));
      }
    });
  }
  if (low >= high) return {0, 0, false};
  low = low / kPanel<T> * kPanel<T>;
  return {low, high, all || AllKept(blocks, batch, rows, count, key_begin, low, high)};
}

// Whether the blocks of some query in [query_begin, query_end) of the heads [head, head + heads) keep any key in
// [begin, end).
HWY_INLINE bool AnyKept(const CallBlocks& blocks, int64_t batch, int64_t head, int64_t heads, int64_t query_begin,
                        int64_t query_end, int64_t begin, int64_t end) {
  const BlockMask& mask = *blocks.mask;
  const int64_t first = begin / mask.key_size, last = (end - 1) / mask.key_size;
  for (int64_t h = head; h < head + heads; ++h) {
    for (int64_t i = query_begin; i < query_end;) {
      const std::int32_t* const entries = RowBlocks(blocks, batch, h, i).entries();
      for (int64_t n = first; n <= last; ++n) {
        if (entries[n] != BlockMask::kNone) return true;
      }
      i = ((blocks.query + i) / mask.query_size + 1) * mask.query_size - blocks.query;
    }
    if (mask.shape[1] == 1) break;
  }
  return false;
}

// scores[from, to) of keys that the row's blocks drop become -inf; scores[0] belongs to key key_begin. There is room
// for whole vectors.
template <typename T>
void DropByBlocks(const CallBlocks& blocks, int64_t batch, const Row& query, int64_t key_begin, int64_t from,
                  int64_t to, T* scores) {
  const RowBlocks row(blocks, batch, query.head, query.query);
  row.ForBlocks(key_begin, from, to, [&](std::int32_t entry, int64_t at, int64_t begin, int64_t end) HWY_ATTR {
    if (entry == BlockMask::kAll) return;
    if (entry == BlockMask::kNone) {
      std::fill(scores + begin, scores + end, kMinusInf<T>);
      return;
    }
    const Tag<T> d;
    for (int64_t j = begin; j < end; j += kLanes<T>) {
      std::uint64_t bits = row.Bits(entry, at + j - begin);
      if (end - j < 64) bits |= ~std::uint64_t{0} << (end - j);  // the next block's scores stay
      const auto kept = hn::LoadMaskBits(d, reinterpret_cast<const std::uint8_t*>(&bits));
      hn::StoreU(hn::IfThenElse(kept, hn::LoadU(d, scores + j), hn::Set(d, kMinusInf<T>)), d, scores + j);
    }
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
