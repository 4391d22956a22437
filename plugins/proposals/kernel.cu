// RegionProposals on a GPU: one block is one level of one image (best anchors, decode, NMS), then one block per image
// merges its levels. No host in between.
//
// `proposals_of_level`: grid (L, N); `proposals_merged`: grid (1, N), behind it on the same stream; blocks of up to 1024
// threads. pre_nms <= 4096. Compile without fused multiply-add, so that the boxes are the reference's to the bit.
#include "../native/block.cuh"
#include "core.h"

namespace regionrt {

constexpr int32_t kMostLevels = 8;

struct ProposalsCall {
    const void* objectness[kMostLevels];  // [N, A]
    const void* deltas[kMostLevels];      // [N, A, 4]
    const float* anchors[kMostLevels];    // [A, 4]
    const int32_t* image_sizes;           // [N, 2]
    Box<float>* boxes;                    // [N, L, pre_nms], workspace, like the next two
    float* box_scores;                    // [N, L, pre_nms]
    int32_t* box_counts;                  // [N, L]
    float* rois;                          // [N, P, 4], out, like the next two
    float* scores;                        // [N, P]
    int32_t* counts;                      // [N]
    int32_t anchor_counts[kMostLevels];
    float iou_threshold, score_threshold, min_size;
    float box_weights[4];
    int32_t levels, pre_nms, post_nms;
};

struct ProposalsShared {
    uint64_t keys[kMostBoxes];
    uint8_t dead[kMostBoxes];
    Selection selection;
    Places places;
    Suppression suppression;
};

template <class T>
REGIONRT_DEVICE void proposals_of_level(const ProposalsCall& call) {
    REGIONRT_SHARED(ProposalsShared, shared);
    const int32_t level = blockIdx.x, image = blockIdx.y, anchors = call.anchor_counts[level];
    const int32_t most = smaller(call.pre_nms, anchors);
    const T* logits = static_cast<const T*>(call.objectness[level]) + (int64_t)image * anchors;
    const T* deltas = static_cast<const T*>(call.deltas[level]) + (int64_t)image * anchors * 4;
    const int64_t place = (int64_t)image * call.levels + level;
    Box<float>* boxes = call.boxes + place * call.pre_nms;
    float* scores = call.box_scores + place * call.pre_nms;
    best_keys(shared.selection, shared.places, shared.keys, anchors, most,
              [&](int32_t i) { return rank_of(to_float(logits[i])); });
    const int32_t* size = call.image_sizes + 2 * image;
    const float* weight = call.box_weights;
    const ProposalRules rules = {call.score_threshold, call.min_size, {weight[0], weight[1], weight[2], weight[3]},
                                 (float)size[0],       (float)size[1]};
    for (int32_t i = threadIdx.x; i < most; i += blockDim.x) {
        const int32_t at = (int32_t)(uint32_t)shared.keys[i];
        const T* delta = deltas + 4 * (int64_t)at;
        const float* anchor = call.anchors[level] + 4 * (int64_t)at;
        const Proposal found =
            proposal_of(to_float(logits[at]), to_float(delta[0]), to_float(delta[1]), to_float(delta[2]),
                        to_float(delta[3]), {anchor[0], anchor[1], anchor[2], anchor[3]}, rules);
        boxes[i] = found.box;
        scores[i] = found.score;
        shared.dead[i] = !found.valid;
    }
    __syncthreads();
    suppress(shared.suppression, shared.dead, most, call.post_nms, call.iou_threshold,
             [&](int32_t i) { return boxes[i]; }, [](int32_t, int32_t) { return true; });
    int32_t kept = 0;
    for (int32_t start = 0; start < most && kept < call.post_nms; start += blockDim.x) {
        const int32_t i = start + threadIdx.x;
        const bool mine = i < most && !shared.dead[i];
        const Box<float> box = mine ? boxes[i] : Box<float>{};
        const float score = mine ? scores[i] : 0.0f;
        int32_t total;
        const int32_t at = kept + place_of(shared.places, mine, total);  // all have read before any writes
        if (mine && at < call.post_nms) {
            boxes[at] = box;
            scores[at] = score;
        }
        kept += total;
    }
    if (threadIdx.x == 0) call.box_counts[place] = smaller(kept, call.post_nms);
}

// How many of scores [count], which fall, are above `score`, or with `equal` at least that.
REGIONRT_DEVICE int32_t count_before(const float* scores, int32_t count, float score, bool equal) {
    int32_t low = 0, high = count;
    while (low < high) {
        const int32_t middle = (low + high) / 2;
        if (scores[middle] > score || (equal && scores[middle] == score)) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

// Each level's list is sorted: a proposal's place is how many of all lists come before it. Of equal scores the finer
// level's comes first.
REGIONRT_DEVICE void proposals_merged(const ProposalsCall& call) {
    const int32_t image = blockIdx.y, most = call.post_nms;
    const int64_t first = (int64_t)image * call.levels;
    float* rois = call.rois + (int64_t)image * most * 4;
    float* scores = call.scores + (int64_t)image * most;
    int32_t total = 0;
    for (int32_t level = 0; level < call.levels; ++level) {
        const int32_t count = call.box_counts[first + level];
        const float* mine = call.box_scores + (first + level) * call.pre_nms;
        const Box<float>* boxes = call.boxes + (first + level) * call.pre_nms;
        total += count;
        for (int32_t i = threadIdx.x; i < count; i += blockDim.x) {
            int32_t at = i;
            for (int32_t other = 0; other < call.levels; ++other) {
                if (other == level) continue;
                at += count_before(call.box_scores + (first + other) * call.pre_nms, call.box_counts[first + other],
                                   mine[i], other < level);
            }
            if (at >= most) continue;
            const Box<float> box = boxes[i];
            rois[4 * at] = box.x1;
            rois[4 * at + 1] = box.y1;
            rois[4 * at + 2] = box.x2;
            rois[4 * at + 3] = box.y2;
            scores[at] = mine[i];
        }
    }
    total = smaller(total, most);
    for (int32_t i = total + threadIdx.x; i < most; i += blockDim.x) {
        for (int corner = 0; corner < 4; ++corner) rois[4 * i + corner] = 0.0f;
        scores[i] = 0.0f;
    }
    if (threadIdx.x == 0) call.counts[image] = total;
}

}  // namespace regionrt

#define REGIONRT_PROPOSALS(name, T)                                              \
    extern "C" __global__ void __launch_bounds__(1024, 1) proposals_of_level_##name( \
        const __grid_constant__ regionrt::ProposalsCall call) {                  \
        regionrt::proposals_of_level<T>(call);                                   \
    }                                                                            \
    REGIONRT_EXPORT(proposals_of_level_##name)

REGIONRT_PROPOSALS(f32, float)
REGIONRT_PROPOSALS(f16, regionrt::float16)
REGIONRT_PROPOSALS(bf16, regionrt::bfloat16_t)

extern "C" __global__ void __launch_bounds__(1024, 1) proposals_merged(const __grid_constant__ regionrt::ProposalsCall call) {
    regionrt::proposals_merged(call);
}
REGIONRT_EXPORT(proposals_merged)
