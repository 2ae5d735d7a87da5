// One scale of SSIM: sums over positions of 1 - cs, or of 1 - l cs and of l cs, and their gradient images.
//
// A block of threads marches down a strip of an image, R rows of windows a step:
//
//   columns          moments of each column in windows K high and 1 wide     registers -> moments
//   rows             moments of the windows, the terms, their derivatives    moments   -> sums, maps
//   adjoint_rows     the maps, blurred along rows                            maps      -> blurred (where moments were)
//   adjoint_columns  and along columns; rows that are complete are written   blurred   -> registers -> memory
//
// Along columns a thread owns one column of one channel. Along rows it owns R neighbouring windows of one row and one
// channel. R neighbouring windows, in either direction, share a pivot, a sample that lies in each of them near its
// middle: measured from it, E[e^2] - E[e]^2 loses next to nothing. Sums have a fixed order.
//
// The same source is compiled for GPUs and for the CPU of the tests, where loops stand for the threads of a block. GRAD
// is the number of gradient images, 0 to 2; SIMILARITY is 1 for l cs, 0 for cs alone; NAME is the kernel's.

#ifndef THREADS
#define THREADS 256
#endif
#ifndef NEIGHBOURS
#define NEIGHBOURS 5
#endif
#ifndef BLOCKS  // on a multiprocessor at once: that sets how many registers a thread has
#define BLOCKS (GRAD ? 2 : 3)
#endif

constexpr int K = 11, HALO = K - 1;                    // taps
constexpr int R = NEIGHBOURS, SAMPLES = R + HALO;      // neighbouring windows, and the samples they cover
constexpr int PIVOT = (K - 1) / 2 + (R - 1) / 2;       // of those
constexpr int MARGIN = GRAD ? HALO : 0;                // of windows left of a block and above: its pixels are in them too
constexpr int SUMS = 1 + SIMILARITY;
constexpr int PLANE = THREADS / R + 8;                 // of columns x with one x % R, so that threads use all banks

#ifdef __CUDACC__
#define DEVICE static __device__ __forceinline__
#define CONSTANT static __constant__
#define UNROLL _Pragma("unroll")
#define NO_UNROLL _Pragma("unroll 1")
#endif

// What the program is for. It is filled in by whoever launches it: in the text of the PTX.
struct Params {
  int height, width, channels;  // of an image
  int strips, chunks;           // blocks across an image, and down
  int columns, rows;            // of a block: of windows, or where there are gradients of pixels
  int images;                   // above 0: one array holds the sums of so many images, then the differences; 0: a and b
  float sign;                   // GRAD 1: 1 by a, -1 by b
  float scale;                  // of gradients: pixels / positions
  float taps[K];
};
CONSTANT Params params = {};

#if GRAD
struct alignas(4 * GRAD) ByMean { float of[GRAD]; };   // of each image
struct Maps { float2 by_variance[R][R * PLANE]; ByMean by_mean[R][R * PLANE]; };
#endif

struct Shared {
  union {
    float4 moments[R][R * PLANE];  // of columns: mean of s and of d, variance of s and of d
#if GRAD
    Maps blurred;
#endif
    struct { double of_lane[SUMS][32 * 4]; float of_thread[SUMS][THREADS]; } sums;
  };
#if GRAD
  Maps maps;
#endif
};

struct Numbers { float c1, c2, centre_a, centre_b; };  // of an image

struct Args {
  const float *a, *b;       // or s and d
  const Numbers *numbers;
  float *gradients[2];      // the first GRAD of them
  float *sums;              // [images, SUMS, channels, blocks]
};

struct Block { int image, place, first_row, first_column, groups; };  // R neighbouring columns of windows are a group

