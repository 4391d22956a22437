// The largest cell of a rectangle of a map, and packs of channels, on a GPU.
#pragma once

#include "../rectangles.h"
#include "device.cuh"

namespace regionrt {

// 16 bytes of channels.
template <class T>
struct alignas(16) Pack {
    T lane[16 / sizeof(T)];
};

// The largest of `V` values each that `read(cell)` gives, cell = row · width + column; 0 where there is no cell. Of a NaN
// and a number either may come out.
template <int V, class Read>
REGIONRT_DEVICE void largest(const Range& rows, const Range& columns, int32_t width, float (&best)[V], const Read& read) {
    const bool none = rows.begin >= rows.end || columns.begin >= columns.end;
    REGIONRT_UNROLL
    for (int v = 0; v < V; ++v) best[v] = none ? 0.0f : -infinity();
    REGIONRT_ROLLED
    for (int32_t row = rows.begin; row < rows.end; ++row) {
        REGIONRT_ROLLED
        for (int32_t column = columns.begin; column < columns.end; ++column) {
            float value[V];
            read(row * width + column, value);
            REGIONRT_UNROLL
            for (int v = 0; v < V; ++v) best[v] = larger(value[v], best[v]);
        }
    }
}

// Channels of one cell or bin as floats, and back.
template <class T, int V>
REGIONRT_DEVICE void unpack(const Pack<T>& pack, float (&value)[V]) {
    REGIONRT_UNROLL
    for (int v = 0; v < V; ++v) value[v] = to_float(pack.lane[v]);
}
template <class T>
REGIONRT_DEVICE void unpack(const T& one, float (&value)[1]) {
    value[0] = to_float(one);
}
template <class T, int V>
REGIONRT_DEVICE void pack_into(Pack<T>& pack, const float (&value)[V]) {
    REGIONRT_UNROLL
    for (int v = 0; v < V; ++v) pack.lane[v] = from_float<T>(value[v]);
}
template <class T>
REGIONRT_DEVICE void pack_into(T& one, const float (&value)[1]) {
    one = from_float<T>(value[0]);
}

}  // namespace regionrt
