// The part of CUDA that kernels/cuda/*.cu use, on the CPU, for tests on machines without a GPU.
//
// One fiber runs each CUDA thread; blocks run one after another on one OS thread. A fiber gives way only where CUDA
// threads meet: at barriers and warp intrinsics, and in shuffled schedules also at atomics. So a run is repeatable, and
// a kernel that lacks a barrier computes the same wrong value each time. What hardware leaves undefined is refused here
// by name: barriers that threads disagree about, lanes that are not in their own mask, values read from lanes that are
// not in the mask. Shared memory is filled with garbage before each block.
//
// ASan and TSan are told of the fibers. For TSan, only __syncthreads, __syncwarp, and the start and end of a block order
// memory; shuffles and votes do not, as in CUDA.
//
// Not here on purpose: textures, cooperative groups, __activemask, streams, memory fences. A kernel that uses them does
// not compile.
#pragma once
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#if !defined(__x86_64__) || defined(EMULATION_UCONTEXT)
#include <ucontext.h>
#define EMULATION_SWAPCONTEXT 1
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

// The scheduler itself must be invisible to the sanitizers: it touches the memory of every thread.
#define EMULATION_HIDDEN __attribute__((no_sanitize("address", "thread", "undefined"), noinline))

// ---------------------------------------------------------------------------------------------------------------------
// Keywords

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
// All static shared arrays go to one section, so that it can be filled with garbage between blocks. (The compiler
// refuses to mix templates and plain functions there: declare __shared__ in the kernel, and hand pointers on.)
#define __shared__ static __attribute__((section("cuda_shared")))
#define DYNAMIC_SHARED(type, name) type *const name = static_cast<type *>(emulation::dynamic_shared)

// ---------------------------------------------------------------------------------------------------------------------
// Vector types

#define EMULATION_VECTORS(scalar, name, two, three, four)                                                              \
    struct two name##2 { scalar x, y; };                                                                               \
    struct three name##3 { scalar x, y, z; };                                                                          \
    struct four name##4 { scalar x, y, z, w; };                                                                        \
    static inline name##2 make_##name##2(scalar x, scalar y) { return {x, y}; }                                        \
    static inline name##3 make_##name##3(scalar x, scalar y, scalar z) { return {x, y, z}; }                           \
    static inline name##4 make_##name##4(scalar x, scalar y, scalar z, scalar w) { return {x, y, z, w}; }
EMULATION_VECTORS(signed char, char, alignas(2), , alignas(4))
EMULATION_VECTORS(unsigned char, uchar, alignas(2), , alignas(4))
EMULATION_VECTORS(short, short, alignas(4), , alignas(8))
EMULATION_VECTORS(unsigned short, ushort, alignas(4), , alignas(8))
EMULATION_VECTORS(int, int, alignas(8), , alignas(16))
EMULATION_VECTORS(unsigned, uint, alignas(8), , alignas(16))
EMULATION_VECTORS(long long, longlong, alignas(16), , alignas(16))
EMULATION_VECTORS(unsigned long long, ulonglong, alignas(16), , alignas(16))
EMULATION_VECTORS(float, float, alignas(8), , alignas(16))
struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};

// ---------------------------------------------------------------------------------------------------------------------
// Switching between fibers

#ifndef EMULATION_SWAPCONTEXT
// Saves the callee-saved registers on the old stack, and goes on where the new stack was left.
extern "C" void emulation_switch(void **save, void *load);
__asm__(R"(
.text
.p2align 4
.type emulation_switch, @function
emulation_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emulation_switch, .-emulation_switch
)");
#endif

extern "C" {
extern unsigned char __start_cuda_shared[] __attribute__((weak, visibility("hidden")));
extern unsigned char __stop_cuda_shared[] __attribute__((weak, visibility("hidden")));
}

