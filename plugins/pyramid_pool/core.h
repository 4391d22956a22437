// A RoI's window on the map along one axis and its bins, beside reference.py, which defines them: float32 up to the
// window, each step rounded once, whole numbers from there on. Compile without fused multiply-add.
#pragma once

#include "../rectangles.h"

namespace regionrt {

constexpr int32_t kMostPyramidLevels = 8;

REGIONRT_HD int32_t floor_of(float value) {
    const int32_t whole = (int32_t)value;
    return whole - ((float)whole > value);
}

// The cells whose middles lie strictly between `low` and `high` px, or else the one under the middle of the two; of those
// the ones that are among the `side` of the map. No NaN.
REGIONRT_HD Range window_of(float low, float high, float scale, int32_t side) {
    const float most = (float)kMostCells;
    low = smaller(larger(low * scale, -most), most);
    high = smaller(larger(high * scale, -most), most);
    int32_t begin = floor_of(low - 0.5f) + 1, end = -floor_of(0.5f - high);
    if (begin >= end) {
        begin = floor_of((low + high) * 0.5f);
        end = begin + 1;
    }
    return {smaller(larger(begin, 0), side), smaller(larger(end, 0), side)};
}

// Bin `index` of a window's `bins`: never empty but where the window is.
REGIONRT_HD Range pyramid_bin(const Range& window, int32_t index, int32_t bins) {
    const int32_t length = window.end - window.begin;
    return {window.begin + index * length / bins, window.begin + ((index + 1) * length + bins - 1) / bins};
}

}  // namespace regionrt
