// Right-padded batches: one call per batch entry, with its own number of keys.
#pragma once

#include <vector>

#include "headwise/attention.h"

namespace headwise {

// The batch entries of checked arguments with key_lengths, as calls of their own. Sets the weights of padding to 0.
template <typename T>
std::vector<AttentionArgs<T>> BatchEntries(const AttentionArgs<T>& args);

}  // namespace headwise