namespace emulation {

constexpr unsigned WARP = 32;
constexpr size_t STACK_BYTES = 128 * 1024;
constexpr size_t GUARD_BYTES = 4096; // below each stack; whoever runs over it dies at once
constexpr size_t MOST_SHARED = 227 * 1024;

enum class State : uint8_t { ready, at_barrier, in_warp, done };

enum class Operation : uint8_t {
    sync, shuffle, ballot, any, all, add, min_signed, max_signed, min_unsigned, max_unsigned, bit_and, bit_or, bit_xor
};

struct Context {
#ifdef EMULATION_SWAPCONTEXT
    ucontext_t registers;
#else
    void *stack_pointer = nullptr;
#endif
    unsigned char *stack = nullptr;
    void *asan_fake_stack = nullptr;
    void *tsan_fiber = nullptr;
};

struct Place { // in the source
    const char *file;
    int line;
};

struct Thread {
    Context context;
    uint3 index;
    unsigned rank; // in the block
    State state = State::done;
    bool started = false; // has a fiber, which waits at the end of its last block
    Place waits_at;
    uint64_t received;   // what the last warp intrinsic gave this lane
    bool from_nobody;    // the lane that it reads had left the kernel
};

// Lanes that are about to meet in one warp intrinsic.
struct Meeting {
    Operation operation;
    uint32_t mask, arrived;
    uint64_t value[WARP];
    uint8_t source[WARP];
    unsigned tag;
};

struct Warp {
    uint32_t open = 0;     // meetings under way, by their lowest lane
    uint32_t finished = 0; // lanes that left the kernel
    Meeting meeting[WARP];
    unsigned meetings = 0;
    unsigned syncs = 0; // meetings that order memory
    char tag[8]; // addresses that stand for meetings, for TSan: lanes are at most one meeting apart
};

struct Counters {
    uint64_t blocks, switches, barriers, meetings, shuffles, atomics;
};

static Context scheduler;
static const void *scheduler_stack;
static size_t scheduler_stack_bytes;
static std::vector<Thread> threads;
static std::vector<Warp> warps;
static unsigned thread_count, alive, waiting, barrier_number;
static Place barrier_place;
static Thread *current;
static uint3 block_index;
static dim3 block_shape, grid_shape;
static void *dynamic_shared;
static std::string error;
static Counters counters;
static void (*kernel_call)(void *);
static void *kernel_arguments;
static unsigned schedule;
static uint64_t random_state;
static char barrier_tag[2], begin_tag, end_tag; // for TSan: addresses that stand for what orders memory

EMULATION_HIDDEN inline uint64_t random_bits() { // splitmix64
    uint64_t z = random_state += 0x9E3779B97F4A7C15ull;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ z >> 27) * 0x94D049BB133111EBull;
    return z ^ z >> 31;
}

EMULATION_HIDDEN inline void release(void *tag) {
#if defined(__SANITIZE_THREAD__)
    __tsan_release(tag);
#else
    (void)tag;
#endif
}

EMULATION_HIDDEN inline void acquire(void *tag) {
#if defined(__SANITIZE_THREAD__)
    __tsan_acquire(tag);
#else
    (void)tag;
#endif
}

EMULATION_HIDDEN inline void arrived_in(Context &context) {
#if defined(__SANITIZE_ADDRESS__)
    const void *bottom;
    size_t bytes;
    __sanitizer_finish_switch_fiber(context.asan_fake_stack, &bottom, &bytes);
    if (&context != &scheduler) scheduler_stack = bottom, scheduler_stack_bytes = bytes;
#else
    (void)context;
#endif
}

EMULATION_HIDDEN inline void switch_context(Context &from, Context &to) {
    counters.switches++;
#if defined(__SANITIZE_ADDRESS__)
    if (&to == &scheduler)
        __sanitizer_start_switch_fiber(&from.asan_fake_stack, scheduler_stack, scheduler_stack_bytes);
    else
        __sanitizer_start_switch_fiber(&from.asan_fake_stack, to.stack + GUARD_BYTES, STACK_BYTES);
#endif
#if defined(__SANITIZE_THREAD__)
    __tsan_switch_to_fiber(to.tsan_fiber, __tsan_switch_to_fiber_no_sync);
#endif
#ifdef EMULATION_SWAPCONTEXT
    swapcontext(&from.registers, &to.registers);
#else
    emulation_switch(&from.stack_pointer, to.stack_pointer);
#endif
    arrived_in(from);
}

EMULATION_HIDDEN inline void give_way() { switch_context(current->context, scheduler); }

EMULATION_HIDDEN inline std::string describe(const Thread &thread) {
    char text[64];
    snprintf(text, sizeof text, "thread (%u, %u, %u)", thread.index.x, thread.index.y, thread.index.z);
    return text;
}

EMULATION_HIDDEN inline std::string describe(const Place &place) {
    const char *name = strrchr(place.file, '/');
    return std::string(name ? name + 1 : place.file) + ":" + std::to_string(place.line);
}

