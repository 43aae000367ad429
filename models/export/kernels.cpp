// Products of a sparse matrix, in compressed strips of rows, with many inputs:
//
//     y[t, r] = bias[r] + sum_k values[k, r] x[t, kept[k]]        k: of the strip of r, from starts[strip] on
//
// x: (tokens, width), y: (tokens, rows), both contiguous. Each sum is one thread's, in the order of k: the result does
// not depend on the number of threads. Vectors are of eight floats, in the extension that GCC and Clang share.

#include <algorithm>
#include <cstdint>
#include <cstring>

typedef float vec __attribute__((vector_size(32)));
constexpr int LANES = 8;

static inline vec load(const float* from) {
  vec value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

static inline void store(float* to, vec value) { std::memcpy(to, &value, sizeof value); }

// GCC has Clang's name for this only from version 12 on.
#ifdef __clang__
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
typedef int32_t lanes __attribute__((vector_size(32)));
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, lanes{__VA_ARGS__})
#endif

// ---- Strips of 16 rows that keep the same columns: of up to six tokens, 12 sums in registers.

constexpr int HEIGHT = 2 * LANES, TOKENS = 6;

struct Strip {
  const float* values;
  const int32_t* kept;
  int64_t count;
  vec low, high;  // the bias
};

template <int N>
static inline void multiply(const Strip& strip, const float* x, int64_t width, float* y, int64_t rows) {
  vec low[N], high[N];
  for (int t = 0; t < N; ++t) low[t] = strip.low, high[t] = strip.high;
  for (int64_t k = 0; k < strip.count; ++k) {
    const float* column = x + strip.kept[k];
    const vec first = load(strip.values + HEIGHT * k), second = load(strip.values + HEIGHT * k + LANES);
#pragma GCC unroll 6
    for (int t = 0; t < N; ++t) {
      low[t] += column[t * width] * first;
      high[t] += column[t * width] * second;
    }
  }
  for (int t = 0; t < N; ++t) store(y + t * rows, low[t]), store(y + t * rows + LANES, high[t]);
}

// chunk: tokens that are multiplied with all strips before the next ones are, so that they stay in the cache.
extern "C" void multiply_strips(const float* x, int64_t tokens, int64_t width, const float* values, const int32_t* kept,
                                const int64_t* starts, const float* bias, float* y, int64_t rows, int64_t chunk,
                                int threads) {
  const int64_t strips = rows / HEIGHT, chunks = (tokens + chunk - 1) / chunk;
#pragma omp parallel for schedule(dynamic, 4) num_threads(threads) if (threads > 1)
  for (int64_t job = 0; job < chunks * strips; ++job) {
    const int64_t at = job % strips, row = at * HEIGHT, begin = starts[at];
    const Strip strip = {values + HEIGHT * begin, kept + begin, starts[at + 1] - begin, load(bias + row),
                         load(bias + row + LANES)};
    int64_t t = job / strips * chunk;
    const int64_t end = std::min(tokens, t + chunk);
    for (; t + TOKENS <= end; t += TOKENS) multiply<TOKENS>(strip, x + t * width, width, y + t * rows + row, rows);
    const float* rest = x + t * width;
    float* to = y + t * rows + row;
    switch (end - t) {
      case 5: multiply<5>(strip, rest, width, to, rows); break;
      case 4: multiply<4>(strip, rest, width, to, rows); break;
      case 3: multiply<3>(strip, rest, width, to, rows); break;
      case 2: multiply<2>(strip, rest, width, to, rows); break;
      case 1: multiply<1>(strip, rest, width, to, rows); break;
    }
  }
}

// ---- Rows with columns of their own: inputs are transposed in tiles of 32 tokens, of which a row has eight sums.

constexpr int TILE = 4 * LANES;

