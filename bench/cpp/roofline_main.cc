// Prints the limits of the machine: `roofline [threads]`.
#include <cstdio>
#include <cstdlib>
#include <set>

#include "headwise/runtime.h"
#include "roofline.h"

int main(int argc, char** argv) {
  using namespace headwise;
  if (argc > 2 || (argc == 2 && std::atoi(argv[1]) < 1)) {
    std::fprintf(stderr, "usage: %s [threads]\n", argv[0]);
    return 2;
  }
  const int most = argc == 2 ? std::atoi(argv[1]) : GetNumThreads();
  for (const int threads : std::set<int>{1, most}) {
    std::printf("%d thread%s\n", threads, threads == 1 ? "" : "s");
    for (const std::string& target : ListTargets()) {
      SetTarget(target);
      std::printf("  %-8s %8.1f GFLOP/s float32 %8.1f GFLOP/s float64\n", target.c_str(),
                  bench::PeakGflops<float>(threads), bench::PeakGflops<double>(threads));
    }
    std::printf("  %-8s %8.1f GB/s\n", "copy", bench::CopyGigabytes(threads));
  }
  return 0;
}