// Ends the launch. From within a kernel it does not return.
EMULATION_HIDDEN inline void fail(const std::string &message) {
    char block[64];
    snprintf(block, sizeof block, "block (%u, %u, %u)", block_index.x, block_index.y, block_index.z);
    error = block + (current ? ", " + describe(*current) : std::string()) + ": " + message;
    if (current) {
        give_way();
        abort();
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Where threads meet

EMULATION_HIDDEN inline void open_barrier() {
    for (unsigned i = 0; i < thread_count; i++)
        if (threads[i].state == State::at_barrier) threads[i].state = State::ready;
    waiting = 0;
    barrier_number++;
}

EMULATION_HIDDEN inline void barrier(Place place) {
    counters.barriers++;
    Thread &me = *current;
    if (waiting && (place.line != barrier_place.line || strcmp(place.file, barrier_place.file)))
        fail("divergent __syncthreads: this thread is at " + describe(place) + ", others wait at " +
             describe(barrier_place));
    barrier_place = me.waits_at = place;
    char *tag = &barrier_tag[barrier_number & 1]; // nobody is more than one barrier ahead
    release(tag);
    me.state = State::at_barrier;
    if (++waiting == alive) open_barrier();
    if (me.state == State::at_barrier) give_way();
    acquire(tag);
}

EMULATION_HIDDEN inline uint64_t outcome(const Meeting &meeting, unsigned lane) {
    if (meeting.operation == Operation::sync) return 0;
    if (meeting.operation == Operation::shuffle) return meeting.value[meeting.source[lane]];
    uint64_t total = 0;
    bool first = true;
    for (unsigned other = 0; other < WARP; other++) {
        if (!(meeting.arrived >> other & 1)) continue;
        const uint64_t value = meeting.value[other];
        if (meeting.operation == Operation::ballot)
            total |= uint64_t(value != 0) << other;
        else if (first)
            total = value;
        else
            switch (meeting.operation) {
            case Operation::all:
            case Operation::bit_and: total &= value; break;
            case Operation::any:
            case Operation::bit_or: total |= value; break;
            case Operation::bit_xor: total ^= value; break;
            case Operation::add: total += value; break;
            case Operation::min_signed: total = int64_t(value) < int64_t(total) ? value : total; break;
            case Operation::max_signed: total = int64_t(value) > int64_t(total) ? value : total; break;
            case Operation::min_unsigned: total = value < total ? value : total; break;
            case Operation::max_unsigned: total = value > total ? value : total; break;
            default: abort();
            }
        first = false;
    }
    return total;
}

// Closes a meeting once every lane of its mask is there, or has left the kernel; hands each lane its result.
EMULATION_HIDDEN inline void close_if_complete(unsigned warp_number, unsigned slot) {
    Warp &warp = warps[warp_number];
    Meeting &meeting = warp.meeting[slot];
    if ((meeting.arrived | warp.finished) != (meeting.mask | warp.finished)) return;
    const bool same = meeting.operation != Operation::shuffle;
    const uint64_t shared_outcome = same ? outcome(meeting, 0) : 0;
    for (unsigned lane = 0; lane < WARP; lane++) {
        if (!(meeting.arrived >> lane & 1)) continue;
        Thread &thread = threads[warp_number * WARP + lane];
        thread.received = same ? shared_outcome : outcome(meeting, lane);
        thread.from_nobody = !same && !(meeting.arrived >> meeting.source[lane] & 1);
        thread.state = State::ready;
    }
    warp.syncs += meeting.operation == Operation::sync;
    warp.open &= ~(1u << slot);
}

EMULATION_HIDDEN inline uint64_t meet(Operation operation, uint32_t mask, uint64_t value, unsigned source, Place place) {
    counters.meetings++;
    counters.shuffles += operation == Operation::shuffle;
    Thread &me = *current;
    const unsigned lane = me.rank % WARP, warp_number = me.rank / WARP;
    Warp &warp = warps[warp_number];
    if (!(mask >> lane & 1)) fail("lane " + std::to_string(lane) + " is not in its own mask, at " + describe(place));
    if (!(mask >> source & 1))
        fail("shuffle reads lane " + std::to_string(source) + ", outside the mask, at " + describe(place));
    for (uint32_t open = warp.open; open; open &= open - 1) {
        const Meeting &other = warp.meeting[__builtin_ctz(open)];
        if ((other.mask & mask) && (other.mask != mask || other.operation != operation))
            fail("divergent warp intrinsic: lanes of one mask are in different intrinsics, or in masks that overlap, at " +
                 describe(place));
    }
    const unsigned slot = __builtin_ctz(mask);
    Meeting &meeting = warp.meeting[slot];
    if (!(warp.open >> slot & 1)) {
        meeting.operation = operation;
        meeting.mask = mask;
        meeting.arrived = 0;
        meeting.tag = warp.meetings++ % sizeof warp.tag;
        warp.open |= 1u << slot;
    }
    char *tag = &warp.tag[meeting.tag];
    meeting.value[lane] = value;
    meeting.source[lane] = source;
    meeting.arrived |= 1u << lane;
    me.waits_at = place;
    me.state = State::in_warp;
    if (operation == Operation::sync) release(tag);
    close_if_complete(warp_number, slot);
    if (me.state == State::in_warp) give_way();
    if (operation == Operation::sync) acquire(tag);
    if (me.from_nobody)
        fail("shuffle reads lane " + std::to_string(source) + ", which left the kernel, at " + describe(place));
    return me.received;
}

// Which lane a shuffle reads, by the PTX manual: `clamp` holds the last lane in bits 0-4, the segments in bits 8-12.
enum class Shuffle : uint8_t { up, down, butterfly, index };

inline unsigned shuffle_source(Shuffle kind, unsigned lane, unsigned step, unsigned clamp, bool &inside) {
    const int segment = clamp >> 8 & 31, here = int(lane), by = int(step & 31);
    const int first = here & segment, last = first | (int(clamp & 31) & ~segment);
    int from = kind == Shuffle::up          ? here - by
               : kind == Shuffle::down      ? here + by
               : kind == Shuffle::butterfly ? here ^ by
                                            : first | (by & ~segment);
    inside = kind == Shuffle::up ? from >= last : from <= last;
    return unsigned(inside ? from : here);
}

template <class T>
inline T shuffle(Shuffle kind, uint32_t mask, T value, unsigned step, int width, Place place) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles move 32 or 64 bits");
    bool inside;
    const unsigned clamp = unsigned(WARP - width) << 8 | (kind == Shuffle::up ? 0 : WARP - 1);
    const unsigned source = shuffle_source(kind, current->rank % WARP, step, clamp, inside);
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    bits = meet(Operation::shuffle, mask, bits, source, place);
    memcpy(&value, &bits, sizeof value);
    return value;
}

// Before an atomic: a shuffled schedule may let other threads go first.
EMULATION_HIDDEN inline void before_atomic() {
    counters.atomics++;
    if (schedule > 1 && random_bits() % 4 == 0) give_way();
}

// ---------------------------------------------------------------------------------------------------------------------
// The scheduler

EMULATION_HIDDEN inline void leave_kernel() {
    Thread &me = *current;
    Warp &warp = warps[me.rank / WARP];
    me.state = State::done;
    alive--;
    warp.finished |= 1u << me.rank % WARP;
    for (uint32_t open = warp.open; open; open &= open - 1) close_if_complete(me.rank / WARP, __builtin_ctz(open));
    if (alive && waiting == alive) open_barrier();
    release(&end_tag);
    give_way();
}

// A fiber lives on from block to block.
EMULATION_HIDDEN inline void fiber() {
    arrived_in(current->context);
    for (;;) {
        acquire(&begin_tag);
        kernel_call(kernel_arguments);
        leave_kernel();
    }
}

EMULATION_HIDDEN inline void make_fiber(Context &context) {
    if (!context.stack) {
        void *memory = mmap(nullptr, GUARD_BYTES + STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED || mprotect(memory, GUARD_BYTES, PROT_NONE)) abort();
        context.stack = static_cast<unsigned char *>(memory);
    }
    unsigned char *bottom = context.stack + GUARD_BYTES;
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(bottom, STACK_BYTES);
    context.asan_fake_stack = nullptr;
#endif
#if defined(__SANITIZE_THREAD__)
    if (context.tsan_fiber) __tsan_destroy_fiber(context.tsan_fiber);
    context.tsan_fiber = __tsan_create_fiber(0);
#endif
#ifdef EMULATION_SWAPCONTEXT
    getcontext(&context.registers);
    context.registers.uc_stack.ss_sp = bottom;
    context.registers.uc_stack.ss_size = STACK_BYTES;
    context.registers.uc_link = nullptr;
    makecontext(&context.registers, fiber, 0);
#else
    void **top = reinterpret_cast<void **>(bottom + STACK_BYTES);
    *--top = nullptr; // as if fiber() had been called: its stack is aligned to 16 less 8
    *--top = reinterpret_cast<void *>(fiber);
    for (int saved_register = 0; saved_register < 6; saved_register++) *--top = nullptr;
    context.stack_pointer = top;
#endif
}

EMULATION_HIDDEN inline void fill_with_garbage(unsigned char *from, unsigned char *to) {
    for (; from && from + 8 <= to; from += 8) {
        const uint64_t bits = random_bits();
        for (int i = 0; i < 8; i++) from[i] = (unsigned char)(bits >> 8 * i);
    }
    for (; from && from < to; from++) *from = (unsigned char)random_bits();
}

EMULATION_HIDDEN inline std::vector<uint64_t> order(uint64_t count) {
    std::vector<uint64_t> places(count);
    for (uint64_t i = 0; i < count; i++) places[i] = schedule == 1 ? count - 1 - i : i;
    if (schedule > 1)
        for (uint64_t i = count; i > 1; i--) std::swap(places[i - 1], places[random_bits() % i]);
    return places;
}

EMULATION_HIDDEN inline std::string who_waits() {
    std::string text = "deadlock:";
    const State kinds[] = {State::at_barrier, State::in_warp};
    for (State kind : kinds) {
        unsigned count = 0;
        const Thread *example = nullptr;
        for (unsigned i = 0; i < thread_count; i++)
            if (threads[i].state == kind && !count++) example = &threads[i];
        if (count)
            text += " " + std::to_string(count) + " of " + std::to_string(thread_count) + " threads wait " +
                    (kind == State::at_barrier ? "in __syncthreads" : "in a warp intrinsic") + ", the first is " +
                    describe(*example) + " at " + describe(example->waits_at) + ";";
    }
    return text + " nobody else will come";
}

EMULATION_HIDDEN inline void run_block() {
    alive = thread_count;
    waiting = barrier_number = 0;
    for (Warp &warp : warps) warp.open = warp.finished = 0;
    // lanes that the last warp does not have count as having left
    if (thread_count % WARP) warps.back().finished = ~0u << thread_count % WARP;
    for (unsigned i = 0; i < thread_count; i++) {
        Thread &thread = threads[i];
        thread.rank = i;
        thread.index = {i % block_shape.x, i / block_shape.x % block_shape.y, i / block_shape.x / block_shape.y};
        thread.state = State::ready;
        if (!thread.started) make_fiber(thread.context);
        thread.started = true;
    }
    acquire(&end_tag);
    release(&begin_tag);
    std::vector<uint64_t> turn = order(thread_count);
    while (alive) {
        bool somebody_ran = false;
        if (schedule > 1) turn = order(thread_count);
        // in a shuffled schedule a half or three quarters of the warps sleep in each round
        const uint64_t asleep = schedule > 1 ? random_bits() | (schedule & 1 ? random_bits() : 0) : 0;
        for (uint64_t i : turn) {
            if (threads[i].state != State::ready) continue;
            somebody_ran = true;
            if (asleep >> i / WARP % 64 & 1) continue;
            current = &threads[i];
            switch_context(scheduler, current->context);
            current = nullptr;
            if (!error.empty()) return;
        }
        if (!somebody_ran) return fail(who_waits());
    }
}

EMULATION_HIDDEN inline bool launch_fits(dim3 grid, dim3 block, size_t shared_bytes) {
    const uint64_t count = uint64_t(block.x) * block.y * block.z;
    const size_t static_bytes = size_t(__stop_cuda_shared - __start_cuda_shared);
    if (!count || count > 1024 || block.z > 64)
        error = "a block has 1 to 1024 threads, and at most 64 along z";
    else if (!grid.x || !grid.y || !grid.z || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
        error = "a grid has 1 to 2^31 - 1 blocks along x, and 1 to 65535 along y and z";
    else if (shared_bytes + static_bytes > MOST_SHARED)
        error = "a block has at most 227 KiB of shared memory";
    return error.empty();
}

// schedule: 0 ascending, 1 descending, others shuffle blocks, threads and stalls by that seed.
EMULATION_HIDDEN inline int run(dim3 grid, dim3 block, size_t shared_bytes, unsigned wanted_schedule) {
    error.clear();
    counters = {};
    if (!launch_fits(grid, block, shared_bytes)) return 1;
    grid_shape = grid;
    block_shape = block;
    schedule = wanted_schedule;
    random_state = wanted_schedule;
    thread_count = block.x * block.y * block.z;
    if (threads.size() < thread_count) threads.resize(thread_count);
    warps.resize((thread_count + WARP - 1) / WARP);
#if defined(__SANITIZE_THREAD__)
    scheduler.tsan_fiber = __tsan_get_current_fiber();
#endif
    void *memory = nullptr;
    if (shared_bytes && posix_memalign(&memory, 16, shared_bytes)) abort();
    dynamic_shared = memory;
    for (uint64_t number : order(uint64_t(grid.x) * grid.y * grid.z)) {
        block_index = {unsigned(number % grid.x), unsigned(number / grid.x % grid.y), unsigned(number / grid.x / grid.y)};
        counters.blocks++;
        fill_with_garbage(__start_cuda_shared, __stop_cuda_shared);
        unsigned char *bytes = static_cast<unsigned char *>(memory);
        if (bytes) fill_with_garbage(bytes, bytes + shared_bytes);
        run_block();
        if (!error.empty()) break;
    }
    if (!error.empty())
        for (Thread &thread : threads) thread.started = false; // their fibers stand in the middle of the kernel
    acquire(&end_tag);
    dynamic_shared = nullptr;
    free(memory);
    return error.empty() ? 0 : 1;
}

template <class... Parameters, size_t... Numbers>
inline int launch(void (*kernel)(Parameters...), std::index_sequence<Numbers...>, const unsigned *shape,
                  size_t shared_bytes, unsigned wanted_schedule, void **arguments) {
    using Call = std::pair<void (*)(Parameters...), void **>;
    static Call call; // threads read it, each from its own fiber
    call = Call(kernel, arguments);
    kernel_arguments = &call;
    kernel_call = [](void *data) {
        const Call &with = *static_cast<Call *>(data);
        with.first(*static_cast<std::remove_const_t<Parameters> *>(with.second[Numbers])...);
    };
    return run({shape[0], shape[1], shape[2]}, {shape[3], shape[4], shape[5]}, shared_bytes, wanted_schedule);
}

template <class... Parameters>
inline int launch(void (*kernel)(Parameters...), const unsigned *shape, size_t shared_bytes, unsigned wanted_schedule,
                  void **arguments) {
    return launch(kernel, std::index_sequence_for<Parameters...>{}, shape, shared_bytes, wanted_schedule, arguments);
}

} // namespace emulation

// ---------------------------------------------------------------------------------------------------------------------
// What ctypes calls; each kernel adds a function `launch_NAME`

#define EMULATION_EXPORT extern "C" __attribute__((visibility("default")))
EMULATION_EXPORT const char *emulation_error() { return emulation::error.c_str(); }
EMULATION_EXPORT void emulation_counters(uint64_t *into) { memcpy(into, &emulation::counters, sizeof emulation::counters); }
EMULATION_EXPORT void *emulation_allocate(size_t bytes) { // exactly so many: ASan watches both ends
    void *memory = nullptr;
    return posix_memalign(&memory, 256, bytes ? bytes : 1) ? nullptr : memory;
}
EMULATION_EXPORT void emulation_free(void *memory) { free(memory); }
#define EMULATION_KERNEL(name)                                                                                         \
    EMULATION_EXPORT int launch_##name(const unsigned *shape, size_t shared_bytes, unsigned schedule, void **arguments) { \
        return emulation::launch(name, shape, shared_bytes, schedule, arguments);                                      \
    }

