// Vectors of the widest registers that this variant of the library is compiled for, by GCC's and clang's extension:
// 16 lanes with AVX-512, 8 with AVX2, else 4 (SSE2, NEON). Arithmetic and comparisons are the plain operators.
#pragma once

#include "portable.h"

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace regionrt {
namespace REGIONRT_VARIANT {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));
typedef uint8_t Bytes __attribute__((vector_size(kLanes)));

struct bfloat16 {  // the upper half of a float32
    uint16_t bits;
};

template <class Vector, class Scalar>
static inline Vector load_as(const Scalar* from) {
    Vector value;
    memcpy(&value, from, sizeof value);
    return value;
}

template <class Vector, class Scalar>
static inline void store_as(Scalar* to, Vector value) {
    memcpy(to, &value, sizeof value);
}

static inline Floats spread(float value) { return value - Floats{}; }

static inline Floats load(const float* from) { return load_as<Floats>(from); }

static inline Floats load(const bfloat16* from) {
    return bits_as<Floats>(__builtin_convertvector(load_as<Halves>(from), Words) << 16);
}

static inline float load_one(const float* from) { return *from; }

static inline float load_one(const bfloat16* from) { return bits_as<float>((uint32_t)from->bits << 16); }

static inline void store(float* to, Floats value) { store_as(to, value); }

// Rounded to the nearest, ties to even, as every library does; a NaN keeps its upper bits and stays one.
static inline void store(bfloat16* to, Floats value) {
    const Words bits = bits_as<Words>(value);
    const Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const Words quiet = (bits >> 16) | 0x40;
    store_as(to, __builtin_convertvector((bits & 0x7fffffff) > 0x7f800000 ? quiet : rounded, Halves));
}

static inline void store_one(float* to, float value) { *to = value; }

static inline void store_one(bfloat16* to, float value) {
    const uint32_t bits = bits_as<uint32_t>(value);
    const bool nan = (bits & 0x7fffffff) > 0x7f800000;
    to->bits = (uint16_t)(nan ? (bits >> 16) | 0x40 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// a·b + c: fused where the registers can, which only ops without a promise of exactness use.
static inline Floats multiply_add(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
    return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__) && defined(__FMA__)
    return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
    return (Floats)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}

static inline float multiply_add(float a, float b, float c) {
#if defined(__FMA__) || defined(__aarch64__)
    return __builtin_fmaf(a, b, c);
#else
    return a * b + c;
#endif
}

// out[j * out_stride + i] = in[i * in_stride + j] for 4 × 4 values.
template <class Out>
static inline void transpose_square(const float* in, int64_t in_stride, Out* out, int64_t out_stride) {
    for (int i = 0; i < 4; ++i) {
        for (int j = 0; j < 4; ++j) store_one(out + j * out_stride + i, in[i * in_stride + j]);
    }
}

#if defined(__SSE2__)
static inline void transpose_square(const float* in, int64_t in_stride, float* out, int64_t out_stride) {
    __m128 row0 = _mm_loadu_ps(in), row1 = _mm_loadu_ps(in + in_stride);
    __m128 row2 = _mm_loadu_ps(in + 2 * in_stride), row3 = _mm_loadu_ps(in + 3 * in_stride);
    _MM_TRANSPOSE4_PS(row0, row1, row2, row3);
    _mm_storeu_ps(out, row0);
    _mm_storeu_ps(out + out_stride, row1);
    _mm_storeu_ps(out + 2 * out_stride, row2);
    _mm_storeu_ps(out + 3 * out_stride, row3);
}
#endif

// Whether a lane of a comparison's result is set.
static inline bool any(Ints lanes) {
#if defined(__AVX512F__)
    return _mm512_test_epi32_mask((__m512i)lanes, (__m512i)lanes) != 0;
#elif defined(__AVX2__)
    return _mm256_movemask_epi8((__m256i)lanes) != 0;
#elif defined(__SSE2__)
    return _mm_movemask_epi8((__m128i)lanes) != 0;
#elif defined(__aarch64__)
    return vmaxvq_u32((uint32x4_t)lanes) != 0;
#else
    int32_t joined = 0;
    for (int lane = 0; lane < kLanes; ++lane) joined |= lanes[lane];
    return joined != 0;
#endif
}

}  // namespace REGIONRT_VARIANT
}  // namespace regionrt
