// The functions of one variant of the library.
#pragma once

#include "regionrt.h"

namespace regionrt {

struct Table {
    int32_t (*roi_align)(const regionrt_roi_align_call*);
    int32_t (*roi_pool)(const regionrt_roi_pool_call*);
    int32_t (*pyramid_pool)(const regionrt_pyramid_pool_call*);
    int32_t (*warp)(const regionrt_warp_call*);
    int32_t (*nms)(const regionrt_nms_call*);
    int32_t (*proposals)(const regionrt_proposals_call*);
    int32_t (*detections)(const regionrt_detections_call*);
    int32_t (*merge)(const regionrt_merge_call*);
    int32_t (*paste)(const regionrt_paste_call*);
    int32_t (*extents)(const regionrt_extents_call*);
    int32_t (*rle)(const regionrt_rle_call*);
    int32_t (*resize)(const regionrt_resize_call*);
    int32_t (*max_pool)(const regionrt_max_pool_call*);
    int32_t (*max_unpool)(const regionrt_max_unpool_call*);
};

}  // namespace regionrt