// to[j * to_stride + i] = from[i * from_stride + j], eight by eight.
static inline void transpose(const float* from, int64_t from_stride, float* to, int64_t to_stride) {
  vec a[LANES], b[LANES];
  for (int i = 0; i < LANES; ++i) a[i] = load(from + i * from_stride);
  for (int i = 0; i < LANES; i += 2) {
    b[i] = SHUFFLE(a[i], a[i + 1], 0, 8, 2, 10, 4, 12, 6, 14);
    b[i + 1] = SHUFFLE(a[i], a[i + 1], 1, 9, 3, 11, 5, 13, 7, 15);
  }
  for (int i = 0; i < LANES; i += 4)
    for (int j = 0; j < 2; ++j) {
      a[i + j] = SHUFFLE(b[i + j], b[i + j + 2], 0, 1, 8, 9, 4, 5, 12, 13);
      a[i + j + 2] = SHUFFLE(b[i + j], b[i + j + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    }
  for (int j = 0; j < 4; ++j) {
    store(to + j * to_stride, SHUFFLE(a[j], a[j + 4], 0, 1, 2, 3, 8, 9, 10, 11));
    store(to + (j + 4) * to_stride, SHUFFLE(a[j], a[j + 4], 4, 5, 6, 7, 12, 13, 14, 15));
  }
}

// The part of up to eight by eight that is there; what is missing of `from` is not written.
static inline void transpose_part(const float* from, int64_t from_stride, float* to, int64_t to_stride, int64_t height,
                                  int64_t width) {
  if (height == LANES && width == LANES) return transpose(from, from_stride, to, to_stride);
  for (int64_t i = 0; i < height; ++i)
    for (int64_t j = 0; j < width; ++j) to[j * to_stride + i] = from[i * from_stride + j];
}

// tiles: space for (tiles of tokens, width, TILE) numbers; those of tokens that are not there reach no result.
extern "C" void multiply_rows(const float* x, int64_t tokens, int64_t width, const float* values, const int32_t* kept,
                              const int64_t* starts, const float* bias, float* y, int64_t rows, float* tiles,
                              int threads) {
  const int64_t count = (tokens + TILE - 1) / TILE;
  const int64_t lines = (width + LANES - 1) / LANES, blocks = (rows + LANES - 1) / LANES;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
#pragma omp for schedule(static)
    for (int64_t job = 0; job < count * lines; ++job) {
      const int64_t tile = job / lines, column = job % lines * LANES;
      for (int64_t t = tile * TILE; t < std::min(tokens, (tile + 1) * TILE); t += LANES)
        transpose_part(x + t * width + column, width, tiles + (tile * width + column) * TILE + t % TILE, TILE,
                       std::min<int64_t>(LANES, tokens - t), std::min<int64_t>(LANES, width - column));
    }
#pragma omp for schedule(dynamic, 4)
    for (int64_t job = 0; job < count * blocks; ++job) {
      const int64_t tile = job / blocks, first = job % blocks * LANES, last = std::min(rows, first + LANES);
      const float* inputs = tiles + tile * width * TILE;
      float sums[LANES][TILE];
      for (int64_t row = first; row < last; ++row) {
        // Two sums of each token, since one would wait for itself.
        vec even[4], odd[4];
        for (int j = 0; j < 4; ++j) even[j] = vec{} + bias[row], odd[j] = vec{};
        int64_t k = starts[row];
        for (; k + 1 < starts[row + 1]; k += 2) {
          const float *p = inputs + kept[k] * int64_t(TILE), *q = inputs + kept[k + 1] * int64_t(TILE);
#pragma GCC unroll 4
          for (int j = 0; j < 4; ++j) {
            even[j] += values[k] * load(p + LANES * j);
            odd[j] += values[k + 1] * load(q + LANES * j);
          }
        }
        if (k < starts[row + 1])
          for (int j = 0; j < 4; ++j) even[j] += values[k] * load(inputs + kept[k] * int64_t(TILE) + LANES * j);
        for (int j = 0; j < 4; ++j) store(sums[row - first] + LANES * j, even[j] + odd[j]);
      }
      for (int64_t t = tile * TILE; t < std::min(tokens, (tile + 1) * TILE); t += LANES)
        transpose_part(sums[0] + t % TILE, TILE, y + t * rows + first, rows, last - first,
                       std::min<int64_t>(LANES, tokens - t));
    }
  }
}