struct Thread {             // in registers
  float s[SAMPLES], d[SAMPLES];
#if GRAD
  float by_vs[SAMPLES], by_vd[SAMPLES], by_mean[GRAD][SAMPLES];
#endif
  float sum[SUMS], lost[SUMS];
  long column;              // the first sample of its column, in the images
  int at;                   // its column in shared memory
  int row, base;            // its row of a step, and the first of its windows in shared memory
  int exists, own;          // which of its windows are in the image, and which in the block: bits
  Numbers n;
};

DEVICE Block block_of(int index) {
  Block k;
  k.image = index / (params.strips * params.chunks);
  k.place = index % (params.strips * params.chunks);
  int strip = k.place % params.strips, chunk = k.place / params.strips;
  k.first_column = strip * params.columns - MARGIN;
  k.first_row = chunk * params.rows - MARGIN;
  k.groups = (params.columns + MARGIN + R - 1) / R;
  return k;
}

DEVICE int clamped(int i, int size) { return i < 0 ? 0 : i >= size ? size - 1 : i; }

DEVICE float reciprocal_of(float x) {
#ifdef __CUDACC__
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r + r * (1 - x * r);
#else
  return 1 / x;
#endif
}

// The sum and the difference, less those of the centres. At coarser scales that is what the arrays hold.
DEVICE float2 centred(const Numbers& n, float a, float b) {
  if (params.images) return make_float2(a, b);
  float above_a = a - n.centre_a, above_b = b - n.centre_b, apart = n.centre_a - n.centre_b;
  // Images of about one brightness are subtracted first, which is exact where they are nearly equal.
  bool alike = fabsf(apart) <= fabsf(n.centre_a) / 2;
  return make_float2(above_a + above_b, alike ? (a - b) - apart : above_a - above_b);
}

DEVICE void load(Thread& t, const Args& x, int i, int row) {
  int line = clamped(row, params.height) * (params.width * params.channels);  // an image has less than 2^31 samples
  float2 sample = centred(t.n, (x.a + t.column)[line], (x.b + t.column)[line]);
  t.s[i] = sample.x;
  t.d[i] = sample.y;
}

DEVICE void start(Thread& t, const Args& x, const Block& k, int thread) {
  int channels = params.channels, pixel = thread / channels, channel = thread % channels;
  t.column = (long)k.image * params.height * (params.width * channels)
      + clamped(k.first_column + pixel, params.width) * channels + channel;
  t.at = pixel % R * PLANE + pixel / R * channels + channel;
  t.row = thread / (k.groups * channels);
  t.base = thread % (k.groups * channels);
  t.exists = t.own = 0;
  UNROLL for (int r = 0; r < R; ++r) {
    int in_block = t.base / channels * R + r, column = k.first_column + in_block;
    bool exists = column >= 0 && column < params.width - HALO;
    t.exists |= exists << r;
    t.own |= (exists && in_block >= MARGIN && in_block < MARGIN + params.columns) << r;
  }
  t.n = x.numbers[k.image];
  UNROLL for (int i = 0; i < HALO; ++i) load(t, x, R + i, k.first_row + i);
#if GRAD
  UNROLL for (int i = 0; i < SAMPLES; ++i) {
    t.by_vs[i] = t.by_vd[i] = 0;
    UNROLL for (int g = 0; g < GRAD; ++g) t.by_mean[g][i] = 0;
  }
#endif
  UNROLL for (int i = 0; i < SUMS; ++i) t.sum[i] = t.lost[i] = 0;
}

// --- moments ------------------------------------------------------------------------------------------------

DEVICE void next_rows(Thread& t, const Args& x, int row) {
  UNROLL for (int i = 0; i < HALO; ++i) {
    t.s[i] = t.s[i + R];
    t.d[i] = t.d[i + R];
  }
  UNROLL for (int i = HALO; i < SAMPLES; ++i) load(t, x, i, row + i);
}

