// RegionRoiAlign on a GPU: one block is one RoI and a slice of its channels; all levels in one launch.
//
// The samples along both axes are worked out once per RoI, in float64 (a few dozen numbers), and kept in shared memory;
// bins of more samples than fit are worked out on the way. Launch: grid (P, N, slices), block 256.
// Arguments in TensorRT's order for plugins: inputs, int32 scalars (floats as their bits), output.
#include "../native/device.cuh"
#include "core.h"

namespace regionrt {

constexpr int32_t kTaps = 128;  // samples per axis that are kept

struct Tap {
    int32_t low, high;  // low < 0: outside, zero
    float weight;
};

struct Level {
    const void* map;
    int32_t height, width;
    float scale;
};

struct Bins {
    int32_t samples_y, samples_x;  // per bin
    int32_t height, width;         // of the map
    bool kept;                     // the taps are in shared memory
};

struct RoiShared {
    Level level;
    Axis<double> axis_y, axis_x;
    Tap y[kTaps], x[kTaps];
};

// Called, not inlined: its division in float64 would take the registers of the loops around it.
REGIONRT_CALLED Tap tap_at(const Axis<double>& axis, int32_t bin, int32_t index, int32_t size) {
    const Sample<double> sample = sample_at(axis, bin, index, size);
    return {sample.inside ? sample.low : -1, sample.high, (float)sample.weight};
}


// The level of a RoI, by a chain of selections: an index that is not constant would put the levels in local memory.
template <int L>
REGIONRT_DEVICE Level select(const Level (&levels)[L], const float (&thresholds)[L], const float* roi) {
    const int32_t wanted = level_of(roi, thresholds, L);  // unused thresholds are NaN, which no area reaches
    Level level = levels[0];
    REGIONRT_UNROLL
    for (int i = 1; i < L; ++i) {
        if (i == wanted) level = levels[i];
    }
    return level;
}

REGIONRT_CALLED void set_axes(RoiShared& shared, const float* roi, int32_t rows, int32_t columns, int32_t sampling_ratio,
                              bool aligned) {
    const double scale = shared.level.scale;
    shared.axis_y = axis_of<double>(roi[1], roi[3], scale, aligned, rows, sampling_ratio);
    shared.axis_x = axis_of<double>(roi[0], roi[2], scale, aligned, columns, sampling_ratio);
}

template <int L>
REGIONRT_DEVICE Bins bins_of(RoiShared& shared, const Level (&levels)[L], const float (&thresholds)[L], const float* roi,
                             int32_t rows, int32_t columns, int32_t sampling_ratio, bool aligned) {
    if (threadIdx.x == 0) {
        shared.level = select<L>(levels, thresholds, roi);
        set_axes(shared, roi, rows, columns, sampling_ratio, aligned);
    }
    __syncthreads();
    const int32_t height = shared.level.height, width = shared.level.width;
    const int32_t samples_y = shared.axis_y.samples, samples_x = shared.axis_x.samples;
    // As 64-bit: an adaptive bin may have many samples.
    const int64_t along_y = (int64_t)rows * samples_y, along_x = (int64_t)columns * samples_x;
    const bool kept = along_y <= kTaps && along_x <= kTaps;
    if (kept) {
        for (int32_t i = threadIdx.x; i < along_y; i += blockDim.x) {
            shared.y[i] = tap_at(shared.axis_y, i / samples_y, i % samples_y, height);
        }
        for (int32_t i = threadIdx.x; i < along_x; i += blockDim.x) {
            shared.x[i] = tap_at(shared.axis_x, i / samples_x, i % samples_x, width);
        }
    }
    __syncthreads();
    return {samples_y, samples_x, height, width, kept};
}

REGIONRT_DEVICE float larger_or_nan(float best, float value) { return value > best || value != value ? value : best; }

// Sums or maxima over a bin's samples of `V` values that `read(cell)` gives, cell = row · width + column.
// With `Kept` all taps are in shared memory; without, perhaps: then there is a call in the loop.
template <int V, bool Kept, class Read>
REGIONRT_DEVICE void pool(const RoiShared& shared, const Bins& bins, int32_t row, int32_t column, bool maximum,
                          float (&result)[V], const Read& read) {
    const int32_t samples_y = bins.samples_y, samples_x = bins.samples_x;
    const float first = maximum ? -infinity() : 0.0f;
    REGIONRT_UNROLL
    for (int v = 0; v < V; ++v) result[v] = first;
    REGIONRT_ROLLED
    for (int32_t i = 0; i < samples_y; ++i) {
        const Tap y = Kept || bins.kept ? shared.y[row * samples_y + i] : tap_at(shared.axis_y, row, i, bins.height);
        REGIONRT_ROLLED
        for (int32_t j = 0; j < samples_x; ++j) {
            const Tap x = Kept || bins.kept ? shared.x[column * samples_x + j] : tap_at(shared.axis_x, column, j, bins.width);
            float value[V] = {};
            if (y.low >= 0 && x.low >= 0) {
                const float upper = 1.0f - y.weight, left = 1.0f - x.weight;
                const auto add = [&](int32_t cell, float weight) {
                    float corner[V];
                    read(cell, corner);
                    REGIONRT_UNROLL
                    for (int v = 0; v < V; ++v) value[v] += weight * corner[v];
                };
                add(y.low * bins.width + x.low, upper * left);
                add(y.low * bins.width + x.high, upper * x.weight);
                add(y.high * bins.width + x.low, y.weight * left);
                add(y.high * bins.width + x.high, y.weight * x.weight);
            }
            REGIONRT_UNROLL
            for (int v = 0; v < V; ++v) result[v] = maximum ? larger_or_nan(result[v], value[v]) : result[v] + value[v];
        }
    }
    const bool none = samples_y == 0 || samples_x == 0;
    const float share = maximum ? 1.0f : 1.0f / ((float)samples_y * (float)samples_x);
    REGIONRT_UNROLL
    for (int v = 0; v < V; ++v) result[v] = none ? 0.0f : result[v] * share;
}

// Channels first: neighbouring threads take neighbouring bins, so that they write next to each other.
template <class T, int L>
REGIONRT_DEVICE void roi_align_nchw(const Level (&levels)[L], const float (&thresholds)[L], const float* rois,
                                    const int32_t* counts, int32_t channels, int32_t rows, int32_t columns,
                                    int32_t sampling_ratio, bool aligned, bool maximum, T* out) {
    REGIONRT_SHARED(RoiShared, shared);
    const int64_t place = (int64_t)blockIdx.y * gridDim.x + blockIdx.x;
    const int32_t slice = (channels + gridDim.z - 1) / gridDim.z, first = blockIdx.z * slice;
    const int32_t bins_of_map = rows * columns, count = smaller(slice, channels - first) * bins_of_map;
    out += (place * channels + first) * bins_of_map;
    if ((int32_t)blockIdx.x >= counts[blockIdx.y]) {
        for (int32_t i = threadIdx.x; i < count; i += blockDim.x) out[i] = from_float<T>(0.0f);
        return;
    }
    const Bins bins =
        bins_of<L>(shared, levels, thresholds, rois + 4 * place, rows, columns, sampling_ratio, aligned);
    const int64_t cells = (int64_t)bins.height * bins.width;
    const T* image = static_cast<const T*>(shared.level.map) + ((int64_t)blockIdx.y * channels + first) * cells;
    for (int32_t i = threadIdx.x; i < count; i += blockDim.x) {
        const int32_t channel = i / bins_of_map, bin = i - channel * bins_of_map, row = bin / columns;
        const T* map = image + channel * cells;
        float result[1];
        pool<1, false>(shared, bins, row, bin - row * columns, maximum, result,
                [&](int32_t cell, float(&corner)[1]) { corner[0] = to_float(map[cell]); });
        out[i] = from_float<T>(result[0]);
    }
}

template <class T>
struct alignas(16) Vector {
    T lane[16 / sizeof(T)];
};

// Channels last, in and out: neighbouring threads take neighbouring channels, `V` each.
template <class T, int V, bool Kept, class Pack>
REGIONRT_DEVICE void pool_channels_last(const RoiShared& shared, const Bins& bins, const Pack* map, int32_t packs,
                                        int32_t rows, int32_t columns, bool maximum, Pack* out) {
    const int32_t count = rows * columns * packs, step = gridDim.z * blockDim.x;
    for (int32_t i = blockIdx.z * blockDim.x + threadIdx.x; i < count; i += step) {
        const int32_t bin = i / packs, pack = i - bin * packs, row = bin / columns;
        float result[V];
        pool<V, Kept>(shared, bins, row, bin - row * columns, maximum, result, [&](int32_t cell, float(&corner)[V]) {
            const Pack values = map[cell * packs + pack];
            const T* lanes = reinterpret_cast<const T*>(&values);
            REGIONRT_UNROLL
            for (int v = 0; v < V; ++v) corner[v] = to_float(lanes[v]);
        });
        Pack packed;
        T* lanes = reinterpret_cast<T*>(&packed);
        REGIONRT_UNROLL
        for (int v = 0; v < V; ++v) lanes[v] = from_float<T>(result[v]);
        out[i] = packed;
    }
}

// 16 bytes of channels at a time where they divide so.
template <class T, int L>
REGIONRT_DEVICE void roi_align_nhwc(const Level (&levels)[L], const float (&thresholds)[L], const float* rois,
                                    const int32_t* counts, int32_t channels, int32_t rows, int32_t columns,
                                    int32_t sampling_ratio, bool aligned, bool maximum, T* out) {
    REGIONRT_SHARED(RoiShared, shared);
    constexpr int V = 16 / sizeof(T);
    const int64_t place = (int64_t)blockIdx.y * gridDim.x + blockIdx.x;
    const int32_t count = rows * columns * channels;
    out += place * count;
    if ((int32_t)blockIdx.x >= counts[blockIdx.y]) {
        for (int32_t i = blockIdx.z * blockDim.x + threadIdx.x; i < count; i += gridDim.z * blockDim.x) {
            out[i] = from_float<T>(0.0f);
        }
        return;
    }
    const Bins bins =
        bins_of<L>(shared, levels, thresholds, rois + 4 * place, rows, columns, sampling_ratio, aligned);
    const T* map = static_cast<const T*>(shared.level.map) + (int64_t)blockIdx.y * bins.height * bins.width * channels;
    if (channels % V == 0 && bins.kept) {
        pool_channels_last<T, V, true>(shared, bins, reinterpret_cast<const Vector<T>*>(map), channels / V, rows, columns,
                                       maximum, reinterpret_cast<Vector<T>*>(out));
    } else {
        pool_channels_last<T, 1, false>(shared, bins, map, channels, rows, columns, maximum, out);
    }
}

}  // namespace regionrt

