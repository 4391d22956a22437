// The largest cell of a rectangle of a channels-last map, for runs of channels; and bins put channels first. On a CPU.
#pragma once

#include "vector.h"

namespace regionrt {
namespace REGIONRT_VARIANT {

constexpr int kLargestVectors = 8;  // accumulators that fit the registers

// Of a NaN and a number either may come out.
template <int V, class T, class Out>
static inline void largest_block(const T* corner, int64_t row_stride, int64_t channels, int32_t rows, int32_t columns,
                                 Out* out) {
    Floats best[V];
    for (int v = 0; v < V; ++v) best[v] = load(corner + v * kLanes);
    for (int32_t r = 0; r < rows; ++r) {
        const T* cell = corner + r * row_stride;
        for (int32_t c = 0; c < columns; ++c, cell += channels) {
            for (int v = 0; v < V; ++v) best[v] = larger(load(cell + v * kLanes), best[v]);
        }
    }
    for (int v = 0; v < V; ++v) store(out + v * kLanes, best[v]);
}

// out[0 … channels−1]: the largest of `rows` × `columns` cells from `corner` on; 0 where there is no cell.
template <class T, class Out>
static void largest_cells(const T* corner, int64_t row_stride, int64_t channels, int32_t rows, int32_t columns, Out* out) {
    if (rows <= 0 || columns <= 0) {
        memset(out, 0, (size_t)channels * sizeof(Out));
        return;
    }
    constexpr int64_t kBlock = kLargestVectors * kLanes;
    int64_t at = 0;
    for (; at + kBlock <= channels; at += kBlock) {
        largest_block<kLargestVectors>(corner + at, row_stride, channels, rows, columns, out + at);
    }
    for (; at + kLanes <= channels; at += kLanes) {
        largest_block<1>(corner + at, row_stride, channels, rows, columns, out + at);
    }
    for (; at < channels; ++at) {
        float best = load_one(corner + at);
        for (int32_t r = 0; r < rows; ++r) {
            for (int32_t c = 0; c < columns; ++c) best = larger(load_one(corner + at + r * row_stride + c * channels), best);
        }
        store_one(out + at, best);
    }
}

// out[channel][bin] = in[bin][channel], in squares of four where there are as many.
template <class Out>
static void channels_first(const float* in, int64_t bins, int64_t channels, Out* out) {
    int64_t channel = 0;
    for (; channel + 4 <= channels; channel += 4) {
        int64_t bin = 0;
        for (; bin + 4 <= bins; bin += 4) {
            transpose_square(in + bin * channels + channel, channels, out + channel * bins + bin, bins);
        }
        for (; bin < bins; ++bin) {
            for (int64_t c = channel; c < channel + 4; ++c) store_one(out + c * bins + bin, in[bin * channels + c]);
        }
    }
    for (; channel < channels; ++channel) {
        for (int64_t bin = 0; bin < bins; ++bin) store_one(out + channel * bins + bin, in[bin * channels + channel]);
    }
}

}  // namespace REGIONRT_VARIANT
}  // namespace regionrt
