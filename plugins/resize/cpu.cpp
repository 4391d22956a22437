// The resize onto the canvas on a CPU: blocks of target rows in parallel, in each every source row is widened once.

#include "../native/parallel.h"
#include "../native/regionrt.h"
#include "../native/scratch.h"
#include "../native/vector.h"
#include "core.h"

namespace regionrt {
namespace REGIONRT_VARIANT {

constexpr int64_t kRowsPerItem = 32;

typedef float Pixel __attribute__((vector_size(16)));  // three channels and one that is overwritten by the next pixel

// A target pixel of one source row: what lies between its pixels at `low` and at `high`.
static inline Pixel between(const uint8_t* low, const uint8_t* high, float weight) {
    Pixel pair[2];
#if defined(__AVX2__)  // both in one conversion: GCC takes vectors of a few bytes apart byte by byte
    const __m128i bytes = _mm_set_epi32(0, 0, load_as<int32_t>(high), load_as<int32_t>(low));
    store_as(pair, _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)));
#elif defined(__SSE2__)
    const __m128i none = _mm_setzero_si128();
    const __m128i words = _mm_unpacklo_epi8(_mm_set_epi32(0, 0, load_as<int32_t>(high), load_as<int32_t>(low)), none);
    pair[0] = (Pixel)_mm_cvtepi32_ps(_mm_unpacklo_epi16(words, none));
    pair[1] = (Pixel)_mm_cvtepi32_ps(_mm_unpackhi_epi16(words, none));
#else
    for (int c = 0; c < 4; ++c) pair[0][c] = (float)low[c], pair[1][c] = (float)high[c];
#endif
    return mix(pair[0], pair[1], (1 - weight) - Pixel{}, weight - Pixel{});
}

// One source row at the target's width: out [width · channels]. `taps` are in pixels.
static void widen_row(const uint8_t* row, int32_t source, const LinearTap* taps, int64_t width, int64_t channels,
                      float* out) {
    int64_t x = 0;
    if (channels == 3) {  // four bytes are read per pixel, which the last one of the row does not have
        for (; x + 1 < width && taps[x].high + 1 < source; ++x) {
            store_as(out + 3 * x, between(row + 3 * taps[x].low, row + 3 * taps[x].high, taps[x].weight));
        }
    }
    for (; x < width; ++x) {
        const uint8_t *low = row + channels * taps[x].low, *high = row + channels * taps[x].high;
        const float weight = taps[x].weight;
        for (int64_t c = 0; c < channels; ++c) {
            out[x * channels + c] = mix((float)low[c], (float)high[c], 1 - weight, weight);
        }
    }
}

// Rounded half to even: adding 1.5 · 2^23 leaves no bits for a fraction, and the whole number in the lowest ones.
constexpr float kRounder = 12582912.0f;

static void mix_rows(const float* upper, const float* lower, float weight, int64_t count, uint8_t* out) {
    const Floats low_weight = spread(1 - weight), high_weight = spread(weight);
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
        const Floats value = mix(load(upper + i), load(lower + i), low_weight, high_weight) + kRounder;
        store_as(out + i, __builtin_convertvector(bits_as<Words>(value) & 0xff, Bytes));
    }
    for (; i < count; ++i) {
        out[i] = (uint8_t)bits_as<uint32_t>(mix(upper[i], lower[i], 1 - weight, weight) + kRounder);
    }
}

int32_t resize(const regionrt_resize_call* call) {
    const int64_t width = call->out_width, height = call->out_height, channels = call->channels;
    const int64_t items = (height + kRowsPerItem - 1) / kRowsPerItem;
    if (call->out_height == call->height && call->out_width == call->width) {
        for (int64_t y = 0; y < height; ++y) {
            memcpy(call->out + y * call->out_row_bytes, call->image + y * call->row_bytes, (size_t)(width * channels));
        }
        return 0;
    }
    Scratch<LinearTap> across(width);
    if (across.failed()) return REGIONRT_NO_MEMORY;
    for (int64_t x = 0; x < width; ++x) across[x] = linear_tap(x, call->width, width);
    Failure failure;
    auto block = [&](int64_t item) {
        Scratch<float> memory(2 * width * channels);
        if (memory.failed()) return failure.note();
        float* held[2] = {memory.get(), memory.get() + width * channels};
        int32_t holds[2] = {-1, -1};
        auto widened = [&](int32_t row, int32_t keep) {  // `keep`: a row that must stay
            for (int i = 0; i < 2; ++i) {
                if (holds[i] == row) return held[i];
            }
            const int slot = holds[0] == keep ? 1 : 0;
            holds[slot] = row;
            widen_row(call->image + row * call->row_bytes, call->width, across.get(), width, channels, held[slot]);
            return held[slot];
        };
        const int64_t end = smaller<int64_t>((item + 1) * kRowsPerItem, height);
        for (int64_t y = item * kRowsPerItem; y < end; ++y) {
            const LinearTap tap = linear_tap(y, call->height, height);
            const float* upper = widened(tap.low, tap.high);
            const float* lower = widened(tap.high, tap.low);
            mix_rows(upper, lower, tap.weight, width * channels, call->out + y * call->out_row_bytes);
        }
    };
    parallel_for(items, width * height < 16384 ? 1 : call->threads, block);
    return failure.noted() ? REGIONRT_NO_MEMORY : 0;
}

}  // namespace REGIONRT_VARIANT
}  // namespace regionrt
