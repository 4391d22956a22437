// Whether one box suppresses another, for scalars (CUDA) and for vectors of boxes (CPU); reference.py defines it.
#pragma once

#include "../boxes.h"

namespace regionrt {

// IoU > threshold, exactly as in float32 with one division; 0 where the union is not positive, or a coordinate is NaN.
template <class T>
REGIONRT_HD auto overlaps(const Box<T>& a, T area_a, const Box<T>& b, T area_b, T threshold) {
    const T zero = {};
    const T shared = intersection(a, b);
    const T joined = area_a + area_b - shared;
    return (joined > zero) & (shared / joined > threshold);
}

// True wherever `overlaps` is, and seldom elsewhere, without the division: `low` is the threshold made smaller by a few
// ulp (`low_threshold`). Rounded products of tiny (subnormal) areas are covered by >= in place of >.
template <class T>
REGIONRT_HD auto may_overlap(const Box<T>& a, T area_a, const Box<T>& b, T area_b, T low) {
    const T shared = intersection(a, b);
    return shared >= low * (area_a + area_b - shared);
}

REGIONRT_HD float low_threshold(float threshold) { return threshold * (1.0f - 4e-7f); }

}  // namespace regionrt
