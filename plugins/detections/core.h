// One detection from one RoI and one class, beside reference.py, which defines it; for CPU and CUDA alike.
#pragma once

#include "../boxes.h"

namespace regionrt {

struct DetectionRules {
    float min_size;
    float box_weights[4];
    float height, width;  // of the image
};

// The probability of one class, from exp(logit − largest logit) and the sum of these over all classes, in float64.
REGIONRT_HD float probability_of(double exponent, double sum) { return (float)(exponent / sum); }

// exp of one logit less the row's largest; the difference is rounded to float32 as reference.py does.
REGIONRT_HD double shifted_exp(float logit, float largest) { return exp_portable((double)(logit - largest)); }

REGIONRT_HD Box<float> detection_box(float dx, float dy, float dw, float dh, const Box<float>& roi,
                                     const DetectionRules& rules) {
    const float* weight = rules.box_weights;
    return clip(decode(dx / weight[0], dy / weight[1], dw / weight[2], dh / weight[3], roi), rules.height, rules.width);
}

}  // namespace regionrt
