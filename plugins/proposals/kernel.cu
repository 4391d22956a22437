// RegionProposals on a GPU, in six launches on one stream, no host in between: how the scores lie, the anchors that may be
// among the best, the best ones decoded, which suppresses which, greedy NMS of each level, and the levels merged.
//
// `proposals_histogram`, `proposals_candidates`: grid (kSlices, L, N), blocks of up to 1024 threads; `proposals_decoded`:
// grid (L, N), 1024; `proposals_overlaps`: grid (words_of(pre_nms) * ceil(pre_nms / 256), L, N), 256;
// `proposals_suppressed`: grid (L, N), 1024; `proposals_merged`: grid (1, N), 1024. Blocks are whole warps; pre_nms <= 4096.
// Compile without fused multiply-add, so that the boxes are the reference's to the bit.
#include "../native/block.cuh"
#include "../nms/greedy.cuh"
#include "core.h"

namespace regionrt {

constexpr int32_t kMostLevels = 8;
constexpr int32_t kSlices = 16;     // blocks that share the anchors of a level
constexpr int32_t kBins = 2048;     // of the histogram: the first 11 bits of a rank
constexpr int32_t kKeptScores = 8192;  // of all levels, in shared memory while they are merged

struct ProposalsCall {
    const void* objectness[kMostLevels];  // [N, A]
    const void* deltas[kMostLevels];      // [N, A, 4]
    const float* anchors[kMostLevels];    // [A, 4]
    const int32_t* image_sizes;           // [N, 2]
    int32_t* histograms;                  // [N, L, kSlices, kBins], workspace, like all that follow until `rois`
    int32_t* found;                       // [N, L]
    uint64_t* keys;                       // [N, sum of A]
    Box<float>* boxes;                    // [N, L, pre_nms]
    float* box_scores;                    // [N, L, pre_nms]
    uint32_t* alive;                      // [N, L, words_of(pre_nms)]
    uint32_t* overlaps;                   // [N, L, words_of(pre_nms), pre_nms]
    int32_t* box_counts;                  // [N, L]
    float* rois;                          // [N, P, 4], out, like the next two
    float* scores;                        // [N, P]
    int32_t* counts;                      // [N]
    int32_t anchor_counts[kMostLevels];
    float iou_threshold, score_threshold, min_size;
    float box_weights[4];
    int32_t levels, pre_nms, post_nms;
};

// Where a block finds its level: blockIdx is (·, level, image) where slices or tiles come first, else (level, image).
struct LevelPlace {
    int32_t level, image, anchors, most;
    int64_t place;  // among [N, L]
};

REGIONRT_DEVICE LevelPlace level_place(const ProposalsCall& call, int32_t level, int32_t image) {
    const int32_t anchors = call.anchor_counts[level];
    return {level, image, anchors, smaller(call.pre_nms, anchors), (int64_t)image * call.levels + level};
}

REGIONRT_DEVICE uint64_t* keys_of(const ProposalsCall& call, const LevelPlace& at) {
    int64_t before = 0, all = 0;
    for (int32_t i = 0; i < call.levels; ++i) {
        before += i < at.level ? call.anchor_counts[i] : 0;
        all += call.anchor_counts[i];
    }
    return call.keys + at.image * all + before;
}

template <class T>
REGIONRT_DEVICE const T* logits_of(const ProposalsCall& call, const LevelPlace& at) {
    return static_cast<const T*>(call.objectness[at.level]) + (int64_t)at.image * at.anchors;
}

REGIONRT_DEVICE int32_t bin_of(uint32_t rank) { return (int32_t)(rank >> 21); }

struct HistogramShared {
    int32_t bins[kBins];
};

template <class T>
REGIONRT_DEVICE void proposals_histogram(const ProposalsCall& call) {
    REGIONRT_SHARED(HistogramShared, shared);
    const LevelPlace at = level_place(call, blockIdx.y, blockIdx.z);
    const T* logits = logits_of<T>(call, at);
    for (int32_t i = threadIdx.x; i < kBins; i += blockDim.x) shared.bins[i] = 0;
    __syncthreads();
    for (int32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < at.anchors; i += kSlices * blockDim.x) {
        atomicAdd(&shared.bins[bin_of(rank_of(to_float(logits[i])))], 1);
    }
    __syncthreads();
    int32_t* bins = call.histograms + (at.place * kSlices + blockIdx.x) * kBins;
    for (int32_t i = threadIdx.x; i < kBins; i += blockDim.x) bins[i] = shared.bins[i];
    if (blockIdx.x == 0 && threadIdx.x == 0) call.found[at.place] = 0;
}

struct CandidatesShared {
    Places places;
    int32_t last_bin;
};

// Everything up to the bin in which the last of the best lies, in any order: as many as are wanted, and some more.
template <class T>
REGIONRT_DEVICE void proposals_candidates(const ProposalsCall& call) {
    REGIONRT_SHARED(CandidatesShared, shared);
    const LevelPlace at = level_place(call, blockIdx.y, blockIdx.z);
    const T* logits = logits_of<T>(call, at);
    const int32_t* bins = call.histograms + at.place * kSlices * kBins;
    if (threadIdx.x == 0) shared.last_bin = kBins - 1;
    int32_t before = 0;
    for (int32_t start = 0; start < kBins && before < at.most; start += blockDim.x) {
        const int32_t bin = start + threadIdx.x;
        int32_t mine = 0, total;
        for (int32_t slice = 0; bin < kBins && slice < kSlices; ++slice) mine += bins[slice * kBins + bin];
        const int32_t first = before + sum_before(shared.places, mine, total);
        if (first < at.most && first + mine >= at.most) shared.last_bin = bin;
        before += total;
    }
    __syncthreads();
    const int32_t last = shared.last_bin, lane = threadIdx.x % 32, step = kSlices * blockDim.x;
    uint64_t* keys = keys_of(call, at);
    for (int32_t start = blockIdx.x * blockDim.x; start < at.anchors; start += step) {
        const int32_t i = start + threadIdx.x;
        const uint32_t rank = i < at.anchors ? rank_of(to_float(logits[i])) : 0xffffffffu;
        const bool mine = i < at.anchors && bin_of(rank) <= last;
        const unsigned votes = __ballot_sync(~0u, mine);
        int32_t place = 0;
        if (lane == 0 && votes) place = atomicAdd(&call.found[at.place], __popc(votes));
        place = __shfl_sync(~0u, place, 0) + __popc(votes & ((1u << lane) - 1));
        if (mine) keys[place] = key_of(rank, (uint32_t)i);
    }
}

struct LevelKeys {
    const uint64_t* keys;
    int32_t count;

