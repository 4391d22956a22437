// How a RoI's values are cut into blocks, for every C++ caller; runtime/gpu/regions.py has the rule in Python.
#pragma once
#include <stdint.h>

namespace regionrt {

constexpr int32_t kRegionBlock = 256;  // threads

// Blocks of one RoI, of `values` values: a few RoIs alone would leave most of a GPU idle.
inline int32_t slices(int64_t rois, int64_t values) {
    constexpr int64_t kFilled = 1024;  // blocks
    const int64_t some = rois > 1 ? rois : 1, wanted = (kFilled + some - 1) / some;
    const int64_t most = values / kRegionBlock > 1 ? values / kRegionBlock : 1;
    return (int32_t)(wanted < most ? wanted : most);
}

}  // namespace regionrt
