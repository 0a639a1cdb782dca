// What PTX instructions do, for ptx.py, which turns each into a line of C++. Numbers come and go as unsigned registers.
//
// Memory is checked at every access: that it lies within one buffer of the launch or one shared array, that it is
// aligned, that shared memory was written before it is read, and that no other thread's access to the same byte is
// unordered with it. Accesses are ordered by the barriers and __syncwarps between them; threads of different blocks
// never are. That finds a missing barrier whatever the schedule, and two blocks that write one place.
#pragma once
#include "emulation.h"

namespace ptx {

using signed_128 = __int128;
using unsigned_128 = unsigned __int128;

enum class Kind : uint8_t { read, write, atomic };

// The last accesses of one kind to one byte that nothing orders before one another.
struct Access {
    uint32_t block = 0, barriers = 0, syncs = 0; // block 0: none yet; blocks count from 1
    uint16_t rank = 0;
    enum Who : uint8_t { thread, warp, several_warps } who = thread;
};

struct Byte {
    Access access[3]; // by Kind
};

struct Region {
    std::string name;
    uint64_t begin, end;
    bool readonly; // nothing may write it, so nobody can race for it
    std::vector<Byte> bytes;
};

static std::vector<Region> global_regions, shared_regions;
static uint64_t shared_block; // whose accesses the shared regions tell
static bool watch_races, watch_uninitialised;
static uint64_t executed[1 << 16]; // runs of each straight piece of the kernel

EMULATION_HIDDEN inline void fail(unsigned line, const std::string &message) { // ptx.py knows the line
    emulation::fail("ptx:" + std::to_string(line) + ": " + message);
}

EMULATION_HIDDEN inline Access now() {
    const emulation::Thread &me = *emulation::current;
    return {uint32_t(emulation::counters.blocks), emulation::barrier_number,
            emulation::warps[me.rank / emulation::WARP].syncs, uint16_t(me.rank), Access::thread};
}

// Whether all that `past` stands for happened before `here`.
inline bool ordered(const Access &past, const Access &here) {
    if (!past.block) return true;
    if (past.block != here.block) return false;
    if (past.barriers != here.barriers) return true;
    if (past.who == Access::several_warps || past.rank / 32 != here.rank / 32) return false;
    return past.syncs != here.syncs || (past.who == Access::thread && past.rank == here.rank);
}

inline void remember(Access &past, const Access &here) {
    if (past.block == here.block && !ordered(past, here)) {
        const Access::Who who = past.rank / 32 == here.rank / 32 && past.who != Access::several_warps
                                    ? Access::warp
                                    : Access::several_warps;
        past = here;
        past.who = who;
    } else
        past = here;
}

EMULATION_HIDDEN inline void watch(Region &region, uint64_t offset, unsigned size, Kind kind, bool shared, unsigned line) {
    static const char *const names[] = {"read", "write", "atomic"};
    const Access here = now();
    for (unsigned i = 0; i < size; i++) {
        Byte &byte = region.bytes[offset + i];
        for (int other = 0; other < 3; other++) {
            const Access &past = byte.access[other];
            const bool harmless = Kind(other) == kind && kind != Kind::write;
            if (harmless || ordered(past, here)) continue;
            const std::string whose = past.block != here.block       ? "another block"
                                      : past.who == Access::thread ? emulation::describe(emulation::threads[past.rank])
                                      : past.who == Access::warp   ? "several lanes of warp " + std::to_string(past.rank / 32)
                                                                   : "threads of several warps";
            fail(line, std::string("race: ") + names[int(kind)] + " of byte " + std::to_string(offset + i) + " of " +
                           region.name + ", with nothing between it and the " + names[other] + " by " + whose);
        }
        const auto &past = byte.access;
        if (shared && watch_uninitialised && kind != Kind::write && !past[int(Kind::write)].block && !past[int(Kind::atomic)].block)
            fail(line, "uninitialised: nobody has written byte " + std::to_string(offset + i) + " of " + region.name);
        remember(byte.access[int(kind)], here);
    }
}

EMULATION_HIDDEN inline uint64_t checked(std::vector<Region> &regions, uint64_t address, unsigned size, Kind kind,
                                         bool shared, unsigned line) {
    if (address % size) fail(line, "misaligned: " + std::to_string(size) + " bytes at address " + std::to_string(address));
    const Region *nearest = nullptr;
    for (Region &region : regions) {
        if (address >= region.begin && address + size <= region.end) {
            if (kind != Kind::read && region.readonly) fail(line, "writes " + region.name + ", which is const");
            if (watch_races && !region.readonly) watch(region, address - region.begin, size, kind, shared, line);
            return address;
        }
        if (address + size >= region.begin && (!nearest || region.begin > nearest->begin)) nearest = &region;
    }
    std::string place = "no buffer is near";
    if (nearest)
        place = "at byte " + std::to_string(int64_t(address - nearest->begin)) + " of " + nearest->name + ", which has " +
                std::to_string(nearest->end - nearest->begin);
    fail(line, "out of bounds: " + std::to_string(size) + " bytes, " + place);
    return 0;
}

template <class T, int count, Kind kind>
inline T *global(uint64_t address, unsigned line) {
    return reinterpret_cast<T *>(checked(global_regions, address, sizeof(T) * count, kind, false, line));
}

template <class T, int count, Kind kind>
inline T *shared(uint32_t address, unsigned line) {
    if (shared_block != emulation::counters.blocks) {
        shared_block = emulation::counters.blocks;
        for (Region &region : shared_regions) std::fill(region.bytes.begin(), region.bytes.end(), Byte{});
    }
    checked(shared_regions, address, sizeof(T) * count, kind, true, line);
    return reinterpret_cast<T *>(static_cast<unsigned char *>(emulation::dynamic_shared) + address);
}

// ---------------------------------------------------------------------------------------------------------------------
// Arithmetic that C++ has no sign for. Shifts beyond the width are defined in PTX: nothing, or the sign, is left.

template <class T>
inline T shift_left(T value, uint32_t by) {
    return by >= sizeof(T) * 8 ? T(0) : T(value << by);
}
template <class T>
inline T shift_right(T value, uint32_t by) {
    if (by >= sizeof(T) * 8) by = sizeof(T) * 8 - 1, value = value < 0 ? value : T(0);
    return T(value >> by);
}
template <class T>
inline T least(T a, T b) {
    return b < a ? b : a;
}
template <class T>
inline T most(T a, T b) {
    return a < b ? b : a;
}
template <class T>
inline T divide(T a, T b, bool remainder, unsigned line) {
    if (b == 0) fail(line, "divides by zero");
    if (std::is_signed<T>::value && b == T(-1)) return remainder ? T(0) : T(0 - std::make_unsigned_t<T>(a));
    return remainder ? T(a % b) : T(a / b);
}
// bfind: the highest bit that is not the sign's; how far it is from the top if `shift_amount`. All ones if there is none.
template <bool shift_amount, class T>
inline uint32_t find(T value) {
    const uint64_t bits = uint64_t(value < 0 ? T(~value) : value);
    if (!bits) return ~0u;
    const uint32_t at = 63 - uint32_t(__builtin_clzll(bits));
    return shift_amount ? sizeof(T) * 8 - 1 - at : at;
}
inline uint32_t permute(uint32_t a, uint32_t b, uint32_t selectors) {
    const uint64_t bytes = uint64_t(b) << 32 | a;
    uint32_t result = 0;
    for (int i = 0; i < 4; i++) {
        const uint32_t selector = selectors >> 4 * i & 15;
        uint32_t byte = uint32_t(bytes >> 8 * (selector & 7) & 255);
        if (selector & 8) byte = byte & 128 ? 255 : 0;
        result |= byte << 8 * i;
    }
    return result;
}
inline uint32_t logic(uint32_t a, uint32_t b, uint32_t c, uint32_t table) {
    uint32_t result = 0;
    for (int row = 0; row < 8; row++)
        if (table >> row & 1) result |= (row & 4 ? a : ~a) & (row & 2 ? b : ~b) & (row & 1 ? c : ~c);
    return result;
}
inline uint32_t funnel(uint32_t low, uint32_t high, uint32_t by, bool left, bool clamp) {
    by = clamp ? least(by, 32u) : by & 31;
    const uint64_t both = uint64_t(high) << 32 | low;
    return uint32_t(left ? (both << by) >> 32 : both >> by);
}
template <class T>
inline T extract(T value, uint32_t from, uint32_t length) { // bfe
    constexpr int width = sizeof(T) * 8;
    from &= 255, length &= 255;
    using Bits = std::make_unsigned_t<T>;
    const uint32_t sign_at = least(from + length - 1, uint32_t(width - 1));
    const bool sign = std::is_signed<T>::value && length && (Bits(value) >> sign_at & 1);
    Bits result = 0;
    for (uint32_t i = 0; i < width; i++) {
        const bool bit = i < length && from + i < width ? Bits(value) >> (from + i) & 1 : sign;
        result |= Bits(bit) << i;
    }
    return T(result);
}
template <class T>
inline T insert(T value, T into, uint32_t from, uint32_t length) { // bfi
    for (uint32_t i = 0; i < (length & 255) && (from & 255) + i < sizeof(T) * 8; i++) {
        const uint32_t at = (from & 255) + i;
        into = T((into & ~(T(1) << at)) | (value >> i & 1) << at);
    }
    return into;
}

// ---------------------------------------------------------------------------------------------------------------------
// Where threads meet

inline emulation::Place place(unsigned line) { return {"ptx", int(line)}; }

inline uint32_t shuffle(emulation::Shuffle kind, uint32_t value, uint32_t step, uint32_t clamp, uint32_t mask,
                        bool &inside, unsigned line) {
    const unsigned source = emulation::shuffle_source(kind, emulation::current->rank % 32, step, clamp, inside);
    return uint32_t(emulation::meet(emulation::Operation::shuffle, mask, value, source, place(line)));
}
inline uint64_t meet(emulation::Operation operation, uint64_t value, uint32_t mask, unsigned line) {
    return emulation::meet(operation, mask, value, emulation::current->rank % 32, place(line));
}

} // namespace ptx

EMULATION_EXPORT void ptx_begin(bool watch_races, bool watch_uninitialised) {
    ptx::global_regions.clear();
    ptx::shared_regions.clear();
    ptx::shared_block = 0;
    ptx::watch_races = watch_races;
    ptx::watch_uninitialised = watch_uninitialised;
    memset(ptx::executed, 0, sizeof ptx::executed);
}
EMULATION_EXPORT void ptx_region(bool shared, const char *name, uint64_t begin, uint64_t bytes, bool readonly) {
    auto &regions = shared ? ptx::shared_regions : ptx::global_regions;
    regions.push_back({name, begin, begin + bytes, readonly, {}});
    if (ptx::watch_races && !readonly) regions.back().bytes.resize(bytes);
}
EMULATION_EXPORT void ptx_executed(uint64_t *into, uint64_t count) { memcpy(into, ptx::executed, count * sizeof *into); }
