// A RoI's cells along one axis and the bins that they are cut into, beside reference.py, which defines them: float32, each
// step rounded once, so that an edge never moves. Compile without fused multiply-add.
#pragma once

#include "../rectangles.h"

namespace regionrt {

// The cell of a corner at `position` px: halves away from zero. No NaN.
REGIONRT_HD int32_t cell_at(float position, float scale) {
    const float cells = smaller(larger(position * scale, -(float)kMostCells), (float)kMostCells);
    const int32_t whole = (int32_t)cells;  // towards zero
    const float part = cells - (float)whole;
    return whole + (part >= 0.5f) - (part <= -0.5f);
}

struct RoiAxis {
    int32_t first;
    float share;  // cells of a bin
};

REGIONRT_HD RoiAxis roi_axis(float low, float high, float scale, int32_t bins) {
    const int32_t first = cell_at(low, scale), last = cell_at(high, scale);
    return {first, (float)larger(last - first + 1, 1) / (float)bins};
}

// The cells of a bin that are among the `side` of the map; none where begin ≥ end.
REGIONRT_HD Range bin_of(const RoiAxis& axis, int32_t bin, int32_t side) {
    const float end = (float)(bin + 1) * axis.share;
    const int32_t begin = (int32_t)((float)bin * axis.share), whole = (int32_t)end;
    const int32_t low = axis.first + begin, high = axis.first + whole + (end > (float)whole);
    return {smaller(larger(low, 0), side), smaller(larger(high, 0), side)};
}

}  // namespace regionrt
