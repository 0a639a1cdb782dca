// What the kernels share: voxels as they are stored, sums over one class, and their way into the table.
//
// Macros, all set by the launch plan:
//   VOXEL    bytes of a stored voxel: 1, 2 or 4
//   SIGNED   1 if voxels are signed. Kernels work on v' = v + 2^(8 VOXEL − 1), which is v with its top bit flipped, so
//            that every number is unsigned; the host takes the bias off the sums. Places outside hold the voxel 0.
//   WIDE     1 if a window sum needs 64 bits. Sums wrap in their lane: S and every difference of prefixes is right
//            whatever wrapped on the way, as |W| · max v' fits the lane.
//   ROW_FITS 1 if eight window sums together fit 32 bits
//   MANY     0 if the only class number is 1
//   POWER    2 or 3 if squares or cubes are summed up, modulo 2^64; where FLOOR is not 0, their floors over 2^FLOOR
//   FRAME    1 if the border counts what is inside (clip, constant): voxels are grouped by that number
//
// A thread sums what it sees of one class at a time. It sees at most 2^16 voxels (the plan bounds its rows), v' < 2^32
// and S < 2^48 (the plan bounds |W|), so no sum of it leaves 64 bits: Σ S < 2^64, Σ v' < 2^48, and Σ v'², of 32-bit
// voxels kept in three parts through v' = 2^16 high + low, < 2^48 in each. Sums go into the table as two halves of 32
// bits, fewer than 2^32 times each.
#pragma once

typedef unsigned long long u64;
typedef long long s64;
typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;

#ifndef DYNAMIC_SHARED
#define DYNAMIC_SHARED(type, name) extern __shared__ __align__(16) type name[]
#endif

#define ALL 0xffffffffu
#define INLINE static __device__ __forceinline__

#if VOXEL == 1
typedef u8 voxel;
#define BIAS_BITS 0x80808080u
#elif VOXEL == 2
typedef u16 voxel;
#define BIAS_BITS 0x80008000u
#else
typedef u32 voxel;
#define BIAS_BITS 0x80000000u
#endif

#if WIDE
typedef u64 lane_t;
#else
typedef u32 lane_t;
#endif

#if ROW_FITS
typedef u32 row_t;  // what eight window sums are summed in
#else
typedef u64 row_t;
#endif

// PER consecutive voxels in words of 32 bits, as memory holds them.
#define PER 8
struct Voxels { u32 word[PER * VOXEL / 4]; };

INLINE Voxels load(const voxel *at) {
  Voxels some;
#if VOXEL == 1
  const uint2 two = *(const uint2 *)at;
  some.word[0] = two.x, some.word[1] = two.y;
#else
#pragma unroll
  for (int i = 0; i < VOXEL / 2; i++) {
    const uint4 four = ((const uint4 *)at)[i];
    some.word[4 * i] = four.x, some.word[4 * i + 1] = four.y, some.word[4 * i + 2] = four.z, some.word[4 * i + 3] = four.w;
  }
#endif
  return some;
}

INLINE void store(voxel *at, const Voxels &some) {
#if VOXEL == 1
  *(uint2 *)at = uint2{some.word[0], some.word[1]};
#else
#pragma unroll
  for (int i = 0; i < VOXEL / 2; i++)
    ((uint4 *)at)[i] = uint4{some.word[4 * i], some.word[4 * i + 1], some.word[4 * i + 2], some.word[4 * i + 3]};
#endif
}

