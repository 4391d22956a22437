// What a block of threads does together: sort, select the best, keep order while filtering, greedy NMS.
// Threads of the block call these together; each begins and ends with the block in step.
#pragma once

#include "../nms/core.h"
#include "device.cuh"

namespace regionrt {

constexpr int32_t kMostBoxes = 4096;  // of one NMS, and of one sort
constexpr int32_t kTile = 32;

// Ranks in the order of argsort(-values, kind="stable"): the smaller the better, NaN last, −0 equal to +0.
REGIONRT_DEVICE uint32_t rank_of(float value) {
    const uint32_t bits = bits_as<uint32_t>(value + 0.0f);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0xffffffffu;
    return bits >> 31 ? bits : 0x7fffffffu - bits;
}

REGIONRT_DEVICE uint64_t key_of(uint32_t rank, uint32_t index) { return (uint64_t)rank << 32 | index; }

// How many of the block's threads with a smaller number pass `mine`; `total`: how many do. 1024 threads at most.
struct Places {
    int32_t warps[32];
};

REGIONRT_DEVICE int32_t place_of(Places& shared, bool mine, int32_t& total) {
    const unsigned votes = __ballot_sync(~0u, mine);
    const int32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = (blockDim.x + 31) / 32;
    if (lane == 0) shared.warps[warp] = __popc(votes);
    __syncthreads();
    int32_t before = 0;
    total = 0;
    for (int32_t i = 0; i < warps; ++i) {
        before += i < warp ? shared.warps[i] : 0;
        total += shared.warps[i];
    }
    __syncthreads();
    return before + __popc(votes & ((1u << lane) - 1));
}

// Bitonic sort of `count` keys, ascending; `keys` has room for the next power of two.
REGIONRT_DEVICE void sort_keys(uint64_t* keys, int32_t count) {
    int32_t size = 2;
    while (size < count) size *= 2;
    __syncthreads();
    for (int32_t i = count + threadIdx.x; i < size; i += blockDim.x) keys[i] = ~(uint64_t)0;
    __syncthreads();
    for (int32_t run = 2; run <= size; run *= 2) {
        for (int32_t step = run / 2; step > 0; step /= 2) {
            for (int32_t i = threadIdx.x; i < size / 2; i += blockDim.x) {
                const int32_t low = 2 * i - (i & (step - 1)), high = low + step;
                const uint64_t a = keys[low], b = keys[high];
                if ((a > b) == ((low & run) == 0)) {
                    keys[low] = b;
                    keys[high] = a;
                }
            }
            __syncthreads();
        }
    }
}

// Which of many ranks are the `most` best: all below `bound`, and of those equal to it the first `ties`.
struct Selection {
    int32_t buckets[256];
    uint32_t bound;
    int32_t ties, before;
};

template <class Rank>
REGIONRT_DEVICE void select_best(Selection& shared, int32_t count, int32_t most, const Rank& rank_at) {
    if (threadIdx.x == 0) {
        shared.bound = 0;
        shared.ties = most;
    }
    for (int shift = 24; shift >= 0; shift -= 8) {  // a digit at a time: the bucket in which the last one lies
        for (int32_t i = threadIdx.x; i < 256; i += blockDim.x) shared.buckets[i] = 0;
        __syncthreads();
        const uint32_t known = shared.bound, mask = shift == 24 ? 0u : ~0u << (shift + 8);
        for (int32_t i = threadIdx.x; i < count; i += blockDim.x) {
            const uint32_t rank = rank_at(i);
            if ((rank & mask) == known) atomicAdd(&shared.buckets[rank >> shift & 255u], 1);
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            int32_t left = shared.ties;
            uint32_t digit = 0;
            while (digit < 255 && shared.buckets[digit] < left) left -= shared.buckets[digit++];
            shared.ties = left;
            shared.bound = known | digit << shift;
        }
        __syncthreads();
    }
}

// The keys (rank, index) of the `most` best of `count` values into `keys`, sorted; most <= min(count, kMostBoxes).
template <class Rank>
REGIONRT_DEVICE void best_keys(Selection& selection, Places& places, uint64_t* keys, int32_t count, int32_t most,
                               const Rank& rank_at) {
    if (most == 0) return;
    select_best(selection, count, most, rank_at);
    const uint32_t bound = selection.bound;
    const int32_t ties = selection.ties;
    int32_t found = 0, equal = 0;  // the same in every thread
    for (int32_t start = 0; start < count && found < most; start += blockDim.x) {
        const int32_t i = start + threadIdx.x;
        const uint32_t rank = i < count ? rank_at(i) : 0xffffffffu;
        int32_t tied, chosen;
        const bool same = i < count && rank == bound;
        const int32_t nth = equal + place_of(places, same, tied);
        const bool take = i < count && (rank < bound || (same && nth < ties));
        const int32_t at = found + place_of(places, take, chosen);
        if (take) keys[at] = key_of(rank, (uint32_t)i);
        equal += tied;
        found += chosen;
    }
    sort_keys(keys, most);
}

// Greedy NMS of `count` boxes, best first. `box_at(i)` gives a box, `same(i, j)` whether they are of one class; dead[i]
// is set for what is no candidate (padding) and afterwards for everything that is not kept. Stops when `most` are kept:
// what follows is dead then. Returns how many are kept.
struct Suppression {
    Box<float> boxes[kTile];
    uint32_t rows[kTile];  // bit j of row i: box i of the tile suppresses box j
    uint32_t kept;
    int32_t count;
};

template <class BoxAt, class Same>
REGIONRT_DEVICE int32_t suppress(Suppression& shared, uint8_t* dead, int32_t count, int32_t most, float threshold,
                                 const BoxAt& box_at, const Same& same) {
    const int32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
    if (threadIdx.x == 0) shared.count = 0;
    __syncthreads();
    for (int32_t start = 0; start < count; start += kTile) {
        const int32_t size = smaller(kTile, count - start);
        if ((int32_t)threadIdx.x < size) shared.boxes[threadIdx.x] = box_at(start + threadIdx.x);
        __syncthreads();
        for (int32_t row = warp; row < size; row += warps) {
            bool hit = false;
            if (lane > row && lane < size && !dead[start + lane]) {
                const Box<float> a = shared.boxes[row], b = shared.boxes[lane];
                hit = overlaps(a, area(a), b, area(b), threshold) && same(start + row, start + lane);
            }
            const unsigned votes = __ballot_sync(~0u, hit);
            if (lane == 0) shared.rows[row] = votes;
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            uint32_t gone = 0, kept = 0;
            for (int32_t row = 0; row < size; ++row) {
                if (dead[start + row] || (gone >> row & 1u) || shared.count >= most) {
                    dead[start + row] = 1;
                } else {
                    kept |= 1u << row;
                    gone |= shared.rows[row];
                    ++shared.count;
                }
            }
            shared.kept = kept;
        }
        __syncthreads();
        const bool enough = shared.count >= most;
        for (int32_t i = start + kTile + threadIdx.x; i < count; i += blockDim.x) {
            if (dead[i]) continue;
            bool gone = enough;
            const Box<float> box = box_at(i);
            const float size_px = area(box);
            for (uint32_t kept = shared.kept; kept && !gone; kept &= kept - 1) {
                const int32_t row = __ffs((int)kept) - 1;
                const Box<float> other = shared.boxes[row];
                gone = overlaps(other, area(other), box, size_px, threshold) && same(start + row, i);
            }
            if (gone) dead[i] = 1;
        }
        __syncthreads();
        if (enough) break;
    }
    return shared.count;
}

}  // namespace regionrt
