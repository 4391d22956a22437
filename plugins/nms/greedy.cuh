// Greedy NMS of one long list of boxes in two launches: many blocks find out which box suppresses which, as bits; one
// block then goes through the bits. Which boxes live is exactly what one thread would find, box after box.
//
// Bits lie by word, then by row: matrix[word * stride + row] has bit j set where box `row` suppresses box 32 * word + j,
// so that 32 rows of a word are 128 bytes in a row; where `row` is in the word itself, bit j says that box 32 * word + j
// suppresses `row`. `stride` is the most boxes that a list may have.
#pragma once

#include "../native/block.cuh"
#include "core.h"

namespace regionrt {

REGIONRT_HD int32_t words_of(int32_t boxes) { return (boxes + 31) / 32; }

// Greedy NMS among 32 boxes, one for each lane of a warp: bit j of `better` says that box j would suppress the lane's.
// Who is suppressed by a kept box is not kept: repeated until nothing changes, each time at least one more box is settled.
REGIONRT_DEVICE uint32_t kept_of_warp(bool alive, uint32_t better) {
    uint32_t kept = __ballot_sync(~0u, alive), before;
    do {
        before = kept;
        kept = __ballot_sync(~0u, alive && !(better & before));
    } while (kept != before);
    return kept;
}

// The first launch: blockIdx.x goes through words and, slower, through rows, blockDim.x at a time. A word is 32 boxes.
struct OverlapShared {
    Box<float> boxes[32];
    int32_t labels[32];
};

// `labels`: boxes of unlike labels let each other live; null: all are alike.
REGIONRT_DEVICE void find_overlaps(OverlapShared& shared, const Box<float>* boxes, const int32_t* labels, int32_t count,
                                   int32_t stride, float threshold, uint32_t* matrix) {
    const int32_t words = words_of(stride), word = blockIdx.x % words, first = 32 * word;
    const int32_t row = blockIdx.x / words * blockDim.x + threadIdx.x, lane = threadIdx.x;
    if (first >= count || row - lane >= first + 32) return;  // whole blocks: only boxes before others suppress them
    if (lane < 32 && first + lane < count) {
        shared.boxes[lane] = boxes[first + lane];
        shared.labels[lane] = labels ? labels[first + lane] : 0;
    }
    __syncthreads();
    if (row >= smaller(count, first + 32)) return;
    const Box<float> box = boxes[row];
    const int32_t label = labels ? labels[row] : 0;
    const float size = area(box);
    uint32_t bits = 0;
    const int32_t last = row < first ? smaller(32, count - first) : row - first;
    for (int32_t j = 0; j < last; ++j) {
        const Box<float> other = shared.boxes[j];
        if (shared.labels[j] == label && overlaps(box, size, other, area(other), threshold)) bits |= 1u << j;
    }
    matrix[(int64_t)word * stride + row] = bits;
}

// The second launch, one block: of the boxes with a bit in `alive` those that no better one suppresses, `most` at most.
struct GreedyShared {
    uint32_t alive[kMostBoxes / 32];  // afterwards: what is kept
    uint32_t kept;
    int32_t count;
};

REGIONRT_DEVICE bool is_alive(const GreedyShared& shared, int32_t i) { return shared.alive[i / 32] >> (i % 32) & 1u; }

REGIONRT_DEVICE void keep_greedily(GreedyShared& shared, const uint32_t* alive, const uint32_t* matrix, int32_t count,
                                   int32_t stride, int32_t most) {
    const int32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32, words = words_of(count);
    for (int32_t word = threadIdx.x; word < words; word += blockDim.x) shared.alive[word] = alive[word];
    if (threadIdx.x == 0) shared.count = 0;
    __syncthreads();
    // Read before it is known who is kept: the time that takes is spent while the tile before is settled.
    uint32_t better = warp == 0 && lane < count ? matrix[lane] : 0;
    for (int32_t tile = 0; tile < words; ++tile) {
        const int32_t row = 32 * tile + lane, mine = tile + 1 + warp;
        uint32_t bits = mine < words && row < count ? matrix[(int64_t)mine * stride + row] : 0;
        if (warp == 0) {
            uint32_t kept = kept_of_warp(shared.alive[tile] >> lane & 1u, better);
            int32_t found = shared.count + __popc(kept);
            for (; found > most; --found) kept &= ~(0x80000000u >> __clz((int)kept));
            if (lane == 0) {
                shared.alive[tile] = shared.kept = kept;
                shared.count = found;
            }
            better = row + 32 < count ? matrix[(int64_t)(tile + 1) * stride + row + 32] : 0;
        }
        __syncthreads();
        const bool enough = shared.count >= most, kept = shared.kept >> lane & 1u;
        for (int32_t word = mine; word < words; word += warps) {
            if (word != mine) bits = row < count ? matrix[(int64_t)word * stride + row] : 0;
            uint32_t gone = enough ? ~0u : kept ? bits : 0;
            for (int distance = 16; distance > 0; distance /= 2) gone |= __shfl_xor_sync(~0u, gone, distance);
            if (lane == 0) shared.alive[word] &= ~gone;
        }
        __syncthreads();
        if (enough) break;
    }
}

}  // namespace regionrt
