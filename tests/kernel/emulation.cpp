// XLA's call of a kernel, on the CPU: takes the PTX that a GPU would be given, finds out which kernel it is and what it
// is for, and runs the same source, with loops for the threads of a block.
//
// The kernel sees copies of XLA's buffers, each of its own size, so that a sanitizer finds what lies beyond. Results,
// shared memory and registers are NaN before they are written.

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "xla/ffi/api/ffi.h"

struct float2 { float x, y; };
struct float4 { float x, y, z, w; };
static float2 make_float2(float x, float y) { return {x, y}; }
static float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

static void poison(void* start, size_t size) { std::memset(start, 0xff, size); }

#define DEVICE static inline
#define CONSTANT static thread_local
#define UNROLL
#define NO_UNROLL
#define ALL_THREADS std::vector<Thread> all(THREADS); poison(all.data(), THREADS * sizeof(Thread));
#ifdef BACKWARDS
#define EACH for (int thread = THREADS - 1; thread >= 0; --thread) if (Thread& t = all[thread]; true)
#else
#define EACH for (int thread = 0; thread < THREADS; ++thread) if (Thread& t = all[thread]; true)
#endif
#define SYNC

namespace contrast_structure_0 {
#define SIMILARITY 0
#define GRAD 0
#include "variant.h"
}
namespace contrast_structure_1 {
#define SIMILARITY 0
#define GRAD 1
#include "variant.h"
}
namespace contrast_structure_2 {
#define SIMILARITY 0
#define GRAD 2
#include "variant.h"
}
namespace similarity_0 {
#define SIMILARITY 1
#define GRAD 0
#include "variant.h"
}
namespace similarity_1 {
#define SIMILARITY 1
#define GRAD 1
#include "variant.h"
}
namespace similarity_2 {
#define SIMILARITY 1
#define GRAD 2
#include "variant.h"
}

namespace ffi = xla::ffi;

static ffi::Error call(ffi::RemainingArgs args, ffi::RemainingRets results, ffi::Dictionary attributes) {
  const std::map<std::string_view, void (*)(const std::string&, int, void**)> variants = {
      {"contrast_structure_0", contrast_structure_0::all}, {"contrast_structure_1", contrast_structure_1::all},
      {"contrast_structure_2", contrast_structure_2::all}, {"similarity_0", similarity_0::all},
      {"similarity_1", similarity_1::all},                 {"similarity_2", similarity_2::all},
  };
  std::vector<std::unique_ptr<char[]>> copies;
  std::vector<void*> buffers;
  for (size_t i = 0; i < args.size() + results.size(); ++i) {
    bool argument = i < args.size();
    ffi::AnyBuffer buffer = argument ? *args.get<ffi::AnyBuffer>(i) : **results.get<ffi::AnyBuffer>(i - args.size());
    copies.push_back(std::make_unique<char[]>(buffer.size_bytes()));
    buffers.push_back(copies.back().get());
    if (argument) std::memcpy(buffers.back(), buffer.untyped_data(), buffer.size_bytes());
    else poison(buffers.back(), buffer.size_bytes());
  }
  std::string ptx(*attributes.get<std::string_view>("kernel_data")), params;
  for (size_t at = ptx.find('{', ptx.find("params[")); ptx[at] != '}'; at = ptx.find_first_of(",}", at + 1))
    params += (char)std::strtol(ptx.c_str() + at + 1, nullptr, 10);
  variants.at(*attributes.get<std::string_view>("name"))(params, *attributes.get<int32_t>("grid_x"), buffers.data());
  for (size_t i = 0; i < results.size(); ++i) {
    ffi::AnyBuffer buffer = **results.get<ffi::AnyBuffer>(i);
    std::memcpy(buffer.untyped_data(), buffers[args.size() + i], buffer.size_bytes());
  }
  return ffi::Error::Success();
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(launch, call, ffi::Ffi::Bind().RemainingArgs().RemainingRets().Attrs());
