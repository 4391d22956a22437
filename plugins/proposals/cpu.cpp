// RegionProposals on a CPU: images and levels in parallel, then the best of each image's levels.

#include "../native/order.h"
#include "../native/parallel.h"
#include "../native/regionrt.h"
#include "../nms/greedy.h"
#include "core.h"

namespace regionrt {
namespace REGIONRT_VARIANT {

struct Scored {
    Box<float> box;
    float score;
};

// The proposals of one level of one image into `kept`, best first; how many, or −1 without memory.
//
// At most `post_nms` are kept: each one behind them has that many of its own level before it in the final order.
template <class T>
static int64_t proposals_of_level(const regionrt_proposals_call* call, int64_t image, int64_t level, Scored* kept) {
    const int64_t anchors = call->anchor_counts[level];
    const int64_t most = smaller<int64_t>(call->pre_nms, anchors);
    const T* logits = static_cast<const T*>(call->objectness[level]) + image * anchors;
    const T* deltas = static_cast<const T*>(call->deltas[level]) + 4 * image * anchors;
    const int32_t* size = call->image_sizes + 2 * image;
    ProposalRules rules = {call->score_threshold, call->min_size, {}, (float)size[0], (float)size[1]};
    memcpy(rules.box_weights, call->box_weights, sizeof rules.box_weights);
    Scratch<Ranked> best(0);
    Scratch<Proposal> decoded(most);
    Kept boxes(smaller<int64_t>(call->post_nms, most), call->iou_threshold);
    if (decoded.failed() || boxes.failed() || !best_values(logits, anchors, most, best)) return -1;
    for (int64_t i = 0; i < most; ++i) {
        const int64_t at = best[i].index;
        const T* delta = deltas + 4 * at;
        const float* anchor = call->anchors[level] + 4 * at;
        decoded[i] = proposal_of(load_one(logits + at), load_one(delta), load_one(delta + 1), load_one(delta + 2),
                                 load_one(delta + 3), {anchor[0], anchor[1], anchor[2], anchor[3]}, rules);
    }
    for (int64_t i = 0; i < most && boxes.count() < call->post_nms; ++i) {
        const Proposal& proposal = decoded[i];
        if (!proposal.valid || boxes.suppresses(proposal.box)) continue;
        kept[boxes.count()] = {proposal.box, proposal.score};
        boxes.add(proposal.box, 0);
    }
    return boxes.count();
}

// The `post_nms` best of the levels of one image; of equal scores the finer level's comes first.
static bool merge_levels(const regionrt_proposals_call* call, int64_t image, const Scored* kept, const int64_t* counts) {
    const int64_t most = call->post_nms, levels = call->levels;
    Scratch<Ranked> order(levels * most), spare(levels * most);
    if (order.failed() || spare.failed()) return false;
    int64_t found = 0;
    for (int64_t level = 0; level < levels; ++level) {
        for (int64_t i = 0; i < counts[level]; ++i) {
            const int64_t at = level * most + i;
            order[found++] = {rank_of(kept[at].score), (int32_t)at};
        }
    }
    sort_ranked(order.get(), spare.get(), found);
    found = smaller(found, most);
    float* rois = call->rois + 4 * image * most;
    float* scores = call->scores + image * most;
    for (int64_t i = 0; i < found; ++i) {
        const Scored& one = kept[order[i].index];
        memcpy(rois + 4 * i, &one.box, sizeof one.box);
        scores[i] = one.score;
    }
    memset(rois + 4 * found, 0, (size_t)(most - found) * 4 * sizeof(float));
    memset(scores + found, 0, (size_t)(most - found) * sizeof(float));
    call->counts[image] = (int32_t)found;
    return true;
}

int32_t proposals(const regionrt_proposals_call* call) {
    const int64_t levels = call->levels, most = call->post_nms, all = levels * call->images;
    Scratch<Scored> kept(all * most);
    Scratch<int64_t> counts(all);
    if (kept.failed() || counts.failed()) return REGIONRT_NO_MEMORY;
    Failure failure;
    auto of_level = [&](int64_t index) {
        const int64_t image = index / levels, level = index % levels;
        const auto compute = call->logit_type == REGIONRT_BFLOAT16 ? proposals_of_level<bfloat16>
                                                                   : proposals_of_level<float>;
        counts[index] = compute(call, image, level, kept.get() + index * most);
        if (counts[index] < 0) failure.note();
    };
    parallel_for(all, call->threads, of_level);
    if (failure.noted()) return REGIONRT_NO_MEMORY;
    auto of_image = [&](int64_t image) {
        if (!merge_levels(call, image, kept.get() + image * levels * most, counts.get() + image * levels)) failure.note();
    };
    parallel_for(call->images, call->threads, of_image);
    return failure.noted() ? REGIONRT_NO_MEMORY : 0;
}

}  // namespace REGIONRT_VARIANT
}  // namespace regionrt
