// Times every operation on every target, with one thread and with all threads. See ../README.md.
#include "bench.h"

int main(int argc, char** argv) {
  using namespace headwise;
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  for (const std::string& target : ListTargets()) {
    for (const int threads : std::set<int>{1, GetNumThreads()}) {
      const bench::Setting setting{target, threads};
      bench::RegisterAttention(setting);
      bench::RegisterAttentionBackward(setting);
      bench::RegisterAttentionVarlen(setting);
      bench::RegisterSoftmax(setting);
      bench::RegisterRope(setting);
      bench::RegisterAlibi(setting);
      bench::RegisterLayerNorm(setting);
      bench::RegisterActivation(setting);
      bench::RegisterLinear(setting);
    }
  }
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
