// The C ABI: which variants there are, which of them this CPU can run, and calls into the chosen one.

#include <string.h>

#include "regionrt.h"
#include "table.h"

namespace regionrt {

#define REGIONRT_DECLARE(name) \
    namespace name {           \
    extern const Table table;  \
    }
REGIONRT_VARIANTS(REGIONRT_DECLARE)

namespace {

#if defined(__x86_64__)
const char* lacking_avx2() {
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2")) return "AVX2";
    if (!__builtin_cpu_supports("fma")) return "FMA";
    return nullptr;
}

const char* lacking_avx512() {
    if (const char* lacking = lacking_avx2()) return lacking;
    if (!__builtin_cpu_supports("avx512f")) return "AVX-512 F";
    if (!__builtin_cpu_supports("avx512bw")) return "AVX-512 BW";
    if (!__builtin_cpu_supports("avx512dq")) return "AVX-512 DQ";
    if (!__builtin_cpu_supports("avx512vl")) return "AVX-512 VL";
    return nullptr;
}
#endif

const char* lacking_baseline() { return nullptr; }

struct Variant {
    const char* name;
    const Table* table;
    const char* (*lacking)();
};

#define REGIONRT_ENTRY(name) {#name, &name::table, lacking_##name},
const Variant variants[] = {REGIONRT_VARIANTS(REGIONRT_ENTRY)};

#define REGIONRT_NAME(name) #name " "
const char names[] = REGIONRT_VARIANTS(REGIONRT_NAME);

const Variant* variant_named(const char* name) {
    for (const Variant& variant : variants) {
        if (strcmp(variant.name, name) == 0) return &variant;
    }
    return nullptr;
}

const Table* chosen = &baseline::table;  // read and written atomically

}  // namespace
}  // namespace regionrt

using namespace regionrt;

int32_t regionrt_abi(void) { return REGIONRT_ABI; }

const char* regionrt_sources(void) { return REGIONRT_SOURCES; }

const char* regionrt_variants(void) { return names; }

const char* regionrt_why_not(const char* name) {
    const Variant* variant = variant_named(name);
    return variant == nullptr ? "such a variant" : variant->lacking();
}

int32_t regionrt_use(const char* name) {
    const Variant* variant = variant_named(name);
    if (variant == nullptr || variant->lacking() != nullptr) return -1;
    __atomic_store_n(&chosen, variant->table, __ATOMIC_RELEASE);
    return 0;
}

#define REGIONRT_CALL(name) \
    int32_t regionrt_##name(const regionrt_##name##_call* call) { \
        return __atomic_load_n(&chosen, __ATOMIC_ACQUIRE)->name(call); \
    }
#define REGIONRT_OPS(apply) \
    apply(roi_align) apply(roi_pool) apply(pyramid_pool) apply(warp) apply(nms) apply(proposals) apply(detections) \
    apply(merge) apply(paste) apply(extents) apply(rle) apply(resize) apply(max_pool) apply(max_unpool)
REGIONRT_OPS(REGIONRT_CALL)

int64_t regionrt_sizeof(const char* function) {
#define REGIONRT_SIZE(name) \
    if (strcmp(function, #name) == 0) return (int64_t)sizeof(regionrt_##name##_call);
    REGIONRT_OPS(REGIONRT_SIZE)
    return 0;
}
