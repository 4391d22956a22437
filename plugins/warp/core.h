// Where a warped RoI reads along one axis, beside reference.py, which defines it. In float64: it costs little on a CPU, and
// at 1000 px float32 would be off by 10⁻⁴ px.
#pragma once

#include "../rectangles.h"

namespace regionrt {

struct WarpAxis {
    double start, step;  // output pixel i is sampled at start + i · step px from the image's edge
};

REGIONRT_HD WarpAxis warp_axis(float low, float high, int32_t size, int32_t context) {
    const double length = (double)high - (double)low;
    const double step = (length < 1.0 ? 1.0 : length) / (double)(size - 2 * context);
    return {(double)low + (0.5 - (double)context) * step, step};
}

// A sample between pixels `low` and `high`, the second with weight `weight`. Outside the image (or NaN): low < 0.
struct WarpTap {
    int32_t low, high;
    float weight;
};

REGIONRT_HD WarpTap warp_tap(const WarpAxis& axis, int32_t index, int32_t side) {
    double position = axis.start + (double)index * axis.step;
    if (!(position >= 0.0 && position <= (double)side) || side == 0) return {-1, -1, 0.0f};
    position -= 0.5;
    const double last = (double)(side - 1);
    position = position < 0.0 ? 0.0 : position > last ? last : position;
    const int32_t low = (int32_t)position;
    return {low, low + 1 < side ? low + 1 : low, (float)(position - (double)low)};
}

}  // namespace regionrt
