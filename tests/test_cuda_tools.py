"""The tools that stand in for a GPU find what they are for: each planted fault, by name, and nothing else."""

import sys

import numpy as np
import pytest

from cuda_tools import emulation, launches, nvrtc, ptx
from cuda_tools.emulation import Case, EmulationError
from cuda_tools.launches import LaunchError
from voxring.kernels.cuda.plans import Launch

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="fibers and NVRTC's wheel are for Linux")

FAULTS = (
    "NONE",
    "NO_BARRIER",
    "NO_SYNCWARP",
    "BEYOND_GLOBAL",
    "BEFORE_GLOBAL",
    "BEYOND_SHARED",
    "BEYOND_STATIC_SHARED",
    "NOT_WRITTEN",
    "MISALIGNED",
    "DIVERGENT_BARRIER",
    "DEADLOCK",
    "OUTSIDE_MASK",
    "NOT_IN_MASK",
    "OVERLAPPING_MASKS",
    "FROM_NOBODY",
    "BLOCKS_COLLIDE",
    "WRITES_CONST",
    "OVERFLOW",
    "BROKEN_PROMISE",
)

# Prefix sums of each block's numbers, neighbours exchanged; and, at run time, one of the faults.
SOURCE = r"""
#ifndef DYNAMIC_SHARED
#define DYNAMIC_SHARED(type, name) extern __shared__ __align__(16) type name[]
#endif
#define ALL 0xffffffffu
typedef unsigned int u32;
typedef unsigned long long u64;

extern "C" __global__ void __launch_bounds__(32 * WARPS)
prefix(const u32 *__restrict__ numbers, u32 *__restrict__ sums, int count, int fault) {
  __shared__ u32 of_warp[WARPS];
  DYNAMIC_SHARED(u32, exchange);
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, i = blockIdx.x * blockDim.x + threadIdx.x;
  u32 number = 0;
  if (i < count) number = numbers[fault == BEYOND_GLOBAL ? i + 1 : fault == BEFORE_GLOBAL ? i - 1 : i];
  if (fault == MISALIGNED) {
    const uint2 two = *(const uint2 *)(numbers + 1);
    number += two.x ^ two.y;
  }
  exchange[fault == BEYOND_SHARED ? threadIdx.x + 1 : threadIdx.x] = number;
  if (fault != NO_SYNCWARP) __syncwarp();
  u32 sum = exchange[threadIdx.x ^ 1];
  for (int step = 1; step < 32; step <<= 1) {
    const u32 other = __shfl_up_sync(ALL, sum, step);
    if (lane >= step) sum += other;
  }
  if (fault == DEADLOCK && lane != 7) __syncwarp();
  if (fault == OUTSIDE_MASK && lane < 16) sum += __shfl_sync(0xffff, sum, 20);
  if (fault == NOT_IN_MASK) sum += __shfl_sync(0xffff, sum, 0);
  if (fault == OVERLAPPING_MASKS) sum += __shfl_sync(lane < 16 ? 0x1ffff : 0xffff0000u, sum, 16);
  if (fault == FROM_NOBODY) {
    if (lane == 5) return;
    sum += __shfl_sync(ALL, sum, 5);
  }
  if (lane == 31 && fault != NOT_WRITTEN) of_warp[fault == BEYOND_STATIC_SHARED ? WARPS : warp] = sum;
  if (fault == DIVERGENT_BARRIER && warp)
    __syncthreads();
  else if (fault != NO_BARRIER)
    __syncthreads();
  if (fault == OVERFLOW) {
    const int large = 0x7fffff00 + (int)threadIdx.x * count;
    if (large & 8) sum++;
  }
  if (fault == BROKEN_PROMISE) __builtin_assume(count < 3);
  for (int before = 0; before < warp; before++) sum += of_warp[before];
  if (fault == WRITES_CONST && i == 0) ((u32 *)numbers)[0] = 0;
  if (i < count) sums[fault == BLOCKS_COLLIDE ? threadIdx.x : i] = sum;
}

extern "C" __global__ void histogram(const unsigned char *levels, u32 *table, u64 *total, int count) {
  __shared__ u32 mine[256];
  for (int level = threadIdx.x; level < 256; level += blockDim.x) mine[level] = 0;
  __syncthreads();
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x)
    atomicAdd(mine + levels[i], 1u);
  __syncthreads();
  for (int level = threadIdx.x; level < 256; level += blockDim.x) {
    if (mine[level]) atomicAdd(table + level, mine[level]);
    atomicAdd(total, (u64)mine[level] * level);
  }
}

extern "C" __global__ void intrinsics(const u32 *a_at, const u32 *b_at, const u32 *c_at, u32 *out, int count) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  const u32 a = a_at[i], b = b_at[i], c = c_at[i];
  const u64 wide = (u64)a << 32 | b;
  const u64 longs[] = {
      __umul64hi(wide, (u64)c << 32 | a), (u64)__mul64hi((long long)wide, (long long)(((u64)c << 32) + b)),
      __shfl_xor_sync(ALL, wide, 5), __shfl_down_sync(ALL, wide, 3, 8), __shfl_up_sync(ALL, wide, 2, 16),
      __shfl_sync(ALL, wide, c), wide / (c | 1), wide % (c | 1), wide >> (c & 63), (u64)((long long)wide >> (c & 63)),
      wide * c, (u64)((long long)(int)a * (int)b)};
  const u32 words[] = {
      __vadd2(a, b), __vsub2(a, b), __vadd4(a, b), __vsub4(a, b), __vminu2(a, b), __vmaxu2(a, b), __vminu4(a, b),
      __vmaxu4(a, b), __vabsdiffu2(a, b), __vabsdiffu4(a, b), __vavgu4(a, b), __vhaddu2(a, b),
      __vcmpeq2(a & 0x30003, b & 0x30003), __vcmpne4(a & 0x3030303, b & 0x3030303), __vcmpltu2(a, b), __vcmpgtu4(a, b),
      __vcmpleu2(a, b), __vcmpgeu4(a, b), __vseteq2(a & 0x30003, b & 0x30003), __vsetne4(a, b), __vsetltu2(a, b),
      __vsetgtu4(a, b), __dp2a_lo(a, b, c), __dp2a_hi(a, b, c), (u32)__dp2a_lo((int)a, (int)b, (int)c),
      (u32)__dp2a_hi((int)a, (int)b, (int)c), __dp4a(a, b, c), (u32)__dp4a((int)a, (int)b, (int)c),
      __byte_perm(a, b, c), __funnelshift_l(a, b, c), __funnelshift_r(a, b, c), __umulhi(a, b),
      (u32)__mulhi((int)a, (int)b), (u32)__popc(a), (u32)__popcll(wide), (u32)__clz((int)(a >> (c & 31))),
      (u32)__clzll((long long)(wide >> (c & 63))), (u32)__ffs((int)(a << (c & 31))), (u32)__ffsll((long long)wide),
      __brev(a), min(a, b), max(a, b), (u32)min((int)a, (int)b), (u32)max((int)a, (int)b), (u32)((int)a / (int)(b | 1)),
      a % (b | 1), (u32)((int)a >> (c & 31)), (u32)(int)(short)a, (u32)(int)(signed char)b, a & 0xff, __ldg(a_at + i),
      __ballot_sync(ALL, a & 1), (u32)__any_sync(ALL, (a & 31) == 1), (u32)__all_sync(ALL, a > 99),
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
      __reduce_add_sync(ALL, a), (u32)__reduce_add_sync(ALL, (int)b), __reduce_min_sync(ALL, a),
      (u32)__reduce_min_sync(ALL, (int)a), __reduce_max_sync(ALL, a), (u32)__reduce_max_sync(ALL, (int)a),
      __reduce_and_sync(ALL, a | b), __reduce_or_sync(ALL, a & b), __reduce_xor_sync(ALL, a),
#endif
      __shfl_sync(ALL, a, 9, 4), __shfl_xor_sync(ALL, a, 12, 8)};
  u32 *mine = out;
#pragma unroll
  for (int k = 0; k < (int)(sizeof words / sizeof *words); k++, mine += count) mine[i] = words[k];
#pragma unroll
  for (int k = 0; k < (int)(sizeof longs / sizeof *longs); k++, mine += 2 * count)
    *(uint2 *)(mine + 2 * i) = make_uint2((u32)longs[k], (u32)(longs[k] >> 32));
}
"""
RESULTS = 65 + 2 * 12