// ---------------------------------------------------------------------------------------------------------------------
// Built-in variables, barriers and warp intrinsics

#define threadIdx (emulation::current->index)
#define blockIdx (emulation::block_index)
#define blockDim (emulation::block_shape)
#define gridDim (emulation::grid_shape)
#define warpSize 32

// Where the intrinsic stands in the source: the compiler fills in the caller's place.
#define EMULATION_PLACE const char *file = __builtin_FILE(), int line = __builtin_LINE()
#define EMULATION_HERE emulation::Place{file, line}

inline void __syncthreads(EMULATION_PLACE) { emulation::barrier(EMULATION_HERE); }
inline void __syncwarp(unsigned mask = 0xffffffffu, EMULATION_PLACE) {
    emulation::meet(emulation::Operation::sync, mask, 0, emulation::current->rank % 32, EMULATION_HERE);
}

#define EMULATION_SHUFFLE(name, kind, step_type)                                                                       \
    template <class T>                                                                                                 \
    inline T name(unsigned mask, T value, step_type step, int width = 32, EMULATION_PLACE) {                           \
        return emulation::shuffle(emulation::Shuffle::kind, mask, value, unsigned(step), width, EMULATION_HERE);       \
    }
EMULATION_SHUFFLE(__shfl_sync, index, int)
EMULATION_SHUFFLE(__shfl_up_sync, up, unsigned)
EMULATION_SHUFFLE(__shfl_down_sync, down, unsigned)
EMULATION_SHUFFLE(__shfl_xor_sync, butterfly, int)

