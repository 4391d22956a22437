// What lets one source be C++ for a CPU and CUDA for a GPU: the marks on functions, and minimum and maximum.
//
// Arithmetic that promises exact results is written without fused multiply-add: compile with -ffp-contract=off (g++,
// clang++) or --fmad=false (nvcc, NVRTC). Where a fused multiply-add is wanted, the code asks for it by name.
#pragma once

#if defined(__CUDACC__)
#define REGIONRT_HD __host__ __device__ __forceinline__
#else
#define REGIONRT_HD inline __attribute__((always_inline))
#endif

#if !defined(__CUDACC_RTC__)
#include <stdint.h>
#include <string.h>
#else  // NVRTC has no headers of the system
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;
#endif

namespace regionrt {

// For scalars, and lane by lane for vectors. Of a NaN and a number either may come out: callers that care test for it.
template <class T>
REGIONRT_HD T smaller(T a, T b) {
    return a < b ? a : b;
}

template <class T>
REGIONRT_HD T larger(T a, T b) {
    return a > b ? a : b;
}

template <class To, class From>
REGIONRT_HD To bits_as(From value) {
    static_assert(sizeof(To) == sizeof(From), "the same number of bytes");
    To result;
    memcpy(&result, &value, sizeof result);
    return result;
}

}  // namespace regionrt
