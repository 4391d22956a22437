// One proposal from one anchor, beside reference.py, which defines it; for CPU and CUDA alike.
#pragma once

#include "../boxes.h"

namespace regionrt {

struct ProposalRules {
    float score_threshold, min_size;
    float box_weights[4];
    float height, width;  // of the image
};

struct Proposal {
    Box<float> box;
    float score;
    bool valid;  // large enough and scoring enough
};

REGIONRT_HD Proposal proposal_of(float logit, float dx, float dy, float dw, float dh, const Box<float>& anchor,
                                 const ProposalRules& rules) {
    const float* weight = rules.box_weights;
    const Box<float> moved = decode(dx / weight[0], dy / weight[1], dw / weight[2], dh / weight[3], anchor);
    const Box<float> box = clip(moved, rules.height, rules.width);
    const float score = sigmoid(logit);
    return {box, score, (bool)(large_enough(box, rules.min_size) & (score >= rules.score_threshold))};
}

}  // namespace regionrt