#define EMULATION_MEETING(result, name, operation, value_type, given)                                                  \
    inline result name(unsigned mask, value_type value, EMULATION_PLACE) {                                             \
        const unsigned lane = emulation::current->rank % 32;                                                           \
        return result(emulation::meet(emulation::Operation::operation, mask, given, lane, EMULATION_HERE));            \
    }
EMULATION_MEETING(unsigned, __ballot_sync, ballot, int, value != 0)
EMULATION_MEETING(int, __any_sync, any, int, value != 0)
EMULATION_MEETING(int, __all_sync, all, int, value != 0)
EMULATION_MEETING(unsigned, __reduce_add_sync, add, unsigned, value)
EMULATION_MEETING(int, __reduce_add_sync, add, int, uint64_t(int64_t(value)))
EMULATION_MEETING(unsigned, __reduce_min_sync, min_unsigned, unsigned, value)
EMULATION_MEETING(int, __reduce_min_sync, min_signed, int, uint64_t(int64_t(value)))
EMULATION_MEETING(unsigned, __reduce_max_sync, max_unsigned, unsigned, value)
EMULATION_MEETING(int, __reduce_max_sync, max_signed, int, uint64_t(int64_t(value)))
EMULATION_MEETING(unsigned, __reduce_and_sync, bit_and, unsigned, value)
EMULATION_MEETING(unsigned, __reduce_or_sync, bit_or, unsigned, value)
EMULATION_MEETING(unsigned, __reduce_xor_sync, bit_xor, unsigned, value)

