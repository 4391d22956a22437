// Box arithmetic that several ops share, beside boxes.py, which defines it: decode, clip, IoU and a portable exp.
//
// Everything is float32, each step rounded once, in the order of boxes.py: the results are the same bits.
#pragma once

#include "native/portable.h"

namespace regionrt {

constexpr float kMaxLogRatio = 4.135166556742356f;  // log(1000/16)

template <class T>
struct Box {
    T x1, y1, x2, y2;
};

template <class T>
REGIONRT_HD T area(const Box<T>& box) {
    return (box.x2 - box.x1) * (box.y2 - box.y1);
}

template <class T>
REGIONRT_HD T intersection(const Box<T>& a, const Box<T>& b) {
    const T zero = {};
    const T width = larger(smaller(a.x2, b.x2) - larger(a.x1, b.x1), zero);
    const T height = larger(smaller(a.y2, b.y2) - larger(a.y1, b.y1), zero);
    return width * height;
}

// exp in float64, relative error below 4e-16, by the same operations everywhere. Rounded to float32 it equals the
// correctly rounded value but for about one argument in a hundred million. Arguments beyond ±708 count as ±708; NaN
// stays NaN. No branches: compilers vectorise loops over it.
REGIONRT_HD double exp_portable(double x) {
    x = x < -708.0 ? -708.0 : x;
    x = x > 708.0 ? 708.0 : x;
    const double shift = 6755399441055744.0;  // 1.5 · 2^52: adding it rounds to a whole number, in the lowest bits
    const double shifted = x * 1.4426950408889634 + shift;
    const double k = shifted - shift;
    const double r = (x - k * 0.693147180369123816490) - k * 1.90821492927058770002e-10;  // x − k·log 2, |r| < 0.35
    double p = 1.0 / 6227020800;  // Taylor: the next term is below 4e-18
    p = p * r + 1.0 / 479001600;
    p = p * r + 1.0 / 39916800;
    p = p * r + 1.0 / 3628800;
    p = p * r + 1.0 / 362880;
    p = p * r + 1.0 / 40320;
    p = p * r + 1.0 / 5040;
    p = p * r + 1.0 / 720;
    p = p * r + 1.0 / 120;
    p = p * r + 1.0 / 24;
    p = p * r + 1.0 / 6;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    // 2^k: k is in the low bits of `shifted`; its exponent field is moved into place, the bits above fall off.
    const uint64_t power = (bits_as<uint64_t>(shifted) + 1023) << 52;
    return p * bits_as<double>(power);
}

REGIONRT_HD float sigmoid(float logit) { return (float)(1.0 / (1.0 + exp_portable(-(double)logit))); }

// `box` moved by the deltas (dx, dy, dw, dh), which the caller has divided by the coder's weights.
REGIONRT_HD Box<float> decode(float dx, float dy, float dw, float dh, const Box<float>& box) {
    const float width = box.x2 - box.x1, height = box.y2 - box.y1;
    const float center_x = dx * width + (box.x1 + 0.5f * width);
    const float center_y = dy * height + (box.y1 + 0.5f * height);
    dw = dw > kMaxLogRatio ? kMaxLogRatio : dw;  // a NaN stays
    dh = dh > kMaxLogRatio ? kMaxLogRatio : dh;
    const float half_width = 0.5f * ((float)exp_portable(dw) * width);
    const float half_height = 0.5f * ((float)exp_portable(dh) * height);
    return {center_x - half_width, center_y - half_height, center_x + half_width, center_y + half_height};
}

REGIONRT_HD float clip(float value, float limit) {  // to 0..limit; a NaN stays
    value = value < 0.0f ? 0.0f : value;
    return value > limit ? limit : value;
}

REGIONRT_HD Box<float> clip(const Box<float>& box, float height, float width) {
    return {clip(box.x1, width), clip(box.y1, height), clip(box.x2, width), clip(box.y2, height)};
}

// Both sides are at least `min_size` px; false for NaN.
REGIONRT_HD bool large_enough(const Box<float>& box, float min_size) {
    return (box.x2 - box.x1 >= min_size) & (box.y2 - box.y1 >= min_size);
}

}  // namespace regionrt
