// Co-occurrence of grey levels: of each class, how many pairs of neighbours have each two levels.
//
// What is there is the part of the image that is counted, with what the steps reach of the rest, and no more: a
// neighbour that is not there lies outside the image. Steps never go back along the planes.
//
// Widths. A voxel is coded in 16 bits: its class number, which is a byte, and its level, of which there are 256 at the
// most. A block counts the first cells of the table in shared memory, in 32 bits: the plan sees to it that it meets fewer
// pairs than 2^32. a · x + b fits 64 bits, as on the processor.
//
// Must equal loops over voxels and steps (tests/naive_features.py), and cpu/additive.py.
#include "voxring.cuh"

// coded[at]: the class number of a voxel, and its level, which is how many of the edges between levels, which do not
// fall, are at most a · x + b; 0 where it has no class.
extern "C" __global__ void __launch_bounds__(256)
code_levels(const voxel *__restrict__ image, const u8 *__restrict__ numbers, const s64 *__restrict__ edges,
            u16 *__restrict__ coded, s64 a, s64 b, u64 voxels, int edge_count) {
  const u64 sign = SIGNED ? 1ull << (8 * VOXEL - 1) : 0;
  for (u64 at = blockIdx.x * (u64)blockDim.x + threadIdx.x; at < voxels; at += (u64)gridDim.x * blockDim.x) {
    const u32 number = numbers[at];
    const s64 x = a * ((s64)(image[at] ^ sign) - (s64)sign) + b;
    coded[at] = (u16)(number << 8 | level_of(edges, number ? edge_count : 0, x));
  }
}

// table[class − 1][level][level of the neighbour] += 1 for each voxel with a number, and each step from it that ends at
// a voxel that is coded with the same. A warp goes along a row.
extern "C" __global__ void __launch_bounds__(256)
count_pairs(const u16 *__restrict__ coded, const u8 *__restrict__ numbers, const int *__restrict__ steps,
            u64 *__restrict__ table, int own_planes, int own_rows, int first_row, int planes, int rows, int columns,
            int step_count, int levels, int cells_here) {
  DYNAMIC_SHARED(u32, here);
  for (int at = threadIdx.x; at < cells_here; at += blockDim.x) here[at] = 0;
  __syncthreads();
  const int lane = threadIdx.x & 31, warps = blockDim.x / 32;
  for (int z = blockIdx.y; z < own_planes; z += gridDim.y) {
    for (int own = blockIdx.x * warps + threadIdx.x / 32; own < own_rows; own += gridDim.x * warps) {
      const int y = first_row + own;
      const u64 row = ((u64)z * rows + y) * columns;
      for (int x = lane; x < columns; x += 32) {
        const u32 number = numbers[row + x];
        if (number == 0) continue;
        const u32 first = ((number - 1) * levels + (coded[row + x] & 0xffu)) * levels;
        for (int s = 0; s < step_count; s++) {
          const int dz = steps[3 * s], dy = steps[3 * s + 1], dx = steps[3 * s + 2];
          if ((u32)z + dz >= (u32)planes || (u32)y + dy >= (u32)rows || (u32)x + dx >= (u32)columns) continue;
          const u32 other = coded[row + x + (((s64)dz * rows + dy) * columns + dx)];
          if (other >> 8 != number) continue;
          const u32 cell = first + (other & 0xffu);
          if (cell < (u32)cells_here)
            atomicAdd(here + cell, 1u);
          else
            atomicAdd(table + cell, 1ull);
        }
      }
    }
  }
  __syncthreads();
  for (int at = threadIdx.x; at < cells_here; at += blockDim.x)
    if (here[at]) atomicAdd(table + at, (u64)here[at]);
}