    template <class Visit>
    REGIONRT_DEVICE void operator()(const Visit& visit) const {
        for (int32_t i = threadIdx.x; i < count; i += blockDim.x) visit(keys[i]);
    }
};

struct DecodedShared {
    uint64_t keys[kMostBoxes];
    Selection selection;
};

template <class T>
REGIONRT_DEVICE void proposals_decoded(const ProposalsCall& call) {
    REGIONRT_SHARED(DecodedShared, shared);
    const LevelPlace at = level_place(call, blockIdx.x, blockIdx.y);
    const T* logits = logits_of<T>(call, at);
    const T* deltas = static_cast<const T*>(call.deltas[at.level]) + (int64_t)at.image * at.anchors * 4;
    const int32_t found = call.found[at.place];
    best_keys(shared.selection, shared.keys, found, at.most, LevelKeys{keys_of(call, at), found});
    Box<float>* boxes = call.boxes + at.place * call.pre_nms;
    float* scores = call.box_scores + at.place * call.pre_nms;
    uint32_t* alive = call.alive + at.place * words_of(call.pre_nms);
    const int32_t* size = call.image_sizes + 2 * at.image;
    const float* weight = call.box_weights;
    const ProposalRules rules = {call.score_threshold, call.min_size, {weight[0], weight[1], weight[2], weight[3]},
                                 (float)size[0],       (float)size[1]};
    for (int32_t start = 0; start < at.most; start += blockDim.x) {
        const int32_t i = start + threadIdx.x;
        bool valid = false;
        if (i < at.most) {
            const int32_t index = (int32_t)(uint32_t)shared.keys[i];
            const T* delta = deltas + 4 * (int64_t)index;
            const float* anchor = call.anchors[at.level] + 4 * (int64_t)index;
            const Proposal proposal =
                proposal_of(to_float(logits[index]), to_float(delta[0]), to_float(delta[1]), to_float(delta[2]),
                            to_float(delta[3]), {anchor[0], anchor[1], anchor[2], anchor[3]}, rules);
            boxes[i] = proposal.box;
            scores[i] = proposal.score;
            valid = proposal.valid;
        }
        const unsigned votes = __ballot_sync(~0u, valid);
        if (i % 32 == 0 && i < at.most) alive[i / 32] = votes;
    }
}

REGIONRT_DEVICE void proposals_overlaps(const ProposalsCall& call) {
    REGIONRT_SHARED(OverlapShared, shared);
    const LevelPlace at = level_place(call, blockIdx.y, blockIdx.z);
    find_overlaps(shared, call.boxes + at.place * call.pre_nms, nullptr, at.most, call.pre_nms, call.iou_threshold,
                  call.overlaps + at.place * words_of(call.pre_nms) * call.pre_nms);
}

struct SuppressedShared {
    GreedyShared greedy;
    Places places;
};

// What is kept moves to the front of the level's lists.
REGIONRT_DEVICE void proposals_suppressed(const ProposalsCall& call) {
    REGIONRT_SHARED(SuppressedShared, shared);
    const LevelPlace at = level_place(call, blockIdx.x, blockIdx.y);
    const int32_t words = words_of(call.pre_nms);
    Box<float>* boxes = call.boxes + at.place * call.pre_nms;
    float* scores = call.box_scores + at.place * call.pre_nms;
    keep_greedily(shared.greedy, call.alive + at.place * words, call.overlaps + at.place * words * call.pre_nms, at.most,
                  call.pre_nms, call.post_nms);
    int32_t kept = 0;
    for (int32_t start = 0; start < at.most && kept < call.post_nms; start += blockDim.x) {
        const int32_t i = start + threadIdx.x;
        const bool mine = i < at.most && is_alive(shared.greedy, i);
        const Box<float> box = mine ? boxes[i] : Box<float>{};
        const float score = mine ? scores[i] : 0.0f;
        int32_t total;
        const int32_t to = kept + place_of(shared.places, mine, total);  // all have read before any writes
        if (mine) {
            boxes[to] = box;
            scores[to] = score;
        }
        kept += total;
    }
    if (threadIdx.x == 0) call.box_counts[at.place] = kept;
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

struct MergedShared {
    float scores[kKeptScores];
    int32_t counts[kMostLevels];
};

// Each level's list is sorted: a proposal's place is how many of all lists come before it. Of equal scores the finer
// level's comes first.
REGIONRT_DEVICE void proposals_merged(const ProposalsCall& call) {
    REGIONRT_SHARED(MergedShared, shared);
    const int32_t image = blockIdx.y, most = call.post_nms, stride = smaller(call.pre_nms, most);
    const int64_t first = (int64_t)image * call.levels;
    const bool fits = call.levels * stride <= kKeptScores;
    if ((int32_t)threadIdx.x < call.levels) shared.counts[threadIdx.x] = call.box_counts[first + threadIdx.x];
    __syncthreads();
    for (int32_t level = 0; fits && level < call.levels; ++level) {
        const float* scores = call.box_scores + (first + level) * call.pre_nms;
        for (int32_t i = threadIdx.x; i < shared.counts[level]; i += blockDim.x) {
            shared.scores[level * stride + i] = scores[i];
        }
    }
    __syncthreads();
    const auto scores_of = [&](int32_t level) {
        return fits ? shared.scores + level * stride : call.box_scores + (first + level) * call.pre_nms;
    };
    float* rois = call.rois + (int64_t)image * most * 4;
    float* scores = call.scores + (int64_t)image * most;
    int32_t total = 0;
    for (int32_t level = 0; level < call.levels; ++level) {
        const int32_t count = shared.counts[level];
        const float* mine = scores_of(level);
        const Box<float>* boxes = call.boxes + (first + level) * call.pre_nms;
        total += count;
        for (int32_t i = threadIdx.x; i < count; i += blockDim.x) {
            int32_t at = i;
            for (int32_t other = 0; other < call.levels; ++other) {
                if (other == level) continue;
                at += count_before(scores_of(other), shared.counts[other], mine[i], other < level);
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

#define REGIONRT_PROPOSALS_STEP(kernel, threads, call_of)                          \
    extern "C" __global__ void __launch_bounds__(threads, 1) kernel(                  \
        const __grid_constant__ regionrt::ProposalsCall call) {                    \
        call_of(call);                                                             \
    }                                                                              \
    REGIONRT_EXPORT(kernel)

#define REGIONRT_PROPOSALS(name, T)                                                                       \
    REGIONRT_PROPOSALS_STEP(proposals_histogram_##name, 1024, regionrt::proposals_histogram<T>)           \
    REGIONRT_PROPOSALS_STEP(proposals_candidates_##name, 1024, regionrt::proposals_candidates<T>)         \
    REGIONRT_PROPOSALS_STEP(proposals_decoded_##name, 1024, regionrt::proposals_decoded<T>)

REGIONRT_PROPOSALS(f32, float)
REGIONRT_PROPOSALS(f16, regionrt::float16)
REGIONRT_PROPOSALS(bf16, regionrt::bfloat16_t)

REGIONRT_PROPOSALS_STEP(proposals_overlaps, 256, regionrt::proposals_overlaps)
REGIONRT_PROPOSALS_STEP(proposals_suppressed, 1024, regionrt::proposals_suppressed)
REGIONRT_PROPOSALS_STEP(proposals_merged, 1024, regionrt::proposals_merged)
