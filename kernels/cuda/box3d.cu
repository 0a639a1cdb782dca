// Window sums in three dimensions, streamed along z: a summed-area table of which one plane of a tile is there at a time.
//
// A block goes down the planes over a tile of 2 · WARPS · ROWS rows and 128 columns. Half a warp has ROWS rows, a thread 8
// columns of them. Sums over the window's planes stay in registers: the plane that enters is added, the one that leaves,
// read again, is taken off. They are summed down y (a thread's rows in registers, then over the half warps through shared
// memory), so that a sum over the window's rows is a difference of two rows of shared memory; that is summed along x (a
// lane's 8, then a scan of half a warp, two rows at a time), and the window sum is a difference again. Nothing of the table
// goes to global memory.
//
// Of the tile, LEFT and RIGHT columns and CY − 1 rows are there for the windows of the others. Columns are those of a
// staged row, which begins LEFT before the image's and holds what the border reads beside it; rows and planes are
// looked up in row_at and plane_at.
//
// Macros beside those of voxring.cuh: CZ, CY, CX the window; WARPS, ROWS; REDUCE, or window sums into a map, of what
// POWER and FLOOR say.
//
// Must equal, for every voxel, the sum over its window in Python integers (tests/naive.py).
#include "voxring.cuh"

#define TILE 128
#define OUT (TILE - LEFT - RIGHT)
#define HALVES (2 * WARPS)
#define TALL (HALVES * ROWS)
#define OUT_ROWS ((TALL - (CY - 1)) & ~1)  // a warp takes them by twos

static_assert(CX <= 31 && OUT_ROWS > 0, "windows of up to 31, and rows for them");

// A lane's 8 columns of a row in shared memory: the first four of all lanes, then the last four, so that lanes read and
// write side by side.
INLINE void get_row(const lane_t *row, lane_t *lanes) {
  get_four(row, lanes);
  get_four(row + TILE / 2, lanes + 4);
}
INLINE void put_row(lane_t *row, const lane_t *lanes) {
  put_four(row, lanes);
  put_four(row + TILE / 2, lanes + 4);
}

// Registers for the blocks that shared memory leaves room for.
extern "C" __global__ void __launch_bounds__(WARPS * 32, WIDE ? 1 : 2)
box3d(const voxel *__restrict__ image, const u8 *__restrict__ numbers, const int *__restrict__ row_at,
      const int *__restrict__ plane_at, const int *__restrict__ run_at, u64 *__restrict__ table,
      lane_t *__restrict__ map, int planes, int rows, int columns, int pitch, int row_pitch, int plane_rows, int tiles,
      int tile_rows, int segment, int first_row, int groups, int middle, int middle_x) {
  DYNAMIC_SHARED(uint4, memory);
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, part = lane & 15;
  const int half = 2 * warp + (lane >> 4);
  lane_t *down = (lane_t *)memory + part * 4;  // [TALL + 1][TILE]: row i sums the rows before it
  lane_t *totals = down + (TALL + 1) * TILE;   // [HALVES][TILE]: of the rows of each half warp
  lane_t *prefix = (lane_t *)memory + (TALL + 1 + HALVES) * TILE + warp * (2 * TILE + 2 * PAD) + PAD;

  const int tile = blockIdx.x % tiles;
  const int top = blockIdx.x / tiles % tile_rows * OUT_ROWS;
  const int z0 = blockIdx.x / tiles / tile_rows * segment, z1 = min(planes, z0 + segment);
  const int staged = tile * OUT + part * PER;  // this lane's first column
  const int x = staged - LEFT;
  const bool there = staged < pitch;
  // Windows of its first four columns, and of its last
  const bool owned[2] = {(part * PER >= LEFT) & (part * PER < TILE - RIGHT) & (x < columns),
                         (part * PER + 4 >= LEFT) & (part * PER + 4 < TILE - RIGHT) & (x + 4 < columns)};
  const voxel *here = image + staged;
  const u64 plane_size = (u64)plane_rows * pitch;
  u32 row_offset[ROWS];  // a staged plane has fewer than 2^31 voxels
#pragma unroll
  for (int r = 0; r < ROWS; r++) row_offset[r] = (u32)row_at[min(top + half * ROWS + r, rows + CY - 2)] * pitch;

  lane_t column[ROWS][PER];
#pragma unroll
  for (int r = 0; r < ROWS; r++)
#pragma unroll
    for (int j = 0; j < PER; j++) column[r][j] = 0;
#pragma unroll 1  // here and below: unrolled, ptxas would spill on sm_100
  for (int k = 0; k < CZ && there; k++) {
    const voxel *enters = here + plane_at[z0 + k] * plane_size;
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      const Voxels some = read(enters + row_offset[r]);
#pragma unroll
      for (int j = 0; j < PER; j++) column[r][j] += term(get(some, j));
    }
  }
  const lane_t zeros[PER] = {0, 0, 0, 0, 0, 0, 0, 0};
  if (half == 0) put_row(down, zeros);
  if (lane < PAD) prefix[lane - PAD] = prefix[2 * TILE + lane] = 0;

