// RegionRoiPool on a GPU: one block is one RoI and a slice of its channels.
//
// Launch: grid (P, N, slices), block 256. Arguments in TensorRT's order for plugins: inputs, int32 scalars (floats as their
// bits), output. Compile without fused multiply-add: an edge must not move by a cell.
#include "../native/largest.cuh"
#include "core.h"

namespace regionrt {

struct RoiPoolCall {
    const float* rois;      // [N, P, 4]
    const int32_t* counts;  // [N]
    int32_t channels, height, width, rows, columns;
    float scale;
};

struct RoiPoolShared {
    RoiAxis down, across;
};

// The RoI of this block; false where it is none. All threads call it.
REGIONRT_DEVICE bool roi_of_block(const RoiPoolCall& call, RoiPoolShared& shared) {
    const float* roi = call.rois + 4 * ((int64_t)blockIdx.y * gridDim.x + blockIdx.x);
    if ((int32_t)blockIdx.x >= call.counts[blockIdx.y] || has_nan(roi)) return false;
    if (threadIdx.x == 0) {
        shared.down = roi_axis(roi[1], roi[3], call.scale, call.rows);
        shared.across = roi_axis(roi[0], roi[2], call.scale, call.columns);
    }
    __syncthreads();
    return true;
}

// Channels first: neighbouring threads take neighbouring bins, so that they write next to each other.
template <class T>
REGIONRT_DEVICE void roi_pool_nchw(const RoiPoolCall& call, const T* feature, T* out) {
    REGIONRT_SHARED(RoiPoolShared, shared);
    const int32_t slice = (call.channels + gridDim.z - 1) / gridDim.z, first = blockIdx.z * slice;
    const int32_t bins = call.rows * call.columns, count = smaller(slice, call.channels - first) * bins;
    const int64_t place = (int64_t)blockIdx.y * gridDim.x + blockIdx.x;
    out += (place * call.channels + first) * bins;
    const bool real = roi_of_block(call, shared);
    const int64_t cells = (int64_t)call.height * call.width;
    const T* image = feature + ((int64_t)blockIdx.y * call.channels + first) * cells;
    for (int32_t i = threadIdx.x; i < count; i += blockDim.x) {
        float best[1] = {0.0f};
        if (real) {
            const int32_t channel = i / bins, bin = i - channel * bins, row = bin / call.columns;
            const T* map = image + channel * cells;
            largest(bin_of(shared.down, row, call.height), bin_of(shared.across, bin - row * call.columns, call.width),
                    call.width, best, [&](int32_t cell, float(&value)[1]) { value[0] = to_float(map[cell]); });
        }
        out[i] = from_float<T>(best[0]);
    }
}

// Channels last, in and out: neighbouring threads take neighbouring channels, `V` each.
template <int V, class Lanes>
REGIONRT_DEVICE void bins_channels_last(const RoiPoolCall& call, const RoiPoolShared& shared, bool real, const Lanes* map,
                                        int32_t packs, Lanes* out) {
    const int32_t count = call.rows * call.columns * packs, step = gridDim.z * blockDim.x;
    for (int32_t i = blockIdx.z * blockDim.x + threadIdx.x; i < count; i += step) {
        float best[V] = {};
        if (real) {
            const int32_t bin = i / packs, pack = i - bin * packs, row = bin / call.columns;
            largest(bin_of(shared.down, row, call.height), bin_of(shared.across, bin - row * call.columns, call.width),
                    call.width, best, [&](int32_t cell, float(&value)[V]) { unpack(map[(int64_t)cell * packs + pack], value); });
        }
        pack_into(out[i], best);
    }
}

template <class T>
REGIONRT_DEVICE void roi_pool_nhwc(const RoiPoolCall& call, const T* feature, T* out) {
    REGIONRT_SHARED(RoiPoolShared, shared);
    constexpr int V = 16 / sizeof(T);
    const int64_t place = (int64_t)blockIdx.y * gridDim.x + blockIdx.x;
    out += place * call.rows * call.columns * call.channels;
    const bool real = roi_of_block(call, shared);
    const T* map = feature + (int64_t)blockIdx.y * call.height * call.width * call.channels;
    if (call.channels % V == 0) {
        bins_channels_last<V>(call, shared, real, reinterpret_cast<const Pack<T>*>(map), call.channels / V,
                              reinterpret_cast<Pack<T>*>(out));
    } else {
        bins_channels_last<1>(call, shared, real, map, call.channels, out);
    }
}

}  // namespace regionrt

#define REGIONRT_ROI_POOL(layout, name, T)                                                                               \
    extern "C" __global__ void __launch_bounds__(256) roi_pool_##layout##_##name(                                        \
        const T* feature, const float* rois, const int32_t* counts, int32_t channels, int32_t height, int32_t width,     \
        int32_t rows, int32_t columns, int32_t scale, T* out) {                                                          \
        const regionrt::RoiPoolCall call = {rois, counts, channels, height, width, rows, columns, regionrt::float_of(scale)}; \
        regionrt::roi_pool_##layout<T>(call, feature, out);                                                              \
    }                                                                                                                    \
    REGIONRT_EXPORT(roi_pool_##layout##_##name)

#define REGIONRT_LAYOUTS(name, T)      \
    REGIONRT_ROI_POOL(nchw, name, T) \
    REGIONRT_ROI_POOL(nhwc, name, T)

REGIONRT_LAYOUTS(f32, float)
REGIONRT_LAYOUTS(f16, regionrt::float16)
REGIONRT_LAYOUTS(bf16, regionrt::bfloat16_t)
