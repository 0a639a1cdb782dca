// Scores, labels and probabilities of voxels, from the integers of their feature maps. One thread a voxel.
//
// The only kernel with floats: scores are IEEE additions and multiplications of float64 in the order of
// cpu/classify.py, each rounded once to nearest, never fused (__dadd_rn and its kin cannot be), one division, and an
// exponential that is written out. So a label is the same, and a probability the same bits, as the processor's.
//
// ``model`` holds, of K classes and F features, R = F or 0: centres (K, F), linear (K, F), constants (K), whiten
// (K, R, F), offsets (K, R). A thread's features and scores, as float64, are a column of shared memory.
//
// Macro beside those of voxring.cuh: LABEL, bytes of a label.
#include "voxring.cuh"

#if LABEL == 1
typedef u8 label_t;
#else
typedef u16 label_t;
#endif

INLINE double plus(double a, double b) { return __dadd_rn(a, b); }
INLINE double minus(double a, double b) { return __dadd_rn(a, -b); }
INLINE double times(double a, double b) { return __dmul_rn(a, b); }

// exp(value) for value <= 0: 2^k exp(r) with |r| <= log(2) / 2, by Taylor's series to r^13; of less than -708, 0.
INLINE double exponential(double value) {
  const double lowest = -708.0, shift = 1.5 * 4503599627370496.0;
  const double t = value > lowest ? value : lowest;
  const double shifted = plus(times(t, 1.4426950408889634), shift);  // k in its last bits, rounded half to even
  const double k = minus(shifted, shift);
  const double r = minus(minus(t, times(k, 0.693147180369123816490)), times(k, 1.90821492927058770002e-10));
  double e = 1.0 / 6227020800.0;
  e = plus(times(e, r), 1.0 / 479001600.0);
  e = plus(times(e, r), 1.0 / 39916800.0);
  e = plus(times(e, r), 1.0 / 3628800.0);
  e = plus(times(e, r), 1.0 / 362880.0);
  e = plus(times(e, r), 1.0 / 40320.0);
  e = plus(times(e, r), 1.0 / 5040.0);
  e = plus(times(e, r), 1.0 / 720.0);
  e = plus(times(e, r), 1.0 / 120.0);
  e = plus(times(e, r), 1.0 / 24.0);
  e = plus(times(e, r), 1.0 / 6.0);
  e = plus(times(e, r), 0.5);
  e = plus(times(e, r), 1.0);
  e = plus(times(e, r), 1.0);
  const u64 power = ((u64)__double_as_longlong(shifted) << 52) + (1023ull << 52);  // 2^k
  return times(value >= lowest ? e : 0.0, __longlong_as_double((s64)power));
}

// A probability as float32. CuPy compiles with -ftz=true: a conversion makes 0 of what is below 2^-126, so that the bits of
// such a one, its multiple of 2^-149 rounded half to even, are those that an addition leaves last.
INLINE void put(float *at, double p) {
  if (p < 0x1p-126)
    *(u32 *)at = (u32)__double_as_longlong(plus(times(p, 0x1p149), 4503599627370496.0));
  else
    *at = __double2float_rn(p);
}

// Terms of the weight 0 are left out, as the processor leaves them out.
INLINE double with_term(double score, double weight, double feature, double centre) {
  return weight != 0 ? plus(score, times(weight, minus(feature, centre))) : score;
}

extern "C" __global__ void __launch_bounds__(128)
classify(const s64 *__restrict__ stack, const double *__restrict__ model, const label_t *__restrict__ values,
         label_t *__restrict__ labels, float *__restrict__ chances, double scale, u64 voxels, int features,
         int classes, int rows, int with_labels, int with_chances) {
  DYNAMIC_SHARED(double, memory);
  const u64 at = (u64)blockIdx.x * blockDim.x + threadIdx.x;
  if (at >= voxels) return;
  double *const feature = memory + threadIdx.x, *const score = feature + features * blockDim.x;
  const double *const centres = model, *const linear = centres + classes * features;
  const double *const constants = linear + classes * features, *const whiten = constants + classes;
  const double *const offsets = whiten + classes * rows * features;
  for (int j = 0; j < features; j++) feature[j * blockDim.x] = times(__ll2double_rn(stack[j * voxels + at]), scale);
  int place = 0;
  double best = 0;
  for (int k = 0; k < classes; k++) {
    const double *const centre = centres + k * features;
    double all = constants[k];
    for (int j = 0; j < features; j++)
      all = with_term(all, linear[k * features + j], feature[j * blockDim.x], centre[j]);
    for (int r = 0; r < rows; r++) {
      const double *const weight = whiten + (k * rows + r) * features;
      double row = -offsets[k * rows + r];
      for (int j = 0; j <= r; j++) row = with_term(row, weight[j], feature[j * blockDim.x], centre[j]);
      all = minus(all, times(0.5, times(row, row)));
    }
    score[k * blockDim.x] = all;
    if (k == 0 || all > best) best = all, place = k;
  }
  if (with_labels) labels[at] = values[place];
  if (!with_chances) return;
  double total = 0;
  for (int k = 0; k < classes; k++) {
    const double power = exponential(minus(score[k * blockDim.x], best));
    score[k * blockDim.x] = power;
    total = plus(total, power);
  }
  total = __ddiv_rn(1.0, total);
  for (int k = 0; k < classes; k++) put(chances + k * voxels + at, times(score[k * blockDim.x], total));
}
