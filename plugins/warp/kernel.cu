// RegionWarp on a GPU: one block is one RoI and a slice of its output pixels.
//
// Where the samples lie is worked out once per RoI in float64 and kept in shared memory; outputs of more pixels a side work
// it out on the way. Launch: grid (P, N, slices), block 256. Arguments in TensorRT's order for plugins: inputs, int32
// scalars, output.
#include "../native/device.cuh"
#include "core.h"

namespace regionrt {

constexpr int32_t kWarpTaps = 256;  // of an axis that are kept

struct WarpCall {
    const float* rois;      // [N, P, 4]
    const int32_t* counts;  // [N]
    int32_t channels, height, width, rows, columns, context;
};

struct WarpShared {
    WarpAxis down, across;
    WarpTap y[kWarpTaps], x[kWarpTaps];
};

// Called, not inlined: float64 would take the registers of the loops around it.
REGIONRT_CALLED WarpTap warp_tap_at(const WarpAxis& axis, int32_t index, int32_t side) {
    return warp_tap(axis, index, side);
}

REGIONRT_CALLED void set_warp_axes(WarpShared& shared, const float* roi, int32_t rows, int32_t columns, int32_t context) {
    shared.down = warp_axis(roi[1], roi[3], rows, context);
    shared.across = warp_axis(roi[0], roi[2], columns, context);
}

// Calls `write(pixel, y, x)` for the output pixels of this block; where it has no RoI all are outside.
template <class Write>
REGIONRT_DEVICE void each_pixel(const WarpCall& call, const Write& write) {
    REGIONRT_SHARED(WarpShared, shared);
    const float* roi = call.rois + 4 * ((int64_t)blockIdx.y * gridDim.x + blockIdx.x);
    const bool real = (int32_t)blockIdx.x < call.counts[blockIdx.y] && !has_nan(roi);
    const bool kept = call.rows <= kWarpTaps && call.columns <= kWarpTaps;
    if (real) {
        if (threadIdx.x == 0) set_warp_axes(shared, roi, call.rows, call.columns, call.context);
        __syncthreads();
        if (kept) {
            for (int32_t i = threadIdx.x; i < call.rows; i += blockDim.x) {
                shared.y[i] = warp_tap_at(shared.down, i, call.height);
            }
            for (int32_t j = threadIdx.x; j < call.columns; j += blockDim.x) {
                shared.x[j] = warp_tap_at(shared.across, j, call.width);
            }
        }
        __syncthreads();
    }
    const int32_t count = call.rows * call.columns, step = gridDim.z * blockDim.x;
    for (int32_t i = blockIdx.z * blockDim.x + threadIdx.x; i < count; i += step) {
        const int32_t row = i / call.columns, column = i - row * call.columns;
        WarpTap y = {-1, -1, 0.0f}, x = y;
        if (real) {
            y = kept ? shared.y[row] : warp_tap_at(shared.down, row, call.height);
            x = kept ? shared.x[column] : warp_tap_at(shared.across, column, call.width);
        }
        write(i, y, x);
    }
}

// `stride` lies between neighbouring pixels of the image, `gap` between its rows.
template <class T>
REGIONRT_DEVICE float mixed(const T* image, int64_t gap, int32_t stride, const WarpTap& y, const WarpTap& x) {
    const T *upper = image + y.low * gap, *lower = image + y.high * gap;
    const float left = 1.0f - x.weight;
    const int64_t low = (int64_t)x.low * stride, high = (int64_t)x.high * stride;
    const float above = to_float(upper[low]) * left + to_float(upper[high]) * x.weight;
    const float below = to_float(lower[low]) * left + to_float(lower[high]) * x.weight;
    return above * (1.0f - y.weight) + below * y.weight;
}

template <class T, bool ChannelsLast>
REGIONRT_DEVICE void warp(const WarpCall& call, const T* images, T* out) {
    const int64_t pixels = (int64_t)call.rows * call.columns, cells = (int64_t)call.height * call.width;
    out += ((int64_t)blockIdx.y * gridDim.x + blockIdx.x) * call.channels * pixels;
    images += (int64_t)blockIdx.y * call.channels * cells;
    each_pixel(call, [&](int32_t i, const WarpTap& y, const WarpTap& x) {
        const bool inside = y.low >= 0 && x.low >= 0;
        for (int32_t c = 0; c < call.channels; ++c) {
            const T* image = ChannelsLast ? images + c : images + c * cells;
            const int32_t stride = ChannelsLast ? call.channels : 1;
            const float value = inside ? mixed(image, (int64_t)call.width * stride, stride, y, x) : 0.0f;
            out[ChannelsLast ? (int64_t)i * call.channels + c : c * pixels + i] = from_float<T>(value);
        }
    });
}

}  // namespace regionrt

#define REGIONRT_WARP(layout, last, name, T)                                                                            \
    extern "C" __global__ void __launch_bounds__(256) warp_##layout##_##name(                                           \
        const T* images, const float* rois, const int32_t* counts, int32_t channels, int32_t height, int32_t width,     \
        int32_t rows, int32_t columns, int32_t context, T* out) {                                                       \
        const regionrt::WarpCall call = {rois, counts, channels, height, width, rows, columns, context};                \
        regionrt::warp<T, last>(call, images, out);                                                                     \
    }                                                                                                                   \
    REGIONRT_EXPORT(warp_##layout##_##name)

#define REGIONRT_LAYOUTS(name, T)       \
    REGIONRT_WARP(nchw, false, name, T) \
    REGIONRT_WARP(nhwc, true, name, T)

REGIONRT_LAYOUTS(f32, float)
REGIONRT_LAYOUTS(f16, regionrt::float16)
REGIONRT_LAYOUTS(bf16, regionrt::bfloat16_t)