DEVICE void columns(const Thread& t, Shared& shared) {
  float ms[R] = {}, md[R] = {}, vs[R] = {}, vd[R] = {};
  UNROLL for (int i = 0; i < SAMPLES; ++i) {
    if (i == PIVOT) continue;
    float s = t.s[i] - t.s[PIVOT], d = t.d[i] - t.d[PIVOT], ss = s * s, dd = d * d;
    UNROLL for (int r = 0; r < R; ++r) {
      if (i - r < 0 || i - r >= K) continue;
      float tap = params.taps[i - r];
      ms[r] += tap * s;
      md[r] += tap * d;
      vs[r] += tap * ss;
      vd[r] += tap * dd;
    }
  }
  UNROLL for (int r = 0; r < R; ++r)
    shared.moments[r][t.at] =
        make_float4(t.s[PIVOT] + ms[r], t.d[PIVOT] + md[r], vs[r] - ms[r] * ms[r], vd[r] - md[r] * md[r]);
}

DEVICE void add(Thread& t, int i, float x) {  // Kahan's sum
  float y = x - t.lost[i], sum = t.sum[i] + y;
  t.lost[i] = (sum - t.sum[i]) - y;
  t.sum[i] = sum;
}

DEVICE void rows(Thread& t, Shared& shared, const Block& k, int row) {
  if (t.row >= R) return;
  int channels = params.channels;
  float ms[R] = {}, md[R] = {}, vs[R] = {}, vd[R] = {};
  float4 pivot = shared.moments[t.row][t.base + PIVOT % R * PLANE + PIVOT / R * channels];
  UNROLL for (int i = 0; i < SAMPLES; ++i) {
    float4 column = i == PIVOT ? pivot : shared.moments[t.row][t.base + i % R * PLANE + i / R * channels];
    float s = column.x - pivot.x, d = column.y - pivot.y, ss = column.z + s * s, dd = column.w + d * d;
    UNROLL for (int r = 0; r < R; ++r) {
      if (i - r < 0 || i - r >= K) continue;
      float tap = params.taps[i - r];
      if (i != PIVOT) {
        ms[r] += tap * s;
        md[r] += tap * d;
      }
      vs[r] += tap * ss;
      vd[r] += tap * dd;
    }
  }
  int window_row = row + t.row, in_block = window_row - k.first_row;
  int exists = window_row >= 0 && window_row < params.height - HALO ? t.exists : 0;
  int own = in_block >= MARGIN && in_block < MARGIN + params.rows ? t.own & exists : 0;
  float total[SUMS][R];
  UNROLL for (int r = 0; r < R; ++r) {
    float mean_s = pivot.x + ms[r], mean_d = pivot.y + md[r];
    float variance_s = vs[r] - ms[r] * ms[r], variance_d = vd[r] - md[r] * md[r];
    float reciprocal = reciprocal_of(variance_s + variance_d + 2 * t.n.c2);
    float value = 2 * variance_d * reciprocal;  // 1 - cs
#if SIMILARITY
    float sum = (t.n.centre_a + t.n.centre_b) + mean_s, difference = (t.n.centre_a - t.n.centre_b) + mean_d;
    float by_luminance = reciprocal_of(sum * sum + difference * difference + 2 * t.n.c1);
    float dark = 2 * difference * difference * by_luminance;  // 1 - l
    float cs = (variance_s - variance_d + 2 * t.n.c2) * reciprocal;
    value += cs * dark;
    float mean_a = t.n.centre_a + (mean_s + mean_d) / 2, mean_b = t.n.centre_b + (mean_s - mean_d) / 2;
    float l = (2 * mean_a * mean_b + t.n.c1) * reciprocal_of(mean_a * mean_a + mean_b * mean_b + t.n.c1);
    total[SIMILARITY][r] = own >> r & 1 ? l * cs : 0;
#else
    const float dark = 0;
#endif
    total[0][r] = own >> r & 1 ? value : 0;
#if GRAD
    float by_vs = (dark - value) * reciprocal, by_vd = (2 - dark - value) * reciprocal;
    float by_s = -2 * mean_s * by_vs, by_d = -2 * mean_d * by_vd;
#if SIMILARITY
    by_s -= 2 * cs * dark * sum * by_luminance;
    by_d += 2 * cs * (2 - dark) * difference * by_luminance;
#endif
    if (!(exists >> r & 1)) by_vs = by_vd = by_s = by_d = 0;
    int at = t.base + r * PLANE;
    ByMean by_mean;
#if GRAD == 1
    by_vd *= params.sign;
    by_mean.of[0] = by_s + params.sign * by_d;
#else
    by_mean.of[0] = by_s + by_d;
    by_mean.of[GRAD - 1] = by_s - by_d;
#endif
    shared.maps.by_variance[t.row][at] = make_float2(by_vs, by_vd);
    shared.maps.by_mean[t.row][at] = by_mean;
#endif
  }
  UNROLL for (int i = 0; i < SUMS; ++i) {  // in pairs: roundings of equal numbers go one way
    UNROLL for (int step = 1; step < R; step *= 2) {
      UNROLL for (int r = 0; r + step < R; r += 2 * step) total[i][r] += total[i][r + step];
    }
    add(t, i, total[i][0]);
  }
}

