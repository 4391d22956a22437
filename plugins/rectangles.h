// What ops that pool regions share: ranges of cells, and RoIs that are none.
#pragma once

#include "native/portable.h"

namespace regionrt {

constexpr int32_t kMostCells = 4096;  // of a side of a map; a RoI reaches as far on either side of its origin

struct Range {  // of cells: begin … end − 1
    int32_t begin, end;
};

REGIONRT_HD bool has_nan(const float* roi) {
    return (roi[0] != roi[0]) | (roi[1] != roi[1]) | (roi[2] != roi[2]) | (roi[3] != roi[3]);
}

}  // namespace regionrt
