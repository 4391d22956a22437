// RegionDetections on a GPU: one warp is the softmax of one RoI, then one block per image selects, decodes, suppresses.
//
// `detections_softmax`: grid (ceil(P / 4), N), block 128; `detections_selected`: grid (1, N), behind it on the same stream,
// up to 1024 threads. candidates <= 4096. Compile without fused multiply-add.
#include "../native/block.cuh"
#include "core.h"

namespace regionrt {

struct DetectionsCall {
    const void* class_logits;    // [N, P, K+1]
    const void* box_deltas;      // [N, P, 4(K+1)] or, class-agnostic, [N, P, 4]
    const float* rois;           // [N, P, 4]
    const int32_t* counts;       // [N]
    const int32_t* image_sizes;  // [N, 2]
    float* probabilities;        // [N, P, K], workspace, like the next one
    Box<float>* candidate_boxes; // [N, candidates]
    int32_t* num_detections;     // [N], out, like the rest
    float* boxes;                // [N, D, 4]
    float* scores;               // [N, D]
    int32_t* labels;             // [N, D]
    int32_t* roi_index;          // [N, D]
    int32_t* overflow;           // [N]
    float score_threshold, iou_threshold, min_size;
    float box_weights[4];
    int32_t rows, classes, candidates, most, class_agnostic;  // P, K, cap, D
};

template <class T>
REGIONRT_DEVICE void detections_softmax(const DetectionsCall& call) {
    const int32_t image = blockIdx.y, row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= call.rows) return;  // whole warps
    const int64_t place = (int64_t)image * call.rows + row;
    float* probabilities = call.probabilities + place * call.classes;
    if (row >= call.counts[image]) {
        for (int32_t k = lane; k < call.classes; k += 32) probabilities[k] = 0.0f;
        return;
    }
    const T* logits = static_cast<const T*>(call.class_logits) + place * (call.classes + 1);
    float largest = -infinity();
    for (int32_t k = lane; k <= call.classes; k += 32) largest = larger(largest, to_float(logits[k]));
    for (int distance = 16; distance > 0; distance /= 2) {
        largest = larger(largest, __shfl_xor_sync(~0u, largest, distance));
    }
    double sum = 0;
    for (int32_t k = lane; k <= call.classes; k += 32) sum += shifted_exp(to_float(logits[k]), largest);
    for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(~0u, sum, distance);
    for (int32_t k = lane; k < call.classes; k += 32) {
        probabilities[k] = probability_of(shifted_exp(to_float(logits[k + 1]), largest), sum);
    }
}

struct DetectionsShared {
    uint64_t keys[kMostBoxes];
    uint8_t dead[kMostBoxes];
    Selection selection;
    Places places;
    Suppression suppression;
};

template <class T>
REGIONRT_DEVICE void detections_selected(const DetectionsCall& call) {
    REGIONRT_SHARED(DetectionsShared, shared);
    const int32_t image = blockIdx.y, classes = call.classes, pairs = call.rows * classes, most = call.most;
    const float* probabilities = call.probabilities + (int64_t)image * pairs;
    int32_t above = 0;
    for (int32_t start = 0; start < pairs; start += blockDim.x) {
        const int32_t i = start + threadIdx.x;
        int32_t total;
        place_of(shared.places, i < pairs && probabilities[i] > call.score_threshold, total);
        above += total;
    }
    const int32_t count = smaller(above, call.candidates);
    best_keys(shared.selection, shared.places, shared.keys, pairs, count, [&](int32_t i) {
        const float probability = probabilities[i];
        return probability > call.score_threshold ? rank_of(probability) : 0xffffffffu;
    });
    Box<float>* boxes = call.candidate_boxes + (int64_t)image * call.candidates;
    const int32_t* size = call.image_sizes + 2 * image;
    const float* weight = call.box_weights;
    const DetectionRules rules = {call.min_size, {weight[0], weight[1], weight[2], weight[3]}, (float)size[0],
                                  (float)size[1]};
    const int32_t columns = call.class_agnostic ? 1 : classes + 1;
    const auto pair_at = [&](int32_t i) { return (int32_t)(uint32_t)shared.keys[i]; };
    for (int32_t i = threadIdx.x; i < count; i += blockDim.x) {
        const int32_t pair = pair_at(i), roi = pair / classes, label = pair % classes + 1;
        const int64_t place = (int64_t)image * call.rows + roi;
        const float* corner = call.rois + 4 * place;
        const T* delta = static_cast<const T*>(call.box_deltas) + 4 * (place * columns + (call.class_agnostic ? 0 : label));
        const Box<float> box = detection_box(to_float(delta[0]), to_float(delta[1]), to_float(delta[2]),
                                             to_float(delta[3]), {corner[0], corner[1], corner[2], corner[3]}, rules);
        boxes[i] = box;
        shared.dead[i] = !large_enough(box, rules.min_size);
    }
    __syncthreads();
    suppress(shared.suppression, shared.dead, count, most, call.iou_threshold, [&](int32_t i) { return boxes[i]; },
             [&](int32_t a, int32_t b) { return pair_at(a) % classes == pair_at(b) % classes; });
    const int64_t first = (int64_t)image * most;
    int32_t kept = 0;
    for (int32_t start = 0; start < count && kept < most; start += blockDim.x) {
        const int32_t i = start + threadIdx.x;
        const bool mine = i < count && !shared.dead[i];
        int32_t total;
        const int32_t at = kept + place_of(shared.places, mine, total);
        if (mine && at < most) {
            const int32_t pair = pair_at(i);
            const Box<float> box = boxes[i];
            float* target = call.boxes + 4 * (first + at);
            target[0] = box.x1;
            target[1] = box.y1;
            target[2] = box.x2;
            target[3] = box.y2;
            call.scores[first + at] = probabilities[pair];
            call.labels[first + at] = pair % classes + 1;
            call.roi_index[first + at] = pair / classes;
        }
        kept += total;
    }
    kept = smaller(kept, most);
    for (int32_t i = kept + threadIdx.x; i < most; i += blockDim.x) {
        for (int corner = 0; corner < 4; ++corner) call.boxes[4 * (first + i) + corner] = 0.0f;
        call.scores[first + i] = -1.0f;
        call.labels[first + i] = call.roi_index[first + i] = -1;
    }
    if (threadIdx.x == 0) {
        call.num_detections[image] = kept;
        call.overflow[image] = above - count;
    }
}

}  // namespace regionrt

#define REGIONRT_DETECTIONS(name, T)                                              \
    extern "C" __global__ void __launch_bounds__(128) detections_softmax_##name(   \
        const __grid_constant__ regionrt::DetectionsCall call) {                  \
        regionrt::detections_softmax<T>(call);                                    \
    }                                                                             \
    extern "C" __global__ void __launch_bounds__(1024, 1) detections_selected_##name( \
        const __grid_constant__ regionrt::DetectionsCall call) {                  \
        regionrt::detections_selected<T>(call);                                   \
    }                                                                             \
    REGIONRT_EXPORT(detections_softmax_##name)                                    \
    REGIONRT_EXPORT(detections_selected_##name)

REGIONRT_DETECTIONS(f32, float)
REGIONRT_DETECTIONS(f16, regionrt::float16)
REGIONRT_DETECTIONS(bf16, regionrt::bfloat16_t)
