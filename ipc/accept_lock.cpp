#include "ipc/accept_lock.hpp"

#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>

#include "ipc/shared_memory.hpp"
#include "ipc/syscall.hpp"

namespace c10k {
namespace {

/// A classic POSIX lock, not an OFD lock: it belongs to the process, so that workers exclude each other
/// though they inherited one open file (to which an OFD lock would belong, and which no single worker's
/// death closes). The price is that the process's first close of any descriptor of that file drops
/// it; here each process has just the one.
class FcntlLock : public AcceptLock {
 public:
  bool try_lock() override {
    if (retry_eintr([&] { return set(F_WRLCK); }) == 0) return true;
    if (errno == EAGAIN || errno == EACCES) return false;  // POSIX allows both
    throw_system_error(errno, "fcntl {} F_SETLK F_WRLCK", file_.get());
  }
  void unlock() override {
    checked([&] { return set(F_UNLCK); }, "fcntl {} F_SETLK F_UNLCK", file_.get());
  }
  [[nodiscard]] int fd() const override { return file_.get(); }

 private:
  [[nodiscard]] int set(short type) const {
    struct flock lock {};
    lock.l_type = type;
    lock.l_whence = SEEK_SET;
    return ::fcntl(file_.get(), F_SETLK, &lock);
  }

  OwnedFd file_{
      checked([] { return ::memfd_create("c10k-accept-lock", MFD_CLOEXEC); }, "memfd_create")};
};

void check(int error, const char* call) {
  if (error != 0) throw_system_error(error, "{}", call);
}

/// Robust: the kernel walks a dying thread's list of held mutexes and marks them, and the next to lock
/// is told EOWNERDEAD.
class MutexLock : public AcceptLock {
 public:
  MutexLock() {
    pthread_mutexattr_t attributes;
    check(::pthread_mutexattr_init(&attributes), "pthread_mutexattr_init");
    check(::pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED),
          "pthread_mutexattr_setpshared");
    check(::pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST),
          "pthread_mutexattr_setrobust");
    check(::pthread_mutex_init(&shared_[0], &attributes), "pthread_mutex_init");
    ::pthread_mutexattr_destroy(&attributes);
  }

  bool try_lock() override {
    const int error = ::pthread_mutex_trylock(&shared_[0]);
    if (error == EBUSY) return false;
    if (error == EOWNERDEAD) {
      // What it guards is the kernel's accept queue, which a death does not leave half changed.
      check(::pthread_mutex_consistent(&shared_[0]), "pthread_mutex_consistent");
      return true;
    }
    check(error, "pthread_mutex_trylock");
    return true;
  }
  void unlock() override { check(::pthread_mutex_unlock(&shared_[0]), "pthread_mutex_unlock"); }

 private:
  SharedArray<pthread_mutex_t> shared_{1};
};

}  // namespace

std::shared_ptr<AcceptLock> fcntl_accept_lock() {
  return std::make_shared<FcntlLock>();
}

std::shared_ptr<AcceptLock> mutex_accept_lock() {
  return std::make_shared<MutexLock>();
}

}  // namespace c10k