// ---------------------------------------------------------------------------------------------------------------------
// Atomics: relaxed, as CUDA's are

namespace emulation {
template <class T, class Change>
inline T read_modify_write(T *at, Change change) {
    before_atomic();
    T old = __atomic_load_n(at, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n(at, &old, change(old), false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
    return old;
}
} // namespace emulation

#define EMULATION_ATOMICS(T)                                                                                           \
    inline T atomicAdd(T *at, T value) {                                                                               \
        emulation::before_atomic();                                                                                    \
        return __atomic_fetch_add(at, value, __ATOMIC_RELAXED);                                                        \
    }                                                                                                                  \
    inline T atomicMin(T *at, T value) {                                                                               \
        return emulation::read_modify_write(at, [value](T old) { return value < old ? value : old; });                 \
    }                                                                                                                  \
    inline T atomicMax(T *at, T value) {                                                                               \
        return emulation::read_modify_write(at, [value](T old) { return value > old ? value : old; });                 \
    }                                                                                                                  \
    inline T atomicAnd(T *at, T value) {                                                                               \
        return emulation::read_modify_write(at, [value](T old) { return old & value; });                               \
    }                                                                                                                  \
    inline T atomicOr(T *at, T value) {                                                                                \
        return emulation::read_modify_write(at, [value](T old) { return old | value; });                               \
    }                                                                                                                  \
    inline T atomicExch(T *at, T value) {                                                                              \
        return emulation::read_modify_write(at, [value](T) { return value; });                                         \
    }                                                                                                                  \
    inline T atomicCAS(T *at, T expected, T value) {                                                                   \
        return emulation::read_modify_write(at, [=](T old) { return old == expected ? value : old; });                 \
    }
EMULATION_ATOMICS(int)
EMULATION_ATOMICS(unsigned)
EMULATION_ATOMICS(unsigned long long)

// ---------------------------------------------------------------------------------------------------------------------
// Arithmetic

template <class A, class B>
inline auto min(A a, B b) -> std::common_type_t<decltype(+a), decltype(+b)> {
    using T = std::common_type_t<decltype(+a), decltype(+b)>;
    return T(b) < T(a) ? T(b) : T(a);
}
template <class A, class B>
inline auto max(A a, B b) -> std::common_type_t<decltype(+a), decltype(+b)> {
    using T = std::common_type_t<decltype(+a), decltype(+b)>;
    return T(a) < T(b) ? T(b) : T(a);
}

inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __popcll(unsigned long long value) { return __builtin_popcountll(value); }
inline int __clz(int value) { return value ? __builtin_clz(unsigned(value)) : 32; }
inline int __clzll(long long value) { return value ? __builtin_clzll((unsigned long long)value) : 64; }
inline int __ffs(int value) { return __builtin_ffs(value); }
inline int __ffsll(long long value) { return __builtin_ffsll(value); }
inline unsigned __brev(unsigned value) {
    unsigned reversed = 0;
    for (int i = 0; i < 32; i++) reversed |= (value >> i & 1u) << (31 - i);
    return reversed;
}
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((unsigned long long)a * b >> 32); }
inline int __mulhi(int a, int b) { return int((long long)a * b >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}
inline long long __mul64hi(long long a, long long b) { return (long long)((__int128)a * b >> 64); }
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned by) {
    return unsigned((((unsigned long long)high << 32 | low) << (by & 31)) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned by) {
    return unsigned(((unsigned long long)high << 32 | low) >> (by & 31));
}
// Bytes 0-3 are a's, 4-7 b's; bit 3 of a selector asks PTX's prmt for the sign alone, which __byte_perm does not offer.
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selectors) {
    const unsigned long long bytes = (unsigned long long)b << 32 | a;
    unsigned result = 0;
    for (int i = 0; i < 4; i++) result |= unsigned(bytes >> 8 * (selectors >> 4 * i & 7) & 0xff) << 8 * i;
    return result;
}

namespace emulation {
// One operation on each lane of `bits` bits of a 32-bit word.
template <int bits, class Each>
inline unsigned by_lanes(unsigned a, unsigned b, Each each) {
    constexpr unsigned lane = (1u << bits) - 1;
    unsigned result = 0;
    for (int at = 0; at < 32; at += bits) result |= (each(a >> at & lane, b >> at & lane) & lane) << at;
    return result;
}
inline int as_signed(unsigned value, int bits) { return int(value << (32 - bits)) >> (32 - bits); }

// c + the sum of a's lanes times some of b's bytes, with a's lanes and b's bytes signed or not.
inline unsigned dot(unsigned a, int a_bits, bool a_signed, unsigned b, int first_byte, bool b_signed, unsigned c) {
    for (int i = 0; i < 32 / a_bits; i++) {
        const unsigned x = a >> a_bits * i & ((1u << a_bits) - 1), y = b >> 8 * (first_byte + i) & 0xff;
        c += unsigned(a_signed ? as_signed(x, a_bits) : int(x)) * unsigned(b_signed ? as_signed(y, 8) : int(y));
    }
    return c;
}
} // namespace emulation

#define EMULATION_LANES(name, formula)                                                                                 \
    inline unsigned name##2(unsigned a, unsigned b) {                                                                  \
        return emulation::by_lanes<16>(a, b, [](unsigned x, unsigned y) -> unsigned { return formula; });              \
    }                                                                                                                  \
    inline unsigned name##4(unsigned a, unsigned b) {                                                                  \
        return emulation::by_lanes<8>(a, b, [](unsigned x, unsigned y) -> unsigned { return formula; });               \
    }
