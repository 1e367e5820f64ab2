// Runs the inputs of a fuzzer, files or whole folders of them, without libFuzzer; then, for so many seconds, what comes
// of changing them at random: on the library as it is released, and blind to what code they reach.
//   fuzz_replay_softmax [-max_total_time=30] corpus/softmax
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace {

using Input = std::vector<char>;

void Run(const Input& input) {
  LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(input.data()), input.size());
}

// One of them with one to eight of its bytes changed, left out or added, or with the end of another.
Input Changed(const std::vector<Input>& inputs, std::mt19937_64& random) {
  const auto below = [&](std::size_t n) { return static_cast<std::size_t>(random() % n); };
  Input input = inputs[below(inputs.size())];
  for (std::size_t changes = 1 + below(8); changes > 0; --changes) {
    const std::size_t i = below(input.size() + 1);
    const auto at = input.begin() + static_cast<std::ptrdiff_t>(i);
    const Input& other = inputs[below(inputs.size())];
    const auto byte = static_cast<char>(random());
    switch (below(8)) {
      case 0:
        input.insert(at, byte);
        break;
      case 1:
        if (at != input.end()) input.erase(at);
        break;
      case 2:
        input.resize(i), input.insert(input.end(), other.begin() + std::min(i, other.size()), other.end());
        break;
      case 3:
        if (at != input.end()) *at = static_cast<char>(*at + (byte % 2 ? 1 : -1));
        break;
      default:
        if (at != input.end()) *at = byte;
    }
  }
  return input;
}

}  // namespace

int main(int count, char** arguments) {
  std::vector<std::filesystem::path> paths;
  int seconds = 0;
  for (int i = 1; i < count; ++i) {
    if (std::sscanf(arguments[i], "-max_total_time=%d", &seconds) == 1) continue;
    const std::filesystem::path path = arguments[i];
    if (!std::filesystem::is_directory(path)) {
      paths.push_back(path);
      continue;
    }
    for (const auto& entry : std::filesystem::directory_iterator(path)) paths.push_back(entry.path());
  }
  std::sort(paths.begin(), paths.end());
  std::vector<Input> inputs;
  for (const std::filesystem::path& path : paths) {
    std::ifstream file(path, std::ios::binary);
    inputs.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
    std::fprintf(stderr, "%s\n", path.c_str());
    if (!file) return 1;
    Run(inputs.back());
  }
  std::printf("%zu inputs\n", inputs.size());
  if (inputs.empty()) return 1;

  // It is in a file before it is run, so that one which ends the process is not lost.
  const std::filesystem::path last = std::filesystem::path(arguments[0]).filename().concat(".input");
  if (seconds > 0) std::fprintf(stderr, "%s\n", last.c_str());
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(seconds);
  std::mt19937_64 random(std::random_device{}());
  long changed = 0;
  for (; std::chrono::steady_clock::now() < end; ++changed) {
    const Input input = Changed(inputs, random);
    std::ofstream(last, std::ios::binary).write(input.data(), static_cast<std::streamsize>(input.size()));
    Run(input);
  }
  if (seconds > 0) std::printf("%ld changed ones\n", changed), std::filesystem::remove(last);
}
