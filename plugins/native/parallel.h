// Work in parallel on the library's own threads, which sleep while there is nothing to do.
//
// The calling thread always works on its own job, so that a call never waits for another one's threads; idle threads
// of the pool help whoever is busy. All callers together use the pool's threads: several Python threads that call at
// once do not start a team each. Nothing spins, because the cores belong to the engine (ONNX Runtime, OpenVINO) between
// our ops. Items are claimed one by one, and no item's result depends on who computes it: any number of threads gives
// the same bytes.
#pragma once

#include <stdint.h>

namespace regionrt {

typedef void (*Work)(void* context, int64_t item);

// Calls work(context, item) for each of 0 … items−1, on up to `threads` threads, the calling one among them; returns
// when all are done.
void parallel(int64_t items, int threads, Work work, void* context);

// The same for a callable: parallel_for(n, threads, [&](int64_t item) { … }).
template <class Function>
inline void parallel_for(int64_t items, int threads, Function& function) {
    parallel(items, threads, [](void* context, int64_t item) { (*static_cast<Function*>(context))(item); }, &function);
}

}  // namespace regionrt