using regionrt::bfloat16_t;
using regionrt::float16;
using regionrt::float_of;

#define REGIONRT_EACH_1(apply) apply(0)
#define REGIONRT_EACH_2(apply) REGIONRT_EACH_1(apply), apply(1)
#define REGIONRT_EACH_3(apply) REGIONRT_EACH_2(apply), apply(2)
#define REGIONRT_EACH_4(apply) REGIONRT_EACH_3(apply), apply(3)
#define REGIONRT_EACH_5(apply) REGIONRT_EACH_4(apply), apply(4)
#define REGIONRT_MAP(i) const void* map##i
#define REGIONRT_SIZE(i) int32_t height##i, int32_t width##i
#define REGIONRT_SCALE(i) int32_t scale##i
#define REGIONRT_THRESHOLD(i) int32_t threshold##i
#define REGIONRT_LEVEL(i) \
    { map##i, height##i, width##i, float_of(scale##i) }
#define REGIONRT_FLOAT(i) float_of(threshold##i)

#define REGIONRT_ROI_ALIGN(L, layout, name, T)                                                                        \
    extern "C" __global__ void __launch_bounds__(256, 4) roi_align_##layout##_##name##_##L(                            \
        REGIONRT_EACH_##L(REGIONRT_MAP), const float* rois, const int32_t* counts, REGIONRT_EACH_##L(REGIONRT_SIZE),   \
        REGIONRT_EACH_##L(REGIONRT_SCALE), REGIONRT_EACH_##L(REGIONRT_THRESHOLD), int32_t channels, int32_t rows,      \
        int32_t columns, int32_t sampling_ratio, int32_t aligned, int32_t maximum, T* out) {                          \
        const regionrt::Level levels[L] = {REGIONRT_EACH_##L(REGIONRT_LEVEL)};                                        \
        const float thresholds[L] = {REGIONRT_EACH_##L(REGIONRT_FLOAT)};                                              \
        regionrt::roi_align_##layout<T, L>(levels, thresholds, rois, counts, channels, rows, columns, sampling_ratio, \
                                           aligned != 0, maximum != 0, out);                                          \
    }                                                                                                                 \
    REGIONRT_EXPORT(roi_align_##layout##_##name##_##L)

#define REGIONRT_LAYOUTS(L, name, T)  \
    REGIONRT_ROI_ALIGN(L, nchw, name, T) \
    REGIONRT_ROI_ALIGN(L, nhwc, name, T)
#define REGIONRT_TYPES(L)             \
    REGIONRT_LAYOUTS(L, f32, float)   \
    REGIONRT_LAYOUTS(L, f16, float16) \
    REGIONRT_LAYOUTS(L, bf16, bfloat16_t)

REGIONRT_TYPES(1)
REGIONRT_TYPES(2)
REGIONRT_TYPES(3)
REGIONRT_TYPES(4)
REGIONRT_TYPES(5)
