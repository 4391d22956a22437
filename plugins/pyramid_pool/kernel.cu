// RegionPyramidPool on a GPU: one block is one RoI and a slice of its channels; all levels in one launch.
//
// Launch: grid (P, N, slices), block 256. Arguments in TensorRT's order for plugins: inputs, int32 scalars (floats as their
// bits; bins of levels that are not there are 0), output. Compile without fused multiply-add: a window must not move.
// Channels first an output row is level by level [C, b, b]; channels last it is [Σb², C].
#include "../native/largest.cuh"
#include "core.h"

namespace regionrt {

struct PyramidCall {
    const float* rois;      // [N, P, 4]
    const int32_t* counts;  // [N]
    int32_t channels, height, width;
    float scale;
};

struct PyramidShared {
    int32_t bins[kMostPyramidLevels];
    Range down, across;
};

// The window of this block; false where it is empty, or the RoI is none. All threads call it, after `bins` are set.
REGIONRT_DEVICE bool window_of_block(const PyramidCall& call, PyramidShared& shared) {
    if (threadIdx.x == 0) {
        const float* roi = call.rois + 4 * ((int64_t)blockIdx.y * gridDim.x + blockIdx.x);
        shared.down = shared.across = {0, 0};
        if ((int32_t)blockIdx.x < call.counts[blockIdx.y] && !has_nan(roi)) {
            shared.down = window_of(roi[1], roi[3], call.scale, call.height);
            shared.across = window_of(roi[0], roi[2], call.scale, call.width);
        }
    }
    __syncthreads();
    return shared.down.begin < shared.down.end && shared.across.begin < shared.across.end;
}

REGIONRT_DEVICE int32_t all_bins(const PyramidShared& shared) {
    int32_t all = 0;
    for (int32_t level = 0; level < kMostPyramidLevels; ++level) all += shared.bins[level] * shared.bins[level];
    return all;
}

// Channels first: neighbouring threads take neighbouring bins of a level.
template <class T>
REGIONRT_DEVICE void pyramid_pool_nchw(const PyramidCall& call, PyramidShared& shared, const T* feature, T* out) {
    const bool real = window_of_block(call, shared);
    const int32_t slice = (call.channels + gridDim.z - 1) / gridDim.z, first = blockIdx.z * slice;
    const int32_t channels = smaller(slice, call.channels - first);
    const int64_t place = (int64_t)blockIdx.y * gridDim.x + blockIdx.x;
    out += place * call.channels * all_bins(shared);
    const int64_t cells = (int64_t)call.height * call.width;
    const T* image = feature + ((int64_t)blockIdx.y * call.channels + first) * cells;
    for (int32_t level = 0; level < kMostPyramidLevels && shared.bins[level] > 0; ++level) {
        const int32_t side = shared.bins[level], bins = side * side;
        T* mine = out + (int64_t)first * bins;
        for (int32_t i = threadIdx.x; i < channels * bins; i += blockDim.x) {
            float best[1] = {0.0f};
            if (real) {
                const int32_t channel = i / bins, bin = i - channel * bins, row = bin / side;
                const T* map = image + channel * cells;
                largest(pyramid_bin(shared.down, row, side), pyramid_bin(shared.across, bin - row * side, side), call.width,
                        best, [&](int32_t cell, float(&value)[1]) { value[0] = to_float(map[cell]); });
            }
            mine[i] = from_float<T>(best[0]);
        }
        out += (int64_t)call.channels * bins;
    }
}

// Channels last, in and out: neighbouring threads take neighbouring channels, `V` each.
template <int V, class Lanes>
REGIONRT_DEVICE void pyramid_channels_last(const PyramidCall& call, const PyramidShared& shared, bool real, const Lanes* map,
                                           int32_t packs, Lanes* out) {
    const int32_t count = all_bins(shared) * packs, step = gridDim.z * blockDim.x;
    for (int32_t i = blockIdx.z * blockDim.x + threadIdx.x; i < count; i += step) {
        float best[V] = {};
        if (real) {
            int32_t bin = i / packs, level = 0;
            const int32_t pack = i - bin * packs;
            while (bin >= shared.bins[level] * shared.bins[level]) {
                bin -= shared.bins[level] * shared.bins[level];
                ++level;
            }
            const int32_t side = shared.bins[level], row = bin / side;
            largest(pyramid_bin(shared.down, row, side), pyramid_bin(shared.across, bin - row * side, side), call.width,
                    best, [&](int32_t cell, float(&value)[V]) { unpack(map[(int64_t)cell * packs + pack], value); });
        }
        pack_into(out[i], best);
    }
}

template <class T>
REGIONRT_DEVICE void pyramid_pool_nhwc(const PyramidCall& call, PyramidShared& shared, const T* feature, T* out) {
    constexpr int V = 16 / sizeof(T);
    const bool real = window_of_block(call, shared);
    const int64_t place = (int64_t)blockIdx.y * gridDim.x + blockIdx.x;
    out += place * call.channels * all_bins(shared);
    const T* map = feature + (int64_t)blockIdx.y * call.height * call.width * call.channels;
    if (call.channels % V == 0) {
        pyramid_channels_last<V>(call, shared, real, reinterpret_cast<const Pack<T>*>(map), call.channels / V,
                                 reinterpret_cast<Pack<T>*>(out));
    } else {
        pyramid_channels_last<1>(call, shared, real, map, call.channels, out);
    }
}

}  // namespace regionrt

#define REGIONRT_PYRAMID_POOL(layout, name, T)                                                                             \
    extern "C" __global__ void __launch_bounds__(256) pyramid_pool_##layout##_##name(                                      \
        const T* feature, const float* rois, const int32_t* counts, int32_t channels, int32_t height, int32_t width,       \
        int32_t scale, int32_t bins0, int32_t bins1, int32_t bins2, int32_t bins3, int32_t bins4, int32_t bins5,           \
        int32_t bins6, int32_t bins7, T* out) {                                                                            \
        REGIONRT_SHARED(regionrt::PyramidShared, shared);                                                                  \
        if (threadIdx.x == 0) {                                                                                            \
            shared.bins[0] = bins0, shared.bins[1] = bins1, shared.bins[2] = bins2, shared.bins[3] = bins3;                \
            shared.bins[4] = bins4, shared.bins[5] = bins5, shared.bins[6] = bins6, shared.bins[7] = bins7;                \
        }                                                                                                                  \
        const regionrt::PyramidCall call = {rois, counts, channels, height, width, regionrt::float_of(scale)};             \
        regionrt::pyramid_pool_##layout<T>(call, shared, feature, out);                                                    \
    }                                                                                                                      \
    REGIONRT_EXPORT(pyramid_pool_##layout##_##name)

#define REGIONRT_LAYOUTS(name, T)        \
    REGIONRT_PYRAMID_POOL(nchw, name, T) \
    REGIONRT_PYRAMID_POOL(nhwc, name, T)

REGIONRT_LAYOUTS(f32, float)
REGIONRT_LAYOUTS(f16, regionrt::float16)
REGIONRT_LAYOUTS(bf16, regionrt::bfloat16_t)
