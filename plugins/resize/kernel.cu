// The resize onto the canvas on a GPU: a thread takes a column of eight pixels, a block writes its part of the whole canvas,
// zeros where no photo is.
//
// Launch: grid (columns / 256, rows / 8), block 256. image uint8 [h, w, 3] -> canvas uint8 [H, W, 3], the photo at the top
// left. Compile without fused multiply-add: it is the CPU's result to the byte.
#include "../native/device.cuh"
#include "core.h"

namespace regionrt {

constexpr int32_t kResizeRows = 8;

struct ResizeCall {
    int32_t source_height, source_width;  // of the photo
    int32_t height, width;                // that it gets
    int32_t canvas_height, canvas_width;
};

// Rounded half to even: adding 1.5 · 2^23 leaves no bits for a fraction, and the whole number in the lowest ones.
REGIONRT_DEVICE uint8_t rounded(float value) { return (uint8_t)bits_as<uint32_t>(value + 12582912.0f); }

REGIONRT_DEVICE void resize(const uint8_t* image, const ResizeCall& call, uint8_t* canvas) {
    struct Rows {
        LinearTap taps[kResizeRows];  // their float64 is worked out once for the block
    };
    REGIONRT_SHARED(Rows, rows);
    const int32_t first = blockIdx.y * kResizeRows;
    if (threadIdx.x < kResizeRows && first + (int32_t)threadIdx.x < call.height) {
        rows.taps[threadIdx.x] = linear_tap(first + (int32_t)threadIdx.x, call.source_height, call.height);
    }
    __syncthreads();
    const int32_t x = blockIdx.x * blockDim.x + threadIdx.x;
    if (x >= call.canvas_width) return;
    LinearTap column = {0, 0, 0.0f};
    if (x < call.width) column = linear_tap(x, call.source_width, call.width);
    for (int32_t i = 0; i < kResizeRows && first + i < call.canvas_height; ++i) {
        uint8_t* out = canvas + ((int64_t)(first + i) * call.canvas_width + x) * 3;
        if (first + i >= call.height || x >= call.width) {
            out[0] = out[1] = out[2] = 0;
            continue;
        }
        const LinearTap row = rows.taps[i];
        const uint8_t* upper = image + (int64_t)row.low * call.source_width * 3;
        const uint8_t* lower = image + (int64_t)row.high * call.source_width * 3;
        const int64_t low = 3 * (int64_t)column.low, high = 3 * (int64_t)column.high;
        for (int32_t c = 0; c < 3; ++c) {
            const float above = mix((float)upper[low + c], (float)upper[high + c], 1 - column.weight, column.weight);
            const float below = mix((float)lower[low + c], (float)lower[high + c], 1 - column.weight, column.weight);
            out[c] = rounded(mix(above, below, 1 - row.weight, row.weight));
        }
    }
}

}  // namespace regionrt

extern "C" __global__ void __launch_bounds__(256) resize(const uint8_t* image, int32_t source_height, int32_t source_width,
                                                          int32_t height, int32_t width, int32_t canvas_height,
                                                          int32_t canvas_width, uint8_t* canvas) {
    regionrt::resize(image, {source_height, source_width, height, width, canvas_height, canvas_width}, canvas);
}
REGIONRT_EXPORT(resize)
