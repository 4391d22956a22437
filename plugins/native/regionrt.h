// The C ABI of the native CPU ops, which runtime/native/ calls through ctypes. One function per op takes one struct:
// pointers to memory of the caller, sizes, options. Arrays are C-contiguous but where a stride is given. All return 0, or
// REGIONRT_NO_MEMORY with undefined outputs. They check nothing: shapes, types and ranges are runtime/native's to check.
//
// Whoever changes a struct or what a function does raises REGIONRT_ABI here and `ABI` in runtime/native/library.py.
#pragma once

#include <stdint.h>

#define REGIONRT_ABI 4

#define REGIONRT_NO_MEMORY 1

#define REGIONRT_FLOAT32 0
#define REGIONRT_BFLOAT16 1

#ifdef __cplusplus
extern "C" {
#endif

// RoIAlign over L levels (plugins/roi_align).
typedef struct {
    const void* const* features;    // L pointers to [N, H, W, C] of `feature_type`
    const int32_t* heights;         // [L]
    const int32_t* widths;          // [L]
    const double* spatial_scales;   // [L]
    const float* area_thresholds;   // [thresholds], px², ascending: a RoI's level is how many its area reaches
    const float* rois;              // [N, P, 4]
    const int32_t* counts;          // [N]
    void* out;                      // [N, P, C, h, w] or, channels last, [N, P, h, w, C], of `out_type`
    int32_t thresholds, images, rows, channels;  // N = images, P = rows
    int32_t out_height, out_width, sampling_ratio;
    int32_t aligned, maximum, out_channels_last, feature_type, out_type;
    int32_t threads;
} regionrt_roi_align_call;

// RoI max pooling (plugins/roi_pool).
typedef struct {
    const void* feature;    // [N, H, W, C] of `feature_type`
    const float* rois;      // [N, P, 4]
    const int32_t* counts;  // [N]
    void* out;              // [N, P, C, h, w] or, channels last, [N, P, h, w, C], of `out_type`
    float spatial_scale;
    int32_t images, rows, channels, height, width;  // N = images, P = rows
    int32_t out_height, out_width, out_channels_last, feature_type, out_type;
    int32_t threads;
} regionrt_roi_pool_call;

// Spatial pyramid pooling of regions (plugins/pyramid_pool).
typedef struct {
    const void* feature;    // [N, H, W, C] of `feature_type`
    const float* rois;      // [N, P, 4]
    const int32_t* counts;  // [N]
    const int32_t* bins;    // [levels], 8 at most
    void* out;              // [N, P, Σ C·b·b], level by level, or, channels last, [N, P, Σb·b, C], of `out_type`
    float spatial_scale;
    int32_t levels, images, rows, channels, height, width;  // N = images, P = rows
    int32_t out_channels_last, feature_type, out_type;
    int32_t threads;
} regionrt_pyramid_pool_call;

// Regions of images stretched to one size (plugins/warp).
typedef struct {
    const void* pixels;     // [N, H, W, C] of `image_type`
    const float* rois;      // [N, P, 4]
    const int32_t* counts;  // [N]
    void* out;              // [N, P, C, h, w] or, channels last, [N, P, h, w, C], of `out_type`
    int32_t images, rows, channels, height, width;  // N = images, P = rows
    int32_t out_height, out_width, context, out_channels_last, image_type, out_type;  // 2 · context < h, w
    int32_t threads;
} regionrt_warp_call;

// Greedy NMS per class on boxes sorted by score (plugins/nms).
typedef struct {
    const float* boxes;      // [N, Q, 4]
    const int32_t* classes;  // [N, Q], negative: padding
    uint8_t* keep;           // [N, Q], out
    float iou_threshold;
    int32_t images, rows;
    int32_t threads;
} regionrt_nms_call;

// Proposals from RPN outputs of L levels (plugins/proposals).
typedef struct {
    const void* const* objectness;  // L pointers to [N, A] of `logit_type`
    const void* const* deltas;      // L pointers to [N, A, 4] of `logit_type`
    const float* const* anchors;    // L pointers to [A, 4]
    const int32_t* anchor_counts;   // [L]
    const int32_t* image_sizes;     // [N, 2]
    float* rois;                    // [N, P, 4], out
    float* scores;                  // [N, P], out
    int32_t* counts;                // [N], out
    float iou_threshold, score_threshold, min_size;
    float box_weights[4];
    int32_t levels, images, pre_nms, post_nms, logit_type;  // P = post_nms
    int32_t threads;
} regionrt_proposals_call;

// Final detections from box-head outputs (plugins/detections).
typedef struct {
    const void* class_logits;    // [N, P, K+1] of `logit_type`
    const void* box_deltas;      // [N, P, 4(K+1)] or, class-agnostic, [N, P, 4], of `logit_type`
    const float* rois;           // [N, P, 4]
    const int32_t* counts;       // [N]
    const int32_t* image_sizes;  // [N, 2]
    int32_t* num_detections;     // [N], out, like the rest
    float* boxes;                // [N, D, 4]
    float* scores;               // [N, D]
    int32_t* labels;             // [N, D]
    int32_t* roi_index;          // [N, D]
    int32_t* overflow;           // [N]
    float score_threshold, iou_threshold, min_size;
    float box_weights[4];
    int32_t images, rows, classes, candidates, most, class_agnostic, logit_type;  // K = classes, D = most
    int32_t threads;
} regionrt_detections_call;

// Final detections of a sliding-window net: boxes of windows, merged (plugins/merge).
typedef struct {
    const void* class_logits;    // [N, Q, K+1] of `logit_type`
    const void* box_edges;       // [N, Q, 4K] or, class-agnostic, [N, Q, 4], of `logit_type`
    const float* windows;        // [Q, 4]
    const int32_t* image_sizes;  // [N, 2]
    int32_t* num_detections;     // [N], out, like the rest
    float* boxes;                // [N, D, 4]
    float* scores;               // [N, D]
    int32_t* labels;             // [N, D]
    int32_t* overflow;           // [N]
    float window_threshold, merge_threshold, score_threshold, min_size;
    int32_t images, rows, classes, candidates, most, class_agnostic, logit_type;  // Q = rows, K = classes, D = most
    int32_t threads;
} regionrt_merge_call;

// Instance masks at the resolution of the photo (plugins/mask_paste).
typedef struct {
    const float* masks;      // [D, M, M]
    const float* boxes;      // [D, 4], xyxy in pixels of the photo, finite, below 1e9
    const int64_t* offsets;  // [D]: where each crop begins in `out`; null: `out` is [D, H, W], cleared around the crop
    uint8_t* out;            // 0 or 1
    float threshold;
    int32_t count, side, height, width;  // D = count, M = side
    int32_t cleared;                     // `out` is all zeros already
    int32_t threads;
} regionrt_paste_call;

// The part of each pasted mask that can hold pixels: y, x, h, w.
typedef struct {
    const float* boxes;  // [D, 4]
    int64_t* extents;    // [D, 4], out
    int32_t count, side, height, width;
} regionrt_extents_call;

// Masks pasted and run-length encoded as COCO's compressed text, without the pixels in between.
typedef struct {
    const float* masks;  // [D, M, M]
    const float* boxes;  // [D, 4]
    char* text;          // [capacity], out: one encoding behind the other
    int64_t* ends;       // [D], out: where each ends. Text that does not fit is left out: call again with ends[D−1] bytes
    int64_t capacity;
    float threshold;
    int32_t count, side, height, width;
    int32_t threads;
} regionrt_rle_call;

// Half-pixel bilinear resize of uint8 images (plugins/resize).
typedef struct {
    const uint8_t* image;  // [height, width, channels], rows `row_bytes` apart
    uint8_t* out;          // [out_height, out_width, channels], rows `out_row_bytes` apart
    int64_t row_bytes, out_row_bytes;
    int32_t height, width, channels, out_height, out_width;
    int32_t threads;
} regionrt_resize_call;

// Max pooling with the place of each maximum in its window (plugins/max_unpool).
typedef struct {
    const void* x;    // [planes, height, width] of `type`
    void* values;     // [planes, rows, columns] of `type`, out
    int32_t* argmax;  // [planes, rows, columns], out: row · kernel + column
    int64_t planes;   // N · C
    int32_t height, width, rows, columns, kernel, stride;  // kernel <= stride; each window begins inside the map
    int32_t type;
    int32_t threads;
} regionrt_max_pool_call;

// The way back (plugins/max_unpool).
typedef struct {
    const void* x;          // [planes, rows, columns] of `type`
    const int32_t* argmax;  // [planes, rows, columns]; other places than a window has, or outside the map: left out
    void* out;              // [planes, height, width] of `type`
    int64_t planes;
    int32_t height, width, rows, columns, kernel, stride;
    int32_t type;
    int32_t threads;
} regionrt_max_unpool_call;

#define REGIONRT_PUBLIC __attribute__((visibility("default")))

REGIONRT_PUBLIC int32_t regionrt_abi(void);

// A hash of the sources that this library was built from.
REGIONRT_PUBLIC const char* regionrt_sources(void);

// Names of the variants inside, best first, separated by spaces.
REGIONRT_PUBLIC const char* regionrt_variants(void);

// Null where this CPU can run the variant, else the instructions that it lacks.
REGIONRT_PUBLIC const char* regionrt_why_not(const char* variant);

// From now on the ops run as this variant; 0, or −1 where the CPU cannot or there is none of that name.
REGIONRT_PUBLIC int32_t regionrt_use(const char* variant);

REGIONRT_PUBLIC int32_t regionrt_roi_align(const regionrt_roi_align_call* call);
REGIONRT_PUBLIC int32_t regionrt_roi_pool(const regionrt_roi_pool_call* call);
REGIONRT_PUBLIC int32_t regionrt_pyramid_pool(const regionrt_pyramid_pool_call* call);
REGIONRT_PUBLIC int32_t regionrt_warp(const regionrt_warp_call* call);
REGIONRT_PUBLIC int32_t regionrt_nms(const regionrt_nms_call* call);
REGIONRT_PUBLIC int32_t regionrt_proposals(const regionrt_proposals_call* call);
REGIONRT_PUBLIC int32_t regionrt_detections(const regionrt_detections_call* call);
REGIONRT_PUBLIC int32_t regionrt_merge(const regionrt_merge_call* call);
REGIONRT_PUBLIC int32_t regionrt_paste(const regionrt_paste_call* call);
REGIONRT_PUBLIC int32_t regionrt_extents(const regionrt_extents_call* call);
REGIONRT_PUBLIC int32_t regionrt_rle(const regionrt_rle_call* call);
REGIONRT_PUBLIC int32_t regionrt_resize(const regionrt_resize_call* call);
REGIONRT_PUBLIC int32_t regionrt_max_pool(const regionrt_max_pool_call* call);
REGIONRT_PUBLIC int32_t regionrt_max_unpool(const regionrt_max_unpool_call* call);

// sizeof of a call's struct by the function's name, 0 for an unknown one: ctypes' layout is checked against it.
REGIONRT_PUBLIC int64_t regionrt_sizeof(const char* function);

#ifdef __cplusplus
}
#endif