EMULATION_LANES(__vadd, x + y)
EMULATION_LANES(__vsub, x - y)
EMULATION_LANES(__vminu, x < y ? x : y)
EMULATION_LANES(__vmaxu, x > y ? x : y)
EMULATION_LANES(__vabsdiffu, x > y ? x - y : y - x)
EMULATION_LANES(__vavgu, (x + y + 1) / 2)
EMULATION_LANES(__vhaddu, (x + y) / 2)
EMULATION_LANES(__vcmpeq, x == y ? ~0u : 0u)
EMULATION_LANES(__vcmpne, x != y ? ~0u : 0u)
EMULATION_LANES(__vcmpltu, x < y ? ~0u : 0u)
EMULATION_LANES(__vcmpleu, x <= y ? ~0u : 0u)
EMULATION_LANES(__vcmpgtu, x > y ? ~0u : 0u)
EMULATION_LANES(__vcmpgeu, x >= y ? ~0u : 0u)
EMULATION_LANES(__vseteq, x == y ? 1u : 0u)
EMULATION_LANES(__vsetne, x != y ? 1u : 0u)
EMULATION_LANES(__vsetltu, x < y ? 1u : 0u)
EMULATION_LANES(__vsetgtu, x > y ? 1u : 0u)

inline unsigned __dp2a_lo(unsigned a, unsigned b, unsigned c) { return emulation::dot(a, 16, false, b, 0, false, c); }
inline unsigned __dp2a_hi(unsigned a, unsigned b, unsigned c) { return emulation::dot(a, 16, false, b, 2, false, c); }
inline unsigned __dp4a(unsigned a, unsigned b, unsigned c) { return emulation::dot(a, 8, false, b, 0, false, c); }
inline int __dp2a_lo(int a, int b, int c) { return int(emulation::dot(unsigned(a), 16, true, unsigned(b), 0, true, unsigned(c))); }
inline int __dp2a_hi(int a, int b, int c) { return int(emulation::dot(unsigned(a), 16, true, unsigned(b), 2, true, unsigned(c))); }
inline int __dp4a(int a, int b, int c) { return int(emulation::dot(unsigned(a), 8, true, unsigned(b), 0, true, unsigned(c))); }

