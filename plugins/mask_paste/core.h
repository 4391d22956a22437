// Where a RoI's mask lies in the photo, and the value of one of its pixels, to the bit as reference.py has them.
#pragma once

#include "../resize/core.h"

namespace regionrt {

// The box, enlarged by (M + 2) / M for the frame of zeros around the mask, in whole pixels: [x0, x1) × [y0, y1) is
// resized to; `left`, `top`, `right`, `bottom` are the part of it inside the photo.
struct MaskPlace {
    int64_t x0, y0, width, height;
    int64_t left, top, right, bottom;
};

REGIONRT_HD MaskPlace mask_place(const float* box, int32_t side, int32_t photo_height, int32_t photo_width) {
    const float scale = (float)((double)(side + 2) / (double)side);
    const float half_width = (box[2] - box[0]) * 0.5f * scale, half_height = (box[3] - box[1]) * 0.5f * scale;
    const float center_x = (box[2] + box[0]) * 0.5f, center_y = (box[3] + box[1]) * 0.5f;
    const int64_t x0 = (int64_t)(center_x - half_width), y0 = (int64_t)(center_y - half_height);  // towards zero
    const int64_t x1 = (int64_t)(center_x + half_width), y1 = (int64_t)(center_y + half_height);
    const int64_t left = larger<int64_t>(x0, 0), top = larger<int64_t>(y0, 0);
    return {x0,
            y0,
            larger<int64_t>(x1 - x0 + 1, 1),
            larger<int64_t>(y1 - y0 + 1, 1),
            left,
            top,
            larger(smaller<int64_t>(x1 + 1, photo_width), left),
            larger(smaller<int64_t>(y1 + 1, photo_height), top)};
}

// Cell `index` of one row of the framed mask [M + 2, M + 2]: the frame is zero.
REGIONRT_HD float framed(const float* mask, int32_t side, int32_t row, int32_t column) {
    const bool inside = row > 0 && row <= side && column > 0 && column <= side;
    return inside ? mask[(row - 1) * side + column - 1] : 0.0f;
}

}  // namespace regionrt
