// Window sums of flat windows (one plane), streamed: a summed-area table of which one row is there at a time.
//
// A warp goes down a strip of 256 columns, 8 of them a lane. Sums over the window's rows stay in registers: the row that
// enters is added, the one that leaves, kept in a ring in shared memory, is taken off. Their prefix along x (a lane's 8,
// then a scan of the warp) goes to shared memory, and the window sum is a difference of two prefixes. Nothing of the
// table goes to global memory: a voxel is read once, and again where strips and segments of rows overlap.
//
// The strip's first LEFT columns and its last RIGHT are there for the windows of those between. Columns are those of a
// staged row, which begins LEFT before the image's and holds what the border reads beside it; rows are looked up in
// row_at, so that no border rule is left for the kernel.
//
// Macros beside those of voxring.cuh: CY, CX the window; WARPS of a block; REDUCE, or window sums into a map, of what
// POWER and FLOOR say.
//
// Must equal, for every voxel, the sum over its window in Python integers (tests/naive.py).
#include "voxring.cuh"

#define STRIP 256
#define OUT (STRIP - LEFT - RIGHT)

static_assert(CX <= 31 && CY <= 31, "windows of up to 31");

// Registers for 16 warps an SM: told nothing, ptxas spills on sm_75 and sm_80.
extern "C" __global__ void __launch_bounds__(WARPS * 32, 16 / WARPS)
box2d(const voxel *__restrict__ image, const u8 *__restrict__ numbers, const int *__restrict__ row_at,
      const int *__restrict__ run_at, u64 *__restrict__ table, lane_t *__restrict__ map, int rows, int columns,
      int pitch, int row_pitch, int plane_rows, int strips, int segments, int segment, int groups, int middle,
      int middle_x) {
  DYNAMIC_SHARED(uint4, memory);
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int ring_bytes = CY * STRIP * VOXEL, prefix_bytes = (STRIP + 2 * PAD) * (int)sizeof(lane_t);
  u8 *mine = (u8 *)memory + warp * (ring_bytes + prefix_bytes);
  voxel *ring = (voxel *)mine + lane * PER;  // [CY][STRIP]; a lane touches its own columns only
  lane_t *prefix = (lane_t *)(mine + ring_bytes) + PAD;

  const int wide = (strips + WARPS - 1) / WARPS;
  const int strip = blockIdx.x % wide * WARPS + warp;
  const int z = blockIdx.x / wide / segments;
  const int y0 = blockIdx.x / wide % segments * segment, y1 = min(rows, y0 + segment);
  if (strip >= strips) return;
  if (lane < PAD) prefix[lane - PAD] = prefix[STRIP + lane] = 0;
  const int staged = strip * OUT + lane * PER;  // this lane's first column
  const int x = staged - LEFT;
  const bool there = staged < pitch;
  // Windows of its first four columns, and of its last
  const bool owned[2] = {(lane * PER >= LEFT) & (lane * PER < STRIP - RIGHT) & (x < columns),
                         (lane * PER + 4 >= LEFT) & (lane * PER + 4 < STRIP - RIGHT) & (x + 4 < columns)};
  const voxel *plane = image + (u64)z * plane_rows * pitch + staged;
  const u64 at = ((u64)z * rows + y0) * row_pitch + x;

  lane_t column[PER];
#pragma unroll
  for (int j = 0; j < PER; j++) column[j] = 0;
  Voxels nothing;  // beyond the image, and what leaves when the first row enters
#pragma unroll
  for (int i = 0; i < PER * VOXEL / 4; i++) nothing.word[i] = NOTHING;
  for (int k = 0; k < CY - 1; k++) {
    Voxels enters = nothing;
    if (there) enters = read(plane + (u64)row_at[y0 + k] * pitch);
    store(ring + k * STRIP, enters);
#pragma unroll
    for (int j = 0; j < PER; j++) column[j] += term(get(enters, j));
  }
  int newest = (CY - 1) * STRIP, centre = CY / 2 * STRIP;
  store(ring + newest, nothing);

#if REDUCE
  const Table into = {table, groups, middle};
  Sums sums;
  clear(sums, 0);
  const u8 *labels = numbers + at;
  const int until[2] = {owned[0] ? y1 : y0, owned[1] ? y1 : y0};  // rows of its own
  bool columns_middle = true;
#if FRAME  // a voxel's group is the sum of what its column, its row and its plane add
  const int *row_part = run_at + columns;
  const int plane_part = run_at[columns + rows + z];
#pragma unroll
  for (int j = 0; j < PER; j++)
    if (owned[j / 4] && x + j < columns) columns_middle &= run_at[x + j] == middle_x;
#endif
#else
  lane_t *sums_at = map + at;
#endif

  Voxels next = nothing;
  if (there) next = read(plane + (u64)row_at[y0 + CY - 1] * pitch);
  for (int y = y0; y < y1; y++) {
    const Voxels enters = next;
    if (there) next = read(plane + (u64)row_at[min(y + CY, rows + CY - 2)] * pitch);  // ahead of its use
#if REDUCE
    u32 number[2] = {0, 0};
    if (y < until[0]) number[0] = *(const u32 *)labels;
    if (y < until[1]) number[1] = *(const u32 *)(labels + 4);
    labels += row_pitch;
#endif
    const Voxels leaves = load(ring + newest);
#pragma unroll
    for (int j = 0; j < PER; j++) column[j] += term(get(enters, j)) - term(get(leaves, j));
    store(ring + newest, enters);

    lane_t window[PER];
    along_x<32>(column, prefix, window);

#if REDUCE
    const Voxels v = load(ring + centre);
    bool all_middle = columns_middle;
    int row_group = 0;
#if FRAME
    row_group = plane_part + row_part[y];
    all_middle &= row_group + middle_x == middle;
#endif
    add_voxels(sums, number, window, v, into, all_middle, row_group, run_at + x);
#else
    if (owned[0]) put_four(sums_at, window);  // the map's rows are as long as the labels'
    if (owned[1]) put_four(sums_at + 4, window + 4);
    sums_at += row_pitch;
#endif
    newest = newest == (CY - 1) * STRIP ? 0 : newest + STRIP;
    centre = centre == (CY - 1) * STRIP ? 0 : centre + STRIP;
  }
#if REDUCE
  flush_warp(sums, into);
#endif
}
