// Feature maps: exact quotients and roots of window sums, rounded half to even to integers. One thread a voxel.
//
// In: maps of Σx, and of Σx² and Σx³ modulo 2^64 with, where those leave 63 bits, the sums of their floors over 2^shift,
// of stored integers x, as box2d, box3d and wide make them; what is outside adds nothing there, and its number is added
// here. Out: the standardised feature, of a · x + b over 2^p, as an integer over 2^p.
//
// Widths, of which the host sees to: |W| < 2^31, and with L = |a| max |x| + |b|: |W| L < 2^61. V = |W| Σx² − (Σx)² and
// T = |W|² Σx³ − 3 |W| Σx Σx² + 2 (Σx)³ are computed modulo 2^(64 SPREAD), 2^(64 THIRD): of SPREAD 1, a²V <= (|W| L)²
// < 2^62, of THIRD 1, |W| max |x| < 2^20 and |T| <= 6 (|W| max |x|)³ < 2^63; of 2, < 2^122, and < 2^126 for a |W| max |x|
// below 2^41. So 4 a²V fits, and V + (Σ)² <= (|W| L)² and V³ < 2^120, 2^246 with a bit more, each in its words.
//
// Rounding. Of a feature y, first the whole number floor(2 |y|), by long division and the schoolbook's root, and whether
// it is 2 |y|: from these, half to even is plain. Nothing is ever a float; there is no guess.
//
// Macros beside those of voxring.cuh: DENSE, sums are those of wide.cu; SPREAD, THIRD, words of numbers like V and T.
//
// Must equal half-even rounding of Python fractions and of roots by math.isqrt (tests/naive_features.py).
#include "voxring.cuh"

// Maps of sums, as the streamed kernels make them, or wide.cu.
#if DENSE
typedef s64 x_map;
typedef s64 power_map;
#else
typedef lane_t x_map;
typedef u64 power_map;
#endif

INLINE s64 stored(voxel v) {
#if SIGNED
  return (s64)(voxel)(v ^ BIAS_BITS) - (1ll << (8 * VOXEL - 1));
#else
  return v;
#endif
}

// Numbers of N words

// The low word first; sums and products are modulo 2^(64 N), so that they are right of negative numbers, too.
template <int N> struct Number { u64 word[N]; };

template <int N> INLINE Number<N> number(s64 from) {
  Number<N> made;
#pragma unroll
  for (int i = 0; i < N; i++) made.word[i] = i ? (u64)(from >> 63) : (u64)from;
  return made;
}

template <int N> INLINE bool less(const Number<N> &a, const Number<N> &b) {
  bool is = false;
#pragma unroll
  for (int i = 0; i < N; i++) is = a.word[i] < b.word[i] || (a.word[i] == b.word[i] && is);
  return is;
}

template <int N> INLINE bool zero(const Number<N> &a) {
  u64 some = 0;
#pragma unroll
  for (int i = 0; i < N; i++) some |= a.word[i];
  return some == 0;
}

template <int N> INLINE Number<N> sum(const Number<N> &a, const Number<N> &b) {
  Number<N> made;
  u64 carry = 0;
#pragma unroll
  for (int i = 0; i < N; i++) {
    const u64 some = a.word[i] + carry;
    made.word[i] = some + b.word[i];
    carry = (some < carry) + (made.word[i] < some);
  }
  return made;
}

template <int N> INLINE Number<N> difference(const Number<N> &a, const Number<N> &b) {
  Number<N> made;
  u64 borrow = 0;
#pragma unroll
  for (int i = 0; i < N; i++) {
    const u64 some = a.word[i] - borrow;
    made.word[i] = some - b.word[i];
    borrow = (some > a.word[i]) + (made.word[i] > some);
  }
  return made;
}

// The low N words of a product.
template <int N, int A, int B> INLINE Number<N> product(const Number<A> &a, const Number<B> &b) {
  Number<N> made = number<N>(0);
#pragma unroll
  for (int i = 0; i < A; i++) {
    u64 carry = 0;
#pragma unroll
    for (int j = 0; j < B && i + j < N; j++) {
      const u64 low = a.word[i] * b.word[j], high = __umul64hi(a.word[i], b.word[j]);
      const u64 some = made.word[i + j] + carry;
      made.word[i + j] = some + low;
      carry = high + (some < carry) + (made.word[i + j] < some);
    }
    if (i + B < N) made.word[i + B] = carry;
  }
  return made;
}

// a · 2^bits and a / 2^bits, for bits < 64.
template <int N> INLINE Number<N> up(const Number<N> &a, int bits) {
  Number<N> made;
#pragma unroll
  for (int i = 0; i < N; i++) made.word[i] = a.word[i] << bits | (i && bits ? a.word[i - 1] >> (64 - bits) : 0);
  return made;
}