// --- gradients ----------------------------------------------------------------------------------------------

#if GRAD
// A pixel is in the HALO + 1 windows that end with the one whose first pixel it is. So column x of what is blurred is
// that of pixel x + HALO of the strip. What no pixel takes is computed all the same, of whatever is there.
DEVICE void adjoint_rows(const Thread& t, Shared& shared) {
  if (t.row >= R) return;
  float vs[R] = {}, vd[R] = {}, mean[GRAD][R] = {};
  UNROLL for (int i = 0; i < SAMPLES; ++i) {
    int at = t.base + i % R * PLANE + i / R * params.channels;
    float2 by_variance = shared.maps.by_variance[t.row][at];
    ByMean by_mean = shared.maps.by_mean[t.row][at];
    UNROLL for (int r = 0; r < R; ++r) {
      if (i - r < 0 || i - r >= K) continue;
      float tap = params.taps[HALO - (i - r)];
      vs[r] += tap * by_variance.x;
      vd[r] += tap * by_variance.y;
      UNROLL for (int g = 0; g < GRAD; ++g) mean[g][r] += tap * by_mean.of[g];
    }
  }
  UNROLL for (int r = 0; r < R; ++r) {
    int at = t.base + r * PLANE;
    ByMean by_mean;
    UNROLL for (int g = 0; g < GRAD; ++g) by_mean.of[g] = mean[g][r];
    shared.blurred.by_variance[t.row][at] = make_float2(vs[r], vd[r]);
    shared.blurred.by_mean[t.row][at] = by_mean;
  }
}

DEVICE void adjoint_columns(Thread& t, const Shared& shared, const Args& x, const Block& k, int row, int thread) {
  UNROLL for (int i = 0; i < R; ++i) {
    float2 by_variance = shared.blurred.by_variance[i][t.at];
    ByMean by_mean = shared.blurred.by_mean[i][t.at];
    UNROLL for (int j = 0; j < K; ++j) {
      float tap = params.taps[j];
      t.by_vs[i + j] += tap * by_variance.x;
      t.by_vd[i + j] += tap * by_variance.y;
      UNROLL for (int g = 0; g < GRAD; ++g) t.by_mean[g][i + j] += tap * by_mean.of[g];
    }
  }
  int pixel = thread / params.channels, end = k.first_row + HALO + params.rows;
  end = end < params.height ? end : params.height;
  if (pixel >= params.columns || k.first_column + HALO + pixel >= params.width) end = 0;
  // The column of its pixels is HALO to the right of that of its windows, which does not exist left of the image.
  long column = (long)k.image * params.height * (params.width * params.channels)
      + (k.first_column + HALO) * params.channels + thread;
  UNROLL for (int i = 0; i < R; ++i) {
    int y = row + i;
    if (y >= k.first_row + HALO && y < end) {
      long at = column + y * (params.width * params.channels);
      float2 sample = centred(t.n, x.a[at], x.b[at]);
      float by_vs = 2 * sample.x * t.by_vs[i], by_vd = 2 * sample.y * t.by_vd[i];
      x.gradients[0][at] = params.scale * (t.by_mean[0][i] + (by_vs + by_vd));
#if GRAD == 2
      x.gradients[1][at] = params.scale * (t.by_mean[GRAD - 1][i] + (by_vs - by_vd));
#endif
    }
  }
  UNROLL for (int i = 0; i < SAMPLES; ++i) {
    t.by_vs[i] = i < HALO ? t.by_vs[i + R] : 0;
    t.by_vd[i] = i < HALO ? t.by_vd[i + R] : 0;
    UNROLL for (int g = 0; g < GRAD; ++g) t.by_mean[g][i] = i < HALO ? t.by_mean[g][i + R] : 0;
  }
}
#endif

