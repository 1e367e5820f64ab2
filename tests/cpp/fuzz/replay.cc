// Runs inputs of a fuzzer without libFuzzer: packed corpora (corpus.py), or files of one input each. Then, for the
// given number of seconds, random mutations of them, on the library as it is released and without coverage.
//   fuzz_replay_softmax [-max_total_time=30] corpus/softmax.hex
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace {

using Input = std::vector<char>;

void Run(const Input& input) {
  LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(input.data()), input.size());
}

// One of the inputs with one to eight bytes changed, erased or inserted, or with the tail of another input.
Input Mutated(const std::vector<Input>& inputs, std::mt19937_64& random) {
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

// The bytes of a line of hexadecimal digits.
Input FromHex(const std::string& line) {
  Input input;
  for (std::size_t i = 0; i + 1 < line.size(); i += 2) {
    input.push_back(static_cast<char>(std::stoi(line.substr(i, 2), nullptr, 16)));
  }
  return input;
}

// The inputs of a packed corpus, or a file as the only one.
std::vector<Input> Read(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path.string());
  std::vector<Input> inputs;
  if (path.extension() == ".hex") {
    for (std::string line; std::getline(file, line);) inputs.push_back(FromHex(line));
  } else {
    inputs.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }
  return inputs;
}

}  // namespace

int main(int count, char** arguments) {
  std::vector<Input> inputs;
  int seconds = 0;
  for (int i = 1; i < count; ++i) {
    if (std::sscanf(arguments[i], "-max_total_time=%d", &seconds) == 1) continue;
    const std::vector<Input> read = Read(arguments[i]);
    for (std::size_t line = 0; line < read.size(); ++line) {
      std::fprintf(stderr, "%s:%zu\n", arguments[i], line + 1);  // known even if it ends the process
      Run(read[line]);
    }
    inputs.insert(inputs.end(), read.begin(), read.end());
  }
  std::printf("%zu inputs\n", inputs.size());
  if (inputs.empty()) return 1;

  // Each mutation is written to a file before it runs, so that one which ends the process is kept.
  const std::filesystem::path last = std::filesystem::path(arguments[0]).filename().concat(".input");
  if (seconds > 0) std::fprintf(stderr, "%s\n", last.c_str());
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(seconds);
  std::mt19937_64 random(std::random_device{}());
  long mutations = 0;
  for (; std::chrono::steady_clock::now() < end; ++mutations) {
    const Input input = Mutated(inputs, random);
    std::ofstream(last, std::ios::binary).write(input.data(), static_cast<std::streamsize>(input.size()));
    Run(input);
  }
  if (seconds > 0) std::printf("%ld mutations\n", mutations), std::filesystem::remove(last);
}
