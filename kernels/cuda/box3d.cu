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
// Class numbers and voxels would be read again where a window has its middle. Of a single class they need not be: a voxel's
// moments are taken as its plane enters, and whether it is of the class, a bit, waits for its window in a ring in shared
// memory, where there is room.
//
// Macros beside those of voxring.cuh: CZ, CY, CX the window; WARPS, ROWS; RING, the planes of that ring, or 0 if there is
// none; REDUCE, or window sums into a map, of what POWER and FLOOR say.
//
// Must equal, for every voxel, the sum over its window in Python integers (tests/naive.py).
#include "voxring.cuh"

#define TILE 128
#define OUT (TILE - LEFT - RIGHT)
#define HALVES (2 * WARPS)
#define TALL (HALVES * ROWS)
#define OUT_ROWS ((TALL - (CY - 1)) & ~1)  // a warp takes them by twos
#define AHEAD (CZ - 1 - CZ / 2)            // planes from the middle of a window to the one that enters

static_assert(CX <= 31 && OUT_ROWS > 0, "windows of up to 31, and rows for them");
// One plane more than wait: a warp may write the next while another still reads the one before.
static_assert(!RING || (RING == AHEAD + 2 && !MANY), "a ring for one class");

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

#if RING
// Eight bytes, each 0 or 1, as bits: those of the products that reach the upper byte are these.
INLINE u32 as_bits(u32 first, u32 last) { return (first * 0x01020408u >> 24) + (last * 0x10204080u >> 24); }

// Voxels whose bit is set; the others become 0.
INLINE Voxels chosen(const Voxels &v, u32 bits) {
  Voxels some;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const u32 bytes = ((bits >> 4 * half & 15u) * 0x00204081u & 0x01010101u) * 255u;  // 0xff where a bit is
#pragma unroll
    for (int i = 0; i < VOXEL; i++) {
#if VOXEL == 1
      const u32 mask = bytes;
#elif VOXEL == 2
      const u32 mask = __byte_perm(bytes, 0, 0x1100 + 0x2222 * i);
#else
      const u32 mask = __byte_perm(bytes, 0, 0x1111 * i);
#endif
      some.word[half * VOXEL + i] = v.word[half * VOXEL + i] & mask;
    }
  }
  return some;
}

// add_voxels in two steps, of the class number 1, where bits say which of the neighbours are of it: window sums,
INLINE void add_windows(Sums &sums, u32 bits, const lane_t *windows, const Table &table, bool all_middle, int row_group,
                        const int *column_part) {
  if (!bits) return;
  sums.number = 1;
  if (!all_middle) {
    for (int j = 0; j < PER; j++)
      if (bits >> j & 1u) add_window(sums, windows[j], table, row_group + column_part[j]);
    return;
  }
  row_t window_sums = 0;
  sums.voxels += __popc(bits);
#pragma unroll
  for (int j = 0; j < PER; j++) window_sums += bits >> j & 1u ? windows[j] : 0;
  sums.windows += window_sums;
}

// and moments.
INLINE void add_moments(Sums &sums, u32 bits, const Voxels &v) {
  if (!bits) return;
  sums.number = 1;
  const Voxels mine = chosen(v, bits);
#if VOXEL < 4
  u32 total = 0;
#endif
#pragma unroll
  for (int j = 0; j < PER; j++) {
    const u32 value = get(mine, j);
#if VOXEL == 4
    sums.total += value;
#else
    total += value;  // eight of them fit
#endif
    add_square(sums, value);
  }
#if VOXEL < 4
  sums.total += total;
#endif
}
#endif

// Registers for the blocks that shared memory leaves room for.
extern "C" __global__ void __launch_bounds__(WARPS * 32, WIDE || WARPS > 8 ? 1 : 2)
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
  const int stop = min(rows, top + OUT_ROWS);
#if RING
  u8 *ring = (u8 *)((lane_t *)memory + (TALL + 1 + HALVES) * TILE + WARPS * (2 * TILE + 2 * PAD)) + part;  // [RING][TALL][16]
  const int first_own = half * ROWS - CY / 2;  // of its rows the first, from the first that has windows here
#endif
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

  // The plane ``last`` enters the sums over planes, and the one of CZ before leaves them.
  const auto go_on = [&](int last, bool leaves) {
#if RING
    const int wait = last - CZ / 2;  // the plane whose bits wait from now on
    const u32 taken = wait >= z0 && wait < z1 ? stop - top : 0;  // so many rows of it
    const u8 *label = numbers + ((s64)wait * rows + top + first_own) * row_pitch + x;
    u8 *waits = ring + ((u32)(wait + RING) % RING * TALL + half * ROWS) * 16;
    u32 bits[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      u32 number[2] = {0, 0};
      const bool inside = (u32)(first_own + r) < taken;
      if (inside & owned[0]) number[0] = *(const u32 *)(label + r * row_pitch);
      if (inside & owned[1]) number[1] = *(const u32 *)(label + r * row_pitch + 4);
      bits[r] = as_bits(number[0], number[1]);
      waits[r * 16] = bits[r];
    }
#endif
    if (!there) return;
    const voxel *come_from = here + plane_at[last] * plane_size;
    const voxel *gone_from = leaves ? here + plane_at[last - CZ] * plane_size : nullptr;
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      const Voxels come = read(come_from + row_offset[r]);
      if (leaves) {
        const Voxels gone = read(gone_from + row_offset[r]);
#pragma unroll
        for (int j = 0; j < PER; j++) column[r][j] += term(get(come, j)) - term(get(gone, j));
      } else {
#pragma unroll
        for (int j = 0; j < PER; j++) column[r][j] += term(get(come, j));
      }
#if RING
      add_moments(sums, bits[r], come);
#endif
    }
  };
#pragma unroll 1  // here and below: unrolled, ptxas would spill on sm_100
  for (int k = 0; k < CZ && (RING || there); k++) go_on(z0 + k, false);

  for (int z = z0; z < z1; z++) {
    if (z > z0) go_on(z + CZ - 1, true);
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

    u64 at = ((u64)z * rows + top + half) * row_pitch + x;
    const lane_t *upper = down + half * TILE;
#if RING
    const u8 *waited = ring + ((u32)(z + RING) % RING * TALL + half + CY / 2) * 16;
#elif REDUCE
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
#if !RING
      u32 number[2] = {0, 0};
      if (owned[0] && y < stop) number[0] = *(const u32 *)label;
      if (owned[1] && y < stop) number[1] = *(const u32 *)(label + 4);
      Voxels v = {};
#pragma unroll
      for (int i = 0; i < 2; i++)
        if (number[i]) read_four(v, centre, i);
      label += HALVES * row_pitch;
      centre += HALVES * pitch;
#endif
      bool all_middle = columns_middle;
      int row_group = 0;
#if FRAME
      row_group = plane_part[z] + row_part[min(y, rows - 1)];
      all_middle &= row_group == middle - middle_x;
#endif
#if RING
      add_windows(sums, *waited, window, into, all_middle, row_group, run_at + x);
      waited += HALVES * 16;
#else
      add_voxels(sums, number, window, v, into, all_middle, row_group, run_at + x);
#endif
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
