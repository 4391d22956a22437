// The two samples behind each target sample of a half-pixel bilinear resize, to the bit as reference.py and torch's
// `interpolate(mode="bilinear", align_corners=False)` have them. Masks are pasted with the same taps.
#pragma once

#include "../native/portable.h"

namespace regionrt {

struct LinearTap {
    int32_t low, high;
    float weight;  // of `high`
};

REGIONRT_HD LinearTap linear_tap(int64_t index, int32_t source, int64_t target) {
    if ((int64_t)source == target) return {(int32_t)index, (int32_t)index, 0.0f};
    const float ratio = (float)source / (float)target;
    // float64 until the last step: torch's kernels compute this with one rounding (fused multiply-add).
    float position = (float)((double)ratio * ((double)index + 0.5) - 0.5);
    if (!(position > 0.0f)) position = 0.0f;
    int32_t low = (int32_t)position;
    if (low > source - 1) low = source - 1;
    float weight = position - (float)low;
    weight = weight < 0.0f ? 0.0f : weight > 1.0f ? 1.0f : weight;
    return {low, low + 1 < source ? low + 1 : low, weight};
}

// Each product rounded, then the sum, as NumPy does.
template <class T>
REGIONRT_HD T mix(T low, T high, T low_weight, T high_weight) {
    return low * low_weight + high * high_weight;
}

}  // namespace regionrt
