// The largest of many values, and stable sorting, best first: equal values keep their order, NaN comes last, and −0
// equals +0, as in NumPy's argsort(-values, kind="stable").
#pragma once

#include "scratch.h"
#include "vector.h"

namespace regionrt {
namespace REGIONRT_VARIANT {

struct Ranked {
    uint32_t rank;  // the smaller, the better
    int32_t index;
};

// Ranks in the order of the values, the greatest value first.
template <class Integers, class Values>
static inline Integers rank_of(Values value) {
    const Integers bits = bits_as<Integers>(value + Values{});  // −0 + 0 = +0
    // As signed integers: ascending with the value. The sign bit's copies flip the other bits of negative values.
    const Integers ascending = bits ^ ((bits >> 31) & 0x7fffffff);
    return (bits & 0x7fffffff) > 0x7f800000 ? Integers{} + INT32_MAX : ~ascending;
}

static inline uint32_t rank_of(float value) { return (uint32_t)rank_of<int32_t, float>(value) ^ 0x80000000u; }

// Radix sort by rank, least significant digit first. `spare` holds as many. Stable.
static void sort_ranked(Ranked* items, Ranked* spare, int64_t count) {
    if (count <= 24) {
        for (int64_t i = 1; i < count; ++i) {
            const Ranked item = items[i];
            int64_t at = i;
            for (; at > 0 && items[at - 1].rank > item.rank; --at) items[at] = items[at - 1];
            items[at] = item;
        }
        return;
    }
    constexpr int kBits = 11, kBuckets = 1 << kBits, kPasses = 3;
    int32_t starts[kPasses][kBuckets];
    memset(starts, 0, sizeof starts);
    for (int64_t i = 0; i < count; ++i) {
        for (int pass = 0; pass < kPasses; ++pass) ++starts[pass][(items[i].rank >> (pass * kBits)) & (kBuckets - 1)];
    }
    Ranked *from = items, *to = spare;
    for (int pass = 0; pass < kPasses; ++pass) {
        int32_t* start = starts[pass];
        const int shift = pass * kBits;
        if (start[(from[0].rank >> shift) & (kBuckets - 1)] == count) continue;  // all share this digit
        int32_t sum = 0;
        for (int bucket = 0; bucket < kBuckets; ++bucket) {
            const int32_t size = start[bucket];
            start[bucket] = sum;
            sum += size;
        }
        for (int64_t i = 0; i < count; ++i) to[start[(from[i].rank >> shift) & (kBuckets - 1)]++] = from[i];
        Ranked* swap = from;
        from = to;
        to = swap;
    }
    if (from != items) memcpy(items, from, (size_t)count * sizeof(Ranked));
}

// A rank that at least `most` of the `count` ranks do not exceed, and few more than `most`; 1 <= most <= count.
// A histogram of the upper 11 bits, then one of the next 11 within the bucket where the line falls.
static uint32_t bound_of_best(const uint32_t* ranks, int64_t count, int64_t most) {
    constexpr int kBuckets = 2048;
    int32_t sizes[kBuckets];
    memset(sizes, 0, sizeof sizes);
    for (int64_t i = 0; i < count; ++i) ++sizes[ranks[i] >> 21];
    uint32_t upper = 0;
    int64_t before = 0;
    while (before + sizes[upper] < most) before += sizes[upper++];
    memset(sizes, 0, sizeof sizes);
    for (int64_t i = 0; i < count; ++i) {
        if (ranks[i] >> 21 == upper) ++sizes[(ranks[i] >> 10) & (kBuckets - 1)];
    }
    uint32_t lower = 0;
    while (before + sizes[lower] < most) before += sizes[lower++];
    return (upper << 21) | (lower << 10) | 0x3ff;
}

// The `most` greatest of `values` [count], best first: ranks and indices, in the first `most` of `found`. `most` <= count.
// False when there is no memory.
//
// Of blocks of values the best rank of each is found first. As many blocks as wanted have a best rank of at most some
// bound, so at least as many values do: only those are sorted. That reads a map of 160,000 logits twice and little else.
template <class T>
static bool best_values(const T* values, int64_t count, int64_t most, Scratch<Ranked>& found) {
    constexpr int64_t kBlock = 4 * kLanes;
    const int64_t blocks = count / kBlock;
    uint32_t bound = UINT32_MAX;
    if (most == 0) return true;
    if (blocks >= 2 * most) {
        Scratch<uint32_t> best(blocks);
        if (best.failed()) return false;
        for (int64_t b = 0; b < blocks; ++b) {
            Ints least = Ints{} + INT32_MAX;
            for (int64_t i = 0; i < kBlock; i += kLanes) {
                least = smaller(least, rank_of<Ints>(load(values + b * kBlock + i)));
            }
            int32_t lane_least = least[0];
            for (int lane = 1; lane < kLanes; ++lane) lane_least = smaller(lane_least, (int32_t)least[lane]);
            best[b] = (uint32_t)lane_least ^ 0x80000000u;
        }
        bound = bound_of_best(best.get(), blocks, most);
    } else if (count > 2 * most) {
        Scratch<uint32_t> ranks(count);
        if (ranks.failed()) return false;
        for (int64_t i = 0; i < count; ++i) ranks[i] = rank_of(load_one(values + i));
        bound = bound_of_best(ranks.get(), count, most);
    }
    int64_t size = 0;
    const int64_t whole = count / kLanes * kLanes;
    const Ints limit = Ints{} + (int32_t)(bound ^ 0x80000000u);
    // Ties may make the set larger than what `found` holds at first: it is counted before it is filled.
    for (int64_t i = 0; i < whole; i += kLanes) {
        const Ints inside = rank_of<Ints>(load(values + i)) <= limit;
        if (any(inside)) {
            for (int lane = 0; lane < kLanes; ++lane) size -= inside[lane];
        }
    }
    for (int64_t i = whole; i < count; ++i) size += rank_of(load_one(values + i)) <= bound;
    Scratch<Ranked> spare(size);
    if (!found.resize(size) || spare.failed()) return false;
    int64_t at = 0;
    for (int64_t i = 0; i < whole; i += kLanes) {
        if (!any(rank_of<Ints>(load(values + i)) <= limit)) continue;
        for (int lane = 0; lane < kLanes; ++lane) {
            const uint32_t rank = rank_of(load_one(values + i + lane));
            if (rank <= bound) found[at++] = {rank, (int32_t)(i + lane)};
        }
    }
    for (int64_t i = whole; i < count; ++i) {
        const uint32_t rank = rank_of(load_one(values + i));
        if (rank <= bound) found[at++] = {rank, (int32_t)i};
    }
    sort_ranked(found.get(), spare.get(), size);
    return true;
}

}  // namespace REGIONRT_VARIANT
}  // namespace regionrt
