// RegionDetections on a GPU, in four launches on one stream: one warp is the softmax of one RoI and lists its classes above
// the threshold; one block per image sorts and decodes the candidates; many find which suppresses which; one selects.
//
// `detections_softmax`: grid (ceil(P / 4), N), block 128; `detections_sorted`: grid (1, N), 1024 threads;
// `detections_overlaps`: grid (words_of(candidates) * ceil(candidates / 256), N), 256; `detections_selected`: grid (1, N),
// 1024. Blocks are whole warps; candidates <= 4096. Compile without fused multiply-add.
#include "../native/block.cuh"
#include "../nms/greedy.cuh"
#include "core.h"

namespace regionrt {

struct DetectionsCall {
    const void* class_logits;    // [N, P, K+1]
    const void* box_deltas;      // [N, P, 4(K+1)] or, class-agnostic, [N, P, 4]
    const float* rois;           // [N, P, 4]
    const int32_t* counts;       // [N]
    const int32_t* image_sizes;  // [N, 2]
    uint64_t* keys;              // [N, P, K], workspace, like all that follow until `num_detections`
    int32_t* row_counts;         // [N, P]
    uint64_t* best;              // [N, candidates]
    int32_t* best_counts;        // [N]
    Box<float>* candidate_boxes; // [N, candidates]
    int32_t* candidate_labels;   // [N, candidates]
    uint32_t* alive;             // [N, words_of(candidates)]
    uint32_t* overlaps;          // [N, words_of(candidates), candidates]
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
    uint64_t* keys = call.keys + place * call.classes;
    if (row >= call.counts[image]) {
        if (lane == 0) call.row_counts[place] = 0;
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
    int32_t found = 0;
    for (int32_t start = 0; start < call.classes; start += 32) {
        const int32_t k = start + lane;
        float probability = 0;
        if (k < call.classes) probability = probability_of(shifted_exp(to_float(logits[k + 1]), largest), sum);
        const bool above = k < call.classes && probability > call.score_threshold;
        const unsigned votes = __ballot_sync(~0u, above);
        const uint32_t pair = (uint32_t)(row * call.classes + k);
        if (above) keys[found + __popc(votes & ((1u << lane) - 1))] = key_of(rank_of(probability), pair);
        found += __popc(votes);
    }
    if (lane == 0) call.row_counts[place] = found;
}

struct ImageKeys {
    const uint64_t* keys;  // [P, K], the first ones of each row
    const int32_t* row_counts;
    int32_t rows, classes;

