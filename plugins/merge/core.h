// Which windows count, how unlike two boxes are, and one box of two, beside reference.py, which defines it.
#pragma once

#include "../boxes.h"

namespace regionrt {

// The centre is left of `width` and above `height`, or the window begins at that edge.
REGIONRT_HD bool in_image(const Box<float>& window, float height, float width) {
    return ((window.x1 <= 0.0f) | (0.5f * (window.x1 + window.x2) < width)) &
           ((window.y1 <= 0.0f) | (0.5f * (window.y1 + window.y2) < height));
}

// Distance of the centres, as a part of the diagonal around both boxes, plus 1 − IoU: 0 to 2. Neither box is empty.
REGIONRT_HD float match_score(const Box<float>& a, const Box<float>& b) {
    const float shared = intersection(a, b);
    const float joined = area(a) + area(b) - shared;
    const float around_x = larger(a.x2, b.x2) - smaller(a.x1, b.x1), around_y = larger(a.y2, b.y2) - smaller(a.y1, b.y1);
    const float apart_x = (a.x1 + a.x2) - (b.x1 + b.x2), apart_y = (a.y1 + a.y2) - (b.y1 + b.y2);
    const float distance = apart_x * apart_x + apart_y * apart_y;
    const float diagonal = around_x * around_x + around_y * around_y;
    return 0.5f * __builtin_sqrtf(distance / diagonal) + (1.0f - shared / joined);
}

// The mean of two boxes, each weighing what confidence it has.
REGIONRT_HD Box<float> mean_box(const Box<float>& a, float of_a, const Box<float>& b, float of_b) {
    const float total = of_a + of_b;
    return {(a.x1 * of_a + b.x1 * of_b) / total, (a.y1 * of_a + b.y1 * of_b) / total,
            (a.x2 * of_a + b.x2 * of_b) / total, (a.y2 * of_a + b.y2 * of_b) / total};
}

// The box whose edges are parts of the window's sides.
REGIONRT_HD Box<float> box_in_window(float left, float top, float right, float bottom, const Box<float>& window) {
    const float width = window.x2 - window.x1, height = window.y2 - window.y1;
    return {window.x1 + left * width, window.y1 + top * height, window.x1 + right * width,
            window.y1 + bottom * height};
}

}  // namespace regionrt
