// RegionMaxPool and RegionMaxUnpool on a CPU: bands of rows of each plane, in parallel. The usual window of 2 × 2 is
// compiled apart, with loops that the compiler turns into vectors.

#include "../native/parallel.h"
#include "../native/regionrt.h"
#include "../native/vector.h"
#include "core.h"

namespace regionrt {
namespace REGIONRT_VARIANT {

constexpr int32_t kBand = 16;  // rows of windows per item

// One row of windows that lie whole inside: K × K cells (0: `kernel`), `stride` apart.
template <int K, class T>
static void pool_row(const T* top, int64_t width, int32_t kernel, int32_t stride, int32_t columns, T* values,
                     int32_t* places) {
    const int32_t side = K ? K : kernel, step = K ? K : stride;
    for (int32_t j = 0; j < columns; ++j) {
        const T* first = top + (int64_t)j * step;
        float best = load_one(first);
        int32_t place = 0;
        for (int32_t row = 0; row < side; ++row) {
            for (int32_t column = row == 0; column < side; ++column) {
                const float value = load_one(first + row * width + column);
                const bool take = replaces(value, best);
                best = take ? value : best;
                place = take ? row * side + column : place;
            }
        }
        values[j] = first[place / side * width + place % side];
        places[j] = place;
    }
}

// 2 × 2, in vectors: the value is selected along with its place.
static void pool_row_of_two(const float* __restrict top, const float* __restrict below, int32_t columns,
                            float* __restrict values, int32_t* __restrict places) {
    for (int32_t j = 0; j < columns; ++j) {
        const float a = top[2 * j], b = top[2 * j + 1], c = below[2 * j], d = below[2 * j + 1];
        const bool second = replaces(b, a);
        const float ab = second ? b : a;
        const int32_t at_ab = second ? 1 : 0;
        const bool third = replaces(c, ab);
        const float abc = third ? c : ab;
        const int32_t at_abc = third ? 2 : at_ab;
        const bool fourth = replaces(d, abc);
        values[j] = fourth ? d : abc;
        places[j] = fourth ? 3 : at_abc;
    }
}

template <class T>
static void pool_window(const T* plane, const Windows& windows, int32_t i, int32_t j, T* value, int32_t* place) {
    const int32_t top = i * windows.stride, left = j * windows.stride;
    const int32_t rows = smaller(windows.kernel, windows.height - top);
    const int32_t columns = smaller(windows.kernel, windows.width - left);
    const T* best = plane + (int64_t)top * windows.width + left;
    *place = 0;
    for (int32_t row = 0; row < rows; ++row) {
        for (int32_t column = 0; column < columns; ++column) {
            const T* here = plane + (int64_t)(top + row) * windows.width + left + column;
            if (!replaces(load_one(here), load_one(best))) continue;
            best = here;
            *place = row * windows.kernel + column;
        }
    }
    *value = *best;
}

template <class T>
static void pool_band(const T* plane, const Windows& windows, int32_t begin, int32_t end, T* values, int32_t* places) {
    const int32_t kernel = windows.kernel, stride = windows.stride, width = windows.width;
    const int32_t whole = width < kernel ? 0 : smaller(windows.columns, (width - kernel) / stride + 1);
    for (int32_t i = begin; i < end; ++i) {
        const int64_t at = (int64_t)i * windows.columns;
        const T* top = plane + (int64_t)i * stride * width;
        int32_t done = 0;
        if (i * stride + kernel <= windows.height) {
            done = whole;
            if (kernel != 2 || stride != 2) {
                pool_row<0>(top, width, kernel, stride, whole, values + at, places + at);
            } else if constexpr (sizeof(T) == sizeof(float)) {
                pool_row_of_two(top, top + width, whole, values + at, places + at);
            } else {
                pool_row<2>(top, width, 2, 2, whole, values + at, places + at);
            }
        }
        for (int32_t j = done; j < windows.columns; ++j) pool_window(plane, windows, i, j, values + at + j, places + at + j);
    }
}

// first[0], second[0], first[1], second[1], … on a little-endian CPU.
static inline void store_in_turn(uint32_t* to, Words first, Words second) {
    typedef uint64_t Pairs __attribute__((vector_size(8 * kLanes)));
    store_as(to, __builtin_convertvector(first, Pairs) | __builtin_convertvector(second, Pairs) << 32);
}

// Two rows of the map from one row of 2 × 2 windows.
template <class T>
static void unpool_row_of_two(const T* __restrict values, const int32_t* __restrict places, int32_t columns,
                              T* __restrict top, T* __restrict below) {
    int32_t j = 0;
    if constexpr (sizeof(T) == sizeof(uint32_t)) {
        for (; j + kLanes <= columns; j += kLanes) {
            const Words value = load_as<Words>(values + j);
            const Ints place = load_as<Ints>(places + j);
            store_in_turn(top + 2 * j, value & bits_as<Words>(place == 0), value & bits_as<Words>(place == 1));
            store_in_turn(below + 2 * j, value & bits_as<Words>(place == 2), value & bits_as<Words>(place == 3));
        }
    }
    for (; j < columns; ++j) {
        const int32_t place = places[j];
        const T value = values[j];
        top[2 * j] = place == 0 ? value : (T)0;
        top[2 * j + 1] = place == 1 ? value : (T)0;
        below[2 * j] = place == 2 ? value : (T)0;
        below[2 * j + 1] = place == 3 ? value : (T)0;
    }
}

// The rows of the map that belong to rows `begin` … `end` − 1 of windows; T is any type of that size.
template <class T>
static void unpool_band(const T* values, const int32_t* places, const Windows& windows, int32_t begin, int32_t end,
                        T* plane) {
    const int32_t stride = windows.stride, width = windows.width;
    for (int32_t i = begin; i < end; ++i) {
        const int32_t first = i * stride, last = smaller(first + stride, windows.height);
        T* top = plane + (int64_t)first * width;
        int32_t done = 0;
        if (windows.kernel == 2 && stride == 2 && last - first == 2 && i < windows.rows) {
            const int32_t columns = smaller(windows.columns, width / 2);
            const int64_t at = (int64_t)i * windows.columns;
            unpool_row_of_two(values + at, places + at, columns, top, top + width);
            done = 2 * columns;
        }
        for (int32_t y = first; y < last; ++y) {
            for (int32_t x = done; x < width; ++x) {
                const int32_t index = value_at(windows, places, y, x);
                plane[(int64_t)y * width + x] = index < 0 ? (T)0 : values[index];
            }
        }
    }
}

// one(plane, begin, end) for each band of `rows` rows of each plane.
template <class One>
static void for_bands(int64_t planes, int32_t rows, int64_t cells, int32_t threads, const One& one) {
    const int64_t bands = (rows + kBand - 1) / kBand;
    auto item = [&](int64_t index) {
        const int32_t begin = (int32_t)(index % bands) * kBand;
        one(index / bands, begin, smaller(begin + kBand, rows));
    };
    parallel_for(planes * bands, planes * cells < 4096 ? 1 : threads, item);
}

int32_t max_pool(const regionrt_max_pool_call* call) {
    const Windows windows = {call->kernel, call->stride, call->rows, call->columns, call->height, call->width};
    const int64_t cells = (int64_t)call->height * call->width, count = (int64_t)call->rows * call->columns;
    auto pooled = [&](auto type) {
        using T = decltype(type);
        for_bands(call->planes, call->rows, cells, call->threads, [&](int64_t plane, int32_t begin, int32_t end) {
            pool_band(static_cast<const T*>(call->x) + plane * cells, windows, begin, end,
                      static_cast<T*>(call->values) + plane * count, call->argmax + plane * count);
        });
    };
    if (call->type == REGIONRT_BFLOAT16) {
        pooled(bfloat16{});
    } else {
        pooled(float{});
    }
    return 0;
}

int32_t max_unpool(const regionrt_max_unpool_call* call) {
    const Windows windows = {call->kernel, call->stride, call->rows, call->columns, call->height, call->width};
    const int64_t cells = (int64_t)call->height * call->width, count = (int64_t)call->rows * call->columns;
    const int32_t rows = (call->height + call->stride - 1) / call->stride;  // with a last one that has no windows
    auto unpooled = [&](auto type) {
        using T = decltype(type);
        for_bands(call->planes, rows, cells, call->threads, [&](int64_t plane, int32_t begin, int32_t end) {
            unpool_band(static_cast<const T*>(call->x) + plane * count, call->argmax + plane * count, windows, begin, end,
                        static_cast<T*>(call->out) + plane * cells);
        });
    };
    if (call->type == REGIONRT_BFLOAT16) {
        unpooled(uint16_t{});
    } else {
        unpooled(uint32_t{});
    }
    return 0;
}

}  // namespace REGIONRT_VARIANT
}  // namespace regionrt
