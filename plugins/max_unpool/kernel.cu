// RegionMaxPool and RegionMaxUnpool on a GPU. Nothing is computed, so that bytes are all that counts: windows of 2 × 2 are
// read and written in packs of up to 16 bytes where rows are aligned so, everything else cell by cell, neighbouring
// threads at neighbouring cells.
//
// Launch: grid (any number ≥ 1, any ≥ 1 up to N · C), block 256: along x the cells of a plane, along y the planes. Inputs,
// int32 scalars, outputs, as TensorRT's plugins pass them. A plane has less than 2³¹ cells.
#include "../native/device.cuh"
#include "core.h"

namespace regionrt {

template <class T, int V>
struct alignas(sizeof(T) * V) Pack {
    T lane[V];
};

template <class T>
REGIONRT_DEVICE bool aligned(const T* address, int32_t count) {
    return (uint64_t)address % (sizeof(T) * count) == 0;
}

// at(item) once for each thread's items of 0 … count − 1.
template <class At>
REGIONRT_DEVICE void each(int32_t count, const At& at) {
    const int64_t step = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step) at((int32_t)i);
}

template <class T>
REGIONRT_DEVICE void pool_windows(const T* x, int32_t planes, const Windows& windows, T* values, int32_t* argmax) {
    const int64_t cells = (int64_t)windows.height * windows.width, count = (int64_t)windows.rows * windows.columns;
    each((int32_t)count, [&](int32_t item) {
        const int32_t i = item / windows.columns, top = i * windows.stride;
        const int32_t left = (item - i * windows.columns) * windows.stride;
        const int32_t rows = smaller(windows.kernel, windows.height - top);
        const int32_t columns = smaller(windows.kernel, windows.width - left);
        for (int32_t plane = blockIdx.y; plane < planes; plane += gridDim.y) {
            const T* first = x + plane * cells + (int64_t)top * windows.width + left;
            T best = *first;
            int32_t place = 0;
            REGIONRT_ROLLED
            for (int32_t row = 0; row < rows; ++row) {
                REGIONRT_ROLLED
                for (int32_t column = 0; column < columns; ++column) {
                    const T value = first[(int64_t)row * windows.width + column];
                    const bool take = replaces(to_float(value), to_float(best));
                    best = take ? value : best;
                    place = take ? row * windows.kernel + column : place;
                }
            }
            values[plane * count + item] = best;
            argmax[plane * count + item] = place;
        }
    });
}

// 2 × 2 windows, `V` cells of two rows at a time.
template <class T, int V>
REGIONRT_DEVICE void pool_packs(const T* x, int32_t planes, const Windows& windows, T* values, int32_t* argmax) {
    const int64_t cells = (int64_t)windows.height * windows.width, count = (int64_t)windows.rows * windows.columns;
    const int32_t packs = windows.width / V;
    each(windows.rows * packs, [&](int32_t item) {
        const int32_t i = item / packs, pack = item - i * packs;
        const int64_t from = (int64_t)2 * i * windows.width + pack * V;
        const int64_t to = (int64_t)i * windows.columns + pack * (V / 2);
        for (int32_t plane = blockIdx.y; plane < planes; plane += gridDim.y) {
            const T* first = x + plane * cells + from;
            const Pack<T, V> top = *reinterpret_cast<const Pack<T, V>*>(first);
            const Pack<T, V> below = *reinterpret_cast<const Pack<T, V>*>(first + windows.width);
            Pack<T, V / 2> best;
            Pack<int32_t, V / 2> places;
            REGIONRT_UNROLL
            for (int v = 0; v < V / 2; ++v) {
                const T in_window[4] = {top.lane[2 * v], top.lane[2 * v + 1], below.lane[2 * v], below.lane[2 * v + 1]};
                best.lane[v] = in_window[0];
                places.lane[v] = 0;
                REGIONRT_UNROLL
                for (int c = 1; c < 4; ++c) {
                    const bool take = replaces(to_float(in_window[c]), to_float(best.lane[v]));
                    best.lane[v] = take ? in_window[c] : best.lane[v];
                    places.lane[v] = take ? c : places.lane[v];
                }
            }
            *reinterpret_cast<Pack<T, V / 2>*>(values + plane * count + to) = best;
            *reinterpret_cast<Pack<int32_t, V / 2>*>(argmax + plane * count + to) = places;
        }
    });
}

template <class T>
REGIONRT_DEVICE void max_pool(const T* x, int32_t planes, const Windows& windows, T* values, int32_t* argmax) {
    constexpr int V = 16 / sizeof(T);
    const bool halves = windows.kernel == 2 && windows.stride == 2 && windows.columns * 2 == windows.width &&
                        windows.rows * 2 <= windows.height && aligned(x, V) && aligned(values, V / 2) &&
                        aligned(argmax, V / 2);
    if (halves && windows.width % V == 0) {
        pool_packs<T, V>(x, planes, windows, values, argmax);
    } else if (halves) {
        pool_packs<T, 2>(x, planes, windows, values, argmax);
    } else {
        pool_windows<T>(x, planes, windows, values, argmax);
    }
}

