// The thread pool behind parallel.h, on pthreads alone: the library then needs no C++ runtime on the device.

#include "parallel.h"

#include <pthread.h>
#include <stdlib.h>

namespace regionrt {
namespace {

constexpr int kMostWorkers = 255;

struct Job {
    Work work;
    void* context;
    int64_t items;
    int64_t next;  // claimed with atomic additions
    int wanted;    // helpers that may still join; guarded by the pool's mutex, like the rest
    int inside;    // helpers at work
    Job* behind;
    pthread_cond_t left;

    void run() {
        for (int64_t item; (item = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED)) < items;) work(context, item);
    }
};

struct Pool {
    pthread_mutex_t mutex;
    pthread_cond_t arrived;
    Job* first;
    int workers;

    void run(Job& job) {
        pthread_mutex_lock(&mutex);
        grow(job.wanted);
        Job** end = &first;
        while (*end != nullptr) end = &(*end)->behind;
        *end = &job;
        pthread_mutex_unlock(&mutex);
        if (job.wanted == 1) {
            pthread_cond_signal(&arrived);
        } else {
            pthread_cond_broadcast(&arrived);
        }
        job.run();
        pthread_mutex_lock(&mutex);
        remove(job);
        while (job.inside > 0) pthread_cond_wait(&job.left, &mutex);
        pthread_mutex_unlock(&mutex);
    }

    void grow(int helpers) {
        while (workers < helpers && workers < kMostWorkers) {
            pthread_t thread;
            // Where no more threads are to be had, the caller does what they would have done.
            if (pthread_create(&thread, nullptr, enter, this) != 0) return;
            pthread_detach(thread);
            ++workers;
        }
    }

    void remove(Job& job) {
        for (Job** at = &first; *at != nullptr; at = &(*at)->behind) {
            if (*at == &job) {
                *at = job.behind;
                return;
            }
        }
    }

    static void* enter(void* pool) {
        static_cast<Pool*>(pool)->help();
        return nullptr;
    }

    void help() {
        pthread_mutex_lock(&mutex);
        for (;;) {
            while (first == nullptr) pthread_cond_wait(&arrived, &mutex);
            Job& job = *first;
            ++job.inside;
            if (--job.wanted == 0) remove(job);
            pthread_mutex_unlock(&mutex);
            job.run();
            pthread_mutex_lock(&mutex);
            remove(job);  // nothing is left of it to claim
            if (--job.inside == 0) pthread_cond_signal(&job.left);
        }
    }
};

Pool* pool = nullptr;  // never freed: threads may still sleep in it while the process ends
pthread_mutex_t making = PTHREAD_MUTEX_INITIALIZER;

// A forked child has none of its parent's threads, and its copies of the locks may be held: it starts anew.
void forget_pool() {
    pool = nullptr;
    making = PTHREAD_MUTEX_INITIALIZER;
}

Pool* the_pool() {
    Pool* found = __atomic_load_n(&pool, __ATOMIC_ACQUIRE);
    if (found != nullptr) return found;
    pthread_mutex_lock(&making);
    static bool registered = false;
    if (!registered) registered = pthread_atfork(nullptr, nullptr, forget_pool) == 0;
    if (pool == nullptr) {
        found = static_cast<Pool*>(calloc(1, sizeof(Pool)));
        if (found != nullptr) {
            pthread_mutex_init(&found->mutex, nullptr);
            pthread_cond_init(&found->arrived, nullptr);
            __atomic_store_n(&pool, found, __ATOMIC_RELEASE);
        }
    }
    found = pool;
    pthread_mutex_unlock(&making);
    return found;
}

}  // namespace

void parallel(int64_t items, int threads, Work work, void* context) {
    if (threads > items) threads = static_cast<int>(items);
    if (threads > kMostWorkers + 1) threads = kMostWorkers + 1;
    Pool* helpers = threads > 1 ? the_pool() : nullptr;
    if (helpers == nullptr) {  // also when there is no memory for a pool
        for (int64_t item = 0; item < items; ++item) work(context, item);
        return;
    }
    Job job = {work, context, items, 0, threads - 1, 0, nullptr, PTHREAD_COND_INITIALIZER};
    helpers->run(job);
    pthread_cond_destroy(&job.left);
}

}  // namespace regionrt
