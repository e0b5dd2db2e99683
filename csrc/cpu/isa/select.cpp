// Which instruction set the CPU kernels run on.
#include <torch/headeronly/util/Exception.h>

#include <atomic>
#include <cstdlib>
#include <cstring>

#include "../kernels.h"

namespace crad {
namespace {

// The kernels of the best instruction set of this processor, or of the one that the environment
// variable CRAD_KERNELS_CPU_ISA names.
const Kernels& choose_kernels() {
  struct Choice {
    const char* name;
    bool supported;
    const Kernels& kernels;
  };
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq");
#endif
  const Choice choices[] = {
#if defined(__x86_64__)
      {"avx512", avx512, kernels_avx512},
      {"avx2", avx2, kernels_avx2},
#endif
      {"baseline", true, kernels_baseline},
  };
  const char* wanted = std::getenv("CRAD_KERNELS_CPU_ISA");
  for (const Choice& choice : choices)
    if (choice.supported && (!wanted || !*wanted || std::strcmp(wanted, choice.name) == 0))
      return choice.kernels;
  STD_TORCH_CHECK(
      false, "CRAD_KERNELS_CPU_ISA is '", wanted,
      "', which this processor does not have; use avx512, avx2 or baseline, or unset it");
}

}  // namespace

const Kernels& kernels() {
  // With no guard that another thread might hold while this process forks.
  static std::atomic<const Kernels*> chosen{nullptr};
  const Kernels* known = chosen.load();
  if (known == nullptr) chosen.store(known = &choose_kernels());
  return *known;
}

}  // namespace crad