template <class T>
REGIONRT_DEVICE void unpool_cells(const T* x, const int32_t* argmax, int32_t planes, const Windows& windows, T* out) {
    const int64_t cells = (int64_t)windows.height * windows.width, count = (int64_t)windows.rows * windows.columns;
    each((int32_t)cells, [&](int32_t item) {
        const int32_t i = item / windows.width, j = item - i * windows.width;
        for (int32_t plane = blockIdx.y; plane < planes; plane += gridDim.y) {
            const int32_t index = value_at(windows, argmax + plane * count, i, j);
            out[plane * cells + item] = index < 0 ? (T)0 : x[plane * count + index];
        }
    });
}

// 2 × 2 windows: `V` cells of two rows from V / 2 values. The last row of an odd map has no windows.
template <class T, int V>
REGIONRT_DEVICE void unpool_packs(const T* x, const int32_t* argmax, int32_t planes, const Windows& windows, T* out) {
    const int64_t cells = (int64_t)windows.height * windows.width, count = (int64_t)windows.rows * windows.columns;
    const int32_t packs = windows.width / V;
    each((windows.height + 1) / 2 * packs, [&](int32_t item) {
        const int32_t i = item / packs, pack = item - i * packs;
        const int64_t from = (int64_t)i * windows.columns + pack * (V / 2);
        const int64_t to = (int64_t)2 * i * windows.width + pack * V;
        for (int32_t plane = blockIdx.y; plane < planes; plane += gridDim.y) {
            Pack<T, V> top = {}, below = {};
            if (i < windows.rows) {
                const Pack<T, V / 2> values = *reinterpret_cast<const Pack<T, V / 2>*>(x + plane * count + from);
                const Pack<int32_t, V / 2> places =
                    *reinterpret_cast<const Pack<int32_t, V / 2>*>(argmax + plane * count + from);
                REGIONRT_UNROLL
                for (int v = 0; v < V / 2; ++v) {
                    const T value = values.lane[v];
                    const int32_t place = places.lane[v];
                    top.lane[2 * v] = place == 0 ? value : (T)0;
                    top.lane[2 * v + 1] = place == 1 ? value : (T)0;
                    below.lane[2 * v] = place == 2 ? value : (T)0;
                    below.lane[2 * v + 1] = place == 3 ? value : (T)0;
                }
            }
            T* first = out + plane * cells + to;
            *reinterpret_cast<Pack<T, V>*>(first) = top;
            if (2 * i + 1 < windows.height) *reinterpret_cast<Pack<T, V>*>(first + windows.width) = below;
        }
    });
}

template <class T>
REGIONRT_DEVICE void max_unpool(const T* x, const int32_t* argmax, int32_t planes, const Windows& windows, T* out) {
    constexpr int V = 16 / sizeof(T);
    const bool halves = windows.kernel == 2 && windows.stride == 2 && windows.columns * 2 == windows.width &&
                        aligned(x, V / 2) && aligned(argmax, V / 2) && aligned(out, V);
    if (halves && windows.width % V == 0) {
        unpool_packs<T, V>(x, argmax, planes, windows, out);
    } else if (halves) {
        unpool_packs<T, 2>(x, argmax, planes, windows, out);
    } else {
        unpool_cells<T>(x, argmax, planes, windows, out);
    }
}

}  // namespace regionrt

using regionrt::bfloat16_t;
using regionrt::float16;

// Unpooling moves bits: T is any type of that size.
#define REGIONRT_MAX_POOL(name, T, Bits)                                                                               \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        max_pool_##name(const T* x, int32_t planes, int32_t height, int32_t width, int32_t rows, int32_t columns,      \
                        int32_t kernel, int32_t stride, T* values, int32_t* argmax) {                                  \
        regionrt::max_pool<T>(x, planes, {kernel, stride, rows, columns, height, width}, values, argmax);              \
    }                                                                                                                  \
    REGIONRT_EXPORT(max_pool_##name)                                                                                   \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        max_unpool_##name(const Bits* x, const int32_t* argmax, int32_t planes, int32_t height, int32_t width,         \
                          int32_t rows, int32_t columns, int32_t kernel, int32_t stride, Bits* out) {                  \
        regionrt::max_unpool<Bits>(x, argmax, planes, {kernel, stride, rows, columns, height, width}, out);            \
    }                                                                                                                  \
    REGIONRT_EXPORT(max_unpool_##name)

REGIONRT_MAX_POOL(f32, float, uint32_t)
REGIONRT_MAX_POOL(f16, float16, uint16_t)
REGIONRT_MAX_POOL(bf16, bfloat16_t, uint16_t)