template <int N> INLINE Number<N> down(const Number<N> &a, int bits) {
  Number<N> made;
#pragma unroll
  for (int i = 0; i < N; i++)
    made.word[i] = a.word[i] >> bits | (i + 1 < N && bits ? a.word[i + 1] << (64 - bits) : 0);
  return made;
}

// a · 2^bits, for bits < 64 N.
template <int N> INLINE Number<N> far_up(Number<N> a, int bits) {
#pragma unroll
  for (int words = N / 2; words; words /= 2)
    if (bits & 64 * words)
#pragma unroll
      for (int i = N - 1; i >= 0; i--) a.word[i] = i < words ? 0 : a.word[i - words];
  return up(a, bits & 63);
}

// How many bits a number has.
template <int N> INLINE int width(const Number<N> &a) {
  int bits = 0;
#pragma unroll
  for (int i = 0; i < N; i++)
    if (a.word[i]) bits = 64 * i + 64 - __clzll((s64)a.word[i]);
  return bits;
}

template <int N> INLINE Number<N> size_of(const Number<N> &a) {
  return (s64)a.word[N - 1] < 0 ? difference(number<N>(0), a) : a;
}

// floor(over / under), of at most 64 bits; ``over`` becomes what is left. Bit by bit from the highest that can be there.
template <int N> INLINE u64 divide(Number<N> &over, const Number<N> &under) {
  u64 quotient = 0;
  int more = width(over) - width(under);
  Number<N> part = far_up(under, more < 0 ? 0 : more);
#pragma unroll 1
  for (; more >= 0; more--) {
    const bool fits = !less(over, part);
    if (fits) over = difference(over, part);
    quotient = quotient << 1 | fits;
    part = down(part, 1);
  }
  return quotient;
}

// ``whole`` becomes whole · 2^bits + the first bits of rest / under behind the point, for rest < under < 2^(64 N − 1);
// ``rest`` becomes what is left of them.
template <int N> INLINE void divide_on(Number<2> &whole, Number<N> &rest, const Number<N> &under, int bits) {
#pragma unroll 1
  for (; bits; bits--) {
    rest = up(rest, 1);
    const bool fits = !less(rest, under);
    if (fits) rest = difference(rest, under);
    whole = up(whole, 1);
    whole.word[0] |= fits;
  }
}

// floor(√value), and ``value`` becomes what is left of it. The root is there times ``bit`` and its half.
template <int N> INLINE u64 root_of(Number<N> &value) {
  Number<N> root = number<N>(0), bit = far_up(number<N>(1), zero(value) ? 0 : width(value) - 1 & ~1);
#pragma unroll 1
  for (; !zero(bit); bit = down(bit, 2)) {
    const Number<N> trial = sum(root, bit);
    root = down(root, 1);
    if (!less(value, trial)) {
      value = difference(value, trial);
      root = sum(root, bit);
    }
  }
  return root.word[0];
}

// The integer next to |y|, of two the even one, from floor(2 |y|), and whether that is 2 |y|.
INLINE s64 half_even(u64 twice, bool exact) {
  const u64 below = twice >> 1;
  return (s64)(below + ((twice & 1) && (!exact || (below & 1))));
}

// Window sums

// What is the same of all voxels of a launch, in this order in ``scale``: a, b, p; |W|, and whether it is that of the
// places inside; what is too much in the map of Σx; the number outside, its powers, and the floors of those, by the
// shifts of x² and x³, or 0 where their sums are not needed.
enum { A, B, BITS, SIZE, CLIP, BIAS, FILL, FILL_2, FILL_3, FILL_2_HIGH, FILL_3_HIGH, SHIFT_2, SHIFT_3 };

// The maps of sums, and a place in them.
struct Window {
  const x_map *x;
  const power_map *squares, *cubes, *squares_high, *cubes_high;
  const s64 *scale;
  u64 at;
  s64 outside;  // places of the window
};

INLINE s64 count(const Window &w) { return w.scale[SIZE] - (w.scale[CLIP] ? w.outside : 0); }

INLINE s64 x_sum(const Window &w) { return (s64)w.x[w.at] - w.scale[BIAS] + w.scale[FILL] * w.outside; }

// Σ of a power, from its residue and, where there are any, the floors: high 2^shift, and of the rest the residue.
template <int N> INLINE Number<N> power_sum(const Window &w, const power_map *map, const power_map *floors, int fill, int high, int shift) {
  const u64 low = (u64)map[w.at] + (u64)w.scale[fill] * (u64)w.outside;
  Number<N> made = number<N>((s64)low);
  if (N > 1 && w.scale[shift]) {
    const s64 all = (s64)((u64)floors[w.at] + (u64)w.scale[high] * (u64)w.outside);
    const int bits = (int)w.scale[shift];
    made.word[N - 1] = (u64)(all >> (64 - bits)) + (low < (u64)all << bits);
  }
  return made;
}