COUNT, WARPS = 1000, 4
MACROS = (("WARPS", WARPS), *((fault, number) for number, fault in enumerate(FAULTS)))


def prefix_case(fault="NONE"):
    numbers = np.arange(3, 3 + COUNT, dtype=np.uint32) ** 2
    arguments = ("numbers", "sums", np.int32(COUNT), np.int32(FAULTS.index(fault)))
    launch = Launch("prefix.cu", "prefix", MACROS, (8, 1, 1), (32 * WARPS, 1, 1), 4 * 32 * WARPS, arguments)
    return launch, {"numbers": numbers, "sums": np.zeros_like(numbers)}


def prefix_sums(numbers):
    exchanged = np.pad(numbers, (0, -len(numbers) % (32 * WARPS))).reshape(-1, 2)[:, ::-1]
    return np.cumsum(exchanged.reshape(-1, 32 * WARPS), axis=1, dtype=np.uint32).reshape(-1)[: len(numbers)]


def message_of(runner, fault, **options):
    """What a runner says of a fault; nothing if it ran to the end."""
    try:
        runner(*prefix_case(fault), source_text=SOURCE, **options)
    except EmulationError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("schedule", [0, 1, 2, 3, 12])
@pytest.mark.parametrize("runner", [emulation.run, ptx.run])
def test_every_schedule_runs_a_sound_kernel(runner, schedule):
    launch, buffers = prefix_case()
    runner(launch, buffers, schedule, source_text=SOURCE)
    np.testing.assert_array_equal(buffers["sums"], prefix_sums(buffers["numbers"]))


