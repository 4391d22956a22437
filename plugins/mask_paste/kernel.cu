// Pasting masks on a GPU: a thread takes pixels of the photo, and works out each from the four cells behind it.
//
// Launch: grid (any, D), block 256. masks [D, M, M], boxes [D, 4] in pixels of the photo -> out uint8 [D, H, W], 0 or 1.
// Compile without fused multiply-add.
#include "../native/device.cuh"
#include "core.h"

namespace regionrt {

REGIONRT_DEVICE void paste(const float* masks, const float* boxes, int32_t side, int32_t height, int32_t width,
                           float threshold, uint8_t* out) {
    const float* mask = masks + (int64_t)blockIdx.y * side * side;
    const MaskPlace place = mask_place(boxes + 4 * (int64_t)blockIdx.y, side, height, width);
    const int64_t pixels = (int64_t)height * width;
    out += blockIdx.y * pixels;
    for (int64_t i = blockIdx.x * blockDim.x + threadIdx.x; i < pixels; i += (int64_t)gridDim.x * blockDim.x) {
        const int64_t y = i / width, x = i - y * width;
        bool above = false;
        if (y >= place.top && y < place.bottom && x >= place.left && x < place.right) {
            const LinearTap row = linear_tap(y - place.y0, side + 2, place.height);
            const LinearTap column = linear_tap(x - place.x0, side + 2, place.width);
            const float upper = mix(framed(mask, side, row.low, column.low), framed(mask, side, row.low, column.high),
                                    1 - column.weight, column.weight);
            const float lower = mix(framed(mask, side, row.high, column.low), framed(mask, side, row.high, column.high),
                                    1 - column.weight, column.weight);
            above = mix(upper, lower, 1 - row.weight, row.weight) > threshold;
        }
        out[i] = above;
    }
}

}  // namespace regionrt

extern "C" __global__ void __launch_bounds__(256) mask_paste(const float* masks, const float* boxes, int32_t side,
                                                              int32_t height, int32_t width, int32_t threshold,
                                                              uint8_t* out) {
    regionrt::paste(masks, boxes, side, height, width, regionrt::float_of(threshold), out);
}
REGIONRT_EXPORT(mask_paste)
