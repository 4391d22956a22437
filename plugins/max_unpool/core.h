// Which of two values a window's maximum is, and where a place lies; reference.py defines it.
#pragma once

#include "../native/portable.h"

namespace regionrt {

// Whether `value` replaces `best`, which stands before it in the window: the first of equals stays, the last NaN wins.
template <class T>
REGIONRT_HD auto replaces(T value, T best) {
    return (value > best) | (value != value);
}

// Where windows lie along both axes of a map.
struct Windows {
    int32_t kernel, stride;
    int32_t rows, columns;   // of windows
    int32_t height, width;   // of the map
};

// What cell (y, x) of the map holds when values [rows, columns] are put back to `places`: a value's index, or −1.
REGIONRT_HD int32_t value_at(const Windows& windows, const int32_t* places, int32_t y, int32_t x) {
    const int32_t i = y / windows.stride, j = x / windows.stride;
    const int32_t row = y - i * windows.stride, column = x - j * windows.stride;
    if (i >= windows.rows || j >= windows.columns || row >= windows.kernel || column >= windows.kernel) return -1;
    const int32_t index = i * windows.columns + j;
    return places[index] == row * windows.kernel + column ? index : -1;
}

}  // namespace regionrt
