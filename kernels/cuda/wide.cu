// Window sums of windows that the streamed kernels do not take: larger than 31 along an axis, or sums beyond their
// lanes. A running sum along each axis in turn, through global memory: slower, of any size, exact.
//
// Numbers here are signed and in 64 bits: the host has seen that |W| · max |v| < 2^63. Sums beyond go over to halves.
//
// Must equal, for every voxel, the sum over its window in Python integers (tests/naive.py).
#define WIDE 1
#include "voxring.cuh"

INLINE s64 signed_voxel(u32 biased) {
#if SIGNED
  return (s64)biased - (1ll << (8 * VOXEL - 1));
#else
  return biased;
#endif
}

// sums[p] = the voxel of place p, or its power or the floor of that: a dense (planes, rows, columns) array of a staged image.
extern "C" __global__ void widen(const voxel *__restrict__ image, s64 *__restrict__ sums, int columns, int pitch,
                                 u64 places) {
  for (u64 at = blockIdx.x * (u64)blockDim.x + threadIdx.x; at < places; at += (u64)gridDim.x * blockDim.x) {
    u32 v = image[at / columns * pitch + at % columns];
#if SIGNED
    v = (voxel)(v ^ BIAS_BITS);
#endif
#if POWER > 1
    sums[at] = (s64)power(signed_voxel(v));
#else
    sums[at] = signed_voxel(v);
#endif
  }
}

// One thread a line along an axis: to[line][q] = Σ from[line][place[e]] over e = q … q + size − 1; place −1 is outside.
// Elements of a line are ``stride`` apart; line i begins at i / inner · (length · stride) + i % inner.
extern "C" __global__ void along(const s64 *__restrict__ from, s64 *__restrict__ to, const int *__restrict__ place,
                                 int from_length, int length, int size, u64 stride, u64 inner, u64 lines) {
  for (u64 line = blockIdx.x * (u64)blockDim.x + threadIdx.x; line < lines; line += (u64)gridDim.x * blockDim.x) {
    const s64 *a = from + line / inner * (from_length * stride) + line % inner;
    s64 *b = to + line / inner * (length * stride) + line % inner;
    u64 sum = 0;  // unsigned: it may wrap on the way
    for (int e = 0; e < size; e++)
      if (place[e] >= 0) sum += (u64)a[place[e] * stride];
    b[0] = (s64)sum;
    for (int q = 1; q < length; q++) {
      const int leaves = place[q - 1], enters = place[q + size - 1];
      if (enters >= 0) sum += (u64)a[enters * stride];
      if (leaves >= 0) sum -= (u64)a[leaves * stride];
      b[q * stride] = (s64)sum;
    }
  }
}

// Window sums, dense, into the table: a thread takes CHUNK columns of a row, and flushes where class or group change.
// Window sums are biased by 2^63 here, so that halves are those of an unsigned number.
#define CHUNK 64
extern "C" __global__ void collect(const voxel *__restrict__ image, const u8 *__restrict__ numbers,
                                   const s64 *__restrict__ windows, const int *__restrict__ run_at,
                                   u64 *__restrict__ table, int planes, int rows, int columns, int pitch,
                                   int row_pitch, int plane_rows, int first_plane, int first_row, int groups) {
  const int chunks = (columns + CHUNK - 1) / CHUNK;
  const u64 all = (u64)planes * rows * chunks;
  const Table into = {table, groups, 0};
  for (u64 part = blockIdx.x * (u64)blockDim.x + threadIdx.x; part < all; part += (u64)gridDim.x * blockDim.x) {
    const int x0 = part % chunks * CHUNK, x1 = min(columns, x0 + CHUNK);
    const int y = part / chunks % rows, z = part / chunks / rows;
    const u8 *labels = numbers + ((u64)z * rows + y) * row_pitch;
    const s64 *sums = windows + ((u64)z * rows + y) * columns;
    const voxel *row = image + ((u64)(first_plane + z) * plane_rows + first_row + y) * pitch;
    const int row_group = run_at[columns + y] + run_at[columns + rows + z];
    for (int x = x0; x < x1;) {
      const u32 number = labels[x];
      if (number == 0) {
        x++;
        continue;
      }
      const int group = row_group + run_at[x];
      u64 low = 0, high = 0;
      Sums moments;
      clear(moments, number);
      for (; x < x1 && labels[x] == number && row_group + run_at[x] == group; x++) {
        const u64 biased = (u64)sums[x] + (1ull << 63);
        low += biased & 0xffffffffull;
        high += biased >> 32;
        u32 v = row[x];
#if SIGNED
        v = (voxel)(v ^ BIAS_BITS);
#endif
        moments.voxels++;
        moments.total += v;
        add_square(moments, v);
      }
      u64 *at = class_at(into, number) + GROUP * group;
      atomicAdd(at, (u64)moments.voxels);
      atomicAdd(at + 1, low);
      atomicAdd(at + 2, high);
      moments.voxels = 0;
      flush_thread(moments, into);  // its windows are 0: they went into their group
    }
  }
}
