// Window sums in three dimensions, streamed along z: a summed-area table of which one plane of a tile is there at a time.
//
// A block goes down the planes over a tile of WARPS · ROWS rows and 128 columns; a thread has ROWS rows of 4 columns.
// Sums over the window's planes stay in registers: the plane that enters is added, the one that leaves, read again, is
// taken off. They are summed down y (a thread's rows in registers, then over the warps through shared memory), so that a
// sum over the window's rows is a difference of two rows of shared memory; that is summed along x (a lane's 4, then a
// scan of the warp), and the window sum is a difference again. Nothing of the table goes to global memory.
//
// Of the tile, LEFT and RIGHT columns and CY − 1 rows are there for the windows of the others. Columns are those of a
// staged row, which begins LEFT before the image's and holds what the border reads beside it; rows and planes are
// looked up in row_at and plane_at.
//
// Macros beside those of voxring.cuh: CZ, CY, CX the window; WARPS, ROWS; REDUCE, or window sums into a map, of squares
// if SQUARE.
//
// Must equal, for every voxel, the sum over its window in Python integers (tests/naive.py).
#include "voxring.cuh"

#define PER 4
#define TILE 128
#define BEFORE (CX / 2)
#define AFTER (CX - 1 - CX / 2)
#define LEFT ((BEFORE + PER) / PER * PER)  // more than BEFORE: no prefix is left of the tile
#define RIGHT ((AFTER + PER - 1) / PER * PER)
#define OUT (TILE - LEFT - RIGHT)
#define TALL (WARPS * ROWS)
#define OUT_ROWS (TALL - (CY - 1))
#define PAD 8  // lanes at the ends of the tile read zeros beside it, and use nothing of them

static_assert(CX <= 31 && OUT_ROWS > 0, "windows of up to 31, and rows for them");

// Four lanes from and to shared memory.
struct Four { lane_t at[PER]; };
INLINE Four get_four(const lane_t *from) {
  Four some;
#if WIDE
  const uint4 low = *(const uint4 *)from, high = *(const uint4 *)(from + 2);
  some.at[0] = (u64)low.y << 32 | low.x, some.at[1] = (u64)low.w << 32 | low.z;
  some.at[2] = (u64)high.y << 32 | high.x, some.at[3] = (u64)high.w << 32 | high.z;
#else
  const uint4 all = *(const uint4 *)from;
  some.at[0] = all.x, some.at[1] = all.y, some.at[2] = all.z, some.at[3] = all.w;
#endif
  return some;
}

// Registers for the blocks that shared memory and threads leave room for: for more, ptxas would spill on sm_80 and sm_100.
extern "C" __global__ void __launch_bounds__(WARPS * 32, WIDE ? 2 : 1)
box3d(const voxel *__restrict__ image, const u8 *__restrict__ numbers, const int *__restrict__ row_at,
      const int *__restrict__ plane_at, const int *__restrict__ run_at, u64 *__restrict__ table,
      lane_t *__restrict__ map, int planes, int rows, int columns, int pitch, int row_pitch, int plane_rows, int tiles,
      int tile_rows, int segment, int first_row, int groups, int middle, int middle_x) {
  DYNAMIC_SHARED(uint4, memory);
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  lane_t *down = (lane_t *)memory;           // [TALL + 1][TILE]: row i sums the rows before it
  lane_t *totals = down + (TALL + 1) * TILE; // [WARPS][TILE]: of the rows of each warp
  lane_t *prefix = totals + WARPS * TILE + warp * (TILE + 2 * PAD) + PAD;

  const int tile = blockIdx.x % tiles;
  const int top = blockIdx.x / tiles % tile_rows * OUT_ROWS;
  const int z0 = blockIdx.x / tiles / tile_rows * segment, z1 = min(planes, z0 + segment);
  const int staged = tile * OUT + lane * PER;  // this lane's first column
  const int x = staged - LEFT;
  const bool owned = lane >= LEFT / PER && lane < (TILE - RIGHT) / PER && x < columns;
  const voxel *here = image + min(staged, pitch - PER);
  const u64 plane_size = (u64)plane_rows * pitch;
  u32 row_offset[ROWS];  // a staged plane has fewer than 2^31 voxels
#pragma unroll
  for (int r = 0; r < ROWS; r++) row_offset[r] = (u32)row_at[min(top + warp * ROWS + r, rows + CY - 2)] * pitch;

  lane_t column[ROWS][PER];
#pragma unroll
  for (int r = 0; r < ROWS; r++)
#pragma unroll
    for (int j = 0; j < PER; j++) column[r][j] = 0;
  for (int k = 0; k < CZ - 1; k++) {
    const voxel *enters = here + plane_at[z0 + k] * plane_size;
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      const Voxels<PER> some = read<PER>(enters + row_offset[r]);
#pragma unroll
      for (int j = 0; j < PER; j++) column[r][j] += term(get<PER>(some, j));
    }
  }
  if (warp == 0)