    template <class Visit>
    REGIONRT_DEVICE void operator()(const Visit& visit) const {
        for (int32_t row = threadIdx.x; row < rows; row += blockDim.x) {
            for (int32_t i = 0; i < row_counts[row]; ++i) visit(keys[(int64_t)row * classes + i]);
        }
    }
};

struct SortedShared {
    uint64_t keys[kMostBoxes];
    Selection selection;
    Places places;
};

template <class T>
REGIONRT_DEVICE void detections_sorted(const DetectionsCall& call) {
    REGIONRT_SHARED(SortedShared, shared);
    const int32_t image = blockIdx.y, classes = call.classes, rows = call.rows;
    const uint64_t* keys = call.keys + (int64_t)image * rows * classes;
    const int32_t* row_counts = call.row_counts + (int64_t)image * rows;
    int32_t mine = 0, above;
    for (int32_t row = threadIdx.x; row < rows; row += blockDim.x) mine += row_counts[row];
    sum_before(shared.places, mine, above);
    const int32_t count = smaller(above, call.candidates);
    best_keys(shared.selection, shared.keys, above, count, ImageKeys{keys, row_counts, rows, classes});
    const int64_t first = (int64_t)image * call.candidates;
    const int32_t* size = call.image_sizes + 2 * image;
    const float* weight = call.box_weights;
    const DetectionRules rules = {call.min_size, {weight[0], weight[1], weight[2], weight[3]}, (float)size[0],
                                  (float)size[1]};
    const int32_t columns = call.class_agnostic ? 1 : classes + 1;
    for (int32_t start = 0; start < count; start += blockDim.x) {
        const int32_t i = start + threadIdx.x;
        bool valid = false;
        if (i < count) {
            const int32_t pair = (int32_t)(uint32_t)shared.keys[i], roi = pair / classes, label = pair % classes + 1;
            const int64_t place = (int64_t)image * rows + roi;
            const float* corner = call.rois + 4 * place;
            const T* delta =
                static_cast<const T*>(call.box_deltas) + 4 * (place * columns + (call.class_agnostic ? 0 : label));
            const Box<float> box = detection_box(to_float(delta[0]), to_float(delta[1]), to_float(delta[2]),
                                                 to_float(delta[3]), {corner[0], corner[1], corner[2], corner[3]}, rules);
            call.best[first + i] = shared.keys[i];
            call.candidate_boxes[first + i] = box;
            call.candidate_labels[first + i] = label;
            valid = large_enough(box, rules.min_size);
        }
        const unsigned votes = __ballot_sync(~0u, valid);
        if (i % 32 == 0 && i < count) call.alive[(int64_t)image * words_of(call.candidates) + i / 32] = votes;
    }
    if (threadIdx.x == 0) {
        call.best_counts[image] = count;
        call.overflow[image] = above - count;
    }
}

REGIONRT_DEVICE void detections_overlaps(const DetectionsCall& call) {
    REGIONRT_SHARED(OverlapShared, shared);
    const int32_t image = blockIdx.y;
    const int64_t first = (int64_t)image * call.candidates;
    find_overlaps(shared, call.candidate_boxes + first, call.candidate_labels + first, call.best_counts[image],
                  call.candidates, call.iou_threshold, call.overlaps + first * words_of(call.candidates));
}

struct SelectedShared {
    GreedyShared greedy;
    Places places;
};

REGIONRT_DEVICE void detections_selected(const DetectionsCall& call) {
    REGIONRT_SHARED(SelectedShared, shared);
    const int32_t image = blockIdx.y, count = call.best_counts[image], most = call.most;
    const int32_t words = words_of(call.candidates);
    const int64_t candidate = (int64_t)image * call.candidates, first = (int64_t)image * most;
    keep_greedily(shared.greedy, call.alive + (int64_t)image * words, call.overlaps + candidate * words, count,
                  call.candidates, most);
    int32_t kept = 0;
    for (int32_t start = 0; start < count && kept < most; start += blockDim.x) {
        const int32_t i = start + threadIdx.x;
        const bool mine = i < count && is_alive(shared.greedy, i);
        int32_t total;
        const int64_t at = first + kept + place_of(shared.places, mine, total);
        if (mine) {
            const uint64_t key = call.best[candidate + i];
            const Box<float> box = call.candidate_boxes[candidate + i];
            float* target = call.boxes + 4 * at;
            target[0] = box.x1;
            target[1] = box.y1;
            target[2] = box.x2;
            target[3] = box.y2;
            call.scores[at] = value_of((uint32_t)(key >> 32));
            call.labels[at] = call.candidate_labels[candidate + i];
            call.roi_index[at] = (int32_t)(uint32_t)key / call.classes;
        }
        kept += total;
    }
    for (int32_t i = kept + threadIdx.x; i < most; i += blockDim.x) {
        for (int corner = 0; corner < 4; ++corner) call.boxes[4 * (first + i) + corner] = 0.0f;
        call.scores[first + i] = -1.0f;
        call.labels[first + i] = call.roi_index[first + i] = -1;
    }
    if (threadIdx.x == 0) call.num_detections[image] = kept;
}

}  // namespace regionrt

#define REGIONRT_DETECTIONS_STEP(kernel, threads, call_of)                     \
    extern "C" __global__ void __launch_bounds__(threads, 1) kernel(              \
        const __grid_constant__ regionrt::DetectionsCall call) {               \
        call_of(call);                                                         \
    }                                                                          \
    REGIONRT_EXPORT(kernel)

#define REGIONRT_DETECTIONS(name, T)                                                                  \
    REGIONRT_DETECTIONS_STEP(detections_softmax_##name, 128, regionrt::detections_softmax<T>)         \
    REGIONRT_DETECTIONS_STEP(detections_sorted_##name, 1024, regionrt::detections_sorted<T>)

REGIONRT_DETECTIONS(f32, float)
REGIONRT_DETECTIONS(f16, regionrt::float16)
REGIONRT_DETECTIONS(bf16, regionrt::bfloat16_t)

REGIONRT_DETECTIONS_STEP(detections_overlaps, 256, regionrt::detections_overlaps)
REGIONRT_DETECTIONS_STEP(detections_selected, 1024, regionrt::detections_selected)