// How many of so many edges, which do not fall, are at most x.
INLINE int level_of(const s64 *edges, int edge_count, s64 x) {
  int low = 0, high = edge_count;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (edges[middle] <= x)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

// From global memory: with the bias.
INLINE Voxels read(const voxel *at) {
  Voxels some = load(at);
#if SIGNED
#pragma unroll
  for (int i = 0; i < PER * VOXEL / 4; i++) some.word[i] ^= BIAS_BITS;
#endif
  return some;
}

// The first four of a lane's voxels, or the last.
INLINE void read_four(Voxels &some, const voxel *at, int half) {
  u32 *to = some.word + half * VOXEL;
  at += half * 4;
#if VOXEL == 1
  to[0] = *(const u32 *)at;
#elif VOXEL == 2
  const uint2 two = *(const uint2 *)at;
  to[0] = two.x, to[1] = two.y;
#else
  const uint4 four = *(const uint4 *)at;
  to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
#endif
#if SIGNED
#pragma unroll
  for (int i = 0; i < VOXEL; i++) to[i] ^= BIAS_BITS;
#endif
}

INLINE u32 get(const Voxels &some, int j) {
#if VOXEL == 1
  return some.word[j / 4] >> 8 * (j % 4) & 0xffu;
#elif VOXEL == 2
  return j % 2 ? some.word[j / 2] >> 16 : some.word[j / 2] & 0xffffu;
#else
  return some.word[j];
#endif
}

// v² or v³ of a voxel v, modulo 2^64; where FLOOR is not 0, its floor over 2^FLOOR, for |v| < 2^31 and FLOOR > 31 for v³.
INLINE u64 power(long long v) {
#if FLOOR && POWER == 3  // v³ = v high 2^31 + v low
  const long long square = v * v;
  return (u64)((v * (square >> 31) + (v * (square & 0x7fffffffll) >> 31)) >> (FLOOR - 31));
#elif POWER == 3
  return (u64)v * (u64)v * (u64)v;
#else
  return (u64)v * (u64)v >> FLOOR;
#endif
}

// What a place adds to a window sum: v', or, where POWER is more than 1, a power of v itself (of outside, that is 0).
INLINE lane_t term(u32 biased) {
#if POWER == 1
  return biased;
#elif SIGNED
  return (lane_t)power((long long)biased - (1ll << (8 * VOXEL - 1)));
#else
  return (lane_t)power(biased);
#endif
}

// Four lanes from and to memory.
INLINE void get_four(const lane_t *from, lane_t *lanes) {
#if WIDE
  const uint4 low = *(const uint4 *)from, high = *(const uint4 *)(from + 2);
  lanes[0] = (u64)low.y << 32 | low.x, lanes[1] = (u64)low.w << 32 | low.z;
  lanes[2] = (u64)high.y << 32 | high.x, lanes[3] = (u64)high.w << 32 | high.z;
#else
  const uint4 all = *(const uint4 *)from;
  lanes[0] = all.x, lanes[1] = all.y, lanes[2] = all.z, lanes[3] = all.w;
#endif
}

INLINE void put_four(lane_t *at, const lane_t *lanes) {
#if WIDE
#pragma unroll
  for (int j = 0; j < 4; j += 2)
    *(uint4 *)(at + j) = uint4{(u32)lanes[j], (u32)(lanes[j] >> 32), (u32)lanes[j + 1], (u32)(lanes[j + 1] >> 32)};
#else
  *(uint4 *)at = uint4{lanes[0], lanes[1], lanes[2], lanes[3]};
#endif
}

// A word of voxels that add nothing.
#if POWER > 1 && SIGNED
#define NOTHING BIAS_BITS
#else
#define NOTHING 0u
#endif

#ifdef CX
// Columns of a strip that LANES lanes hold, PER each: the first LEFT and the last RIGHT are there for the windows of those
// between, which are OUT. Rows of a staged image begin LEFT columns before the image's own, so that a lane's first column
// is aligned there; among class numbers and in maps it is aligned to four.
#define BEFORE (CX / 2)
#define AFTER (CX - 1 - CX / 2)
#define LEFT ((BEFORE + 4) / 4 * 4)  // more than BEFORE: no prefix is left of the strip
#define RIGHT ((LEFT + AFTER + PER - 1) / PER * PER - LEFT)
#define PAD 8  // lanes at the ends of a strip read zeros beside it, and use nothing of them

// Prefixes of a row lie in shared memory so that lanes read and write side by side: column i of a strip has its own at
// (i mod PER) · 32 + i / PER; where a warp has two strips, the second's are 16 behind the first's.
INLINE constexpr int striped(int i) { return (i & (PER - 1)) * 32 + (i >> 3); }

// Window sums along a row, or along two where LANES is 16: the window of a column begins BEFORE columns before it and ends
// AFTER columns behind it. ``prefix`` is shared memory of this warp alone, with pads on both sides that lanes at the ends
// read, and make nothing of; nor of what they read of the other row.
template <int LANES> INLINE void along_x(const lane_t *column, lane_t *prefix, lane_t *window) {
  const int lane = threadIdx.x & 31, part = lane & (LANES - 1);
  lane_t sum[PER];
  sum[0] = column[0];
#pragma unroll
  for (int j = 1; j < PER; j++) sum[j] = sum[j - 1] + column[j];
  lane_t before = sum[PER - 1];
#pragma unroll
  for (int step = 1; step < LANES; step <<= 1) {
    const lane_t other = __shfl_up_sync(ALL, before, step);
#if WIDE
    if (part >= step) before += other;
#else
    before += other * ((part + LANES - step) / LANES);  // 0 or 1: a factor takes one instruction, a choice three
#endif
  }
  before -= sum[PER - 1];
#pragma unroll
  for (int j = 0; j < PER; j++) prefix[j * 32 + lane] = before + sum[j];
  __syncwarp();
#pragma unroll
  for (int j = 0; j < PER; j++)
    window[j] = prefix[striped(j + AFTER) + lane] - prefix[striped(j - BEFORE - 1) + lane];
  __syncwarp();  // before the next row's prefixes take their place
}
#endif

INLINE u64 warp_sum(u64 value) {
#pragma unroll
  for (int step = 16; step; step >>= 1) value += __shfl_xor_sync(ALL, value, step);
  return value;
}

INLINE void add_halves(u64 *at, u64 value) {
  atomicAdd(at, value & 0xffffffffull);
  atomicAdd(at + 1, value >> 32);
}

// Table: per class GROUPS entries of (voxels, Σ S in two halves), then the moments: Σ v' and three parts of Σ v'², in
// two halves each.
#define GROUP 3
#define MOMENTS 8

struct Table {
  u64 *at;
  int groups;  // of a class: 1, or the products of the runs of three axes
  int middle;  // the group of the voxels whose windows lie inside, or whose border gives every window |W| voxels
};

INLINE u64 *class_at(const Table &table, u32 number) {
  return table.at + (u64)(number - 1) * (GROUP * table.groups + MOMENTS);
}

// Sums over voxels of the class ``number``: 0 before the first.
struct Sums {
  u32 number, voxels;
  u64 windows, total, squares;
#if VOXEL == 4
  u64 mixed, high;  // ``squares`` then holds those of the low halves
#endif
};

INLINE void clear(Sums &sums, u32 number) {
  sums.number = number;
  sums.voxels = 0;
  sums.windows = sums.total = sums.squares = 0;
#if VOXEL == 4
  sums.mixed = sums.high = 0;
#endif
}

INLINE void add_square(Sums &sums, u32 v) {
#if VOXEL == 4
  const u32 low = v & 0xffffu, high = v >> 16;
  sums.squares += (u64)low * low;  // one instruction, as 64 bits
  sums.mixed += (u64)low * high;
  sums.high += (u64)high * high;
#else
  sums.squares += (u64)v * v;
#endif
}

// Into the table, one thread's sums.
INLINE void flush_thread(const Sums &sums, const Table &table) {
  if (sums.number == 0) return;
  u64 *group = class_at(table, sums.number), *moments = group + GROUP * table.groups;
  group += GROUP * table.middle;
  if (sums.voxels) atomicAdd(group, (u64)sums.voxels);
  add_halves(group + 1, sums.windows);
  add_halves(moments, sums.total);
  add_halves(moments + 2, sums.squares);
#if VOXEL == 4
  add_halves(moments + 4, sums.mixed);
  add_halves(moments + 6, sums.high);
#endif
}

// Into the table, the sums of all threads of a warp; as one where they are of one class, which is nearly always.
INLINE void flush_warp(Sums &sums, const Table &table) {
  u32 number = sums.number;
#pragma unroll
  for (int step = 16; step; step >>= 1) number = max(number, __shfl_xor_sync(ALL, number, step));
  if (number == 0) return;
  if (!__all_sync(ALL, sums.number == number || sums.number == 0)) {
    flush_thread(sums, table);
    return;
  }
  // 32 sums below 2^64 could leave 64 bits: halves are summed
  u64 *group = class_at(table, number), *moments = group + GROUP * table.groups;
  group += GROUP * table.middle;
  const u64 voxels = warp_sum(sums.voxels);
  const bool first = (threadIdx.x & 31) == 0;
  if (first) atomicAdd(group, voxels);
#define FLUSH_HALVES(to, value)                      \
  do {                                               \
    const u64 low = warp_sum((value) & 0xffffffffull); \
    const u64 high = warp_sum((value) >> 32);          \
    if (first) {                                     \
      atomicAdd(to, low);                            \
      atomicAdd(to + 1, high);                       \
    }                                                \
  } while (0)
  FLUSH_HALVES(group + 1, sums.windows);
  FLUSH_HALVES(moments, sums.total);
  FLUSH_HALVES(moments + 2, sums.squares);
#if VOXEL == 4
  FLUSH_HALVES(moments + 4, sums.mixed);
  FLUSH_HALVES(moments + 6, sums.high);
#endif
#undef FLUSH_HALVES
}

// In each byte, 0x80 where it is not 0.
INLINE u32 filled_bytes(u32 word) { return (((word & 0x7f7f7f7fu) + 0x7f7f7f7fu) | word) & 0x80808080u; }

// One window sum, of a voxel of the class that is summed.
INLINE void add_window(Sums &sums, lane_t window, const Table &table, int group) {
  if (group == table.middle) {
    sums.voxels++;
    sums.windows += window;
  } else {
    u64 *at = class_at(table, sums.number) + GROUP * group;
    atomicAdd(at, 1ull);
    add_halves(at + 1, window);
  }
}

// One voxel of class ``number`` > 0 whose window sum is ``window``.
INLINE void add_voxel(Sums &sums, u32 number, lane_t window, u32 v, const Table &table, int group) {
  if (sums.number != number) {
    flush_thread(sums, table);
    clear(sums, number);
  }
  add_window(sums, window, table, group);
  sums.total += v;
  add_square(sums, v);
}

// PER neighbours in a row: class numbers in the bytes of ``numbers``, window sums, and voxels. All are in the group
// ``table.middle``, or in what column_part adds to row_group.
INLINE void add_voxels(Sums &sums, const u32 *numbers, const lane_t *windows, const Voxels &v, const Table &table,
                       bool all_middle, int row_group, const int *column_part) {
  u32 some = 0, others = 0, mine[PER / 4];
#pragma unroll
  for (int i = 0; i < PER / 4; i++) {
    some |= numbers[i];
#if MANY
    const u32 filled = filled_bytes(numbers[i]);
    mine[i] = filled & ~filled_bytes(numbers[i] ^ sums.number * 0x01010101u);
    others |= filled ^ mine[i];
#else
    mine[i] = numbers[i] << 7;
#endif
  }
  if (!some) return;
  if (others || !all_middle) {
    for (int j = 0; j < PER; j++) {
      const u32 number = numbers[j / 4] >> 8 * (j % 4) & 0xffu;
      if (number) add_voxel(sums, number, windows[j], get(v, j), table, all_middle ? table.middle : row_group + column_part[j]);
    }
    return;
  }
#if !MANY
  sums.number = 1;
#endif
#if VOXEL < 4
  u32 total = 0;
#endif
  row_t window_sums = 0;
#pragma unroll
  for (int i = 0; i < PER / 4; i++) sums.voxels += __popc(mine[i] & 0x80808080u);
#pragma unroll
  for (int j = 0; j < PER; j++) {
    const bool is = mine[j / 4] >> (8 * (j % 4) + 7) & 1u;
    const u32 value = is ? get(v, j) : 0u;
    window_sums += is ? windows[j] : 0;
#if VOXEL == 4
    sums.total += value;
#else
    total += value;  // eight of them fit
#endif
    add_square(sums, value);
  }
  sums.windows += window_sums;
#if VOXEL < 4
  sums.total += total;
#endif
}