#if REDUCE
  const Table into = {table, groups, middle};
  Sums sums;
  clear(sums, 0);
  bool columns_middle = true;
#if FRAME  // a voxel's group is the sum of what its column, its row and its plane add
  const int *row_part = run_at + columns, *plane_part = row_part + rows;
#pragma unroll
  for (int j = 0; j < PER; j++)
    if (owned[j / 4] && x + j < columns) columns_middle &= run_at[x + j] == middle_x;
#endif
#endif

  for (int z = z0; z < z1; z++) {
    if (there && z > z0) {
      const voxel *enters = here + plane_at[z + CZ - 1] * plane_size;
      const voxel *leaves = here + plane_at[z - 1] * plane_size;
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        const Voxels come = read(enters + row_offset[r]), gone = read(leaves + row_offset[r]);
#pragma unroll
        for (int j = 0; j < PER; j++) column[r][j] += term(get(come, j)) - term(get(gone, j));
      }
    }
    lane_t sum[PER];
#pragma unroll
    for (int j = 0; j < PER; j++) {
      sum[j] = column[0][j];
#pragma unroll
      for (int r = 1; r < ROWS; r++) sum[j] += column[r][j];
    }
    put_row(totals + half * TILE, sum);
    __syncthreads();  // totals are there; the rows of the plane before were read
    lane_t upto[PER] = {0, 0, 0, 0, 0, 0, 0, 0};  // first the rows of the halves above
#pragma unroll 1
    for (int h = 0; h < half; h++) {
      lane_t some[PER];
      get_row(totals + h * TILE, some);
#pragma unroll
      for (int j = 0; j < PER; j++) upto[j] += some[j];
    }
    lane_t *row = down + (1 + half * ROWS) * TILE;
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
#pragma unroll
      for (int j = 0; j < PER; j++) upto[j] += column[r][j];
      put_row(row + r * TILE, upto);
    }
    __syncthreads();  // rows are there; totals were read

    const int stop = min(rows, top + OUT_ROWS);
    u64 at = ((u64)z * rows + top + half) * row_pitch + x;
    const lane_t *upper = down + half * TILE;
#if REDUCE
    const voxel *centre = here + plane_at[z + CZ / 2] * plane_size + (u64)(top + half + first_row) * pitch;
    const u8 *label = numbers + at;
#endif
    for (int above = top + 2 * warp; above < stop; above += HALVES) {  // two rows: the whole warp stays together
      const int y = above + (lane >> 4);
      lane_t over[PER], first[PER], window[PER];
      get_row(upper + CY * TILE, over);
      get_row(upper, first);
      upper += HALVES * TILE;
#pragma unroll
      for (int j = 0; j < PER; j++) over[j] -= first[j];
      along_x<16>(over, prefix, window);
#if REDUCE
      u32 number[2] = {0, 0};
      if (owned[0] && y < stop) number[0] = *(const u32 *)label;
      if (owned[1] && y < stop) number[1] = *(const u32 *)(label + 4);
      Voxels v = {};
#pragma unroll
      for (int i = 0; i < 2; i++)
        if (number[i]) read_four(v, centre, i);
      label += HALVES * row_pitch;
      centre += HALVES * pitch;
      bool all_middle = columns_middle;
      int row_group = 0;
#if FRAME
      row_group = plane_part[z] + row_part[min(y, rows - 1)];
      all_middle &= row_group + middle_x == middle;
#endif
      add_voxels(sums, number, window, v, into, all_middle, row_group, run_at + x);
#else
      if (owned[0] && y < stop) put_four(map + at, window);
      if (owned[1] && y < stop) put_four(map + at + 4, window + 4);
      at += HALVES * row_pitch;
#endif
    }
  }
#if REDUCE
  flush_warp(sums, into);
#endif
}
