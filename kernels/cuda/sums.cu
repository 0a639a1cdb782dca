// Sums over the voxels of each class, of a stack of feature maps: of products of its maps, and of voxels in bins.
//
// Widths. A product of up to four maps, and the sum of such, are signed numbers of WORDS words: products of two maps of
// 62 bits, or of four of 47, leave 2^66 voxels room in three words, and in four. A thread sums the voxels of one class at
// a time; its sum goes into the table as halves of 32 bits, each in a word of its own: fewer than 2^32 additions, of 32
// halves at the most, fit there. The host joins them, modulo 2^(64 WORDS).
//
// Macro beside those of voxring.cuh: WORDS.
//
// Must equal sums of Python integers (tests/naive_features.py).
#include "voxring.cuh"

// value · factor, modulo 2^(64 WORDS): of a factor below 0, factor + 2^64 counts, less one word up.
INLINE void multiply(u64 *value, s64 factor) {
  u64 carry = 0, before = 0, borrow = 0;
#pragma unroll
  for (int i = 0; i < WORDS; i++) {
    const u64 old = value[i], low = old * (u64)factor;
    u64 made = low + carry;
    carry = __umul64hi(old, (u64)factor) + (made < low);
    const u64 off = factor < 0 ? before : 0, less = made - off;
    const u64 next = (less > made) + (less < borrow);
    value[i] = less - borrow;
    borrow = next;
    before = old;
  }
}

INLINE void add(u64 *sum, const u64 *value) {
  u64 carry = 0;
#pragma unroll
  for (int i = 0; i < WORDS; i++) {
    const u64 some = sum[i] + carry;
    sum[i] = some + value[i];
    carry = (some < carry) + (sum[i] < some);
  }
}

INLINE void flush_halves(u64 *at, const u64 *sum) {
#pragma unroll
  for (int i = 0; i < WORDS; i++) add_halves(at + 2 * i, sum[i]);
}

// table[class − 1][sum][half]: for the sum blockIdx.y, the products of the maps that its four ``factors`` name; −1 is 1.
extern "C" __global__ void __launch_bounds__(256)
sum_products(const s64 *__restrict__ stack, const u8 *__restrict__ numbers, const int *__restrict__ factors,
             u64 *__restrict__ table, u64 voxels, int sums) {
  const int *const mine = factors + 4 * blockIdx.y;
  u64 sum[WORDS];
  u32 number = 0;  // of the class that is summed
#pragma unroll
  for (int i = 0; i < WORDS; i++) sum[i] = 0;
  for (u64 at = blockIdx.x * (u64)blockDim.x + threadIdx.x; at < voxels; at += (u64)gridDim.x * blockDim.x) {
    const u32 next = numbers[at];
    if (next == 0) continue;
    if (next != number) {
      if (number) flush_halves(table + ((u64)(number - 1) * sums + blockIdx.y) * (2 * WORDS), sum);
      number = next;
#pragma unroll
      for (int i = 0; i < WORDS; i++) sum[i] = 0;
    }
    u64 value[WORDS] = {1};
#pragma unroll
    for (int k = 0; k < 4; k++)
      if (mine[k] >= 0) multiply(value, stack[mine[k] * voxels + at]);
    add(sum, value);
  }
  u32 all = number;  // the class of the warp, if its threads are of one
#pragma unroll
  for (int step = 16; step; step >>= 1) all = max(all, __shfl_xor_sync(ALL, all, step));
  if (all == 0) return;
  if (!__all_sync(ALL, number == all || number == 0)) {
    if (number) flush_halves(table + ((u64)(number - 1) * sums + blockIdx.y) * (2 * WORDS), sum);
    return;
  }
  u64 *const at = table + ((u64)(all - 1) * sums + blockIdx.y) * (2 * WORDS);
#pragma unroll
  for (int i = 0; i < WORDS; i++) {
    const u64 low = warp_sum(sum[i] & 0xffffffffull), high = warp_sum(sum[i] >> 32);
    if ((threadIdx.x & 31) == 0) {
      atomicAdd(at + 2 * i, low);
      atomicAdd(at + 2 * i + 1, high);
    }
  }
}

// counts[class − 1][bin]: how many voxels of a class have a number, of the map that begins at ``first``, at which so many
// of the ``edges`` are not above it.
extern "C" __global__ void __launch_bounds__(256)
count_bins(const s64 *__restrict__ stack, const u8 *__restrict__ numbers, const s64 *__restrict__ edges,
           u64 *__restrict__ counts, u64 first, u64 voxels, int edge_count) {
  for (u64 at = blockIdx.x * (u64)blockDim.x + threadIdx.x; at < voxels; at += (u64)gridDim.x * blockDim.x) {
    const u32 number = numbers[at];
    if (number == 0) continue;
    const int bin = level_of(edges, edge_count, stack[first + at]);
    atomicAdd(counts + (u64)(number - 1) * (edge_count + 1) + bin, 1ull);
  }
}