#pragma unroll
    for (int j = 0; j < PER; j++) down[lane * PER + j] = 0;
  if (lane < PAD) prefix[lane - PAD] = prefix[TILE + lane] = 0;

#if REDUCE
  const Table into = {table, groups, middle};
  Sums sums;
  clear(sums, 0);
  int group_of[PER];
  bool columns_middle = true;
#if FRAME  // a voxel's group is the sum of what its column, its row and its plane add
  const int *row_part = run_at + columns, *plane_part = row_part + rows;
#pragma unroll
  for (int j = 0; j < PER; j++) {
    const bool real = owned && x + j < columns;
    group_of[j] = real ? run_at[x + j] : middle_x;
    columns_middle &= group_of[j] == middle_x;
  }
#endif
#endif

  for (int z = z0; z < z1; z++) {
    const voxel *enters = here + plane_at[z + CZ - 1] * plane_size;
    const voxel *leaves = here + plane_at[z > z0 ? z - 1 : z] * plane_size;
    lane_t sum[PER] = {0, 0, 0, 0};
    lane_t *row = down + (1 + warp * ROWS) * TILE + lane * PER;
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      const Voxels<PER> come = read<PER>(enters + row_offset[r]);
      if (z > z0) {
        const Voxels<PER> gone = read<PER>(leaves + row_offset[r]);
#pragma unroll
        for (int j = 0; j < PER; j++) column[r][j] += term(get<PER>(come, j)) - term(get<PER>(gone, j));
      } else {
#pragma unroll
        for (int j = 0; j < PER; j++) column[r][j] += term(get<PER>(come, j));
      }
#pragma unroll
      for (int j = 0; j < PER; j++) sum[j] += column[r][j];
    }
    put<PER>(totals + warp * TILE + lane * PER, sum);
    __syncthreads();  // totals are there; the rows of the plane before were read
    lane_t upto[PER] = {0, 0, 0, 0};  // first the rows of the warps above
    for (int w = 0; w < warp; w++) {
      const Four some = get_four(totals + w * TILE + lane * PER);
#pragma unroll
      for (int j = 0; j < PER; j++) upto[j] += some.at[j];
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
#pragma unroll
      for (int j = 0; j < PER; j++) upto[j] += column[r][j];
      put<PER>(row + r * TILE, upto);
    }
    __syncthreads();  // rows are there; totals were read

    u64 at = ((u64)z * rows + top + warp) * row_pitch + x;
    const lane_t *upper = down + warp * TILE + lane * PER;
    const int stop = min(rows, top + OUT_ROWS);
#if REDUCE
    const voxel *centre = here + plane_at[z + CZ / 2] * plane_size + (u64)(top + warp + first_row) * pitch;
    const u8 *label = numbers + at;
#endif
    for (int y = top + warp; y < stop; y += WARPS) {
      const Four last = get_four(upper + CY * TILE), first = get_four(upper);
      upper += WARPS * TILE;
      lane_t over[PER], window[PER];
#pragma unroll
      for (int j = 0; j < PER; j++) over[j] = last.at[j] - first.at[j];
      along_x<PER, BEFORE, AFTER>(over, prefix, window);
#if REDUCE
      u32 number[1] = {0};
      if (owned) number[0] = *(const u32 *)label;
      Voxels<PER> v = {};
      if (number[0]) v = read<PER>(centre);
      label += WARPS * row_pitch;
      centre += WARPS * pitch;
      bool all_middle = columns_middle;
      int row_group = 0;
#if FRAME
      row_group = plane_part[z] + row_part[y];
      all_middle &= row_group + middle_x == middle;
#endif
      add_voxels<PER>(sums, number, window, v, into, all_middle, row_group, group_of);
#else
      if (owned) put<PER>(map + at, window);
      at += WARPS * row_pitch;
#endif
    }
  }
#if REDUCE
  flush_warp(sums, into);
#endif
}
