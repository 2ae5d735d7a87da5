// One variant of the kernel, inside a namespace.
#include "../../jax_msssim/_cuda/scale.cu"

static void all(const std::string& bytes, int blocks, void** buffers) {
  if (bytes.size() != sizeof params) std::abort();
  std::memcpy((void*)&params, bytes.data(), sizeof params);
  Args x = {(const float*)buffers[0], (const float*)buffers[1], (const Numbers*)buffers[2], {}, (float*)buffers[3 + GRAD]};
  x.b += (long)params.images * params.height * (params.width * params.channels);
  for (int i = 0; i < GRAD; ++i) x.gradients[i] = (float*)buffers[3 + i];
  auto shared = std::make_unique<Shared>();
  for (int index = 0; index < blocks; ++index) {
    poison(shared.get(), sizeof *shared);
    run(*shared, x, index);
  }
}

#undef SIMILARITY
#undef GRAD
