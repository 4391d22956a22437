// What a block of threads does together: places and sums in order, sorting, selecting the best.
// Threads of the block call these together; each begins and ends with the block in step.
#pragma once

#include "device.cuh"

namespace regionrt {

constexpr int32_t kMostBoxes = 4096;  // of one NMS, and of one sort

// Ranks in the order of argsort(-values, kind="stable"): the smaller the better, NaN last, −0 equal to +0.
REGIONRT_DEVICE uint32_t rank_of(float value) {
    const uint32_t bits = bits_as<uint32_t>(value + 0.0f);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0xffffffffu;
    return bits >> 31 ? bits : 0x7fffffffu - bits;
}

// The way back, but that a NaN comes back as some NaN.
REGIONRT_DEVICE float value_of(uint32_t rank) { return bits_as<float>(rank >> 31 ? rank : 0x7fffffffu - rank); }

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

// The sum of `mine` over the threads with a smaller number; `total`: over all. 1024 threads at most, in whole warps.
REGIONRT_DEVICE int32_t sum_before(Places& shared, int32_t mine, int32_t& total) {
    const int32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
    int32_t sum = mine;
    for (int distance = 1; distance < 32; distance *= 2) {
        const int32_t other = __shfl_up_sync(~0u, sum, distance);
        if (lane >= distance) sum += other;
    }
    if (lane == 31) shared.warps[warp] = sum;
    __syncthreads();
    int32_t before = 0;
    total = 0;
    for (int32_t i = 0; i < warps; ++i) {
        before += i < warp ? shared.warps[i] : 0;
        total += shared.warps[i];
    }
    __syncthreads();
    return before + sum - mine;
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

// The `most` smallest of `count` keys, no two of them equal, sorted into `keys`, which has room for kMostBoxes.
// `each(visit)` shows every key to one thread of the block. most <= kMostBoxes.
struct Selection {
    int32_t buckets[256];
    uint64_t bound;
    int32_t left, found;
};

// The largest key that is still among the `most` smallest: one digit after the other, the bucket in which it lies.
template <class Each>
REGIONRT_DEVICE uint64_t bound_of(Selection& shared, int32_t most, const Each& each) {
    if (threadIdx.x == 0) {
        shared.bound = 0;
        shared.left = most;
    }
    for (int shift = 56; shift >= 0; shift -= 8) {
        for (int32_t i = threadIdx.x; i < 256; i += blockDim.x) shared.buckets[i] = 0;
        __syncthreads();
        const uint64_t known = shared.bound, mask = shift == 56 ? 0 : ~(uint64_t)0 << (shift + 8);
        each([&](uint64_t key) {
            if ((key & mask) == known) atomicAdd(&shared.buckets[key >> shift & 255u], 1);
        });
        __syncthreads();
        if (threadIdx.x == 0) {
            int32_t left = shared.left, digit = 0;
            while (digit < 255 && shared.buckets[digit] < left) left -= shared.buckets[digit++];
            const bool whole = shared.buckets[digit] == left;  // the bucket is taken as it is: lower digits are all right
            shared.bound = known | (uint64_t)digit << shift | (whole ? ((uint64_t)1 << shift) - 1 : 0);
            shared.left = whole ? 0 : left;
        }
        __syncthreads();
        if (shared.left == 0) break;
    }
    return shared.bound;
}

template <class Each>
REGIONRT_DEVICE void best_keys(Selection& shared, uint64_t* keys, int32_t count, int32_t most, const Each& each) {
    const bool all = count <= kMostBoxes;
    const uint64_t bound = all || most == 0 ? ~(uint64_t)0 : bound_of(shared, most, each);
    if (threadIdx.x == 0) shared.found = 0;
    __syncthreads();
    if (most == 0) return;
    each([&](uint64_t key) {
        if (key <= bound) keys[atomicAdd(&shared.found, 1)] = key;
    });
    sort_keys(keys, all ? count : most);
}

}  // namespace regionrt