// --- sums of the block, a channel at a time -----------------------------------------------------------------

DEVICE void keep(const Thread& t, Shared& shared, int thread) {
  UNROLL for (int i = 0; i < SUMS; ++i) shared.sums.of_thread[i][thread] = t.sum[i] - t.lost[i];
}

DEVICE void add_up(Shared& shared, const Block& k, int thread) {
  int channels = params.channels, items = R * k.groups;
  if (thread >= 32 * channels) return;
  UNROLL for (int i = 0; i < SUMS; ++i) {
    double sum = 0;
    NO_UNROLL for (int j = thread / channels; j < items; j += 32)
      sum += shared.sums.of_thread[i][j * channels + thread % channels];
    shared.sums.of_lane[i][thread] = sum;
  }
}

DEVICE void write_sums(const Shared& shared, const Args& x, const Block& k, int thread) {
  int channels = params.channels, blocks = params.strips * params.chunks;
  if (thread >= channels) return;
  UNROLL for (int i = 0; i < SUMS; ++i) {
    double sum = 0;
    NO_UNROLL for (int j = 0; j < 32; ++j) sum += shared.sums.of_lane[i][j * channels + thread];
    x.sums[((k.image * SUMS + i) * channels + thread) * blocks + k.place] = (float)sum;
  }
}

// --- the whole block ----------------------------------------------------------------------------------------

#ifdef __CUDACC__
#define ALL_THREADS Thread t; const int thread = threadIdx.x;
#define EACH                   // for each thread
#define SYNC __syncthreads();  // all threads are here
#endif

DEVICE void run(Shared& shared, const Args& x, int index) {
  const Block k = block_of(index);
  ALL_THREADS
  EACH start(t, x, k, thread);
  for (int row = k.first_row; row < k.first_row + MARGIN + params.rows; row += R) {
    EACH next_rows(t, x, row);
    SYNC  // the step before has been read
    EACH columns(t, shared);
    SYNC
    EACH rows(t, shared, k, row);
#if GRAD
    SYNC
    EACH adjoint_rows(t, shared);
    SYNC
    EACH adjoint_columns(t, shared, x, k, row, thread);
#endif
  }
  SYNC
  EACH keep(t, shared, thread);
  SYNC
  EACH add_up(shared, k, thread);
  SYNC
  EACH write_sums(shared, x, k, thread);
}

#ifdef __CUDACC__
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) NAME(
    const float* __restrict__ a, const float* __restrict__ b, const Numbers* __restrict__ numbers,
#if GRAD
    float* __restrict__ gradient,
#endif
#if GRAD == 2
    float* __restrict__ second_gradient,
#endif
    float* __restrict__ sums) {
  __shared__ Shared shared;
  Args x = {a, b, numbers, {}, sums};
  x.b += (long)params.images * params.height * (params.width * params.channels);
#if GRAD
  x.gradients[0] = gradient;
#endif
#if GRAD == 2
  x.gradients[1] = second_gradient;
#endif
  run(shared, x, blockIdx.x);
}
#endif