#define EMULATION_LOADS(name)                                                                                          \
    template <class T>                                                                                                 \
    inline T name(const T *from) {                                                                                     \
        return *from;                                                                                                  \
    }
EMULATION_LOADS(__ldg)
EMULATION_LOADS(__ldcg)
EMULATION_LOADS(__ldca)
EMULATION_LOADS(__ldcs)
EMULATION_LOADS(__ldlu)

// IEEE arithmetic, rounded to nearest, never fused: this file is compiled without contraction.
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __ll2double_rn(long long a) { return double(a); }
inline float __double2float_rn(double a) {  // with -ftz=true, which CuPy adds to all that it compiles
    const float made = float(a);
    return made < 0x1p-126f && made > -0x1p-126f ? 0 : made;
}
inline long long __double_as_longlong(double a) {
    long long bits;
    memcpy(&bits, &a, sizeof bits);
    return bits;
}
inline double __longlong_as_double(long long bits) {
    double a;
    memcpy(&a, &bits, sizeof a);
    return a;
}

inline void __trap(EMULATION_PLACE) { emulation::fail("__trap at " + emulation::describe(EMULATION_HERE)); }
// A promise to the compiler is one that the emulation checks.
#define __builtin_assume(promise)                                                                                      \
    do {                                                                                                               \
        if (!(promise)) emulation::fail("__builtin_assume(" #promise ") does not hold at line " + std::to_string(__LINE__)); \
    } while (0)
#define __builtin_assume_aligned(pointer, ...) (pointer)