// V in N words.
template <int N> INLINE Number<N> spread(const Window &w) {
  const Number<N> x = number<N>(x_sum(w));
  const Number<N> squares = power_sum<N>(w, w.squares, w.squares_high, FILL_2, FILL_2_HIGH, SHIFT_2);
  return difference(product<N>(number<N>(count(w)), squares), product<N>(x, x));
}

// T in N words.
template <int N> INLINE Number<N> third(const Window &w) {
  const Number<N> n = number<N>(count(w)), x = number<N>(x_sum(w));
  const Number<N> squares = power_sum<N>(w, w.squares, w.squares_high, FILL_2, FILL_2_HIGH, SHIFT_2);
  const Number<N> cubes = power_sum<N>(w, w.cubes, w.cubes_high, FILL_3, FILL_3_HIGH, SHIFT_3);
  const Number<N> mixed = product<N>(number<N>(3), product<N>(x, squares));
  const Number<N> first = product<N>(n, difference(product<N>(n, cubes), mixed));
  return sum(first, up(product<N>(x, product<N>(x, x)), 1));
}

// a²V
INLINE Number<SPREAD> scaled_spread(const Window &w) {
  const Number<SPREAD> a = size_of(number<SPREAD>(w.scale[A]));
  return product<SPREAD>(a, product<SPREAD>(a, spread<SPREAD>(w)));
}

INLINE s64 standardised_sum(const Window &w) { return w.scale[A] * x_sum(w) + w.scale[B] * count(w); }

// Features

INLINE s64 mean_of(const Window &w) {
  const s64 total = standardised_sum(w);
  Number<1> over = up(size_of(number<1>(total)), 1);
  const u64 twice = divide(over, number<1>(count(w)));
  const s64 size = half_even(twice, zero(over));
  return total < 0 ? -size : size;
}

// a²V / (|W|² 2^p)
INLINE s64 variance_of(const Window &w) {
  const int bits = (int)w.scale[BITS];
  const Number<SPREAD> all = up(scaled_spread(w), 1);
  Number<SPREAD> over = down(all, bits);
  const bool whole = zero(difference(all, up(over, bits)));
  const s64 n = count(w);
  const u64 twice = divide(over, number<SPREAD>(n * n));
  return half_even(twice, whole && zero(over));
}

// √(a²V) / |W|
INLINE s64 std_of(const Window &w) {
  Number<SPREAD> rest = up(scaled_spread(w), 2);
  Number<1> root = number<1>((s64)root_of(rest));
  const u64 twice = divide(root, number<1>(count(w)));
  return half_even(twice, zero(rest) && zero(root));
}

// 2^p √(a²V / (a²V + (Σ)²)), Σ of standardised integers
INLINE s64 contrast_of(const Window &w) {
  Number<SPREAD> rest = scaled_spread(w);
  if (zero(rest)) return 0;
  const Number<SPREAD> total = number<SPREAD>(standardised_sum(w));
  const Number<SPREAD> under = sum(rest, product<SPREAD>(total, total));
  Number<2> square = number<2>((s64)divide(rest, under));
  divide_on(square, rest, under, 2 * (int)w.scale[BITS] + 2);
  const u64 twice = root_of(square);
  return half_even(twice, zero(rest) && zero(square));
}

// 2^p T / V^(3/2), with the sign of a
INLINE s64 skewness_of(const Window &w) {
  const Number<THIRD> v = spread<THIRD>(w), t = third<THIRD>(w), size = size_of(t);
  if (zero(t)) return 0;  // V = 0 as well
  Number<2 * THIRD> rest = product<2 * THIRD>(size, size);
  const Number<2 * THIRD> under = product<2 * THIRD>(v, product<2 * THIRD>(v, v));
  Number<2> square = number<2>((s64)divide(rest, under));
  divide_on(square, rest, under, 2 * (int)w.scale[BITS] + 2);
  const s64 made = half_even(root_of(square), zero(rest) && zero(square));
  return ((s64)t.word[THIRD - 1] < 0) != (w.scale[A] < 0) ? -made : made;
}