def test_threads_switch_without_the_assembly_too():
    launch, buffers = prefix_case()
    launch = launch._replace(macros=(*MACROS, ("EMULATION_UCONTEXT", 1)))
    emulation.run(launch, buffers, 2, source_text=SOURCE)
    np.testing.assert_array_equal(buffers["sums"], prefix_sums(buffers["numbers"]))


@pytest.mark.parametrize("schedule", [0, 5])
@pytest.mark.parametrize("runner", [emulation.run, ptx.run])
def test_histograms_of_atomics(runner, schedule):
    levels = np.random.default_rng(0).integers(0, 256, 5000).astype(np.uint8)
    buffers = {"levels": levels, "table": np.zeros(256, np.uint32), "total": np.zeros(1, np.uint64)}
    arguments = ("levels", "table", "total", np.int32(len(levels)))
    launch = Launch("prefix.cu", "histogram", MACROS, (3, 1, 1), (96, 1, 1), 0, arguments)
    runner(launch, buffers, schedule, source_text=SOURCE)
    np.testing.assert_array_equal(buffers["table"], np.bincount(levels, minlength=256))
    assert buffers["total"][0] == levels.sum()


@pytest.mark.parametrize("arch", [80, 90])
def test_intrinsics_are_what_nvrtc_makes_of_them(arch):
    random = np.random.default_rng(arch)
    count = 256
    a, b, c = random.integers(0, 2**32, (3, count), dtype=np.uint32)
    a[:64] = random.choice(np.array([0, 1, 0x7FFF, 0x8000, 0xFFFF, 2**31, 2**32 - 1], np.uint32), 64)
    answers = []
    for runner, options in ((emulation.run, {}), (ptx.run, {"arch": arch})):
        out = np.full(RESULTS * count, 0xCDCD, np.uint32)
        arguments = ("a", "b", "c", "out", np.int32(count))
        launch = Launch("prefix.cu", "intrinsics", MACROS, (count // 64, 1, 1), (64, 1, 1), 0, arguments)
        runner(launch, {"a": a, "b": b, "c": c, "out": out}, source_text=SOURCE, **options)
        answers.append(out.reshape(RESULTS, count))
    np.testing.assert_array_equal(*answers)
    assert not (answers[0] == 0xCDCD).all(axis=1).any()


def place(words):
    """Where in the source these words stand first."""
    return f"prefix.cu:{SOURCE[: SOURCE.index(words)].count(chr(10)) + 1}"


EMULATION_SAYS = {
    "DIVERGENT_BARRIER": "divergent __syncthreads: this thread is at prefix.cu:",
    "DEADLOCK": "threads wait in a warp intrinsic, the first is thread (0, 0, 0) at " + place("if (fault == DEADLOCK"),
    "OUTSIDE_MASK": "shuffle reads lane 20, outside the mask, at " + place("if (fault == OUTSIDE_MASK"),
    "NOT_IN_MASK": "is not in its own mask, at " + place("if (fault == NOT_IN_MASK"),
    "OVERLAPPING_MASKS": "divergent warp intrinsic",
    "FROM_NOBODY": "shuffle reads lane 5, which left the kernel, at " + place("sum, 5)"),
    "BROKEN_PROMISE": "__builtin_assume(count < 3) does not hold",
}


def test_emulation_names_what_cuda_leaves_undefined():
    said = {fault: message_of(emulation.run, fault) for fault in EMULATION_SAYS}
    for fault, expected in EMULATION_SAYS.items():
        assert expected in said[fault], (fault, said[fault])


PTX_SAYS = {
    "NO_BARRIER": "race: read of byte 0 of ",
    "NO_SYNCWARP": "race: write of byte 4 of exchange, with nothing between it and the read by thread (0, 0, 0)",
    "BEYOND_GLOBAL": "out of bounds: 4 bytes, at byte 4000 of numbers, which has 4000",
    "BEFORE_GLOBAL": "out of bounds: 4 bytes, ",
    "BEYOND_SHARED": "out of bounds: 4 bytes, at byte 512 of exchange, which has 512",
    "BEYOND_STATIC_SHARED": "out of bounds: 4 bytes, at byte 16 of ",
    "NOT_WRITTEN": "uninitialised: nobody has written byte 0 of ",
    "MISALIGNED": "misaligned: 8 bytes",
    "DEADLOCK": f"at bar.warp.sync ({place('if (fault == DEADLOCK')})",
    "OUTSIDE_MASK": "shuffle reads lane 20, outside the mask, at shfl.sync.idx.b32 ",
    "NOT_IN_MASK": "is not in its own mask, at shfl.sync.idx.b32 ",
    "BLOCKS_COLLIDE": "race: write of byte",
    "WRITES_CONST": "writes numbers, which is const",
}


def test_ptx_names_what_threads_do_to_memory():
    said = {fault: message_of(ptx.run, fault, uninitialised=fault == "NOT_WRITTEN") for fault in PTX_SAYS}
    for fault, expected in PTX_SAYS.items():
        assert expected in said[fault], (fault, said[fault])
    assert f"st.shared.u32 ({place('exchange[fault')})" in said["BEYOND_SHARED"]
    assert "by another block" in said["BLOCKS_COLLIDE"]


@pytest.mark.parametrize("fault", ["NO_BARRIER", "NO_SYNCWARP", "NOT_WRITTEN"])
def test_schedules_and_garbage_betray_what_is_missing(fault):
    wrong = []
    for schedule in range(6):
        launch, buffers = prefix_case(fault)
        emulation.run(launch, buffers, schedule, source_text=SOURCE)
        wrong.append(not np.array_equal(buffers["sums"], prefix_sums(buffers["numbers"])))
    assert any(wrong)


@pytest.mark.parametrize(
    ("mode", "fault", "expected"),
    [
        ("asan", "BEYOND_GLOBAL", "heap-buffer-overflow"),
        ("asan", "BEFORE_GLOBAL", "heap-buffer-overflow"),
        ("asan", "BEYOND_SHARED", "heap-buffer-overflow"),
        ("asan", "BEYOND_STATIC_SHARED", "index 4 out of bounds for type"),
        ("ubsan", "MISALIGNED", "misaligned address"),
        ("ubsan", "OVERFLOW", "signed integer overflow"),
        ("tsan", "NO_BARRIER", "data race"),
        ("tsan", "NO_SYNCWARP", "data race"),
    ],
)
def test_sanitizers_find(mode, fault, expected):
    message = message_of(emulation.run, fault, mode=mode)
    assert expected in message
    assert "prefix.cu:" in message


@pytest.mark.parametrize("mode", ["asan", "ubsan", "tsan"])
def test_sanitizers_have_nothing_to_say_of_a_sound_kernel(mode):
    cases = [Case(*prefix_case(), schedule, SOURCE) for schedule in range(4)]
    assert emulation.run_sanitized(mode, cases) == ""
    for case in cases:
        np.testing.assert_array_equal(case.buffers["sums"], prefix_sums(case.buffers["numbers"]))


def test_ptx_counts_instructions_and_bytes():
    counts = ptx.run(*prefix_case(), source_text=SOURCE)
    assert counts.global_loaded == counts.global_stored == 4 * COUNT
    threads = 8 * 32 * WARPS
    assert counts.total("shfl.sync.up") == 5 * threads
    assert counts.total("bar.sync") == counts.total("bar.warp.sync") == threads
    assert counts.shared_stored == 4 * (threads + 8 * WARPS)
    assert counts.shared_loaded == 4 * (threads + 8 * 32 * sum(range(WARPS)))
    assert counts.emulator["shuffles"] == 5 * threads
    assert counts.emulator["barriers"] == threads


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ("out[threadIdx.x] = (int)(out[threadIdx.x] * 0.1f);", "cvt.rn.f32.s32"),
        ("int own[9]; for (int i = 0; i < 9; i++) own[i] = out[i]; out[0] = own[out[3]];", "local memory"),
        ('int *where = out[0] ? out : (int *)some; asm volatile("" : "+l"(where)); *where = 1;', "generic addresses"),
    ],
)
def test_ptx_refuses_by_name(body, named):
    text = f'extern "C" __global__ void odd(int *out) {{ __shared__ int some[1]; some[0] = 1; {body} }}'
    launch = Launch("odd.cu", "odd", (), (1, 1, 1), (1, 1, 1), 0, ("out",))
    with pytest.raises(ptx.Unsupported, match=named):
        ptx.run(launch, {"out": np.zeros(16, np.int32)}, source_text=text)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"arguments": ("numbers", "sums", np.int32(1))}, "takes 4 arguments, got 3"),
        ({"arguments": ("numbers", "nothing", np.int32(1), np.int32(0))}, "there is no buffer nothing"),
        ({"arguments": ("numbers", "sums", np.int64(1), np.int32(0))}, "parameter count: expected int32"),
        ({"arguments": ("numbers", "sums", 1, np.int32(0))}, "expected a buffer's name or a numpy scalar, got int"),
        ({"arguments": ("numbers", "sums", "sums", np.int32(0))}, "parameter count: expected int32"),
        ({"arguments": ("numbers", "halves", np.int32(1), np.int32(0))}, "parameter sums: expected a buffer of uint32"),
        ({"kernel": "suffix"}, "no extern"),
    ],
)
@pytest.mark.parametrize("runner", [emulation.run, ptx.run])
def test_arguments_are_those_of_the_kernel(runner, change, complaint):
    launch, buffers = prefix_case()
    buffers["halves"] = np.zeros(COUNT, np.uint16)
    with pytest.raises(LaunchError, match=complaint):
        runner(launch._replace(**change), buffers, source_text=SOURCE)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"block": (1025, 1, 1)}, "1 to 1024 threads"),
        ({"block": (1, 1, 65)}, "at most 64 along z"),
        ({"grid": (1, 65536, 1)}, "1 to 65535 along y and z"),
        ({"shared": 227 * 1024}, "227 KiB"),
    ],
)
def test_launches_are_those_that_a_device_takes(change, complaint):
    launch, buffers = prefix_case()
    with pytest.raises(EmulationError, match=complaint):
        emulation.run(launch._replace(**change), buffers, source_text=SOURCE)


