// What the kernels are written against: CUDA's own words on a GPU (nvcc, NVRTC; no header of CUDA is needed), and
// cuda_on_cpu.cuh under a C++ compiler, where the same kernels are tested. Half and bfloat16 are bits with conversions.
#pragma once

#if defined(__CUDACC__)
#define REGIONRT_DEVICE __device__ __forceinline__
#define REGIONRT_CALLED __device__ __noinline__
#define REGIONRT_UNROLL _Pragma("unroll")
#define REGIONRT_ROLLED _Pragma("unroll 1")
#define REGIONRT_SHARED(Type, name) __shared__ Type name
#define REGIONRT_EXPORT(kernel)
#else
#include "cuda_on_cpu.cuh"
#define REGIONRT_DEVICE inline __attribute__((always_inline))
#define REGIONRT_CALLED inline
#define REGIONRT_UNROLL
#define REGIONRT_ROLLED
#endif

#include "portable.h"

namespace regionrt {

struct float16 {
    uint16_t bits;
};
struct bfloat16_t {
    uint16_t bits;
};

REGIONRT_DEVICE float to_float(float value) { return value; }

REGIONRT_DEVICE float to_float(bfloat16_t value) { return bits_as<float>((uint32_t)value.bits << 16); }

REGIONRT_DEVICE float to_float(float16 value) {
#if defined(__CUDACC__)
    float result;
    asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
    return result;
#else
    return (float)bits_as<_Float16>(value.bits);
#endif
}

template <class T>
REGIONRT_DEVICE T from_float(float value);

template <>
REGIONRT_DEVICE float from_float<float>(float value) {
    return value;
}

template <>
REGIONRT_DEVICE float16 from_float<float16>(float value) {
#if defined(__CUDACC__)
    float16 result;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
    return result;
#else
    return {bits_as<uint16_t>((_Float16)value)};
#endif
}

template <>
REGIONRT_DEVICE bfloat16_t from_float<bfloat16_t>(float value) {
    const uint32_t bits = bits_as<uint32_t>(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return {(uint16_t)((bits >> 16) | 0x40u)};  // stays a NaN
    return {(uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};                  // to nearest, ties to even
}

REGIONRT_DEVICE float infinity() { return bits_as<float>(0x7f800000u); }

// Scalars reach a kernel as int32, because TensorRT's plugins pass nothing else: a float travels as its bits.
REGIONRT_DEVICE float float_of(int32_t bits) { return bits_as<float>(bits); }

}  // namespace regionrt