// A map stands in ``stack`` from ``first`` on, its rows ``columns`` apart; those of the sums' maps are ``pitch`` apart.
// ``inside``: how many places of a window lie inside the image, along its columns, then rows, then planes.
#define KERNEL(name)                                                                                          \
  extern "C" __global__ void __launch_bounds__(128)                                                                    \
  feature_##name(const x_map *__restrict__ x_sums, const power_map *__restrict__ squares, const power_map *__restrict__ cubes,   \
       const power_map *__restrict__ squares_high, const power_map *__restrict__ cubes_high,                           \
       const int *__restrict__ inside,                                                                                 \
       const s64 *__restrict__ scale, s64 *__restrict__ stack, u64 first, int planes, int rows, int columns,           \
       int pitch) {                                                                                                    \
    const int x = blockIdx.x * blockDim.x + threadIdx.x;                                                               \
    if (x >= columns) return;                                                                                          \
    Window w = {x_sums, squares, cubes, squares_high, cubes_high, scale, 0, 0};                                        \
    for (int z = blockIdx.z; z < planes; z += gridDim.z)                                                               \
      for (int y = blockIdx.y; y < rows; y += gridDim.y) {                                                             \
        const u64 row = (u64)z * rows + y;                                                                             \
        w.at = row * pitch + x;                                                                                        \
        w.outside = scale[SIZE] - (s64)inside[x] * inside[columns + y] * inside[columns + rows + z];                   \
        stack[first + row * columns + x] = name##_of(w);                                                               \
      }                                                                                                                \
  }
KERNEL(mean)
KERNEL(variance)
KERNEL(std)
KERNEL(contrast)
KERNEL(skewness)

// Features without a window, from the voxels of a staged image

// Twice the derivative along an axis, of stored integers: ``before`` and ``after`` are places of the neighbours, below 0
// outside. There, ``clip`` has no voxel, and the difference to the voxel itself counts twice; else there is ``fill``.
INLINE s64 derivative(const voxel *image, u64 own, s64 before, s64 after, s64 fill, s64 clip) {
  const s64 low = before >= 0 ? stored(image[before]) : clip ? stored(image[own]) : fill;
  const s64 high = after >= 0 ? stored(image[after]) : clip ? stored(image[own]) : fill;
  return clip && (before < 0) != (after < 0) ? 2 * (high - low) : high - low;
}

// |a| √(Σ d²) / 2. ``at``: which staged column is read at each place that a window of 3 reaches, or -1; then rows, planes.
// |a d| <= 2^60, so a² Σ d² fits two words.
extern "C" __global__ void __launch_bounds__(128)
feature_gradient(const voxel *__restrict__ image, const int *__restrict__ x_at, const int *__restrict__ y_at,
                 const int *__restrict__ z_at, const s64 *__restrict__ scale, s64 *__restrict__ stack, u64 first,
                 int planes, int rows, int columns, int pitch, int plane_rows, int first_plane, int first_row) {
  const int x = blockIdx.x * blockDim.x + threadIdx.x;
  if (x >= columns) return;
  const s64 plane_size = (s64)plane_rows * pitch;
  const Number<2> a = size_of(number<2>(scale[A]));
  for (int z = blockIdx.z; z < planes; z += gridDim.z)
    for (int y = blockIdx.y; y < rows; y += gridDim.y) {
      const s64 plane = (first_plane + z) * plane_size, row = (s64)(first_row + y) * pitch, own = plane + row + x;
      const s64 d[3] = {
          derivative(image, own, x_at[x] < 0 ? -1 : plane + row + x_at[x],
                     x_at[x + 2] < 0 ? -1 : plane + row + x_at[x + 2], scale[FILL], scale[CLIP]),
          derivative(image, own, y_at[y] < 0 ? -1 : plane + (s64)y_at[y] * pitch + x,
                     y_at[y + 2] < 0 ? -1 : plane + (s64)y_at[y + 2] * pitch + x, scale[FILL], scale[CLIP]),
          derivative(image, own, z_at[z] < 0 ? -1 : z_at[z] * plane_size + row + x,
                     z_at[z + 2] < 0 ? -1 : z_at[z + 2] * plane_size + row + x, scale[FILL], scale[CLIP])};
      Number<2> all = number<2>(0);
#pragma unroll
      for (int i = 0; i < 3; i++) {
        const Number<2> size = product<2>(a, size_of(number<2>(d[i])));
        all = sum(all, product<2>(size, size));
      }
      const u64 twice = root_of(all);
      stack[first + ((u64)z * rows + y) * columns + x] = half_even(twice, zero(all));
    }
}

// a · x + b
extern "C" __global__ void __launch_bounds__(128)
feature_intensity(const voxel *__restrict__ image, const s64 *__restrict__ scale, s64 *__restrict__ stack, u64 first,
                  int planes, int rows, int columns, int pitch, int plane_rows, int first_plane, int first_row) {
  const int x = blockIdx.x * blockDim.x + threadIdx.x;
  if (x >= columns) return;
  for (int z = blockIdx.z; z < planes; z += gridDim.z)
    for (int y = blockIdx.y; y < rows; y += gridDim.y) {
      const u64 from = ((u64)(first_plane + z) * plane_rows + first_row + y) * pitch + x;
      stack[first + ((u64)z * rows + y) * columns + x] = scale[A] * stored(image[from]) + scale[B];
    }
}
