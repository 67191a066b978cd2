// A lock between processes.
#pragma once

#include <pthread.h>

namespace c10k {

/// A process-shared mutex for std::lock_guard, in shared memory. Never destroyed, which the kernel does not
/// need: other processes may still use it. Not robust: who dies with it held ends the run.
class SharedMutex {
 public:
  SharedMutex() {
    pthread_mutexattr_t attributes;
    ::pthread_mutexattr_init(&attributes);
    ::pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    ::pthread_mutex_init(&mutex_, &attributes);
    ::pthread_mutexattr_destroy(&attributes);
  }
  SharedMutex(const SharedMutex&) = delete;
  SharedMutex& operator=(const SharedMutex&) = delete;

  void lock() { ::pthread_mutex_lock(&mutex_); }
  void unlock() { ::pthread_mutex_unlock(&mutex_); }

 private:
  pthread_mutex_t mutex_;
};

}  // namespace c10k