@pytest.mark.parametrize("arch", nvrtc.ARCHITECTURES)
def test_machine_code_reads_parameters_where_the_launch_puts_them(arch):
    launch, _ = prefix_case()
    compiled = nvrtc.compile(SOURCE, MACROS, arch)
    assert (
        nvrtc.parameter_table(compiled.image, "prefix") == launches.packed(launch) == [(0, 8), (8, 8), (16, 4), (20, 4)]
    )
    mixed = launch._replace(arguments=("a", np.uint8(1), np.uint16(1), np.uint64(1), np.int32(1), "b"))
    declared = "int *a, unsigned char b, unsigned short c, unsigned long long d, int e, int *f"
    text = f'extern "C" __global__ void mixed({declared}) {{}}'
    assert nvrtc.parameter_table(nvrtc.compile(text, (), arch).image, "mixed") == launches.packed(mixed)


def test_machine_code_and_its_needs():
    compiled = nvrtc.compile(SOURCE, MACROS, 90)
    needs = nvrtc.resources(compiled)
    assert set(needs) == {"prefix", "histogram", "intrinsics"}
    assert 8 <= needs["prefix"].registers <= 64
    assert needs["prefix"].shared == 4 * WARPS
    assert needs["prefix"].spill_stores == needs["prefix"].spill_loads == 0
    listing = nvrtc.disassembly(compiled.image)
    assert sum(one.opcode.startswith("SHFL.UP") for one in listing["prefix"]) == 5
    assert any(one.opcode.startswith("BAR.SYNC") for one in listing["prefix"])


def test_spills_are_seen():
    spilling = 'extern "C" __global__ void __launch_bounds__(1024) many(int *out) {\n  int x[200];\n#pragma unroll\n'
    spilling += "  for (int i = 0; i < 200; i++) x[i] = out[i * 33];\n  __syncthreads();\n#pragma unroll\n"
    spilling += "  for (int i = 0; i < 200; i++) out[i * 7] = x[i] * x[(i * 7 + 3) % 200];\n}\n"
    assert nvrtc.resources(nvrtc.compile(spilling, (), 80))["many"].spill_stores > 0


def test_what_a_compiler_refuses_comes_with_its_words():
    text = 'extern "C" __global__ void k(int *out) { *out = nonsense; }'
    with pytest.raises(nvrtc.CompileError, match='identifier "nonsense" is undefined'):
        nvrtc.compile(text)
    launch = Launch("k.cu", "k", (), (1, 1, 1), (1, 1, 1), 0, ("out",))
    with pytest.raises(EmulationError, match="nonsense"):
        emulation.run(launch, {"out": np.zeros(1, np.int32)}, source_text=text)
